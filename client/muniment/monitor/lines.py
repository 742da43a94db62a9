"""Prints from a thread of its own, so that a pipe that no reader empties holds nothing up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Full, Queue

MAX_WAITING = 10_000
"""Lines that wait for a slow reader; beyond them lines are dropped and counted. Findings are in the record anyway."""


class Lines:
    """Writes lines to a descriptor. `left` is called once its reader has gone, from the thread that writes."""

    def __init__(self, descriptor: int, left: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._left = left
        self._waiting: Queue[bytes | None] = Queue(MAX_WAITING)
        self._dropped = 0
        # A daemon: blocked in a write, it ends with the process.
        self._thread = threading.Thread(target=self._work, daemon=True, name="muniment-lines")
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Print a line when it can be. Never waits."""
        try:
            if self._dropped and self._waiting.qsize() < MAX_WAITING // 2:
                dropped, self._dropped = self._dropped, 0
                self._waiting.put_nowait(b'{"event":"dropped","lines":%d}\n' % dropped)
            self._waiting.put_nowait(line)
        except Full:
            self._dropped += 1

    def close(self, seconds: float | None) -> None:
        """Wait until all is printed, at most so long; without limit when `seconds` is None."""
        try:
            self._waiting.put(None, timeout=seconds)
        except Full:
            return
        self._thread.join(seconds)

    def _work(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self._left()
                return
