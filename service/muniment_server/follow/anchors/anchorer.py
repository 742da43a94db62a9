"""The anchorer of one log: freezes published checkpoints, gives them to calendars, and follows them into a block.

Each step reads what is stored, does one thing and stores it, so that a crash between any two loses at most an answer that can be
asked for again. A calendar that fails, hangs or lies keeps nobody else waiting. Nothing here is ever in the way of an append.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random
from typing import Protocol, TypeVar

from muniment.anchor.check import AnchorCheck, check_anchor, look_up
from muniment.anchor.proof import NONCE_SIZE, BitcoinAttestation, reply_attestations, submission
from muniment.anchor.sources import HeaderSource
from muniment.checkpoint import parse_checkpoint
from muniment.errors import AnchorMismatch, BadTimestamp, NoHeader, SourceUnavailable
from muniment.hashing import RootHash
from muniment.note import parse_note
from muniment_server.errors import AnchorRefused, CalendarFailed, NotYet
from muniment_server.failpoints import step
from muniment_server.follow.anchors import rows
from muniment_server.follow.anchors.calendar import Calendar
from muniment_server.follow.anchors.schedule import (
    DAY,
    HOUR,
    LEAST_BETWEEN,
    MINUTE,
    SECOND,
    START_JITTER,
    Breaker,
    Triggers,
)
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, AnchorSummary, CalendarRow
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.telemetry import get_logger
from muniment_server.write import recheck

T = TypeVar("T")

LEASE = 90 * SECOND
_RENEW = LEASE // 3
_AT_ONCE = 100
"""Rows of one calendar, or blocks, that are gone through in one round."""
_ROUNDS = 10
_MAX_LOOKUPS = 16
_CLOCK_OFF = 10 * MINUTE
_UNLOOKED = 10 * MINUTE
NAME = "anchorer"

Change = Callable[[AnchorRow, CalendarRow], tuple[AnchorRow, CalendarRow] | None]


class Watcher(Protocol):
    """Is told what happens: the metrics of a server, or nobody."""

    def asked(self, url: str, outcome: str) -> None:
        """Count an answer of a calendar: "taken", "upgraded", "pending", "failed", "lied" or "unchecked"."""

    def summary(self, found: AnchorSummary) -> None:
        """Take all anchors at a glance."""

    def refused(self, code: str | None) -> None:
        """Take the reason why nothing is anchored any more, or None."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator decides. `held` is how many calendars should hold an anchor; `min_depth` blocks make it confirmed."""

    triggers: Triggers
    held: int


class Anchorer:
    """Owns no state that matters: all of it is in the store. One task at a time calls :meth:`tick` and each calendar's round."""

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

        `threads` are those in which the source is asked. Not the loop's own: the guard needs them, and a source may hang.
        """
        self._reads = store.reads
        self._checkpoints = store.checkpoints
        self._anchors = store.anchors
        self._followers = store.followers
        self._log = log
        self.calendars = calendars
        self._source = source
        self._options = options
        self._watcher = watcher
        self._clock = clock
        self._rng = rng
        self._threads = threads
        self._holder = secrets.token_hex(8)
        self._leads_until = 0
        self._breakers = {calendar.url: Breaker(rng) for calendar in calendars}
        self._polls_from = {calendar.url: 0 for calendar in calendars}
        self.refusal: AnchorRefused | None = None

    # --- who works ------------------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Tell whether this is the one that works, among the anchorers of all processes."""
        return self._clock() < self._leads_until

    async def lead(self) -> bool:
        """Take or keep the lease; tell whether this process has it. Raises StoreError."""
        now = self._clock()
        if now < self._leads_until - LEASE + _RENEW:
            return True
        got = await self._followers.take_lease(self._log.log_id, NAME, self._holder, now, now + LEASE)
        self._leads_until = now + LEASE if got else 0
        return got

    async def release(self) -> None:
        """Let another process go on at once. Raises StoreError."""
        if self.leads:
            now = self._clock()
            self._leads_until = 0
            await self._followers.take_lease(self._log.log_id, NAME, self._holder, now, now)

    # --- freezing -------------------------------------------------------------------------------------------------------

    async def freeze_due(self) -> AnchorRow | None:
        """Freeze the published checkpoint, if one is due. Raises StoreError; what must not be anchored sets `refusal`."""
        last = await self._anchors.anchor(self._log.log_id)
        published = await self._checkpoints.checkpoint(self._log.log_id)
        if published is None:
            return None
        try:
            await self._check_extends(last, published)
        except AnchorRefused as error:
            self._refuse(error)
            return None
        self._refuse(None)
        start, since = (last.tree_size, last.created_at) if last else (0, self._log.created_at)
        new = published.size - start - (await self._anchors.own_entries(self._log.log_id, start) if last else 0)
        if not self._options.triggers.due(new, self._clock() - since):
            return None
        return await self.freeze()

    async def freeze(self) -> AnchorRow | None:
        """Freeze the bytes of the published checkpoint, durably; None when it is anchored already.

        Raises AnchorRefused when an anchor says that the log was larger, or another one, and StoreError.
        """
        last, now = await self._anchors.anchor(self._log.log_id), self._clock()
        published = await self._checkpoints.checkpoint(self._log.log_id)
        if published is None or (last and last.tree_size == published.size):
            return None
        await self._check_extends(last, published)
        note = published.note.encode()
        root = _root_of(published)
        nonce = secrets.token_bytes(NONCE_SIZE)
        row = AnchorRow(published.size, root, note, sha256(note).digest(), nonce, now)
        asked = [
            CalendarRow(row.tree_size, one.url, next_at=now + self._rng.randrange(START_JITTER))
            for one in self.calendars
        ]
        if not await self._anchors.add_anchor(self._log.log_id, row, asked):
            return None
        get_logger().info("checkpoint frozen for anchoring", log=self._log.name, tree_size=row.tree_size)
        return row

    async def _check_extends(self, last: AnchorRow | None, published: Published) -> None:
        """Check that the published tree extends the one of the last anchored checkpoint. Raises AnchorRefused."""
        if last is None:
            return
        size = published.size
        if size < last.tree_size:
            raise AnchorRefused(
                "anchor_ahead",
                f"size {last.tree_size} is anchored, and the log has {size}: the database is an old copy, or lost entries. "
                "Restore a newer one; nothing is anchored until then",
            )
        tiles = await self._reads.tiles(self._log.log_id, recheck.tiles_to_extend(last.tree_size, size))
        if not recheck.extends((last.tree_size, RootHash(last.root)), (size, _root_of(published)), tiles):
            raise AnchorRefused(
                "anchor_root",
                f"the published tree of size {size} does not extend the one of size {last.tree_size} that is anchored: another "
                "history. Restore the right database; nothing is anchored until then",
            )

    def _refuse(self, refusal: AnchorRefused | None) -> None:
        if refusal and not self.refusal:
            get_logger().error("log is not anchored", log=self._log.name, code=refusal.code, detail=str(refusal))
        self.refusal = refusal
        self._watcher.refused(refusal.code if refusal else None)

    async def supersede(self) -> None:
        """Let go of anchors that no calendar has, all but the newest: its later stamp covers them too. Raises StoreError."""
        queued = await self._anchors.anchors(self._log.log_id, 0, _AT_ONCE, ("queued",))
        last = await self._anchors.anchor(self._log.log_id)
        for row in queued:
            if last and row.tree_size < last.tree_size:
                size = row.tree_size
                calendars = await self._anchors.anchor_calendars(self._log.log_id, size, size + 1)
                await self._save(*rows.superseded(row, calendars))

    # --- calendars ------------------------------------------------------------------------------------------------------

    async def round(self, calendar: Calendar) -> None:
        """Give a calendar what it lacks, then ask it about what is due, oldest first, one after the other. Raises StoreError."""
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
            for claim in claims:
                await self._in_thread(_look_up, claim, self._source)
        except AnchorMismatch as error:
            await self._lied(calendar, due, str(error))
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
            await self._settle(due.tree_size)

    async def _lied(self, calendar: Calendar, due: CalendarRow, detail: str) -> None:
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
        """Calendars put their time before what they commit to: when it is far off ours, one of the two clocks is wrong."""
        said = int.from_bytes((stored.commitment or b"")[:4], "big") * SECOND
        if len(stored.commitment or b"") == 44 and abs(said - self._clock()) > _CLOCK_OFF:
            get_logger().warning("a calendar's clock and this one differ", calendar=calendar.url, calendar_time=said)

    # --- blocks ---------------------------------------------------------------------------------------------------------

    async def settle_due(self) -> None:
        """Look at the blocks of anchors again: deep enough by now, or gone in a reorganisation? Raises StoreError."""
        if self._source is None:
            return
        for row in await self._anchors.due_anchors(self._log.log_id, self._clock(), _AT_ONCE):
            await self._settle(row.tree_size)

    async def _settle(self, size: int) -> None:
        if self._source is None:
            return
        for _ in range(_ROUNDS):
            row = await self._anchors.anchor(self._log.log_id, size)
            if row is None or row.ots is None:
                return
            check = await self._in_thread(check_anchor, row.checkpoint, row.ots, self._source, rows.MIN_DEPTH)
            calendars = await self._anchors.anchor_calendars(self._log.log_id, size, size + 1)
            new, changed = rows.settled(row, calendars, check, self._clock())
            if await self._save(new, changed):
                self._say(row, new, check)
                return

    def _say(self, old: AnchorRow, new: AnchorRow, check: AnchorCheck) -> None:
        if new.state == old.state:
            return
        if old.state == "confirmed" or new.state == "pending":
            get_logger().error(
                "an anchor is not confirmed any more: the chain was reorganised",
                log=self._log.name,
                tree_size=new.tree_size,
                detail=check.claim,
            )
        elif new.state == "confirmed":
            get_logger().info("anchor confirmed", log=self._log.name, tree_size=new.tree_size, claim=check.claim)

    async def _in_thread(self, work: Callable[..., T], *values: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    # --- storing --------------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Tell the watcher how things are. Raises StoreError."""
        self._watcher.summary(await self._anchors.anchor_summary(self._log.log_id, self._options.held))

    async def _change(self, due: CalendarRow, change: Change) -> CalendarRow | None:
        """Change an anchor and one of its calendars as of now, again if somebody else was quicker; return the calendar's new row."""
        size = due.tree_size
        for _ in range(_ROUNDS):
            row = await self._anchors.anchor(self._log.log_id, size)
            found = await self._anchors.anchor_calendars(self._log.log_id, size, size + 1)
            calendar = next((one for one in found if one.url == due.url), None)
            new = row and calendar and change(row, calendar)
            if not new:
                return None
            if await self._save(new[0], [new[1]]):
                return new[1]
        return None  # asked for again: nothing says that it was done

    @step("anchorer.save")
    async def _save(self, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
        return await self._anchors.save_anchor(self._log.log_id, row, calendars)


def _root_of(published: Published) -> RootHash:
    return parse_checkpoint(parse_note(published.note).text).root


def _claims(commitment: bytes, reply: bytes) -> tuple[BitcoinAttestation, ...]:
    """Return what a reply attests, before any of it is believed. Raises BadTimestamp."""
    claims = reply_attestations(commitment, reply).bitcoin
    if not 1 <= len(claims) <= _MAX_LOOKUPS:
        raise BadTimestamp(f"the reply attests {len(claims)} blocks, not 1 to {_MAX_LOOKUPS}")
    return claims


def _look_up(claim: BitcoinAttestation, source: HeaderSource | None) -> None:
    """Raise AnchorMismatch unless a claim is true, or, without a source, could be."""
    if source:
        look_up(claim, source)
    elif len(claim.message) != 32:
        raise AnchorMismatch(f"{len(claim.message)} bytes are no Merkle root")


def _unless_gone(
    taken: Callable[..., tuple[AnchorRow, CalendarRow]], row: AnchorRow, calendar: CalendarRow, *rest: object
) -> tuple[AnchorRow, CalendarRow] | None:
    """Leave an anchor alone that was superseded while a calendar took it."""
    return None if row.state == "superseded" else taken(row, calendar, *rest)
