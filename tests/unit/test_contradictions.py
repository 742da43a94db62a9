"""Receipts of two histories contradict each other wherever they show the same part of the tree."""

from __future__ import annotations

import itertools
from dataclasses import replace

from muniment.checkpoint import parse_checkpoint
from muniment.contradictions import Heads
from muniment.note import parse_note
from muniment.receipt import Receipt
from tests.unit.samples import ORIGIN, Logged, SampleLog

SIZE = 12
LOG = SampleLog([Logged(b"%d" % n) for n in range(SIZE)])


def other(at: int) -> SampleLog:
    """The log with another entry at `at`."""
    return SampleLog([*LOG.entries[:at], Logged(b"other"), *LOG.entries[at + 1 :]])


def heads(*receipts: Receipt) -> Heads:
    """What these receipts show, named a, b, ..."""
    found = Heads(ORIGIN)
    for name, receipt in zip("abcdefgh", receipts, strict=False):
        found.add_receipt(receipt, parse_checkpoint(parse_note(receipt.checkpoint).text), name)
    return found


def test_receipts_of_one_history_never_contradict() -> None:
    receipts = [LOG.receipt(index, size) for size in range(1, SIZE + 1) for index in range(size)]
    everything = Heads(ORIGIN)
    for number, receipt in enumerate(receipts):
        everything.add_receipt(receipt, parse_checkpoint(parse_note(receipt.checkpoint).text), str(number))
    assert everything.contradictions() == []


def test_two_roots_of_one_size() -> None:
    """Any two receipts do, even of entries that are the same in both."""
    for first, second in itertools.product(range(SIZE), repeat=2):
        (found,) = heads(LOG.receipt(first), other(5).receipt(second)).contradictions()
        assert (found.origin, found.names) == (ORIGIN, ("a", "b"))
        assert found.detail.count(f"of size {SIZE} with root") == 2


def test_two_sizes_where_both_receipts_show_the_same_part() -> None:
    """Every pair, against what the proofs really have in common: a complete subtree that holds the other entry."""
    for at in range(4):
        fork = other(at)
        for size, index in itertools.product(range(at + 1, SIZE), range(SIZE)):
            found = heads(fork.receipt(at, size), LOG.receipt(index)).contradictions()
            assert bool(found) is _shown(at, size, index), (at, size, index)


def _shown(at: int, size: int, index: int) -> bool:
    """Whether the proof of `index` in the whole tree fixes a subtree with `at` in it that the tree of `size` has too."""
    heights = [h for h in range(4) if ((at >> h) + 1) << h <= size]
    return any(at >> h == index >> h or at >> h == (index >> h) ^ 1 for h in heights)


def test_a_smaller_head_is_folded_from_the_proof_of_the_entry_after_it() -> None:
    """What the client does online: the proof of entry N has the root of the first N entries."""
    head = parse_checkpoint(parse_note(other(0).checkpoint(7)).text)
    good = parse_checkpoint(parse_note(LOG.checkpoint(7)).text)
    for remembered, count in ((head, 1), (good, 0)):
        found = heads(LOG.receipt(7))
        assert found.compared(remembered)
        found.add_head(remembered, "seen before")
        assert len(found.contradictions()) == count
    assert not heads(LOG.receipt(2)).compared(head), "entry 2 says nothing of the tree of size 7 alone"
    assert heads(LOG.receipt(2, 7)).compared(head)


def test_each_contradiction_is_said_once() -> None:
    fork = other(3)
    found = heads(LOG.receipt(3), fork.receipt(3), LOG.receipt(3), replace(LOG.receipt(3))).contradictions()
    assert [one.names for one in found] == [("a", "b"), ("b", "c"), ("b", "d")]
