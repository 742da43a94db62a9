"""Keeps house for one log: compares this clock with the database's, and has expired Idempotency-Keys forgotten."""

from __future__ import annotations

import time

from muniment_server.errors import StoreError
from muniment_server.follow.follower import Follower, Retry
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.write.clock import MAX_SKEW, Clock

_SECONDS = 10.0


class Housekeeper:
    """Every writer has one: `clock` is the one that its sequencer stamps entries by."""

    def __init__(self, store: Store, row: LogRow, clock: Clock) -> None:
        self._store = store
        self._reads = store.reads
        self._catalog = store.catalog
        self._log_id = row.log_id
        self._clock = clock
        retry = Retry("housekeeping failed", _SECONDS, (StoreError,))
        self.follower = Follower("housekeeper", row.name, self.run_once, retry)

    async def run_once(self) -> float:
        """Do all of it, and return how many seconds to rest. Raises StoreError."""
        await self.compare_clocks()
        await self._catalog.forget_expired(_now())
        return _SECONDS

    async def compare_clocks(self) -> None:
        """Have the clock know how far the database's is ahead. Raises StoreError."""
        before = _now()
        database = await self._reads.clock()
        skew = self._clock.skew = database - (before + _now()) // 2
        if self._store.has_clock and abs(skew) <= MAX_SKEW:
            self._clock.rebase()  # another machine says the same


def _now() -> int:
    return time.time_ns() // 1_000_000
