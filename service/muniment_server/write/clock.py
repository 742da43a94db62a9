"""The clock that entries are stamped by, and what makes it doubtful: another clock of the database, and jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

from muniment_server.errors import ClockRefused

MAX_SKEW = 5_000
"""Milliseconds this clock and the database's may differ, and that a jump may have."""
MAX_BEHIND = 60_000
"""Milliseconds this clock may be behind the last entry's time; beyond, time would stand still for too long."""
_DAY = 86_400_000


def boot_time() -> float:
    """Return seconds that go on while the machine sleeps, so that waking up is no jump of the clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Stamps entries, in milliseconds since 1970. `skew` is how far the database's clock is ahead, in milliseconds.

    `wall` gives seconds since 1970; `monotonic`, seconds that no operator can set, shows when `wall` was set forward.
    Without `monotonic` jumps go unseen. It may be `behind` the last entry by so many milliseconds; and `ahead` of it,
    when this object is made, or by any time.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] | None = None,
        *,
        behind: int = MAX_BEHIND,
        ahead: int | None = None,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._behind = behind
        self._ahead = ahead
        self._begun = self.now()
        self._offset = 0  # of the wall clock against the monotonic one, when last believed
        self._database: int | None = None  # likewise of the database's clock, when last seen to go on evenly
        self.skew = 0
        self.rebase()

    def now(self) -> int:
        """Return what the clock says."""
        return int(self._wall() * 1000)

    def stamp(self, last: int) -> int:
        """Return the time of entries that follow one of the time `last`: never earlier. Raises ClockRefused."""
        now = self.now()
        if doubt := self._doubt(now, last):
            raise ClockRefused(doubt)
        return max(now, last)

    def doubt(self, last: int) -> str | None:
        """Return why entries that follow one of the time `last` would be refused now, or None."""
        return self._doubt(self.now(), last)

    def rebase(self) -> None:
        """Take the clock as right: from now on it may not jump forward from here."""
        self._offset = self._since_boot(self.now())

    def compare(self, database: int, now: int) -> None:
        """Take note of what the database's clock said when this one said `now`.

        Where both say the same, that is reason to believe this one, unless both were set: they may be one and the same.
        """
        self.skew = database - now
        offset = self._since_boot(database)
        if self._database is not None and abs(offset - self._database) > MAX_SKEW:
            return
        self._database = offset
        if abs(self.skew) <= MAX_SKEW:
            self.rebase()

    def _since_boot(self, time_: int) -> int:
        return time_ - int(self._monotonic() * 1000) if self._monotonic else 0

    def _doubt(self, now: int, last: int) -> str | None:
        if jump := self._jump(now, last):
            return (
                f"this clock jumped forward by {jump / 1000:.0f} s, and the time since the machine was started did "
                "not: set it right, and appends go on; if it is right now, restart the server"
            )
        if abs(self.skew) > MAX_SKEW:
            return f"this clock and the database's differ by {abs(self.skew) / 1000:.1f} s"
        if last - now > self._behind:
            return (
                f"this clock is {(last - now) / 1000:.0f} s behind the last entry: set it right; if it is right, "
                "see max_clock_behind_seconds in docs/reference.md"
            )
        if self._ahead is not None and last and self._begun - last > self._ahead:
            return (
                f"this clock was {(self._begun - last) / _DAY:.0f} days ahead of the last entry when the server "
                "started: set it right and restart; if it is right, see max_clock_ahead_days in docs/reference.md"
            )
        return None

    def _jump(self, now: int, last: int) -> int:
        """Return by how much the clock was set forward, in milliseconds; 0 when it was not.

        Entries from a future would keep all later ones out, for as long as it takes to get there.
        """
        ahead = self._since_boot(now) - self._offset
        # No jump, also when it was set back and is then set right again; or one that cannot keep later entries out for
        # long.
        if ahead <= MAX_SKEW or now - last <= MAX_BEHIND:
            self._offset += max(ahead, 0)
            return 0
        return ahead
