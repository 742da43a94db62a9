"""Measures, now and then, how much of a log rests on its operator alone: see muniment_server.read.coverage."""

from __future__ import annotations

from muniment_server.errors import NotFound, StoreError
from muniment_server.follow.follower import Follower, Retry
from muniment_server.read.coverage import Coverage
from muniment_server.telemetry import Metrics

_SECONDS = 5.0


class Exposure:
    """Sets the metric of one log."""

    def __init__(self, coverage: Coverage, log: str, metrics: Metrics) -> None:
        self._coverage = coverage
        self._log = log
        self._uncovered = metrics.uncovered
        retry = Retry("measuring the coverage failed", _SECONDS, (StoreError, NotFound))
        self.follower = Follower("exposure", log, self.run_once, retry)

    async def run_once(self) -> float:
        """Measure, and return how many seconds to rest. Raises StoreError, NotFound."""
        for by, found in (await self._coverage.now()).items():
            self._uncovered.labels(self._log, by).set((found.since or 0) / 1000)
        return _SECONDS
