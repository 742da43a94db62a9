"""What goes into the sequencer and what comes out: submissions, the round that gives them indices, their outcome."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from muniment import strictjson
from muniment.event import RESERVED_PREFIX
from muniment.hashing import EMPTY_ROOT, LeafHash, RootHash, leaf_hash
from muniment_server.errors import Refused
from muniment_server.storage.log import IdempotencyRow, StoredKey, StoredPayload
from muniment_server.write.admission import EventDraft, RawDraft, SubmittedDraft
from muniment_server.write.receipts import ReceiptBuilder


@dataclass(frozen=True, slots=True)
class OwnDraft:
    """An entry the log makes itself: `typ` after ``muniment/``, and its members but typ and logged_at."""

    typ: str
    members: dict[str, object]

    def leaf(self, logged_at: str) -> bytes:
        """Return the leaf as of `logged_at` (24 characters)."""
        return strictjson.canonical({**self.members, "logged_at": logged_at, "typ": RESERVED_PREFIX + self.typ})


Draft = SubmittedDraft | OwnDraft


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
            if isinstance(draft, RawDraft):
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

    `indices` and `leaves` have one element for each draft; `new` counts the entries this submission added. `builder`
    makes proofs and receipts of new entries; `replayed` says that an Idempotency-Key led to entries of an earlier
    submission.
    """

    indices: list[int]
    leaves: list[bytes]
    new: int
    signed: Signed = UNSIGNED
    builder: ReceiptBuilder | None = None
    replayed: bool = False


def sign_off(
    answers: list[Outcome | Refused], signed: Signed, builder: ReceiptBuilder | None
) -> list[Outcome | Refused]:
    """Give each outcome the signed head that its entries are under."""
    for answer in answers:
        if isinstance(answer, Outcome):
            answer.signed, answer.builder = signed, builder
    return answers


@dataclass(slots=True)
class Round:
    """One try to append a batch: gives each draft its index.

    `known` has raw leaves by their bytes, and where they are.
    """

    first: int
    stamp: int
    logged_at: str
    known: dict[bytes, int]
    leaves: list[bytes] = field(default_factory=list)
    hashes: list[LeafHash] = field(default_factory=list)
    payloads: list[StoredPayload] = field(default_factory=list)
    keys: list[IdempotencyRow] = field(default_factory=list)

    def assign(self, submission: Submission, stored: StoredKey | None, ttl: int) -> Outcome | Refused:
        """Give the drafts of a submission their indices, or find them through its Idempotency-Key.

        The Outcome still lacks its signed head. `ttl` is the milliseconds for which the key is remembered.
        """
        if stored is not None:
            return _replay(submission, stored)
        outcome = Outcome([], [], 0)
        self.assign_indices(submission[0], outcome)
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

    def assign_indices(self, drafts: Sequence[Draft], outcome: Outcome) -> None:
        """Give each draft its index, and tell the outcome."""
        indices, leaves = outcome.indices, outcome.leaves
        known, new_leaves, hashes = self.known, self.leaves, self.hashes
        before = len(new_leaves)
        following = self.first + before
        for draft in drafts:
            if isinstance(draft, RawDraft):
                leaf, value = draft
                index = known.get(leaf)
                if index is None:
                    known[leaf] = following
            else:
                leaf = draft.leaf(self.logged_at)
                value, index = leaf_hash(leaf), None
                if isinstance(draft, EventDraft):
                    self.payloads.append(StoredPayload(following, draft.payload, draft.seed))
            if index is None:
                index = following
                new_leaves.append(leaf)
                hashes.append(value)
                following += 1
            indices.append(index)
            leaves.append(leaf)
        outcome.new += len(new_leaves) - before

    def assign_many(self, drafts: Sequence[Draft], outcome: Outcome) -> None:
        """Do what :meth:`assign_indices` does.

        Raw entries that are all new get their indices together, which takes a fraction of the time. Requires drafts
        of one kind, at least one.
        """
        if not isinstance(drafts[0], RawDraft) or not self._assign_new(drafts, outcome):
            self.assign_indices(drafts, outcome)

    def _assign_new(self, drafts: Sequence[Draft], outcome: Outcome) -> bool:
        """Give raw entries their indices, unless one of them is known or there twice. Return whether they got them."""
        leaves, hashes = zip(*drafts, strict=True)
        first = self.first + len(self.leaves)
        indices = range(first, first + len(leaves))
        found = dict(zip(leaves, indices, strict=True))
        if len(found) < len(leaves) or not self.known.keys().isdisjoint(found):
            return False
        self.known.update(found)
        self.leaves += leaves
        self.hashes += hashes
        outcome.indices += indices
        outcome.leaves += leaves
        outcome.new += len(leaves)
        return True


def _replay(submission: Submission, stored: StoredKey) -> Outcome | Refused:
    row = stored.row
    if stored.seed is None or not hmac.compare_digest(submission.fingerprint(stored.seed), row.fingerprint):
        return Refused(
            "idempotency_mismatch",
            "this Idempotency-Key was used for another body",
            "Use a new key for a new event; repeat a request with exactly the same body.",
        )
    return Outcome(list(range(row.first_index, row.first_index + row.count)), [], 0, replayed=True)
