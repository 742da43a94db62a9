"""Keeps one anchorer for each log of a running server: starts them, lets nothing they meet escape, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import SystemRandom

import httpx

from muniment.anchor.chain import NETWORKS
from muniment.anchor.explorers import ExplorerSource
from muniment.anchor.node import RestNode, RpcNode
from muniment.anchor.sources import FileSource, HeaderSource
from muniment.errors import BadHeaderChain, FormatError, SourceUnavailable
from muniment_server.errors import Refused, SetupError, StoreError
from muniment_server.follow.anchors.anchorer import Anchorer, Options
from muniment_server.follow.anchors.calendar import Calendar, new_client
from muniment_server.follow.anchors.entries import Appendable, Entries
from muniment_server.follow.anchors.schedule import MINUTE, Triggers
from muniment_server.follow.follower import Follower, Retry, Work
from muniment_server.follow.lease import Lease, now
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorSummary
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import Metrics, get_logger

TICK_SECONDS = 5.0
_SLOW_SECONDS = 60.0
"""After an error of our own."""
_BUG = "anchoring met an unexpected error"
_THREADS = 4


def source_of(settings: Settings) -> HeaderSource | None:
    """Return the one source of block headers that the settings name, or None.

    Raises SetupError; reads a header file as a whole.
    """
    named = {
        "anchor_header_file": settings.anchor_header_file,
        "anchor_node": settings.anchor_node,
        "anchor_rest": settings.anchor_rest,
        "anchor_explorers": settings.anchor_explorers,
    }
    given = [name for name, value in named.items() if value]
    if len(given) > 1:
        raise SetupError(f"{' and '.join(given)} are different sources of block headers: name one")
    network = NETWORKS[settings.anchor_network]
    try:
        if settings.anchor_header_file:
            return FileSource(settings.anchor_header_file, network)
        if settings.anchor_node:
            return RpcNode(settings.anchor_node, settings.anchor_node_cookie, network)
        if settings.anchor_rest:
            return RestNode(settings.anchor_rest, network)
        if settings.anchor_explorers:
            return ExplorerSource(settings.anchor_explorers, 2, network)
    except (BadHeaderChain, FormatError, SourceUnavailable) as error:
        raise SetupError(f"{given[0]}: {error}") from error
    return None


def options_of(settings: Settings) -> Options:
    """Return what the settings say of anchors."""
    triggers = Triggers(settings.anchor_entries, int(settings.anchor_minutes * MINUTE))
    return Options(triggers, settings.anchor_held)


def calendars_of(settings: Settings, client: httpx.AsyncClient) -> list[Calendar]:
    """Return the calendars that the settings name. Raises SetupError."""
    try:
        found = [Calendar(url, client) for url in settings.anchor_calendars]
    except FormatError as error:
        raise SetupError(f"anchor_calendars: {error}") from error
    if len({one.url for one in found}) < len(found):
        raise SetupError("anchor_calendars: a calendar is named twice")
    return found


class Meter:
    """Turns what an anchorer tells into metrics."""

    def __init__(self, metrics: Metrics, log: LogRow) -> None:
        self._metrics = metrics
        self._log = log
        self._oldest: int | None = None
        self._confirmed = log.created_at
        metrics.anchor_oldest.labels(log.name).set_function(lambda: (self._oldest or 0) / 1000)
        metrics.anchor_confirmed.labels(log.name).set_function(lambda: self._confirmed / 1000)

    def asked(self, url: str, outcome: str) -> None:
        """See Watcher."""
        self._metrics.anchor_calendar.labels(self._log.name, url, outcome).inc()
        if outcome not in ("failed", "lied"):
            self._metrics.anchor_calendar_good.labels(self._log.name, url).set_to_current_time()

    def summary(self, found: AnchorSummary) -> None:
        """See Watcher."""
        name = self._log.name
        self._oldest, self._confirmed = found.oldest_open, found.last_confirmed or self._log.created_at
        for state in ("queued", "pending", "complete", "confirmed", "superseded"):
            self._metrics.anchors.labels(name, state).set(found.states.get(state, 0))
        self._metrics.anchors_degraded.labels(name).set(found.degraded)
        self._metrics.anchor_bad.labels(name).set(found.bad)

    def refused(self, code: str | None) -> None:
        """See Watcher."""
        self._metrics.anchor_refused.labels(self._log.name).set(code is not None)


class Running:
    """The anchorer of one log, at work: a follower for the log and one for each calendar: none waits for another.

    They all work where `lease` is.
    """

    def __init__(
        self, anchorer: Anchorer, lease: Lease, log: Appendable, entries: Entries | None, tick: float = TICK_SECONDS
    ) -> None:
        self._anchorer = anchorer
        self._lease = lease
        self._log = log
        self._entries = entries
        self._tick = tick
        name, retry = log.row.name, Retry(_BUG, tick, (StoreError, Refused), _SLOW_SECONDS)
        self._follower = Follower("anchorer", name, self.run_once, retry, lease=lease)
        self._calendars = [
            Follower(f"calendar {one.url}", name, self._rounds(one), retry) for one in anchorer.calendars
        ]

    def start(self) -> None:
        """Begin."""
        for follower in (self._follower, *self._calendars):
            follower.start()

    async def close(self) -> None:
        """Stop, and let another process go on."""
        await asyncio.gather(*(follower.close() for follower in self._calendars))
        await self._follower.close()

    async def run_once(self) -> float:
        """Do once what is due and concerns no calendar; return how many seconds to rest. Raises StoreError, Refused."""
        if not self._log.refusal:  # what is stored may not be what was signed
            await self._anchorer.freezer.freeze_due()
        await self._anchorer.freezer.supersede()
        await self._anchorer.blocks.settle_due()
        await self._anchorer.watch()
        if self._entries:
            await self._entries.log_confirmed()
        return self._tick

    def _rounds(self, calendar: Calendar) -> Work:
        async def once() -> float:
            if self._lease.held:
                await self._anchorer.round(calendar)
            return self._tick

        return once


class Anchoring:
    """All anchorers of a server, for settings that do not switch anchoring off."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._running: dict[str, Running] = {}
        self._watch: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None
        self._threads = ThreadPoolExecutor(_THREADS, "anchorer")

    async def start(self, store: Store, logs: Callable[[], Sequence[Appendable]]) -> None:
        """Start an anchorer for each log that is open, and for each that is opened later. Raises SetupError.

        `logs` returns those that are open at the moment.
        """
        settings = self._settings
        source = await asyncio.to_thread(source_of, settings)
        if source is None:
            get_logger().warning("anchors cannot be confirmed: no setting names a source of block headers")
        self._client = new_client()
        calendars_of(settings, self._client)  # refused at the start, not later in a task
        self._watch = asyncio.create_task(self._look(store, logs, self._client, source), name="anchoring")

    async def _look(
        self,
        store: Store,
        logs: Callable[[], Sequence[Appendable]],
        client: httpx.AsyncClient,
        source: HeaderSource | None,
    ) -> None:
        while True:
            for log in logs():
                if log.sequencer and log.row.name not in self._running and self._chosen(log.row.name):
                    self._running[log.row.name] = running = self._make(store, log, client, source)
                    running.start()
            await asyncio.sleep(TICK_SECONDS)

    def _chosen(self, name: str) -> bool:
        return not self._settings.anchor_logs or name in self._settings.anchor_logs

    def _make(self, store: Store, log: Appendable, client: httpx.AsyncClient, source: HeaderSource | None) -> Running:
        settings = self._settings
        calendars, options = calendars_of(settings, client), options_of(settings)
        meter = Meter(self._metrics, log.row)
        anchorer = Anchorer(store, log.row, calendars, source, options, meter, now, SystemRandom(), self._threads)
        lease = Lease(store, log.row.log_id, "anchorer")
        return Running(anchorer, lease, log, Entries(store, log) if settings.anchor_log_entries else None)

    async def close(self) -> None:
        """Stop everything."""
        if self._watch:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await asyncio.gather(*(running.close() for running in self._running.values()))
        if self._client:
            await self._client.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)
