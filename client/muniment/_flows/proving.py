"""Proves that two signed checkpoints are of one growing tree: by the log's proof, or by tiles, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from muniment._flows import fields
from muniment._flows.steps import Flow, Request, Retries, json_of, send
from muniment._flows.tilereader import TileReader
from muniment.errors import (
    BadProof,
    Behind,
    FormatError,
    Inconsistent,
    Refused,
    Unproven,
    VerificationError,
)
from muniment.evidence import Evidence
from muniment.hashing import LeafHash, RootHash, node_hash
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.proofs import verify_consistency, whole_proof
from muniment.tree import fold, plan_inclusion


def prove(older: VerifiedCheckpoint, newer: VerifiedCheckpoint, retries: Retries) -> Flow[tuple[bytes, ...]]:
    """Return a checked consistency proof between two signed checkpoints of one log, older.size <= newer.size.

    Raises Inconsistent when the two contradict each other, Unproven when the log neither proves nor disproves it, and
    BadProof when they are of two logs.
    """
    _check_one_log(older, newer)
    first, second = older.checkpoint, newer.checkpoint
    if first.size == second.size:
        if first.root != second.root:
            raise contradiction(older, newer)
        return ()
    if not first.size:
        return ()  # every tree extends the empty one
    try:
        proof = yield from _fetch_proof(first.size, second.size, retries)
        verify_consistency(first.size, second.size, first.root, second.root, proof)
    except (BadProof, FormatError, Refused) as error:
        _raise_unless_absent(error)
        return (yield from _prove_by_tiles(older, newer, error, retries))
    return proof


def prove_shown(shown: VerifiedCheckpoint, seen: VerifiedCheckpoint, retries: Retries) -> Flow[tuple[bytes, ...]]:
    """Return the proof that the tree a server shows is part of the larger one that was seen before.

    Raises as :func:`prove`, and Behind when the server does not have the larger one.
    """
    try:
        return (yield from prove(shown, seen, retries))
    except Unproven as error:
        if not error.absent:
            raise
        raise Behind(shown.checkpoint.size, seen.checkpoint.size, error.notes) from error


def _raise_unless_absent(error: Exception) -> None:
    """Raise a refusal that says nothing about what the log has: it asks for a key."""
    if isinstance(error, Refused) and error.status in (401, 403):
        raise error


def _check_one_log(one: VerifiedCheckpoint, other: VerifiedCheckpoint) -> None:
    """Raise BadProof when the heads are of two logs of the policy: these contradict each other in nothing."""
    origins = one.checkpoint.origin, other.checkpoint.origin
    if origins[0] != origins[1]:
        raise BadProof(f"heads of two logs: {origins[0]!r} and {origins[1]!r}")


def _fetch_proof(first: int, second: int, retries: Retries) -> Flow[tuple[bytes, ...]]:
    request = Request("GET", "/proof/consistency", {"first": first, "second": second})
    answer = json_of((yield from send(request, retries)))
    return fields.proof(answer)


def _prove_by_tiles(
    older: VerifiedCheckpoint, newer: VerifiedCheckpoint, failure: Exception, retries: Retries
) -> Flow[tuple[bytes, ...]]:
    """Decide from the tiles, which the larger root authenticates: they prove consistency or the contradiction.

    A server without proof routes (a static mirror) is served by this; a bad proof alone is no
    evidence against the log. Nor is a server in trouble: what sending raises is raised.
    """
    reader = TileReader(retries)  # its own: these tiles belong to a checkpoint that is not accepted yet
    size = older.checkpoint.size
    try:
        root = yield from reader.root_at(newer.checkpoint, size)
        proof = yield from reader.consistency(newer.checkpoint, size)
    except (VerificationError, FormatError, Refused) as error:
        _raise_unless_absent(error)
        raise Unproven(
            f"the log does not prove that its trees of size {size} and {newer.checkpoint.size} are one: {failure}",
            (older.note, newer.note),
            absent=isinstance(failure, Refused) and isinstance(error, Refused),
        ) from failure
    if root != older.checkpoint.root:
        raise contradiction(older, newer, whole_proof(size, root, proof))
    return proof


def check_prefix(older: VerifiedCheckpoint, newer: VerifiedCheckpoint, reader: TileReader) -> Flow[None]:
    """Check by tiles that the tree of `older`, which is not empty, is part of that of `newer`. Raises Inconsistent."""
    _check_one_log(older, newer)
    size = older.checkpoint.size
    root = yield from reader.root_at(newer.checkpoint, size)
    if root != older.checkpoint.root:
        proof = yield from reader.consistency(newer.checkpoint, size)  # of tiles that the root took, and the edge
        raise contradiction(older, newer, whole_proof(size, root, proof) if size < newer.checkpoint.size else ())


def find_evidence(policy: Policy, one: str, other: str, retries: Retries) -> Flow[Evidence | None]:
    """Return evidence that two signed heads of one log contradict each other, None when the log proves that they agree.

    The log is asked when their sizes differ, and has to be the one that shows the larger tree. The quorum is not asked.
    Raises FormatError, BadSignature, PolicyNotMet, BadProof when the heads are of two logs, Unproven, or what sending
    raises.
    """
    older, newer = sorted((policy.signed(one), policy.signed(other)), key=lambda signed: signed.checkpoint.size)
    try:
        yield from prove(older, newer, retries)
    except Inconsistent as error:
        if error.evidence is None:
            raise
        found: Evidence = error.evidence
        return found
    return None


def prefix_root(index: int, size: int, proof: Sequence[bytes]) -> RootHash:
    """Return the root of the leaves [0, index), read from the inclusion proof of leaf `index` > 0 at `size`.

    The left siblings on the way up are exactly the complete subtrees of those leaves, smallest first.
    Requires a verified proof.
    """
    parts = plan_inclusion(index, size).parts
    left = [value for part, value in zip(parts, proof, strict=True) if part[0].index << part[0].height < index]
    return RootHash(fold(left[::-1]))


def prefix_proof(index: int, size: int, leaf: LeafHash, proof: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the consistency proof from size `index` > 0 to `size`, its first node explicit, as :func:`prefix_root`.

    It parts from the inclusion proof of leaf `index` where the two ways meet: left of it is the last complete subtree
    of the leaves [0, index), and right of it all that lies below.
    """
    parts = plan_inclusion(index, size).parts
    turn = next(at for at, part in enumerate(parts) if part[0].index << part[0].height < index)
    right: bytes = leaf
    for sibling in proof[:turn]:
        right = node_hash(right, sibling)
    return (proof[turn], right, *proof[turn + 1 :])


def contradiction(one: VerifiedCheckpoint, other: VerifiedCheckpoint, hashes: Sequence[bytes] = ()) -> Inconsistent:
    """Return the error of two heads that contradict each other, with evidence.

    `hashes` are the consistency proof in the larger tree, its first node explicit; without them two sizes make none.
    """
    older, newer = sorted((one, other), key=lambda signed: signed.checkpoint.size)
    first, second = older.checkpoint, newer.checkpoint
    return Inconsistent(
        f"the log {first.origin} signed two trees that contradict each other,"
        f" of size {first.size} with root {first.root.hex()}"
        f" and of size {second.size} with root {second.root.hex()}: keep both checkpoints, they are the evidence",
        (older.note, newer.note),
        Evidence.of(older, newer, hashes) if hashes or first.size == second.size else None,
    )
