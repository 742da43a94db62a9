"""When an anchor is made, and when a calendar or a block is asked again. Pure; times are in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

LEAST_APART = 10 * MINUTE
"""Anchors are never made more often: calendars work for nothing, and a block takes as long."""
LEAST_BETWEEN = MINUTE
"""Calendars let their answers be kept this long: asking again sooner gives the same one."""
MAX_ATTEMPTS = 53
"""Submissions that may fail: with the delays of :func:`retry_delay`, two days of them."""
START_JITTER = 3 * SECOND

_DEEP = 144  # blocks; a day on top of a block, and no miner will take it back


@dataclass(frozen=True, slots=True)
class Triggers:
    """An anchor is due after `entries` new entries, or `interval` milliseconds when there is at least one."""

    entries: int
    interval: int

    def due(self, new_entries: int, since_last: int) -> bool:
        """Tell whether to anchor `since_last` milliseconds after the last time, with `new_entries` not of anchors."""
        if new_entries <= 0 or since_last < LEAST_APART:
            return False
        return new_entries >= self.entries or since_last >= self.interval


def retry_delay(failures: int, rng: Random) -> int:
    """Return how long to wait after the `failures`-th failure in a row (from 1).

    A minute, doubling up to an hour, with jitter.
    """
    base: int = min(MINUTE << min(max(failures, 1) - 1, 6), HOUR)
    return base + rng.randrange(base // 8)


def poll_delay(age: int, rng: Random) -> int:
    """Return how long to wait before a calendar is asked again about what was submitted `age` milliseconds ago.

    Blocks need hours: first after an hour, then every half hour for a day, every two hours for a week, every twelve
    from then on.
    """
    if age < HOUR:
        return max(HOUR - age, LEAST_BETWEEN) + rng.randrange(MINUTE)
    base = HOUR // 2 if age < DAY else 2 * HOUR if age < 7 * DAY else 12 * HOUR
    return base + rng.randrange(base // 6)


def block_delay(depth: int, min_depth: int) -> int | None:
    """Return when to look again at a block that is `depth` deep (0: unknown); None once it is deep enough for good."""
    if depth < min_depth:
        return 10 * MINUTE
    return 6 * HOUR if depth < _DEEP else None


class Breaker:
    """Keeps away from a calendar that fails: open after three failures in a row, for longer each time."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._failures = 0
        self._until = 0

    def open(self, now: int) -> bool:
        """Tell whether to leave the calendar alone."""
        return now < self._until

    def good(self) -> None:
        """Note that it answered."""
        self._failures, self._until = 0, 0

    def bad(self, now: int) -> None:
        """Note that it failed."""
        self._failures += 1
        if self._failures >= 3:
            self._until = now + retry_delay(self._failures - 2, self._rng)
