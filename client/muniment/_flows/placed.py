"""Batches whose receipts nobody keeps: where their entries are, each proved to be there as it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from muniment._flows import fields, writes
from muniment._flows.reads import Session
from muniment._flows.steps import Call, Flow, Request, Response, json_of, send
from muniment._flows.writes import Draft
from muniment.errors import NotWhatWasSent, Refused
from muniment.hashing import leaf_hash
from muniment.receipt import Receipt
from muniment.tree import root_from_range, verify_inclusion

_RANGES = 4
"""Runs of neighbours that a batch may be in, each of which takes two proofs, before its receipts are the shorter way."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the entries of a batch are, in the order sent, in the tree of `tree_size`."""

    indices: Sequence[int]
    tree_size: int


def send_to_place(session: Session, drafts: Sequence[Draft], key: str) -> Flow[Response]:
    """Send a batch as :func:`muniment._flows.writes.send_batch`, and return the answer for :func:`check_placed`."""
    return (yield from writes.send_batch(session, drafts, key, receipts=drafts[0].is_event))


def check_placed(session: Session, drafts: Sequence[Draft], answer: Response) -> Flow[Placed]:
    """Return where the entries of a batch are.

    An event needs its receipt, which opens what its leaf commits to. Raw leaves are known, so those that are neighbours in the log
    are proved together; their receipts are asked for when they are scattered, as equal leaves may be, or when the proofs are refused:
    to a key that may only append to a private log, or by a replica that is behind.
    """
    if drafts[0].is_event:
        return _of(*(yield from writes.check_batch(session, drafts, answer)))
    value = json_of(answer)
    ranges = writes.ranges_of(value, len(drafts))
    if len(ranges) <= _RANGES:
        try:
            return (yield from _proved(session, drafts, value, ranges))
        except Refused:
            pass
    return _of(*(yield from writes.append_batch(session, drafts, writes.new_key())))


def _of(*receipts: Receipt) -> Placed:
    return Placed([receipt.index for receipt in receipts], max(receipt.tree_size for receipt in receipts))


def _proved(session: Session, drafts: Sequence[Draft], answer: dict[str, Any], ranges: Sequence[range]) -> Flow[Placed]:
    note = fields.text(answer, "checkpoint")
    head = session.trust.policy.verify(note).checkpoint
    hashes = yield Call(lambda: [leaf_hash(draft.body) for draft in drafts])
    receipts, done = list[Receipt](), 0
    for indices in ranges:
        first, leaves = indices[0], hashes[done : done + len(indices)]
        before = yield from _proof(session, first, head.size)
        after = before if len(indices) == 1 else (yield from _proof(session, indices[-1], head.size))
        verify_inclusion(first, head.size, leaves[0], before, head.root)
        if root_from_range(first, head.size, leaves, before, after) != head.root:
            raise NotWhatWasSent(f"the log does not prove that entries {first} to {indices[-1]} are what was sent")
        receipts.append(Receipt(head.origin, first, drafts[done].body, head.size, before, note))
        done += len(indices)
    yield from session.trust.observe(note, receipts)
    return Placed(list(chain(*ranges)), head.size)


def _proof(session: Session, index: int, size: int) -> Flow[tuple[bytes, ...]]:
    """Return the hashes of an inclusion proof as the log gives them, nothing verified."""
    request = Request("GET", "/proof/inclusion", {"index": index, "tree_size": size})
    return fields.proof(json_of((yield from send(request, session.retries))))
