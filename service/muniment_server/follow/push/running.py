"""Keeps a pusher for each sink of a running server: starts them, lets nothing they meet escape, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from muniment_server.errors import SetupError
from muniment_server.follow.push.cutting import Pushable
from muniment_server.follow.push.jsonl import JsonlFile
from muniment_server.follow.push.pusher import Pusher
from muniment_server.follow.push.webhook import Webhook
from muniment_server.settings import Settings
from muniment_server.sinks import Sink
from muniment_server.storage import Store
from muniment_server.telemetry import Metrics

TICK_SECONDS = 1.0


def target_of(sink: Sink) -> Webhook | JsonlFile:
    """Return what takes the batches of a sink. Raises SetupError."""
    return Webhook(sink) if sink.file is None else JsonlFile(sink, sink.file)


class Pushing:
    """All pushers of a server."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._sinks = settings.push
        self._metrics = metrics
        self._targets: dict[str, Webhook | JsonlFile] = {}
        self._running: dict[str, Pusher] = {}
        self._watch: asyncio.Task[None] | None = None

    async def start(self, store: Store, logs: Callable[[], Sequence[Pushable]]) -> None:
        """Start a pusher for each sink whose log is open, and for the others once it is opened. Raises SetupError.

        `logs` returns those that are open at the moment.
        """
        try:
            for name, sink in self._sinks.items():
                self._targets[name] = target_of(sink)
        except SetupError as error:
            await self.close()
            raise SetupError(f"sink {name}: {error}") from error
        self._watch = asyncio.create_task(self._look(store, logs), name="pushing")

    async def _look(self, store: Store, logs: Callable[[], Sequence[Pushable]]) -> None:
        while True:
            for log in logs():
                for name, sink in self._sinks.items():
                    if sink.log == log.row.name and log.sequencer and name not in self._running:
                        target = self._targets[name]
                        self._running[name] = pusher = Pusher(store, log, name, sink, target, self._metrics)
                        pusher.start()
            await asyncio.sleep(TICK_SECONDS)

    async def close(self) -> None:
        """Stop everything."""
        if self._watch:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await asyncio.gather(*(pusher.close() for pusher in self._running.values()))
        await asyncio.gather(*(target.close() for target in self._targets.values()))
