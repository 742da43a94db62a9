"""A small signed log for the tests to take apart: deterministic, and its proofs come from the oracle, not from the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.event import Commitment, disclose, event_leaf, format_time, genesis_leaf
from muniment.hashing import RootHash
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment.receipt import Receipt
from tests.oracle import Tree

ORIGIN = "log.example/sample"
KEY = SigningKey(ORIGIN, bytes(range(32)))
POLICY = Policy((LogKey(KEY.vkey),))
NOON = 1_795_176_000_123  # 2026-11-20T12:00:00.123Z

EVENTS: list[dict[str, Any]] = [
    {"actor": "alice", "action": "invoice.approve", "resource": "inv-17"},
    {"actor": "bob", "amount": 12.5, "tags": ["a", None, True], "nested": {"é": "\U0001f600", "\ue000": 0}},
    {"": 0},
    {f"m{i}": i for i in range(9)},
]


@dataclass(frozen=True)
class Logged:
    """One entry of the sample log: its leaf and, for an event, what opens it."""

    leaf: bytes
    event: dict[str, Any] | None = None
    commitment: Commitment | None = None
    disclosures: tuple[str, ...] | None = None


def logged_event(event: dict[str, Any], number: int) -> Logged:
    """What the log would store for `event`; entry `number` chooses seed and time."""
    disclosures = disclose(bytes([number]) * 32, event)
    commitment = Commitment.to(disclosures)
    leaf = event_leaf(commitment.digest(), format_time(NOON + number))
    return Logged(leaf, event, commitment, tuple(disclosures))


class SampleLog:
    """A log with these entries, signed at every size."""

    def __init__(self, entries: list[Logged], key: SigningKey = KEY) -> None:
        self.entries = entries
        self.key = key
        self.tree = Tree([entry.leaf for entry in entries])

    def checkpoint(self, size: int) -> str:
        """The signed checkpoint of `size`."""
        head = Checkpoint(self.key.vkey.name, size, RootHash(self.tree.root(size)))
        return str(sign_checkpoint(head, self.key))

    def receipt(self, index: int, size: int | None = None) -> Receipt:
        """The complete receipt of an entry, by default at the latest size."""
        size = size or len(self.entries)
        entry = self.entries[index]
        return Receipt(
            origin=self.key.vkey.name,
            index=index,
            leaf=entry.leaf,
            tree_size=size,
            proof=tuple(self.tree.path(index, size)),
            checkpoint=self.checkpoint(size),
            commitment=entry.commitment,
            disclosures=entry.disclosures,
        )

    def receipts(self) -> list[Receipt]:
        """A receipt for every entry, and the first ones at smaller sizes too."""
        latest = [self.receipt(index) for index in range(len(self.entries))]
        return latest + [self.receipt(index, size) for size in (1, 2, 5) for index in range(size)]


@cache
def event_log() -> SampleLog:
    """A log of kind event: genesis, then the events, twice."""
    genesis = Logged(genesis_leaf(ORIGIN, "event", [str(KEY.vkey)], format_time(NOON)))
    events = [logged_event(event, number) for number, event in enumerate(EVENTS * 2, 1)]
    return SampleLog([genesis, *events])


@cache
def raw_log() -> SampleLog:
    """A log of kind raw, under another name and key."""
    leaves = [b"hello", b"\x00\xff", b'{"a":1}', b"x" * 300, b"\n", b"hello again"]
    return SampleLog([Logged(leaf) for leaf in leaves], SigningKey("log.example/raw", b"r" * 32))


def policy_of(*logs: SampleLog) -> Policy:
    """A policy that trusts these logs, without witnesses."""
    return Policy(tuple(LogKey(log.key.vkey) for log in logs))
