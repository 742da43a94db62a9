"""Which checkpoints a client accepts: those its policy vouches for, and that it knows to belong to one growing tree.

Every checkpoint that arrives is compared with the remembered one of its origin. Of the same size, it must have the same
root. Of another size, the log must prove that the larger tree extends the smaller. The larger of the two is what is
remembered, so a smaller one is merely stale. Only what contradicts a signed root is called inconsistent.

A server that does not have the larger tree yet can prove nothing about it. What it shows of its own smaller tree is
still signed by the log; a client that takes it compares it as soon as the server can.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from muniment._flows.proving import contradiction, prefix_proof, prefix_root, prove, prove_shown
from muniment._flows.steps import Call, Exclusive, Flow, Retries
from muniment.errors import Behind, PolicyNotMet, Unproven
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt
from muniment.state import State, remembered

ACCEPTED = 1024
"""Accepted checkpoints kept in memory, so that a stale one is proved only once."""
OWED = 64
"""Checkpoints of smaller trees taken before they could be compared, at most."""


class Trust:
    """What one client believes of one log.

    `origin` is the log's name once it is known: given, the one the policy lists for this URL, the only one it lists, or
    that of the first checkpoint accepted. `largest` is the largest checkpoint accepted so far. Any caller may
    read these; this class alone changes them. `owed` are smaller checkpoints that were taken from a server that was
    behind, by size: they are not accepted, and whatever is accepted has to extend them.
    """

    def __init__(self, policy: Policy, state: State, url: str, origin: str | None, retries: Retries) -> None:
        self.policy = policy
        self.origin = origin if origin is not None else _origin_at(policy, url)
        self._state = state
        self._retries = retries
        self._accepted: OrderedDict[int, VerifiedCheckpoint] = OrderedDict()
        self.owed: dict[int, VerifiedCheckpoint] = {}
        self.largest: VerifiedCheckpoint | None = None

    def check_origin(self, origin: str) -> None:
        """Raise PolicyNotMet when `origin` is not the log this client talks to."""
        if self.origin is not None and origin != self.origin:
            raise PolicyNotMet(f"this client is for the log {self.origin!r}, and the answer is about {origin!r}")

    def observe(self, note: str, receipts: Sequence[Receipt] = ()) -> Flow[VerifiedCheckpoint]:
        """Return the checkpoint in `note`, accepted: signed as the policy asks, and consistent with what is remembered.

        `receipts` are verified ones at this checkpoint. When one is of the entry right after the remembered tree, its
        inclusion proof holds the hashes that prove consistency, and no request is needed.

        Raises FormatError, BadSignature, PolicyNotMet, Inconsistent, Unproven, StateError, or what sending raises;
        Behind when the server does not have the remembered tree.
        """
        seen = self.policy.verify(note)
        self.check_origin(seen.checkpoint.origin)
        known = self._accepted.get(seen.checkpoint.size)
        if known is None or known.checkpoint.root != seen.checkpoint.root:
            yield Exclusive(self._settle(seen, receipts))
        return seen

    def observe_answer(self, note: str, receipts: Sequence[Receipt]) -> Flow[VerifiedCheckpoint]:
        """As :meth:`observe`, of the answer to an append. Its server writes, so it is never merely behind."""
        try:
            return (yield from self.observe(note, receipts))
        except Behind as behind:
            raise Unproven(f"{behind}, although it appends", behind.notes, absent=True) from behind

    def observe_part(self, note: str, receipts: Sequence[Receipt] = ()) -> Flow[VerifiedCheckpoint]:
        """As :meth:`observe`, of what the checkpoint itself proves. That of a server that is behind is owed a proof."""
        shown = self.policy.verify(note)
        owed = self.owed.get(shown.checkpoint.size)
        if owed is None or owed.checkpoint.root != shown.checkpoint.root:
            try:
                return (yield from self.observe(note, receipts))
            except Behind:
                if len(self.owed) >= OWED:
                    raise
                self.owed[shown.checkpoint.size] = shown
                self.origin = shown.checkpoint.origin
        return shown

    def _prove_owed(self, seen: VerifiedCheckpoint) -> Flow[None]:
        """Prove that the tree of `seen` extends each smaller one that is owed."""
        for size, owed in sorted(self.owed.items()):
            if size <= seen.checkpoint.size:
                yield from prove(owed, seen, self._retries)
                self.owed.pop(size, None)

    def check_memory(self) -> Flow[None]:
        """Raise StateError when what is remembered is damaged: before the first append, not after it is logged."""
        if self.largest is None:
            for origin in {log.vkey.name for log in self.policy.logs} if self.origin is None else {self.origin}:
                note = yield from self._recall(origin)
                if note is not None:
                    remembered(self.policy, origin, note)

    def seen_size(self) -> Flow[int]:
        """Return the size of the largest tree of this log that is remembered, 0 when none is. Raises StateError."""
        note = None if self.origin is None else (yield from self._recall(self.origin))
        known = None if note is None or self.origin is None else remembered(self.policy, self.origin, note)
        return 0 if known is None else known.checkpoint.size

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
        yield from self._prove_owed(seen)
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
            leaf, proof = following[0].leaf_hash, following[0].proof
            if prefix_root(size, seen.checkpoint.size, proof) != known.checkpoint.root:
                raise contradiction(known, seen, prefix_proof(size, seen.checkpoint.size, leaf, proof))
        elif size <= seen.checkpoint.size:
            yield from prove(known, seen, self._retries)
        else:
            yield from prove_shown(seen, known, self._retries)

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


def _origin_at(policy: Policy, url: str) -> str | None:
    """Return the origin that a policy expects at a URL, or None when it leaves that open."""
    here = {log.vkey.name for log in policy.logs if log.url is not None and log.url.rstrip("/") == url}
    origins = here or {log.vkey.name for log in policy.logs}
    return origins.pop() if len(origins) == 1 else None
