"""All open connections of a server.

How many there may be, and one sweep a second that ends those that take too long.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from typing import Protocol

from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.web.http.wire import Outbox
from muniment_server.web.room import Rooms, peer_of

_SWEEP_SECONDS = 1.0
_REPORT_SECONDS = 10.0
_FILES_KEPT = 64  # database, logs, keys, guards: connections may not take the files those need
_BACKLOG = 2048
_DROPPED = 16 * 2**20
"""Bytes of bodies and rubbish that are read only to be dropped, from one sweep to the next: a whole batch."""
_LOOK_SECONDS = 0.05  # how long the server does not look for connections that may give way, after it found hardly any
_WORTH = 256  # connections that are looked at for one that gives way, at the most


Rank = tuple[int, float]
"""How soon a connection gives way to a new one.

Kinds come first, and of one kind the connection that would be ended first anyway.
"""


class Watched(Protocol):
    """A connection, as the sweep sees it. `now` is the event loop's time."""

    def check(self, now: float) -> None:
        """End what took too long."""

    def rank(self, now: float) -> Rank | None:
        """Return how soon it gives way to a new connection; None when it does not.

        The rank stays the same while nothing happens on the connection.
        """

    def give_way(self) -> None:
        """Close, because a new connection needs the place."""


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
        self._open: dict[Watched, str | None] = {}  # and what they are counted by
        self._of: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()  # since the last log line
        self._reported_at = float("-inf")
        self._yielding: dict[str | None, list[tuple[Rank, Watched]]] = {}  # what may give way, the first of it last
        self._looked: dict[str | None, float] = {}
        self._dropped = 0  # bytes since the last sweep
        self._every = min(_SWEEP_SECONDS, self.client_seconds / 4, self.keep_alive_seconds / 4)
        self._due = 0.0  # when the next sweep is
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> int:
        """Begin to sweep. Requires a running event loop, and the limit of open files as it will stay.

        Returns how many connections may wait to be taken. All of them may be taken at a time, and those that give way
        still be open.
        """
        files, backlog = resource.getrlimit(resource.RLIMIT_NOFILE)[0], _BACKLOG
        if files != resource.RLIM_INFINITY:
            backlog = min(backlog, files // 8)
            most = max(1, files - _FILES_KEPT - backlog)
            if self._most > most:
                self._most = most
                get_logger().warning("fewer connections than max_connections: the limit of open files", limit=most)
        self._due = asyncio.get_running_loop().time()
        self._sweep()
        return backlog

    def stop(self) -> None:
        """Sweep no more, and say what was refused since the last log line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._report(float("inf"))

    def admit(self, connection: Watched, host: str | None) -> str | None:
        """Count a new connection from an address. Returns None, or the reason why there is no place for it."""
        peer = peer_of(host)
        if peer is not None and self._of[peer] >= self._most_of_one and not self._make_place(peer):
            return "too_many_from_address"
        if len(self._open) >= self._most and not self._make_place(None):
            return "too_many"
        if peer is not None:
            self._of[peer] += 1
        self._open[connection] = peer
        self._metrics.connections.inc()
        return None

    def closed(self, connection: Watched) -> None:
        """Take a connection that was admitted off the count. Others are ignored."""
        if connection not in self._open:
            return
        peer = self._open.pop(connection)
        self._metrics.connections.dec()
        if peer is not None:
            self._of[peer] -= 1
            if not self._of[peer]:
                del self._of[peer]  # otherwise every address ever seen would stay in memory

    def _make_place(self, peer: str | None) -> bool:
        """Have the connection closed that can best be spared: of this address, or of all.

        Returns False when there is none. All are looked at once, for many new ones: each by itself would take the time
        of several requests.
        """
        now = asyncio.get_running_loop().time()
        while True:
            yielding = self._yielding.get(peer, [])
            while yielding:
                rank, connection = yielding.pop()
                if connection in self._open and connection.rank(now) == rank:
                    self.closed(connection)
                    self.refused("crowded_out")
                    connection.give_way()
                    return True
            if now < self._looked.get(peer, float("-inf")) + _LOOK_SECONDS:
                return False
            self._look(peer, now)

    def _look(self, peer: str | None, now: float) -> None:
        # Backwards: of those that came at the same instant, the last one that is found goes first.
        ranks = ((one.rank(now), one) for one, of in reversed(self._open.items()) if peer in (None, of))
        found = sorted(
            ((rank, one) for rank, one in ranks if rank is not None), key=lambda found: found[0], reverse=True
        )
        self._yielding[peer] = found
        if len(found) * _WORTH < len(self._open):
            self._looked[peer] = now

    def may_drop(self, size: int) -> bool:
        """Count bytes that were read for nothing. Returns whether more of them may be read before the next sweep."""
        self._dropped += size
        return self._dropped < _DROPPED

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
        self._dropped = 0
        self._yielding.clear()  # otherwise connections that ended would stay in memory
        for connection in list(self._open):
            connection.check(now)
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        if self._refused and now - self._reported_at >= _REPORT_SECONDS:
            # One line for all: a line for each would let anybody fill the disk.
            get_logger().warning("connections refused", **dict(sorted(self._refused.items())))
            self._refused.clear()
            self._reported_at = now
