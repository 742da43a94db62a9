"""Walks a log all the time, slowly, and recomputes it: damage at rest is found while there are good copies left.

Leaf hash against tile, tile against the one above, payload against commitment, and after each pass the right edge
against the head. It reads a tile's worth of entries at once, checks a few of them at a time and sleeps in between, so
that writes do not wait for it. `muniment-server fsck` checks more: signatures, the guard, equal leaves,
Idempotency-Keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from muniment.errors import BadProof
from muniment.hashing import HASH_SIZE
from muniment.tiles import TILE_WIDTH, Tile, width_at
from muniment.tree import Edge, expand, partial_tiles
from muniment_server.check.fsck.chunk import UNREADABLE, compare_tile, is_damage
from muniment_server.check.fsck.entries import Checked, check_entries
from muniment_server.check.fsck.report import Finding
from muniment_server.errors import StoreUnavailable
from muniment_server.follow.follower import Follower, Retry
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head, StoredPayload
from muniment_server.telemetry import Metrics, get_logger

_AT_ONCE = 16  # entries checked without a pause: a millisecond
_REST_SECONDS = 60.0
_RETRY_SECONDS = 5.0
_MAX_KNOWN = 10_000
_FULL = TILE_WIDTH * HASH_SIZE


class Scrub:
    """The scrub of one log, at `rate` entries a second.

    Its follower owns what it holds, and begins after `delay` seconds.
    """

    def __init__(self, store: Store, log: LogRow, metrics: Metrics, rate: float, delay: float = _RETRY_SECONDS) -> None:
        self._reads = store.reads
        self._inspect = store.inspect
        self._log = log
        self._metrics = metrics
        self._rate = rate
        self._known: set[tuple[str, int | None]] = set()  # what was reported already
        self._lacking: list[int] = []
        self._erased: set[int] = set()
        self._last_time: str | None = None
        metrics.scrub_mismatches.labels(log.name)  # shows 0 from the start
        retry = Retry("scrub was interrupted", _RETRY_SECONDS, (StoreUnavailable,))
        # Not at once: a start has better things to do.
        self.follower = Follower("scrub", log.name, self.run_once, retry, first=delay)

    async def run_once(self) -> float:
        """Check everything that the head of this moment covers; return how many seconds to rest.

        Raises StoreUnavailable when the database does not answer.
        """
        await self._scrub()
        return _REST_SECONDS

    async def _scrub(self) -> None:
        head = await self._reads.head(self._log.log_id)
        self._lacking, self._erased, self._last_time = [], set(), None
        if head.size < 0:
            self._report(Finding("head_size", 0, f"the head says that there are {head.size} entries"))
            return
        for index in range(-(-head.size // TILE_WIDTH)):
            try:
                if not await self._tile(index, head.size):
                    break  # the head says more than there is: do not walk on through nothing
            except (StoreUnavailable, *UNREADABLE) as error:
                if not is_damage(error):
                    raise
                self._report(Finding("database_pages", index * TILE_WIDTH, f"cannot be read: {error}"))
        for index in set(self._lacking) - self._erased:
            self._report(Finding("payload_missing", index, f"event {index} has no payload, and no entry erases it"))
        await self._edge(head)
        self._metrics.scrub_last_pass.labels(self._log.name).set_to_current_time()

    async def _tile(self, index: int, size: int) -> bool:
        """Check tile 0/`index`, its entries, and every tile above that ends with it; tell whether there are entries."""
        log_id, start = self._log.log_id, index * TILE_WIDTH
        stop = min(start + TILE_WIDTH, size)
        rows = await self._inspect.entry_rows(log_id, start, stop)
        if not rows:
            self._report(
                Finding("entry_missing", start, f"the entries [{start}, {stop}) are below the head, but not stored")
            )
            return False
        payloads = {stored.index: stored for stored in await self._reads.payloads(log_id, start, stop)}
        hashes = await self._entries(start, stop, rows, payloads)
        levels = [level for level in range(64) if (index + 1) % TILE_WIDTH**level == 0]
        wanted = [Tile(level, index // TILE_WIDTH**level) for level in (*levels, levels[-1] + 1)]
        stored = await self._reads.tiles(log_id, wanted)
        checked = Checked()
        compare_tile(checked, index, hashes, stored.get((0, index), b""))
        for tile in wanted[:-1]:
            self._parent(checked, tile, stored, size)
        self._report(*checked.findings)
        return True

    async def _entries(
        self, start: int, stop: int, rows: Sequence[Sequence[Any]], payloads: dict[int, StoredPayload]
    ) -> list[bytes | None]:
        hashes: list[bytes | None] = []
        at = 0
        for low in range(start, stop, _AT_ONCE):
            began, high = time.monotonic(), min(low + _AT_ONCE, stop)
            first = at
            while at < len(rows) and rows[at][0] < high:
                at += 1
            checked = check_entries(self._log, low, high, rows[first:at], payloads)
            hashes += checked.hashes
            self._take(checked, low)
            self._metrics.scrub_entries.labels(self._log.name).inc(high - low)
            self._metrics.scrub_position.labels(self._log.name).set(high)
            await asyncio.sleep(max((high - low) / self._rate - (time.monotonic() - began), 0))
        return hashes

    def _take(self, checked: Checked, low: int) -> None:
        self._report(*checked.findings)
        self._lacking += checked.lacking
        self._erased |= checked.erased
        if self._last_time and checked.first_time and checked.first_time < self._last_time:
            self._report(Finding("time_went_back", low, f"time goes back at or behind entry {low}"))
        self._last_time = checked.last_time or self._last_time

    @staticmethod
    def _parent(checked: Checked, tile: Tile, stored: dict[tuple[int, int], bytes], size: int) -> None:
        """Compare a full tile with its hash in the tile above."""
        if width_at(tile.level, tile.index, size) < TILE_WIDTH:
            return
        data, above = (
            stored.get(where, b"") for where in ((tile.level, tile.index), (tile.level + 1, tile.index // TILE_WIDTH))
        )
        at = tile.index % TILE_WIDTH * HASH_SIZE
        if len(data) != _FULL or bytes(expand(data)[8]) != above[at : at + HASH_SIZE]:
            first = tile.index * TILE_WIDTH << 8 * tile.level
            checked.add("tile", first, f"tile {tile.level}/{tile.index} does not hash to what is above it")

    async def _edge(self, head: Head) -> None:
        """Compare the right edge with the head. A tile that has grown since is cut to its width then."""
        stored = await self._reads.tiles(self._log.log_id, [tile for tile in partial_tiles(head.size) if tile.width])
        try:
            good = Edge.of(head.size, stored).root() == head.root
        except BadProof:
            good = False
        if not good:
            self._report(Finding("head_root", max(head.size - 1, 0), "the tiles do not hash to the root of the head"))

    def _report(self, *findings: Finding) -> None:
        for finding in findings:
            if (finding.code, finding.index) in self._known or len(self._known) >= _MAX_KNOWN:
                continue
            self._known.add((finding.code, finding.index))
            self._metrics.scrub_mismatches.labels(self._log.name).inc()
            get_logger().error(
                "scrub found damage: run `muniment-server fsck`",
                log=self._log.name,
                code=finding.code,
                index=finding.index,
                detail=finding.detail,
            )
