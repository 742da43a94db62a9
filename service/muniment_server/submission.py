"""What goes into the sequencer and what comes out: submissions, the round that places them, and their outcome."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from muniment import strictjson
from muniment.event import RESERVED_PREFIX
from muniment.hashing import EMPTY_ROOT, LeafHash, RootHash, leaf_hash
from muniment_server.admission import EventDraft, RawDraft, Refused
from muniment_server.receipts import Maker
from muniment_server.storage import IdempotencyRow, NewEntry, StoredKey, leaf_key


@dataclass(frozen=True, slots=True)
class OwnDraft:
    """An entry the log makes itself: `typ` after ``muniment/``, and its members but typ and logged_at."""

    typ: str
    members: dict[str, object]

    def leaf(self, logged_at: str) -> bytes:
        """Return the leaf as of `logged_at` (24 characters)."""
        return strictjson.canonical({**self.members, "logged_at": logged_at, "typ": RESERVED_PREFIX + self.typ})


Draft = RawDraft | EventDraft | OwnDraft


class Submission(NamedTuple):
    """What one request wants appended, all or nothing. `key` is its Idempotency-Key, unique for `caller`."""

    drafts: Sequence[Draft]
    caller: str = ""
    key: str | None = None

    @property
    def size(self) -> int:
        """Bytes this submission holds in memory, roughly."""
        size = 0
        for draft in self.drafts:
            if type(draft) is RawDraft:
                size += len(draft[0])
            elif isinstance(draft, EventDraft):
                size += 4 * len(draft.payload)
        return size

    def fingerprint(self, seed: bytes) -> bytes:
        """Return what tells this body from another one, keyed so that it says nothing without the seed."""
        return hmac.digest(seed, b"\n".join(d.payload for d in self.drafts if isinstance(d, EventDraft)), "sha256")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed head."""

    size: int
    root: RootHash
    note: str


UNSIGNED = Signed(0, EMPTY_ROOT, "")
"""Stands in an Outcome until its round is signed."""


@dataclass(slots=True)
class Outcome:
    """Where the entries of one submission are, at a signed head that holds them all.

    `indices` and `leaves` have one element for each draft; `new` counts the entries this submission added. `maker` makes proofs and
    receipts of new entries; `replayed` says that an Idempotency-Key led to entries of an earlier submission.
    """

    indices: list[int]
    leaves: list[bytes]
    new: int
    signed: Signed = UNSIGNED
    maker: Maker | None = None
    replayed: bool = False


@dataclass(slots=True)
class Round:
    """One try to append a batch: gives each draft its index. `known` has raw leaves by their bytes, and where they are."""

    first: int
    stamp: int
    logged_at: str
    known: dict[bytes, int]
    entries: list[NewEntry] = field(default_factory=list)
    hashes: list[LeafHash] = field(default_factory=list)
    keys: list[IdempotencyRow] = field(default_factory=list)
    raw_keys: list[int] = field(default_factory=list)  # leaf keys of the raw entries among them

    def assign(self, submission: Submission, stored: StoredKey | None, ttl: int) -> Outcome | Refused:
        """Place the drafts of a submission, or find them through its Idempotency-Key. The Outcome still lacks its signed head.

        `ttl` is the milliseconds for which the key is remembered.
        """
        if stored is not None:
            return _replay(submission, stored)
        outcome = Outcome([], [], 0)
        self.place(submission[0], outcome)
        if submission[2] is not None:
            self.remember(submission, outcome, ttl)
        return outcome

    def remember(self, submission: Submission, outcome: Outcome, ttl: int) -> None:
        """Keep the Idempotency-Key of a submission, if it has one, for `ttl` milliseconds."""
        first = submission.drafts[0]
        if submission.key is not None and isinstance(first, EventDraft):
            mark, until = submission.fingerprint(first.seed), self.stamp + ttl
            row = IdempotencyRow(submission.caller, submission.key, mark, outcome.indices[0], outcome.new, until)
            self.keys.append(row)

    def place(self, drafts: Sequence[Draft], outcome: Outcome) -> None:
        """Give each draft its index, and tell the outcome."""
        indices, leaves = outcome.indices, outcome.leaves
        known, entries, hashes = self.known, self.entries, self.hashes
        before = len(entries)
        following = self.first + before
        for draft in drafts:
            kind = type(draft)
            if kind is RawDraft:
                leaf, value = draft  # type: ignore[misc]
                index = known.get(leaf)
                if index is None:
                    index = known[leaf] = following
                    key = leaf_key(value)
                    self.raw_keys.append(key)
                    entries.append(NewEntry(leaf, key))
                    hashes.append(value)
                    following += 1
            else:
                leaf = draft.leaf(self.logged_at)  # type: ignore[operator]
                value, index = leaf_hash(leaf), following
                payload, seed = (draft.payload, draft.seed) if isinstance(draft, EventDraft) else (None, None)
                entries.append(NewEntry(leaf, leaf_key(value), payload, seed))
                hashes.append(value)
                following += 1
            indices.append(index)
            leaves.append(leaf)
        outcome.new += len(entries) - before


def _replay(submission: Submission, stored: StoredKey) -> Outcome | Refused:
    row = stored.row
    if stored.seed is None or not hmac.compare_digest(submission.fingerprint(stored.seed), row.fingerprint):
        return Refused(
            422,
            "idempotency_mismatch",
            "this Idempotency-Key was used for another body",
            "Use a new key for a new event; repeat a request with exactly the same body.",
        )
    return Outcome(list(range(row.first_index, row.first_index + row.count)), [], 0, replayed=True)
