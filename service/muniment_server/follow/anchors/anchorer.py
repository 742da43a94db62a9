"""The anchorer of one log: gives frozen checkpoints to calendars, and takes from them what leads into a block.

Each step reads what is stored, does one thing and stores it, so that a crash between any two loses at most an answer
that can be asked for again. A calendar that fails, hangs or lies keeps no other calendar waiting. Nothing here is ever
in the way of an append.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from random import Random

from muniment.anchor.proof import BitcoinAttestation, reply_attestations, submission
from muniment.anchor.sources import HeaderSource
from muniment.errors import AnchorMismatch, BadTimestamp, NoHeader, SourceUnavailable
from muniment_server.errors import CalendarFailed, NotYet
from muniment_server.follow.anchors import rows
from muniment_server.follow.anchors.blocks import Blocks
from muniment_server.follow.anchors.calendar import Calendar
from muniment_server.follow.anchors.changes import Change, change
from muniment_server.follow.anchors.freezer import Freezer
from muniment_server.follow.anchors.schedule import (
    DAY,
    HOUR,
    LEAST_BETWEEN,
    MINUTE,
    SECOND,
    Breaker,
    Triggers,
)
from muniment_server.follow.anchors.watcher import Watcher
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, CalendarRow
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import get_logger

_AT_ONCE = 100
"""Rows of one calendar that are gone through in one round."""
_MAX_LOOKUPS = 16
_CLOCK_OFF = 10 * MINUTE
_UNLOOKED = 10 * MINUTE


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator decides.

    `held` is how many calendars should hold an anchor.
    """

    triggers: Triggers
    held: int


class Anchorer:
    """Owns no state that matters: all of it is in the store.

    One task at a time calls each calendar's :meth:`round`, and one `freezer` and `blocks`.
    """

    def __init__(
        self,
        store: Store,
        log: LogRow,
        calendars: Sequence[Calendar],
        source: HeaderSource | None,
        options: Options,
        watcher: Watcher,
        clock: Callable[[], int],
        rng: Random,
        threads: Executor,
    ) -> None:
        """Make it. `clock` gives milliseconds since 1970; `rng` only spreads requests.

        `threads` are those in which the source is asked. Not the loop's own: the guard needs them, and a source may
        hang.
        """
        self._store = store
        self._anchors = store.anchors
        self._log = log
        self.calendars = calendars
        self.freezer = Freezer(store, log, [one.url for one in calendars], options.triggers, watcher, clock, rng)
        self.blocks = Blocks(store, log, source, clock, threads)
        self._options = options
        self._watcher = watcher
        self._clock = clock
        self._rng = rng
        self._breakers = {calendar.url: Breaker(rng) for calendar in calendars}
        self._polls_from = {calendar.url: 0 for calendar in calendars}

    # --- calendars ----------------------------------------------------------------------------------------------------

    async def round(self, calendar: Calendar) -> None:
        """Give a calendar what it lacks, then ask it about what is due, oldest first, one after the other.

        Raises StoreError.
        """
        url = calendar.url
        for due in await self._due(url, queued=True):
            if not self._breakers[url].open(self._clock()):
                await self._submit(calendar, due)
        for due in await self._due(url, queued=False):
            if not self._breakers[url].open(self._clock()) and self._clock() >= self._polls_from[url]:
                await self._poll(calendar, due)

    async def _due(self, url: str, *, queued: bool) -> list[CalendarRow]:
        return await self._anchors.due_calendars(self._log.log_id, url, self._clock(), _AT_ONCE, queued=queued)

    async def ask_all(self) -> None:
        """Give every calendar its round, all at once. Raises StoreError."""
        await asyncio.gather(*map(self.round, self.calendars))

    async def _submit(self, calendar: Calendar, due: CalendarRow) -> None:
        row = await self._anchors.anchor(self._log.log_id, due.tree_size)
        if row is None or row.state == "superseded":
            return
        try:
            reply = await calendar.submit(submission(row.digest, row.nonce))
            rows.taken(row, due, reply, self._clock(), self._rng)  # a calendar is judged before anything is stored
        except (CalendarFailed, BadTimestamp) as error:
            await self._failed(calendar, due, error)
            return
        self._good(calendar, "taken")
        now = self._clock()
        stored = await self._change(due, lambda row, it: _unless_gone(rows.taken, row, it, reply, now, self._rng))
        if stored and stored.state == "unlisted":
            get_logger().warning("a calendar promises elsewhere", calendar=calendar.url, uri=stored.pending_uri)
        if stored:
            self._compare_clocks(calendar, stored)

    async def _poll(self, calendar: Calendar, due: CalendarRow) -> None:
        if due.commitment is None:
            return
        try:
            reply = await calendar.timestamp(due.commitment)
            claims = _claims(due.commitment, reply)
        except NotYet as error:
            await self._not_yet(calendar, due, error)
            return
        except (CalendarFailed, BadTimestamp) as error:
            await self._failed(calendar, due, error)
            return
        await self._judge(calendar, due, reply, claims)

    async def _judge(
        self, calendar: Calendar, due: CalendarRow, reply: bytes, claims: Sequence[BitcoinAttestation]
    ) -> None:
        """Check every attestation of a reply against the headers, and merge it only if all of them are true."""
        now = self._clock()
        try:
            await self.blocks.check(claims)
        except AnchorMismatch as error:
            await self._false_attestation(calendar, due, str(error))
        except (NoHeader, SourceUnavailable) as error:
            self._good(calendar, "unchecked")
            later = replace(due, attempts=due.attempts + 1, next_at=now + _UNLOOKED, last_reason=str(error)[:300])
            await self._change(due, lambda row, _: (row, later))
        else:
            height = min(claim.height for claim in claims)
            try:
                await self._change(due, lambda row, it: rows.upgraded(row, it, reply, height, now))
            except BadTimestamp as error:  # fine by itself, and too much for the proof
                await self._failed(calendar, due, error)
                return
            self._good(calendar, "upgraded")
            await self.blocks.settle(due.tree_size)

    async def _false_attestation(self, calendar: Calendar, due: CalendarRow, detail: str) -> None:
        now = self._clock()
        get_logger().error(
            "a calendar attests what is not true", log=self._log.name, calendar=calendar.url, detail=detail
        )
        self._good(calendar, "lied")  # it answers; the breaker is for those that do not
        await self._change(due, lambda row, it: (row, rows.false_attestation(it, detail, now, self._rng)))

    async def _not_yet(self, calendar: Calendar, due: CalendarRow, error: NotYet) -> None:
        now = self._clock()
        self._good(calendar, "pending")
        row = await self._anchors.anchor(self._log.log_id, due.tree_size)
        young = row is not None and now - row.created_at < 2 * DAY
        if error.lost and young and now - (due.submitted_at or now) >= HOUR:
            get_logger().error("a calendar lost an anchor", calendar=calendar.url, tree_size=due.tree_size)
            await self._change(due, lambda row, it: (row, rows.again(it, str(error), now + LEAST_BETWEEN)))
            return
        if not error.lost:  # what came later is not in a block either
            self._polls_from[calendar.url] = now + LEAST_BETWEEN
        await self._change(due, lambda row, it: (row, rows.not_yet(it, str(error), now, self._rng)))

    async def _failed(self, calendar: Calendar, due: CalendarRow, error: Exception) -> None:
        now = self._clock()
        self._breakers[calendar.url].bad(now)
        self._watcher.asked(calendar.url, "failed")
        reason = str(error)[:300]
        get_logger().warning("a calendar failed", calendar=calendar.url, tree_size=due.tree_size, reason=reason)
        await self._change(due, lambda row, it: (row, rows.refused(it, reason, now, self._rng)))

    def _good(self, calendar: Calendar, outcome: str) -> None:
        self._breakers[calendar.url].good()
        self._watcher.asked(calendar.url, outcome)

    def _compare_clocks(self, calendar: Calendar, stored: CalendarRow) -> None:
        """Calendars put their time before what they commit to: when it is far off ours, one of the two is wrong."""
        said = int.from_bytes((stored.commitment or b"")[:4], "big") * SECOND
        if len(stored.commitment or b"") == 44 and abs(said - self._clock()) > _CLOCK_OFF:
            get_logger().warning("a calendar's clock and this one differ", calendar=calendar.url, calendar_time=said)

    async def watch(self) -> None:
        """Tell the watcher how things are. Raises StoreError."""
        self._watcher.summary(await self._anchors.anchor_summary(self._log.log_id, self._options.held))

    async def _change(self, due: CalendarRow, make: Change) -> CalendarRow | None:
        return await change(self._store, self._log.log_id, due, make)


def _claims(commitment: bytes, reply: bytes) -> tuple[BitcoinAttestation, ...]:
    """Return what a reply attests, before any of it is believed. Raises BadTimestamp."""
    claims = reply_attestations(commitment, reply).bitcoin
    if not 1 <= len(claims) <= _MAX_LOOKUPS:
        raise BadTimestamp(f"the reply attests {len(claims)} blocks, not 1 to {_MAX_LOOKUPS}")
    return claims


def _unless_gone(
    taken: Callable[..., tuple[AnchorRow, CalendarRow]], row: AnchorRow, calendar: CalendarRow, *rest: object
) -> tuple[AnchorRow, CalendarRow] | None:
    """Leave an anchor alone that was superseded while a calendar took it."""
    return None if row.state == "superseded" else taken(row, calendar, *rest)
