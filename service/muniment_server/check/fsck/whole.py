"""The check of one log: cuts it into chunks, has them checked, folds them, and looks at what belongs to no chunk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from muniment.errors import BadProof
from muniment.event import parse_time
from muniment.policy import Policy
from muniment.tiles import TILE_WIDTH, width_at
from muniment_server.check.fsck.chunk import UNREADABLE, Chunk, Task, check_note, is_damage
from muniment_server.check.fsck.entries import Checked, check_keys, check_overlaps
from muniment_server.check.fsck.equal import LeafKeys
from muniment_server.check.fsck.guards import check_guard, read_guard
from muniment_server.check.fsck.report import Report
from muniment_server.check.fsck.tree import Fold, Wanted, tie
from muniment_server.check.fsck.workers import check_here
from muniment_server.errors import StoreUnavailable
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import Head, IdempotencyRow
from muniment_server.write.guard import Guard

_STEP = 8 * TILE_WIDTH
_PAGE = 1000
_LEAST = -(2**63)
LEAF_KEYS = "leaf_keys"
"""The code of the finding that entries are not found by their leaf keys."""

Progress = Callable[[int, int], None]
Check = Callable[[Store, Iterable[Task]], AsyncIterator[Chunk]]
"""Checks chunks, in order: here, or in processes."""


async def fsck(
    store: Store,
    log: LogRow,
    policy: Policy,
    guard: Guard | None,
    progress: Progress = lambda _done, _all: None,
    *,
    start: int = 0,
    stop: int | None = None,
    check: Check = check_here,
) -> Report:
    """Check one log, or its entries [start, stop), widened to whole tiles. `guard` None leaves the guard out.

    `progress` gets (entries checked, entries in all). It may run beside a writer: it reads the guard, then
    Idempotency-Keys, then the head, and checks what that head covers. Raises StoreUnavailable when the database does
    not answer.
    """
    return (await Whole(store, log, policy, guard, start, stop).run(progress, check)).report


@dataclass
class Whole:
    """One run over a log. `report` has what was found, `fold` the roots and the tiles that are wrong."""

    store: Store
    log: LogRow
    policy: Policy
    guard: Guard | None = None
    start: int = 0
    stop: int | None = None
    head: Head = field(init=False)
    report: Report = field(init=False)
    fold: Fold = field(init=False)
    _lacking: list[int] = field(default_factory=list)
    _erased: set[int] = field(default_factory=set)
    _outside: list[IdempotencyRow] = field(default_factory=list)
    _last_time: str | None = None
    _broken: bool = False
    leaf_keys_wrong: bool = False
    _leaf_keys: LeafKeys = field(init=False)

    async def run(self, progress: Progress, check: Check) -> Whole:
        """Check everything, and return itself."""
        began = time.monotonic()
        self.report = Report(self.log.name, self.log.origin, 0)
        try:
            await self._run(progress, check)
        except (StoreUnavailable, *UNREADABLE) as error:
            if not is_damage(error):
                raise
            self.report.add_one("database_pages", None, f"the database cannot read its own pages: {error}")
        self.report.seconds = round(time.monotonic() - began, 3)
        return self

    async def _run(self, progress: Progress, check: Check) -> None:
        report = self.report
        guarded = await asyncio.to_thread(read_guard, report, self.guard) if self.guard else None
        keys = await self._keys()  # before the head: those of later appends are left out
        self.head = head = await self.store.reads.head(self.log.log_id)
        report.size = head.size
        if head.size < 0:
            report.add_one("head_size", 0, f"the head says that there are {head.size} entries")
            return
        wanted: Wanted = {head.size: [("head", head.root)]}
        if guarded:
            for size, root in check_guard(report, self.log, self.policy, guarded, head).items():
                wanted.setdefault(size, []).append(("guard", root))
        self._clip()
        self.fold = Fold(self.store.reads, self.log, report, wanted)
        looked_for = head.size if self._complete and self.log.kind == "raw" else 0
        with contextlib.closing(LeafKeys(looked_for)) as self._leaf_keys:
            pages = asyncio.create_task(self._integrity())  # meanwhile
            try:
                await self._walk(progress, check, self._inside(keys), frozenset(wanted))
            finally:
                await pages
            await self._check_rest()

    def _clip(self) -> None:
        size = self.head.size
        low = min(self.start, size) // TILE_WIDTH * TILE_WIDTH
        high = size if self.stop is None else min(-(-self.stop // TILE_WIDTH) * TILE_WIDTH, size)
        self.report.start, self.report.stop = low, max(low, high)

    @property
    def _complete(self) -> bool:
        return (self.report.start, self.report.stop) == (0, self.head.size)

    # --- chunks -------------------------------------------------------------------------------------------------------

    def _tasks(self, keys: Sequence[IdempotencyRow], wanted: frozenset[int]) -> Iterator[Task]:
        report, at, policy = self.report, 0, str(self.policy)
        while at < len(keys) and keys[at].first_index < report.start:
            at += 1
        for low in range(report.start, report.stop, _STEP):
            high = min(low + _STEP, report.stop)
            first = at
            while at < len(keys) and keys[at].first_index < high:
                at += 1
            inside = frozenset(size for size in wanted if low < size <= high)
            yield Task(self.log, policy, low, high, self.head.size, inside, tuple(keys[first:at]))

    async def _walk(
        self, progress: Progress, check: Check, keys: Sequence[IdempotencyRow], wanted: frozenset[int]
    ) -> None:
        report = self.report
        try:
            await self.fold.begin(report.start)
        except BadProof as error:
            report.add_one("tile", report.start, f"what lies left of {report.start} cannot be tied to: {error}")
            self._broken = True
        async for chunk in check(self.store, self._tasks(keys, wanted)):
            await self._take(chunk)
            if chunk.empty and await self.store.inspect.beyond(self.log.log_id, chunk.stop) is None:
                self._broken = True  # the head says far more than there is: do not walk on through nothing
                break
            report.entries += chunk.stop - chunk.start
            progress(report.entries, report.stop - report.start)
        if not self._broken:
            await self.fold.end()

    async def _take(self, chunk: Chunk) -> None:
        checked = chunk.checked
        self.report.add(*checked.findings)
        self.report.checkpoints += chunk.checkpoints
        self._lacking += checked.lacking
        self._erased |= checked.erased
        if self._last_time and checked.first_time and checked.first_time < self._last_time:
            self.report.add_one("time_went_back", chunk.start, f"time goes back at or behind entry {chunk.start}")
        self._last_time = checked.last_time or self._last_time
        if self._complete:
            self._leaf_keys.add(chunk.keys)
        if len(chunk.roots) < (chunk.stop - chunk.start) // TILE_WIDTH:
            self._broken = True  # a chunk that cannot be read: there are no roots from here on
        if not self._broken:
            await self.fold.add(chunk)

    # --- what belongs to no chunk -------------------------------------------------------------------------------------

    async def _keys(self) -> list[IdempotencyRow]:
        """Return all idempotency rows by first index."""
        found: list[IdempotencyRow] = []
        after = ("", "")
        while page := await self.store.inspect.key_rows(self.log.log_id, after, _PAGE):
            found += page
            after = (page[-1].caller, page[-1].key)
        found.sort(key=lambda row: (row.first_index, row.count))
        self.report.idempotency_keys = len(found)
        self.report.add(*check_overlaps(found))
        return found

    def _inside(self, keys: Sequence[IdempotencyRow]) -> list[IdempotencyRow]:
        """Return the rows that begin at an entry; keep the others for later."""
        self._outside = [row for row in keys if not 0 <= row.first_index < self.head.size]
        return [row for row in keys if 0 <= row.first_index < self.head.size]

    async def _integrity(self) -> None:
        if self.start or self.stop is not None:
            return
        for said in await self.store.inspect.integrity():
            self.report.add_one("database_pages", None, f"the database's own check: {said}")
        for said in await self.store.inspect.leaf_key_damage():
            self.leaf_keys_wrong = True  # also when this finding is one too many to be kept
            self.report.add_one(LEAF_KEYS, None, said)

    async def _check_rest(self) -> None:
        report, head = self.report, self.head
        report.add(*check_keys(self.log, head.size, self._outside, {}))
        for index in self._lacking:
            if index not in self._erased:
                report.add_one("payload_missing", index, f"event {index} has no payload, and no entry erases it")
        if not self._complete:
            if report.stop and not self._broken:
                await tie(self.store.reads, self.log, report, report.stop - 1, head.size, head.root)
            return
        if self._last_time and self.log.kind == "event" and parse_time(self._last_time) != head.logged_at:
            report.add_one("head_time", max(head.size - 1, 0), "the head's time is not that of the last entry")
        await self._check_checkpoints()
        await self._check_strays()
        if self.log.kind == "raw":
            await self._check_equal_leaves()

    async def _check_checkpoints(self) -> None:
        """Check the checkpoints no chunk has, and that the head row names the largest one."""
        at = self.head.size + 1
        while page := await self.store.checkpoints.checkpoints(self.log.log_id, at, _PAGE):
            await self._check_later(page)
            at = page[-1].size + 1
        await self._check_earlier()
        largest = max((size for size, _ in self.fold.checkpoints()), default=0)
        latest = await self.store.checkpoints.checkpoint(self.log.log_id)
        if (latest.size if latest else 0) < largest:
            self.report.add_one(
                "published_size", largest, "the head row does not name the largest published checkpoint"
            )

    async def _check_earlier(self) -> None:
        """Check the checkpoints before the first entry, of which only one of size 0 can be right."""
        checked, at = Checked(), _LEAST
        while page := await self.store.checkpoints.checkpoints(self.log.log_id, at, 1):
            if page[0].size > 0:
                break
            check_note(checked, self.policy, self.log.origin, page[0].size, page[0].note)
            at = page[0].size + 1
        self.report.add(*checked.findings)

    async def _check_later(self, page: Sequence[Published]) -> None:
        """Check checkpoints beyond the head that was read: fine when the head has moved on."""
        checked = Checked()
        for published in page:
            check_note(checked, self.policy, self.log.origin, published.size, published.note)
        self.report.add(*checked.findings)
        now = (await self.store.reads.head(self.log.log_id)).size
        if page[-1].size > now:
            self.report.add_one("checkpoint_beyond_head", now, f"size {page[-1].size} was published, the head is {now}")

    async def _check_strays(self) -> None:
        """Look for entries, payloads and tiles that no head covers; a head that moved meanwhile covers more."""
        beyond = await self.store.inspect.beyond(self.log.log_id, self.head.size)
        strays = await self._stray_tiles(self.head.size)
        size = (await self.store.reads.head(self.log.log_id)).size
        if beyond is not None and size == self.head.size:
            self.report.add_one("entry_beyond_head", beyond, "an entry or payload beyond the head is stored")
        for level, index, data in strays:
            if data > 32 * width_at(level, index, size):
                first = index * TILE_WIDTH + width_at(level, index, size) << 8 * level
                self.report.add_one("tile_extra", min(first, 2**63), f"tile {level}/{index} holds more than the tree")

    async def _stray_tiles(self, size: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        after = (-1, 0)
        while page := await self.store.inspect.tile_rows(self.log.log_id, after, _PAGE * 10):
            found += [row for row in page if row[2] > 32 * width_at(row[0], row[1], size)]
            after = page[-1][:2]
        return found

    async def _check_equal_leaves(self) -> None:
        for keys in self._leaf_keys.repeated():
            for at in range(0, len(keys), _PAGE):
                await self._compare_leaves(keys[at : at + _PAGE])

    async def _compare_leaves(self, keys: Sequence[int]) -> None:
        seen: dict[bytes, int] = {}
        for index, leaf in await self.store.reads.find_leaves(self.log.log_id, keys):
            first = seen.setdefault(leaf, index)
            if first != index and index < self.head.size:
                self.report.add_one("leaf_twice", index, f"entry {index} is the same leaf as entry {first}")
