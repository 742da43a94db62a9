"""All open connections of a server: how many there may be, and one sweep a second that ends those that take too long."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from typing import Protocol

from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.web.room import Rooms, peer_of
from muniment_server.web.wire import Outbox

_SWEEP_SECONDS = 1.0
_REPORT_SECONDS = 10.0
_FILES_KEPT = 64  # database, logs, keys, guards: connections may not take the files those need


class Watched(Protocol):
    """A connection, as the sweep sees it. `now` is the event loop's time."""

    def check(self, now: float) -> None:
        """End what took too long."""


class Connections:
    """The connections of one server. Owned by its event loop; every method is called there."""

    def __init__(self, settings: Settings, metrics: Metrics, rooms: Rooms | None = None) -> None:
        self.client_seconds = settings.client_seconds
        self.keep_alive_seconds = settings.keep_alive_seconds
        self.outbox = Outbox()
        self.rooms = rooms or Rooms.of(settings)
        self._most = settings.max_connections
        self._most_of_one = settings.max_connections_per_address
        self._metrics = metrics
        self._open: set[Watched] = set()
        self._of: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()  # since the last log line
        self._reported_at = float("-inf")
        self._every = min(_SWEEP_SECONDS, self.client_seconds / 4, self.keep_alive_seconds / 4)
        self._due = 0.0  # when the next sweep is
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to sweep. Requires a running event loop, and the limit of open files as it will stay."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY and self._most > files - _FILES_KEPT:
            self._most = max(1, files - _FILES_KEPT)
            get_logger().warning("fewer connections than max_connections: the limit of open files", limit=self._most)
        self._due = asyncio.get_running_loop().time()
        self._sweep()

    def stop(self) -> None:
        """Sweep no more, and say what was refused since the last log line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._report(float("inf"))

    def admit(self, connection: Watched, host: str | None) -> str | None:
        """Count a new connection from an address. Returns None, or the reason why there is no place for it."""
        if len(self._open) >= self._most:
            return "too_many"
        peer = peer_of(host)
        if peer is not None:
            if self._of[peer] >= self._most_of_one:
                return "too_many_from_address"
            self._of[peer] += 1
        self._open.add(connection)
        self._metrics.connections.inc()
        return None

    def closed(self, connection: Watched, host: str | None) -> None:
        """Take a connection that was admitted off the count. Others are ignored."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self._metrics.connections.dec()
        peer = peer_of(host)
        if peer is not None:
            self._of[peer] -= 1
            if not self._of[peer]:
                del self._of[peer]  # otherwise every address ever seen would stay in memory

    def refused(self, reason: str) -> None:
        """Count a connection or request that was refused."""
        self._metrics.connections_refused.labels(reason).inc()
        self._refused[reason] += 1

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now, due = loop.time(), self._due
        self._due = now + self._every
        self._timer = loop.call_at(self._due, self._sweep)  # first: whatever happens below, there is a next time
        if now - due > self._every:
            return  # this process stood still, and what clients sent meanwhile is not read yet
        for connection in list(self._open):
            connection.check(now)
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        if self._refused and now - self._reported_at >= _REPORT_SECONDS:
            # One line for all: a line for each would let anybody fill the disk.
            get_logger().warning("connections refused", **dict(sorted(self._refused.items())))
            self._refused.clear()
            self._reported_at = now
