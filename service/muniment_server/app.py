"""Puts the parts together: settings in, an ASGI application out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muniment_server import __version__
from muniment_server.catalog import DEFAULT_LOG, Catalog, open_store
from muniment_server.settings import Settings
from muniment_server.storage import StoreUnavailable
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.web import errors, models, read, system
from muniment_server.web.request import Access
from muniment_server.web.routes import ROUTES, Route

_MAX_BACKOFF = 2.0  # a database that is back is to be used within five seconds
_FILES = 65_536
_DESCRIPTION = (
    "A transparency log: every accepted entry is answered with a proof that a stranger can check offline. "
    "The default log is at the root, the others under /logs/{log}; JSON routes are mounted under /v1 as well. "
    "Errors are RFC 9457 problem documents with a stable code and a hint; C2SP routes answer plain text."
)


class Service:
    """What the routes of one application share. `catalog` and `access` are there from start-up to shutdown."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.catalog: Catalog
        self.access: Access
        self._started = False

    async def start(self) -> None:
        """Open the database and every log, waiting for a database that is not up yet. Raises SetupError, SchemaError.

        Once it has done so, further calls do nothing.
        """
        if self._started:
            return
        _raise_file_limit()
        _adopt_log_lines()
        delay = 0.1
        while True:
            try:
                self.catalog = Catalog(self.settings, await open_store(self.settings), self.metrics)
                await self.catalog.open()
                break
            except StoreUnavailable as error:
                get_logger().warning("waiting for the database", error=str(error), retry_seconds=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _MAX_BACKOFF)
        self.access = Access(self.catalog)
        self._started = True

    async def _handle(self, route: Route, request: Request) -> Response:
        name = request.path_params.get("log", DEFAULT_LOG)
        log = await self.catalog.get(name)
        if log is None:
            raise read.refuse_unknown_log(name)
        return await route.handler(request, log, await self.access.caller(request, log))

    def endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """Return the function FastAPI calls for a route: find the log and the caller, handle, and turn errors into answers."""
        fail = errors.plain if route.c2sp else errors.answer
        label = f"{route.method} {route.path}"

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await self._handle(route, request)
            except Exception as error:  # noqa: BLE001 - every error gets an answer; unexpected ones are logged
                response = fail(error)
                self.metrics.refused.labels(getattr(error, "code", type(error).__name__)).inc()
            elapsed = time.perf_counter() - started
            self.metrics.request_seconds.labels(label, response.status_code).observe(elapsed)
            return response

        return endpoint


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets us: the usual soft limit of 1,024 files is less than 1,024 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have a lower limit that they do not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Adopted(logging.Handler):
    """Gives what libraries log the form of this server's own lines: one line for each event, escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _adopt_log_lines() -> None:
    # Its pool logs a traceback for every connection that dies with the server; what that means for a request is said by the stores.
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)
    if not logging.root.handlers:  # otherwise whoever runs this application has decided already
        logging.root.addHandler(_Adopted(logging.WARNING))


def create_app(settings: Settings, metrics: Metrics | None = None) -> FastAPI:
    """Return the application. Its logs open when its lifespan starts."""
    service = Service(settings, metrics or Metrics())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.catalog.close()

    app = FastAPI(
        title="Muniment",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for prefix, in_schema, json_only in (("", True, False), ("/v1", False, True)):
        _mount(app, service, prefix, in_schema=in_schema, json_only=json_only)
        _mount(app, service, f"{prefix}/logs/{{log}}", in_schema=in_schema, json_only=json_only)
    _mount_system(app, service)
    app.add_exception_handler(HTTPException, errors.not_found)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(Gate)
    return app


def _mount(app: FastAPI, service: Service, prefix: str, *, in_schema: bool, json_only: bool) -> None:
    for route in ROUTES:
        if json_only and route.c2sp:
            continue
        app.add_api_route(
            prefix + route.path,
            service.endpoint(route),
            methods=[route.method],
            summary=route.summary,
            tags=[route.tag],
            include_in_schema=in_schema,
            operation_id=f"{route.method}{prefix}{route.path}".translate(_ID),
            response_model=None,
            status_code=min(route.answers, key=lambda status: -status),
            responses=_responses(route),
            openapi_extra=_extra(route, prefix),
        )


_ID = str.maketrans({"/": "_", "{": None, "}": None, ":": "_"})
_LOG = {
    "name": "log",
    "in": "path",
    "required": True,
    "description": "Name of the log.",
    "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
}


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    for status, shape in route.answers.items():
        if isinstance(shape, str):
            found[status] = {"description": "Success", "content": {shape: {"schema": {"type": "string"}}}}
        else:
            found[status] = {"description": "Success", "model": shape}
        if shape is models.ReceiptModel:
            found[status]["content"] = {"text/plain": {"schema": {"type": "string"}}}
            found[status]["description"] = "Success; C2SP tlog-proof text with Accept: text/plain"
    if route.path == "/checkpoint":
        found[304] = {"description": "Still the one whose ETag stands in If-None-Match"}
    for status in (*route.errors, 404, 503):
        if route.c2sp:
            found[status] = {"description": "A line of text", "content": {"text/plain": {"schema": {"type": "string"}}}}
        else:
            found[status] = {"description": "A problem document", "content": {"application/problem+json": _PROBLEM}}
    return found


_PROBLEM = {"schema": models.Problem.model_json_schema()}


def _extra(route: Route, prefix: str) -> dict[str, Any]:
    extra: dict[str, Any] = {"parameters": [*([_LOG] if "{log}" in prefix else []), *route.parameters]}
    if route.body:
        extra["requestBody"] = route.body
    return extra


def _mount_system(app: FastAPI, service: Service) -> None:
    async def healthz() -> Response:
        return system.healthz()

    async def readyz() -> Response:
        return await system.readyz(service.catalog)

    async def verify(request: Request) -> Response:
        try:
            return await system.verify(request, service.catalog)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            return errors.answer(error)

    async def docs() -> Response:
        return system.docs_page(app.openapi())

    ready = {200: {"model": models.Readiness}, 503: {"model": models.Readiness}}
    refused: dict[int | str, dict[str, Any]] = {
        status: {"content": {"application/problem+json": _PROBLEM}} for status in (400, 413, 415, 422)
    }
    body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    add = app.add_api_route
    add("/healthz", healthz, summary="The process runs", tags=["about"], responses={200: {"model": models.Health}})
    add("/readyz", readyz, summary="Reads work; which logs take entries", tags=["about"], responses=ready)  # type: ignore[arg-type]
    for prefix in ("", "/v1"):
        add(
            f"{prefix}/verify",
            verify,
            methods=["POST"],
            summary="Check a receipt (a convenience, not evidence)",
            tags=["proofs"],
            responses={200: {"model": models.Verdict}, **refused},
            openapi_extra={"requestBody": body},
            include_in_schema=not prefix,
        )
    add("/docs", docs, include_in_schema=False)


_MAX_HEADERS = 32_768


class Gate:
    """Refuses what no route should see: absurdly large header fields, and paths with a line feed.

    The router's patterns end in `$`, which matches before a final line feed: /checkpoint%0a would be another URL of /checkpoint.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        app = (scope["type"] == "http" and self._refusal(scope)) or self._app
        await app(scope, receive, send)

    @staticmethod
    def _refusal(scope: Scope) -> Response | None:
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > _MAX_HEADERS:
            return errors.problem(
                431,
                "headers_too_large",
                f"the header fields have more than {_MAX_HEADERS} bytes",
                "Send fewer or shorter header fields.",
            )
        return errors.nowhere(scope["path"]) if "\n" in scope["path"] else None


class HeadMiddleware:
    """Answers HEAD like GET, without the body (RFC 9110 section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)
