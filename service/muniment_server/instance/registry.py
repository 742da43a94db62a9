"""The logs of one instance that a server has open."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial

from muniment.note import SigningKey
from muniment_server.errors import (
    InstanceRefused,
    ReadOnly,
    Replaced,
    SetupError,
    StoreError,
)
from muniment_server.host import memory
from muniment_server.host.disk import Disk
from muniment_server.instance.files import read_key
from muniment_server.log import Log
from muniment_server.read.cache import Cache, most_for
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace
from muniment_server.write.clock import Clock, boot_time
from muniment_server.write.guard import Guard
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer

DEFAULT_LOG = "default"
LOG_NAME = re.compile("[a-z0-9][a-z0-9-]{0,62}")
"""Names that a log can have."""
_REFRESH_SECONDS = 1.0
_DATABASE_SECONDS = 5.0
_DISK_SECONDS = 0.1  # a fast disk takes tens of megabytes in a second


def new_sequencer(
    settings: Settings, store: Store, row: LogRow, key: SigningKey, trace: Trace | None = None
) -> Callable[[Observer], Sequencer]:
    """Return what makes the writer of a log, with this key and the guard of its name.

    Raises SetupError on a key of another log.
    """
    if key.vkey.name != row.origin:
        raise SetupError(f"{settings.key_file(row.name)} is the key of {key.vkey.name!r}, not of {row.origin!r}")
    guard = Guard(settings.guard_file(row.name))
    behind, ahead = settings.max_clock_behind_seconds * 1000, settings.max_clock_ahead_days * 86_400_000
    clock = Clock(monotonic=boot_time, behind=behind, ahead=ahead)
    return partial(Sequencer, store, row, key, guard, settings.idempotency_ttl, clock, trace)


class Registry:
    """The open logs of a running server."""

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self.store = store
        self.settings = settings
        self._metrics = metrics
        self._cache = Cache(settings.cache_bytes or most_for(memory.available()))
        self._logs: dict[str, Log] = {}
        self._refreshed = 0.0
        self._lock = asyncio.Lock()
        self._trace = Trace(settings.trace) if settings.trace else None
        self._disk = Disk((settings.data, settings.guards), settings.min_free_percent)
        self._watches: list[asyncio.Task[None]] = []
        self._replaced = False  # the database's files, as far as the operator was told

    def logs(self) -> list[Log]:
        """Return the open logs."""
        return list(self._logs.values())

    async def open(self) -> None:
        """Open every log of the database. Raises SetupError when there is none, StoreError when it does not answer.

        When it raises, everything is closed again, the store too.
        """
        try:
            await self._refresh(strict=True)
        except BaseException:
            await self.close()
            raise
        if not self._logs:
            await self.close()
            raise self._no_log()
        self._watches = [
            asyncio.create_task(self._watch_disk(), name="disk watch"),
            asyncio.create_task(self._watch_database(), name="database watch"),
        ]

    def _no_log(self) -> SetupError:
        """Guards without a log: the database is another one, or empty.

        A new genesis under an old key would be a second history.
        """
        guards = sorted(self.settings.guards.glob("*.guard"))
        if not guards:
            return SetupError("the database holds no log: run `muniment-server init` first")
        return InstanceRefused(
            "database_missing",
            f"{self.settings.guards} guards {len(guards)} log(s), the first is {guards[0].stem!r}, but the database "
            "holds none: put the database back, or run init again if it was interrupted",
        )

    async def _watch_disk(self) -> None:
        while True:
            was = self._disk.low
            self._disk.measure()
            self._metrics.disk_free_ratio.set(self._disk.free_ratio)
            if self._disk.low != was:
                say = get_logger().error if self._disk.low else get_logger().info
                text = "disk is nearly full: appends are refused" if self._disk.low else "disk has room again"
                say(text, code="disk_low", logs=sorted(self._logs))
            self._check_premises()
            for log in self.logs():
                log.tell_trouble()
            await asyncio.sleep(_DISK_SECONDS)

    async def _watch_database(self) -> None:
        """Tell whether the database answers, also in a server that only reads and is asked nothing."""
        while True:
            try:
                await self.store.catalog.api_keys()
                self._metrics.database_up.set(1)
            except StoreError:
                self._metrics.database_up.set(0)
            await asyncio.sleep(_DATABASE_SECONDS)

    def _check_premises(self) -> None:
        """Let every log be refused when the database's files are gone or others.

        What is committed into them would be lost.
        """
        try:
            self.store.log.check_premises()
        except Replaced as error:
            if not self._replaced:
                get_logger().error("database files were replaced", detail=str(error))
            self._replaced = True
            for log in self._logs.values():
                log.withdraw(ReadOnly("database_replaced", str(error)))

    async def get(self, name: str) -> Log | None:
        """Return an open log, also one that was made since the last call."""
        if (
            name not in self._logs
            and LOG_NAME.fullmatch(name)
            and time.monotonic() - self._refreshed > _REFRESH_SECONDS
        ):
            await self._refresh(strict=False)
        return self._logs.get(name)

    def opened(self, name: str) -> Log | None:
        """Return a log that is open already."""
        return self._logs.get(name)

    async def _refresh(self, *, strict: bool) -> None:
        async with self._lock:
            for row in await self.store.catalog.logs():
                # A log without genesis is still being made, and index 0 is not for others.
                if row.name in self._logs or not (await self.store.reads.head(row.log_id)).size:
                    continue
                try:
                    await self._open(row)
                except SetupError as error:
                    if strict:
                        raise
                    get_logger().error("a log cannot be opened", log=row.name, error=str(error))  # the others can
            self._refreshed = time.monotonic()

    async def _open(self, row: LogRow) -> None:
        sequencer: Callable[[Observer], Sequencer] | None = None
        unwritable = None
        if not self.settings.read_only:
            try:
                key = await asyncio.to_thread(read_key, self.settings.key_file(row.name))
                sequencer = new_sequencer(self.settings, self.store, row, key, self._trace)
            except SetupError as error:  # no route signs: what is there can still be read and proved
                unwritable = ReadOnly("key_unreadable", str(error))
                get_logger().error("log is read-only", log=row.name, code=unwritable.code, detail=str(error))
        log = Log(
            self.store,
            row,
            self.settings,
            self._metrics,
            self._cache,
            sequencer,
            unwritable=unwritable,
            disk=self._disk,
            trace=self._trace,
        )
        await log.start()
        self._logs[row.name] = log

    async def close(self) -> None:
        """Answer everything that was taken, publish, and close the database."""
        for watch in self._watches:
            watch.cancel()
        try:
            await asyncio.gather(*(log.close() for log in self._logs.values()))
        finally:
            await self.store.close()
            if self._trace:
                self._trace.close()
                self._trace = None
