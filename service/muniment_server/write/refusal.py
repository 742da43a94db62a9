"""Why a sequencer signs nothing, and when it looks again."""

from __future__ import annotations

import time
from collections.abc import Callable

from muniment_server.errors import ReadOnly
from muniment_server.write.observer import Observer

LOOK_SECONDS = 5.0
"""After a refusal that database or guard gave reason for: when they are looked at again."""


class RefusalState:
    """The reason why nothing is signed, `current`, or None. Stays until a restart, or until a look finds all well.

    `note` writes a line of the trace. Any task may call :meth:`refuse`; only the sequencer's ends a refusal.
    """

    def __init__(self, observer: Observer, note: Callable[..., None]) -> None:
        self.current: ReadOnly | None = None
        self._observer = observer
        self._note = note
        self._look_at = 0.0  # monotonic time of the next look, after a refusal that has one

    @property
    def is_due(self) -> bool:
        """Tell whether it is time to look whether the reason still holds."""
        return self.current is not None and self.current.look_again and time.monotonic() >= self._look_at

    @property
    def next_look(self) -> float | None:
        """Seconds until the next look; None when there is none."""
        if self.current and self.current.look_again:
            return max(self._look_at - time.monotonic(), 0.0)
        return None

    def refuse(self, refusal: ReadOnly) -> ReadOnly:
        """Sign nothing any more. Return the reason to raise: a final one that was there before stays."""
        before = self.current
        if before and not before.look_again:
            return before
        self.current = refusal
        self._look_at = time.monotonic() + LOOK_SECONDS
        if before is None or before.code != refusal.code:  # a look that finds the same says nothing new
            self._note("refuse", code=refusal.code)
            self._observer.refused(refusal)
        return refusal

    def check_final(self) -> None:
        """Raise the reason when nothing is signed until a restart: it may have come while others were waited for."""
        if self.current and not self.current.look_again:
            raise self.current

    def end(self) -> None:
        """Let the log be written again, if it was refused."""
        if self.current:
            self.current = None
            self._observer.returned()
