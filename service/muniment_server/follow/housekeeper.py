"""Keeps house for one log: compares this clock with the database's, and has expired Idempotency-Keys forgotten.

So it also tries, when there are no appends, whether the database would take an append: whether it can be written to,
and whether API keys can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from muniment_server.errors import StoreError
from muniment_server.follow.follower import Follower, Retry
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.write.clock import Clock

_SECONDS = 10.0
_RETRY_SECONDS = 2.0


class Housekeeper:
    """Every writer has one: `clock` is the one that its sequencer stamps entries by.

    `tell` is called with the code of what failed, or with None.
    """

    def __init__(self, store: Store, row: LogRow, clock: Clock, tell: Callable[[str | None], None]) -> None:
        self._reads = store.reads
        self._catalog = store.catalog
        self._log_id = row.log_id
        self._clock = clock
        self._tell = tell
        retry = Retry("housekeeping failed", _RETRY_SECONDS, (StoreError,))
        self.follower = Follower("housekeeper", row.name, self.run_once, retry)

    async def run_once(self) -> float:
        """Do all of it, and return how many seconds to rest. Raises StoreError."""
        try:
            await self.compare_clocks()
            await self._catalog.api_keys()
            await self._catalog.forget_expired(_now())
        except StoreError:
            self._tell("database_unavailable")
            raise
        self._tell(None)
        return _SECONDS

    async def compare_clocks(self) -> None:
        """Have the clock know how far the database's is ahead. Raises StoreError."""
        before = _now()
        database = await self._reads.clock()
        self._clock.compare(database, (before + _now()) // 2)


def _now() -> int:
    return time.time_ns() // 1_000_000
