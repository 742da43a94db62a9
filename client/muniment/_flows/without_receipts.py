"""Batches whose receipts the caller does not keep: where their entries are, each proved to be there as it was sent.

Leaves that are neighbours in the log are proved together, by the inclusion proofs of the first and the last: a hash
for each leaf instead of a way to the root. Where that cannot be done, :mod:`muniment._flows.writes` checks every
receipt by itself, and decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from muniment import members
from muniment._flows import fields, writes
from muniment._flows.answered import opened_digest
from muniment._flows.reads import Session
from muniment._flows.steps import Call, Flow, Request, Response, json_of, send
from muniment._flows.writes import PreparedEntry
from muniment.checkpoint import Checkpoint
from muniment.encoding import parse_b64
from muniment.errors import BadProof, FormatError, NotWhatWasSent, Refused
from muniment.event import EventLeaf, parse_leaf
from muniment.hashing import LeafHash, leaf_hash
from muniment.proofs import root_from_range, verify_inclusion
from muniment.receipt import Receipt

_RANGES = 4
"""Runs of neighbours that a batch may be in, each of which takes two proofs."""

_Proof = tuple[bytes, ...]
_Ends = tuple[_Proof, _Proof]
"""The inclusion proofs of the first and the last of some neighbours."""


@dataclass(frozen=True, slots=True)
class Appended:
    """Where the entries of a batch are, in the order sent, in the tree of `tree_size`."""

    indices: Sequence[int]
    tree_size: int


def send_without_receipts(session: Session, entries: Sequence[PreparedEntry], key: str) -> Flow[Response]:
    """Send a batch as :func:`muniment._flows.writes.send_batch`, and return the answer for :func:`check_appended`."""
    # An event needs its receipt, which opens what its leaf commits to. A raw leaf is known.
    return (yield from writes.send_batch(session, entries, key, receipts=entries[0].is_event))


def check_appended(session: Session, entries: Sequence[PreparedEntry], answer: Response) -> Flow[Appended]:
    """Return where the entries of a batch are, verified.

    Raises what :func:`muniment._flows.writes.check_batch` raises.
    """
    value = json_of(answer)
    ranges = writes.ranges_of(value, len(entries))
    is_event = entries[0].is_event
    appended: Appended | None = None
    if len(ranges) <= _RANGES:  # otherwise they are scattered, as equal raw leaves may be
        # Refused are proofs to a key that may only append to a private log, or by a replica that is behind.
        with suppress(Refused):
            appended = yield from (_events if is_event else _raw)(session, entries, value, ranges)
    if appended is not None:
        return appended
    if is_event:
        return _of(*(yield from writes.check_batch(session, entries, answer)))
    return _of(*(yield from writes.append_batch(session, entries, writes.new_key())))


def _of(*receipts: Receipt) -> Appended:
    return Appended([receipt.index for receipt in receipts], max(receipt.tree_size for receipt in receipts))


# --- raw leaves -------------------------------------------------------------------------------------------------------


def _raw(
    session: Session, entries: Sequence[PreparedEntry], answer: dict[str, Any], ranges: Sequence[range]
) -> Flow[Appended | None]:
    head, ends = _head(session, answer), list[_Ends]()
    for indices in ranges:
        before = yield from _proof(session, indices[0], head.size)
        after = before if len(indices) == 1 else (yield from _proof(session, indices[-1], head.size))
        ends.append((before, after))
    appended = yield from _prove(session, answer, ranges, [entry.body for entry in entries], ends)
    if appended is None:
        raise NotWhatWasSent("the log does not prove that the entries of a batch are the leaves that were sent")
    return appended


def _proof(session: Session, index: int, size: int) -> Flow[_Proof]:
    """Return the hashes of an inclusion proof as the log gives them, nothing verified."""
    request = Request("GET", "/proof/inclusion", {"index": index, "tree_size": size})
    return fields.proof(json_of((yield from send(request, session.retries))))


# --- events -----------------------------------------------------------------------------------------------------------


def _events(
    session: Session, entries: Sequence[PreparedEntry], answer: dict[str, Any], ranges: Sequence[range]
) -> Flow[Appended | None]:
    try:
        receipts = fields.objects(answer, "receipts")
        leaves = yield Call(lambda: _event_leaves(entries, receipts))
        if not leaves:
            return None
        ends, at = list[_Ends](), 0
        for indices in ranges:
            first, last = receipts[at], receipts[at + len(indices) - 1]
            # Whether they are of the tree that was signed, their hashes tell.
            ends.append((members.inclusion(first)[1], members.inclusion(last)[1]))
            at += len(indices)
    except FormatError:
        return None
    return (yield from _prove(session, answer, ranges, leaves, ends))


def _event_leaves(entries: Sequence[PreparedEntry], receipts: Sequence[dict[str, Any]]) -> list[bytes]:
    """Return the leaf in each receipt, when it surely commits to the event that was sent; none when one does not.

    Raises FormatError.
    """
    leaves = []
    for sent, receipt in zip(entries, receipts, strict=False):
        leaf = parse_b64(members.text(receipt, "leaf"), "leaf")
        entry = parse_leaf(leaf)
        opened = opened_digest(fields.texts(receipt, "disclosures"), None, sent.body)
        if not isinstance(entry, EventLeaf) or opened != entry.commitment:
            return []
        leaves.append(leaf)
    return leaves if len(leaves) == len(entries) == len(receipts) else []


# --- both -------------------------------------------------------------------------------------------------------------


def _head(session: Session, answer: dict[str, Any]) -> Checkpoint:
    return session.trust.policy.verify(fields.text(answer, "checkpoint")).checkpoint


def _prove(
    session: Session, answer: dict[str, Any], ranges: Sequence[range], leaves: Sequence[bytes], ends: Sequence[_Ends]
) -> Flow[Appended | None]:
    """Return where the leaves are, or None when the ends of one of the ranges do not prove it."""
    head, note = _head(session, answer), fields.text(answer, "checkpoint")
    hashes: list[LeafHash] = yield Call(lambda: list(map(leaf_hash, leaves)))
    receipts, done = list[Receipt](), 0
    for indices, (before, after) in zip(ranges, ends, strict=True):
        if not _are_there(head, indices, hashes[done : done + len(indices)], before, after):
            return None
        receipts.append(Receipt(head.origin, indices[0], leaves[done], head.size, before, note))
        done += len(indices)
    yield from session.trust.observe_answer(note, receipts)
    return Appended(list(chain(*ranges)), head.size)


def _are_there(head: Checkpoint, indices: range, hashes: Sequence[LeafHash], before: _Proof, after: _Proof) -> bool:
    try:
        # What the range leaves out of the first proof is to be right as well: a client reads the
        # tree before it from there.
        verify_inclusion(indices[0], head.size, hashes[0], before, head.root)
        return root_from_range(indices[0], head.size, hashes, before, after) == head.root
    except BadProof:
        return False
