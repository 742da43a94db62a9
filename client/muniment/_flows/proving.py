"""Proves that two signed checkpoints are of one growing tree: by the log's proof, or by tiles, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from muniment._flows import fields
from muniment._flows.steps import Flow, Request, Retries, json_of, send
from muniment._flows.tilereader import TileReader
from muniment.errors import BadProof, Behind, FormatError, Inconsistent, Refused, Unproven, VerificationError
from muniment.hashing import RootHash
from muniment.policy import VerifiedCheckpoint
from muniment.proofs import verify_consistency
from muniment.tree import fold, plan_inclusion


def prove(older: VerifiedCheckpoint, newer: VerifiedCheckpoint, retries: Retries) -> Flow[tuple[bytes, ...]]:
    """Return a checked consistency proof between two signed checkpoints of one log, older.size <= newer.size.

    Raises Inconsistent when the two contradict each other, Unproven when the log neither proves nor disproves it.
    """
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
        raise contradiction(older, newer)
    return proof


def prefix_root(index: int, size: int, proof: Sequence[bytes]) -> RootHash:
    """Return the root of the leaves [0, index), read from the inclusion proof of leaf `index` > 0 at `size`.

    The left siblings on the way up are exactly the complete subtrees of those leaves, smallest first.
    Requires a verified proof.
    """
    parts = plan_inclusion(index, size).parts
    left = [value for part, value in zip(parts, proof, strict=True) if part[0].index << part[0].height < index]
    return RootHash(fold(left[::-1]))


def contradiction(one: VerifiedCheckpoint, other: VerifiedCheckpoint) -> Inconsistent:
    older, newer = sorted((one, other), key=lambda signed: signed.checkpoint.size)
    first, second = older.checkpoint, newer.checkpoint
    return Inconsistent(
        f"the log {first.origin} signed two trees that contradict each other,"
        f" of size {first.size} with root {first.root.hex()}"
        f" and of size {second.size} with root {second.root.hex()}: keep both checkpoints, they are the evidence",
        (older.note, newer.note),
    )
