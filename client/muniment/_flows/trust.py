"""Which checkpoints a client accepts: those its policy vouches for, and that it knows to belong to one growing tree.

Every checkpoint that arrives is compared with the remembered one of its origin. Of the same size, it must have the same
root. Of another size, the log must prove that the larger tree extends the smaller. The larger of the two is what is
remembered, so a smaller one is merely stale. Only what contradicts a signed root is called inconsistent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from muniment._flows import fields
from muniment._flows.steps import Call, Exclusive, Flow, Request, Retries, json_of, send
from muniment._flows.tilereader import TileReader
from muniment.errors import (
    BadProof,
    FormatError,
    Inconsistent,
    MunimentError,
    PolicyNotMet,
    Refused,
    Unproven,
)
from muniment.hashing import RootHash
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.proofs import verify_consistency
from muniment.receipt import Receipt
from muniment.state import State, remembered
from muniment.tree import fold, plan_inclusion

ACCEPTED = 1024
"""Accepted checkpoints kept in memory, so that a stale one is proved only once."""


class Trust:
    """What one client believes of one log.

    `origin` is the log's name once it is known: given, the one the policy lists for this URL, the only one it lists, or
    that of the first checkpoint accepted. `largest` is the largest checkpoint accepted so far. Any caller may
    read these; this class alone changes them.
    """

    def __init__(self, policy: Policy, state: State, url: str, origin: str | None, retries: Retries) -> None:
        self.policy = policy
        self.origin = origin if origin is not None else _origin_at(policy, url)
        self._state = state
        self._retries = retries
        self._accepted: OrderedDict[int, VerifiedCheckpoint] = OrderedDict()
        self.largest: VerifiedCheckpoint | None = None

    def check_origin(self, origin: str) -> None:
        """Raise PolicyNotMet when `origin` is not the log this client talks to."""
        if self.origin is not None and origin != self.origin:
            raise PolicyNotMet(f"this client is for the log {self.origin!r}, and the answer is about {origin!r}")

    def observe(self, note: str, receipts: Sequence[Receipt] = ()) -> Flow[VerifiedCheckpoint]:
        """Return the checkpoint in `note`, accepted: signed as the policy asks, and consistent with what is remembered.

        `receipts` are verified ones at this checkpoint. When one is of the entry right after the remembered tree, its
        inclusion proof holds the hashes that prove consistency, and no request is needed.

        Raises FormatError, BadSignature, PolicyNotMet, Inconsistent, Unproven, StateError, or what sending raises.
        """
        seen = self.policy.verify(note)
        self.check_origin(seen.checkpoint.origin)
        known = self._accepted.get(seen.checkpoint.size)
        if known is None or known.checkpoint.root != seen.checkpoint.root:
            yield Exclusive(self._settle(seen, receipts))
        return seen

    def _accept(self, seen: VerifiedCheckpoint) -> None:
        self.check_origin(seen.checkpoint.origin)
        self.origin = seen.checkpoint.origin
        self._accepted[seen.checkpoint.size] = seen
        if self.largest is None or seen.checkpoint.size > self.largest.checkpoint.size:
            self.largest = seen
        if len(self._accepted) > ACCEPTED:
            self._accepted.popitem(last=False)

    def _settle(self, seen: VerifiedCheckpoint, receipts: Sequence[Receipt]) -> Flow[None]:
        """Compare with the remembered checkpoint until the larger of the two is the remembered one, then accept."""
        settled = False
        while not settled:
            note = yield from self._recall(seen.checkpoint.origin)
            known = None if note is None else remembered(self.policy, seen.checkpoint.origin, note)
            if known is not None:
                yield from self._compare(known, seen, receipts)
            if known is not None and seen.checkpoint.size <= known.checkpoint.size:
                break
            # When another client that shares the state was faster, compare again, with what it saw.
            settled = yield from self._swap(note, seen)
        self._accept(seen)

    def _compare(self, known: VerifiedCheckpoint, seen: VerifiedCheckpoint, receipts: Sequence[Receipt]) -> Flow[None]:
        size = known.checkpoint.size
        following = [receipt for receipt in receipts if receipt.index == size and receipt.checkpoint == seen.note]
        if size and following:
            if prefix_root(size, seen.checkpoint.size, following[0].proof) != known.checkpoint.root:
                raise contradiction(known, seen)
        elif size <= seen.checkpoint.size:
            yield from self.prove(known, seen)
        else:
            yield from self.prove(seen, known)

    # --- the state ----------------------------------------------------------------------------------------------------

    def _recall(self, origin: str) -> Flow[str | None]:
        if not self._state.blocking:
            return self._state.get(origin)
        note: str | None = yield Call(lambda: self._state.get(origin))
        return note

    def _swap(self, expected: str | None, seen: VerifiedCheckpoint) -> Flow[bool]:
        origin = seen.checkpoint.origin
        if not self._state.blocking:
            return self._state.swap(origin, expected, seen.note)
        swapped: bool = yield Call(lambda: self._state.swap(origin, expected, seen.note))
        return swapped

    # --- consistency --------------------------------------------------------------------------------------------------

    def prove(self, older: VerifiedCheckpoint, newer: VerifiedCheckpoint) -> Flow[tuple[bytes, ...]]:
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
            proof = yield from self._fetch_proof(first.size, second.size)
            verify_consistency(first.size, second.size, first.root, second.root, proof)
        except (BadProof, FormatError, Refused) as error:
            if isinstance(error, Refused) and error.status in (401, 403):
                raise
            return (yield from self._prove_by_tiles(older, newer, error))
        return proof

    def _fetch_proof(self, first: int, second: int) -> Flow[tuple[bytes, ...]]:
        request = Request("GET", "/proof/consistency", {"first": first, "second": second})
        answer = json_of((yield from send(request, self._retries)))
        return fields.proof(answer)

    def _prove_by_tiles(
        self, older: VerifiedCheckpoint, newer: VerifiedCheckpoint, failure: MunimentError
    ) -> Flow[tuple[bytes, ...]]:
        """Decide from the tiles, which the larger root authenticates: they prove consistency or the contradiction.

        A server without proof routes (a static mirror) is served by this; a bad proof alone is no
        evidence against the log.
        """
        reader = TileReader(self._retries)  # its own: these tiles belong to a checkpoint that is not accepted yet
        size = older.checkpoint.size
        try:
            root = yield from reader.root_at(newer.checkpoint, size)
            proof = yield from reader.consistency(newer.checkpoint, size)
        except MunimentError:
            raise Unproven(
                f"the log does not prove that its trees of size {size} and {newer.checkpoint.size} are one: {failure}",
                (older.note, newer.note),
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


def _origin_at(policy: Policy, url: str) -> str | None:
    """Return the origin that a policy expects at a URL, or None when it leaves that open."""
    here = {log.vkey.name for log in policy.logs if log.url is not None and log.url.rstrip("/") == url}
    origins = here or {log.vkey.name for log in policy.logs}
    return origins.pop() if len(origins) == 1 else None


def contradiction(one: VerifiedCheckpoint, other: VerifiedCheckpoint) -> Inconsistent:
    older, newer = sorted((one, other), key=lambda signed: signed.checkpoint.size)
    first, second = older.checkpoint, newer.checkpoint
    return Inconsistent(
        f"the log {first.origin} signed two trees that contradict each other,"
        f" of size {first.size} with root {first.root.hex()}"
        f" and of size {second.size} with root {second.root.hex()}: keep both checkpoints, they are the evidence",
        (older.note, newer.note),
    )
