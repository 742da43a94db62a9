"""What clients remember: every entry that was acknowledged, and every checkpoint anybody ever showed them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from muniment.checkpoint import parse_checkpoint
from muniment.note import parse_note, verify_note
from muniment.policy import Policy
from muniment.receipt import Receipt
from tests.oracle import Inclusion

Content = bytes | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Acked:
    """An acknowledged entry: the leaf of a raw log, or the event."""

    index: int
    content: Content


@dataclass
class Recorder:
    """The memory of all clients of one log. Every receipt and checkpoint is verified when it comes in, with the policy alone."""

    policy: Policy
    origin: str
    leaves: dict[int, Content] = field(default_factory=dict)  # acknowledged entries by index
    bytes: dict[int, bytes] = field(default_factory=dict)  # the leaves in their receipts
    order: list[int] = field(default_factory=list)  # their indices, as they came in
    marks: dict[str, tuple[int, ...]] = field(default_factory=dict)  # what was sent, by its own mark: where it is
    roots: dict[int, bytes] = field(default_factory=dict)  # every signed head ever seen
    counts: Counter[str] = field(default_factory=Counter)
    _notes: set[str] = field(default_factory=set)

    def checkpoint(self, note: str) -> int:
        """Verify and remember a checkpoint; return its size. Raises AssertionError on a second root for one size."""
        if note in self._notes:
            return int(note.split("\n")[1])
        parsed = parse_note(note)
        head = parse_checkpoint(parsed.text)
        keys = [log.vkey for log in self.policy.logs if log.vkey.name == self.origin]
        assert head.origin == self.origin, f"a checkpoint of {head.origin}, not of {self.origin}"
        assert verify_note(parsed, keys), f"the signature of checkpoint {head.size} does not verify"
        known = self.roots.setdefault(head.size, head.root)
        assert known == head.root, f"FORK: two roots signed for size {head.size}: {known.hex()} and {head.root.hex()}"
        self._notes.add(note)
        return head.size

    def proved(self, value: dict[str, Any], sent: dict[str, Any] | bytes) -> Receipt:
        """Verify a receipt, by the library and by the oracle, and that it is of what was sent; return it."""
        receipt = Receipt.from_json(value)
        size = self.checkpoint(receipt.checkpoint)
        verified = receipt.verify(self.policy)
        claim = Inclusion(receipt.index, size, receipt.leaf_hash, receipt.proof, self.roots[size])
        assert claim.holds(), f"the receipt of entry {receipt.index} at size {size} proves nothing"
        assert receipt.tree_size == size
        found = receipt.leaf if isinstance(sent, bytes) else verified.opened
        assert found == sent, f"the receipt of entry {receipt.index} is of {found!r}, not of {sent!r}"
        known = self.bytes.setdefault(receipt.index, receipt.leaf)
        assert known == receipt.leaf, f"two receipts of entry {receipt.index} have two leaves"
        self.counts["receipts"] += 1
        return receipt

    def acked(self, mark: str, indices: list[int], contents: Sequence[Content]) -> None:
        """Remember acknowledged entries. Raises AssertionError when the same request, or index, was answered otherwise before."""
        before = self.marks.setdefault(mark, tuple(indices))
        assert before == tuple(indices), f"a retry of {mark} is at {indices}, was at {before}"
        self.order += indices
        for index, content in zip(indices, contents, strict=True):
            known = self.leaves.setdefault(index, content)
            assert known == content, f"entry {index} was acknowledged twice, as {known!r} and as {content!r}"

    def sample(self, rng: random.Random, count: int) -> list[Acked]:
        """Draw some acknowledged entries, the newest among them."""
        drawn = {*self.order[-3:], *rng.choices(self.order, k=count)} if self.order else set()
        return [Acked(index, self.leaves[index]) for index in sorted(drawn)]
