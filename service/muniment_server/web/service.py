"""What every way into the server shares: the open logs, who may do what, and how errors become answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as AsgiRequest
from starlette.responses import Response

from muniment_server.access.callers import Access
from muniment_server.errors import SetupError, StoreError, StoreUnavailable
from muniment_server.instance.registry import DEFAULT_LOG, Registry
from muniment_server.log import Log
from muniment_server.settings import Settings
from muniment_server.storage.open import open_store
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.web import problems
from muniment_server.web.messages import Request
from muniment_server.web.request import Query
from muniment_server.web.room import LARGE, Budget, Rooms, budget_for, busy
from muniment_server.web.routes import Route

if TYPE_CHECKING:
    from muniment_server.follow.anchors.running import Anchoring
    from muniment_server.follow.push.running import Pushing

_MAX_BACKOFF = 2.0  # a database that is back is to be used within five seconds
_FILES = 65_536


class Service:
    """What the routes of one application share. `registry` and `access` are there from start-up to shutdown."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.registry: Registry
        self.access: Access
        self._anchoring = anchoring_of(settings, metrics)
        self._pushing = pushing_of(settings, metrics)
        self._started = False
        self.rooms = Rooms.of(settings)
        for name, room in self.rooms.by_name():
            metrics.held_bytes.labels(name).set_function(partial(getattr, room, "taken"))
        self._timers: dict[tuple[str, int, int], Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the database and every log, waiting for a database that is not up yet. Raises SetupError, SchemaError.

        Once it has done so, further calls do nothing.
        """
        if self._started:
            return
        _check_writable(self.settings)
        _raise_file_limit()
        _adopt_log_lines()
        delay = 0.1
        while True:
            try:
                self.registry = Registry(self.settings, await open_store(self.settings), self.metrics)
                await self.registry.open()
                break
            except StoreUnavailable as error:
                get_logger().warning("waiting for the database", error=str(error), retry_seconds=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MAX_BACKOFF)
        self.access = Access(self.registry.store.catalog, self.settings)
        try:
            if self._anchoring:
                await self._anchoring.start(self.registry.store, self.registry.logs)
            if self._pushing:
                await self._pushing.start(self.registry.store, self.registry.logs)
        except BaseException:
            await self.registry.close()
            raise
        self._started = True

    async def close(self) -> None:
        """Stop the followers, answer everything that was taken, and close the database."""
        if self._anchoring:
            await self._anchoring.close()
        if self._pushing:
            await self._pushing.close()
        await self.registry.close()

    async def _handle(self, route: Route, asgi: AsgiRequest, budget: Budget) -> Response:
        request = Request.of(asgi, budget)
        log = await self._log(request, route.needs) if route.on == "log" else None
        try:
            caller = await self.access.admit(request.headers, log.row if log else None, route.needs)
        except StoreError as error:  # an append would fail alike
            if log and log.batcher:
                log.batcher.tried(problems.code_of(error))
            raise
        if request.query and not route.asks:
            Query(request, ())  # one rule for all routes: what is not known is refused
        answer = await route.handler(request, log or self, caller)
        if len(answer.body) > LARGE and not budget.cover(len(answer.body), must=route.method != "GET"):
            raise busy()
        return answer.response(budget)

    async def _log(self, request: Request, needs: str) -> Log:
        name = request.params.get("log", DEFAULT_LOG)
        log = await self.registry.get(name)
        if log is None:
            raise await self.access.refuse_unknown(request.headers, name, needs)
        return log

    def fail(self, route: Route, log: str, error: Exception) -> Response:
        """Return the answer to an error of a handler, and count it.

        `log` is the name of a log that there is, or empty: what a client made up would be counted for ever.
        """
        response = (problems.plain if route.c2sp else problems.answer)(error)
        self.metrics.refused.labels(log, problems.code_of(error)).inc()
        return response

    def count(self, route: Route, log: str, status: int, started: float) -> None:
        """Count an answered request; `log` is as in :meth:`fail`, `started` a time of time.perf_counter."""
        timer = self._timers.get((log, id(route), status))
        if timer is None:
            timer = self.metrics.request_seconds.labels(log, f"{route.method} {route.path}", status)
            self._timers[log, id(route), status] = timer
        timer.observe(time.perf_counter() - started)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference that would save it from the collector
        task.add_done_callback(self._tasks.discard)

    async def answer(self, route: Route, request: AsgiRequest) -> Response:
        """Answer a request: find the log and the caller, handle, and turn errors into answers."""
        started = time.perf_counter()
        budget = budget_for(self.rooms, request.scope)
        try:
            budget.check_client()  # it may have left while others had their turns
            response = await self._handle(route, request, budget)
        except ClientDisconnect:
            return budget.until_read(Response(None, 400))  # goes nowhere
        except Exception as error:  # noqa: BLE001 - every error gets an answer; unexpected ones are logged
            response = self.fail(route, self._label(route, request), error)
        if route.on == "log":
            self.count(route, self._label(route, request), response.status_code, started)
        return budget.until_read(response)

    def _label(self, route: Route, request: AsgiRequest) -> str:
        """Return the name of the log that a request is about, if there is one."""
        name = request.path_params.get("log", DEFAULT_LOG)
        return name if route.on == "log" and self.registry.opened(name) else ""


def anchoring_of(settings: Settings, metrics: Metrics) -> Anchoring | None:
    """Return what anchors the logs of this server; None when the settings switch that off, or it only reads."""
    if not settings.anchor or settings.read_only:
        return None
    from muniment_server.follow.anchors.running import Anchoring  # noqa: PLC0415 - 6 MB that others do without

    return Anchoring(settings, metrics)


def pushing_of(settings: Settings, metrics: Metrics) -> Pushing | None:
    """Return what pushes entries to the sinks of this server; None where there is none, or it only reads."""
    if not settings.push or settings.read_only:
        return None
    from muniment_server.follow.push.running import Pushing  # noqa: PLC0415 - as above

    return Pushing(settings, metrics)


def _check_writable(settings: Settings) -> None:
    """Raise SetupError where a server would take appends into files that can only be read."""
    if settings.read_only or settings.database:
        return
    from muniment_server.storage.sqlite.connect import is_writable  # noqa: PLC0415 - see storage/open.py

    if settings.sqlite.exists() and not is_writable(settings.sqlite):
        raise SetupError(
            f"{settings.sqlite} and its folder can only be read by this process: pass --read-only to serve reads, "
            "or let it write there"
        )


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets us.

    The usual soft limit of 1,024 files is less than 1,024 connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have a lower limit that they do not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Adopted(logging.Handler):
    """Gives what libraries log the form of this server's own lines: one line for each event, escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _no_cancelled(record: logging.LogRecord) -> bool:
    """Drop the traceback of a request that was cut off at shutdown.

    There are thousands, and uvicorn says how many it cancels.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _adopt_log_lines() -> None:
    logging.getLogger("uvicorn.error").addFilter(_no_cancelled)
    # Its pool logs a traceback for every connection that dies with the server.
    # The stores say what that means for a request.
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)
    if not logging.root.handlers:  # otherwise the process that runs this application has decided already
        logging.root.addHandler(_Adopted(logging.WARNING))
