"""The clock that entries are stamped by, and what makes it doubtful: another clock of the database, and jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

from muniment_server.errors import ClockRefused

MAX_SKEW = 5_000
"""Milliseconds this clock and the database's may differ."""
MAX_BEHIND = 60_000
"""Milliseconds this clock may be behind the last entry's time; beyond, time would stand still for too long."""
HOLD = 60_000
"""Milliseconds for which a clock that was set forward is not believed."""


def boot_time() -> float:
    """Return seconds that go on while the machine sleeps, so that waking up is no jump of the clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """Stamps entries, in milliseconds since 1970. `skew` is how far the database's clock is ahead, in milliseconds.

    `wall` gives seconds since 1970; `monotonic`, seconds that no operator can set, shows when `wall` was set forward.
    Without `monotonic` jumps go unseen.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] | None = None) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset = 0  # of the wall clock against the monotonic one, when last believed
        self._jumped: int | None = None  # monotonic time at which the clock was first seen to be set forward
        self.skew = 0
        self.rebase()

    def now(self) -> int:
        """Return what the clock says."""
        return int(self._wall() * 1000)

    def stamp(self, last: int) -> int:
        """Return the time of entries that follow one of the time `last`: never earlier. Raises ClockRefused."""
        now = self.now()
        self._check_jump(now, last)
        if abs(self.skew) > MAX_SKEW:
            raise ClockRefused(f"this clock and the database's differ by {abs(self.skew) / 1000:.1f} s")
        if last - now > MAX_BEHIND:
            raise ClockRefused(f"this clock is {(last - now) / 1000:.0f} s behind the last entry")
        return max(now, last)

    def rebase(self) -> None:
        """Take the clock as right: from now on it may not jump forward from here."""
        self._offset = self.now() - int(self._monotonic() * 1000) if self._monotonic else 0
        self._jumped = None

    def _check_jump(self, now: int, last: int) -> None:
        """Refuse for a while when the clock was set forward: entries from a future would keep all later ones out.

        If it still says so after HOLD, it is the old time that was wrong. Raises ClockRefused.
        """
        if self._monotonic is None:
            return
        since = int(self._monotonic() * 1000)
        ahead = now - since - self._offset
        # No jump, also when it was set back and is then set right again; or one that cannot keep later entries out for
        # long.
        if ahead <= MAX_SKEW or now - last <= MAX_BEHIND:
            self._offset, self._jumped = max(self._offset, now - since), None
            return
        self._jumped = since if self._jumped is None else self._jumped
        if since - self._jumped < HOLD:
            raise ClockRefused(
                f"this clock jumped forward by {ahead / 1000:.0f} s: entries are refused for {HOLD // 1000} s, "
                "then it is believed"
            )
        self.rebase()
