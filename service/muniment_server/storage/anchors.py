"""Anchors in Bitcoin, and what each calendar has of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """A checkpoint anchored in Bitcoin, or on its way there. What is above `state` never changes.

    `checkpoint` holds the note's exact bytes and `digest` their SHA-256. `ots` is the proof file so far. `height`,
    `block_hash` (in internal order), `header` and `block_time` (Unix seconds) are those of the earliest good block.
    `next_at` is when that block is looked at next. `revision` counts the changes.
    """

    tree_size: int
    root: bytes
    checkpoint: bytes
    digest: bytes
    nonce: bytes
    created_at: int
    state: str = "queued"
    revision: int = 0
    ots: bytes | None = None
    submitted_at: int | None = None
    confirmed_at: int | None = None
    height: int | None = None
    block_hash: bytes | None = None
    header: bytes | None = None
    block_time: int | None = None
    next_at: int | None = None
    last_error: str | None = None
    logged_from: int | None = None
    logged: int | None = None


@dataclass(frozen=True, slots=True)
class CalendarRow:
    """What one calendar has of one anchor. `next_at` is when it is asked next, None: not any more."""

    tree_size: int
    url: str
    state: str = "queued"
    attempts: int = 0
    next_at: int | None = None
    submitted_at: int | None = None
    pending_uri: str | None = None
    commitment: bytes | None = None
    last_reason: str | None = None
    height: int | None = None


HELD = ("pending", "complete", "bad_attestation", "unlisted")
"""States of a calendar that took the digest of an anchor."""


@dataclass(frozen=True, slots=True)
class AnchorSummary:
    """All anchors of a log at a glance: how many are in each state, and what an operator is told of.

    `oldest_open` is when the oldest one was made that is neither confirmed nor superseded; `last_confirmed` when the
    last one was confirmed. `degraded` counts open ones that fewer calendars hold than there should be, `bad`
    attestations that were not true.
    """

    states: dict[str, int]
    oldest_open: int | None
    last_confirmed: int | None
    degraded: int
    bad: int


class Anchors(Protocol):
    """Anchors of a log. What a write returned True for is durable."""

    async def add_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
        """Store a new anchor with its calendars, unless there is one of this size or a larger one."""

    async def save_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow] = ()) -> bool:
        """Store what changed of an anchor and of some of its calendars, in one commit.

        Only if it was not changed since `row` was read: `row.revision` is the one that was read. A calendar that is not
        stored yet is added.
        """

    async def anchor(self, log_id: int, tree_size: int | None = None) -> AnchorRow | None:
        """Return the anchor of this size, or the largest one."""

    async def anchors(self, log_id: int, start: int, limit: int, states: Sequence[str] = ()) -> list[AnchorRow]:
        """Return up to `limit` anchors with tree_size >= start, in these states (default: all), smallest first."""

    async def covering_anchor(self, log_id: int, index: int) -> AnchorRow | None:
        """Return the confirmed anchor with tree_size > index whose block is the lowest; of these, the smallest."""

    async def anchor_calendars(self, log_id: int, start: int, stop: int) -> list[CalendarRow]:
        """Return the calendars of the anchors with sizes in [start, stop), by size and URL."""

    async def due_anchors(self, log_id: int, now: int, limit: int) -> list[AnchorRow]:
        """Return up to `limit` anchors whose block is to be looked at, longest due first."""

    async def due_calendars(self, log_id: int, url: str, now: int, limit: int, *, queued: bool) -> list[CalendarRow]:
        """Return up to `limit` rows of a calendar that is to be asked about them, smallest size first.

        `queued` chooses: those that it is to be given, or those that it has. Many of the one never hide the other.
        """

    async def unlogged_anchors(self, log_id: int, limit: int) -> list[AnchorRow]:
        """Return up to `limit` confirmed anchors that have no known entry in the log, smallest first."""

    async def own_entries(self, log_id: int, start: int) -> int:
        """Return how many entries from index `start` on are known to be entries of anchors."""

    async def anchor_summary(self, log_id: int, held: int) -> AnchorSummary:
        """Return all anchors at a glance; open ones that fewer than `held` calendars hold count as degraded."""
