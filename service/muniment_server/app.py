"""Puts the parts together: settings in, an ASGI application out."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muniment_server import __version__
from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics
from muniment_server.web import models, system
from muniment_server.web import problems as errors
from muniment_server.web.ask import MAX_HEADERS
from muniment_server.web.room import busy, lease_for
from muniment_server.web.routes import ROUTES, Route
from muniment_server.web.service import Service

_DESCRIPTION = (
    "A transparency log: every accepted entry is answered with a proof that a stranger can check offline. "
    "The default log is at the root, the others under /logs/{log}; JSON routes are mounted under /v1 as well. "
    "Errors are RFC 9457 problem documents with a stable code and a hint; C2SP routes answer plain text."
)


def create_app(settings: Settings, metrics: Metrics | None = None) -> FastAPI:
    """Return the application. Its logs open when its lifespan starts."""
    service = Service(settings, metrics or Metrics())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="Muniment",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
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
    app.add_middleware(Shortcut, service=service)
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
    if route.path in ("/checkpoint", "/anchors/{size}/checkpoint.ots"):
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
        lease = lease_for(service.rooms, request.scope)
        try:
            response = await system.verify(request, service.catalog, lease)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            response = errors.answer(error)
        return lease.until_read(response)

    # To make them takes as long as a hundred answers, and anyone may ask.
    docs_page = functools.cache(lambda: bytes(system.docs_page(app.openapi()).body))
    document = functools.cache(lambda: bytes(JSONResponse(app.openapi()).body))

    async def docs(request: Request) -> Response:
        return _unless_full(service, request, HTMLResponse(docs_page()))

    async def openapi(request: Request) -> Response:
        return _unless_full(service, request, Response(document(), media_type="application/json"))

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
    add("/openapi.json", openapi, include_in_schema=False)


def _unless_full(service: Service, request: Request, response: Response) -> Response:
    """Return a response that may be large, or the refusal where there is no room for it until it is read."""
    lease = lease_for(service.rooms, request.scope)
    if not lease.cover(len(response.body)):
        response = errors.answer(busy())
    return lease.until_read(response)


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
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADERS:
            return errors.problem(
                "headers_too_large",
                f"the header fields have more than {MAX_HEADERS} bytes",
                "Send fewer or shorter header fields.",
            )
        return errors.nowhere(scope["path"]) if "\n" in scope["path"] else None


class Shortcut:
    """Calls the endpoint of a log's route straight away. FastAPI's own way there takes several times as long as most answers do.

    What no route matches goes on to FastAPI, which knows what to say of it.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._routes = [(route.method, _pattern(route), service.endpoint(route)) for route in ROUTES]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] == "http":
            for method, pattern, endpoint in self._routes:
                if method == scope["method"] and (found := pattern.fullmatch(scope["path"])):
                    params = {name: value for name, value in found.groupdict().items() if value is not None}
                    request = Request({**scope, "path_params": params}, receive)
                    await (await endpoint(request))(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _pattern(route: Route) -> re.Pattern[str]:
    """Return what matches the paths that :func:`_mount` gives a route."""
    path = re.sub(r"\{(\w+)(:path)?\}", lambda one: f"(?P<{one[1]}>{'.*' if one[2] else '[^/]+'})", route.path)
    return re.compile(("" if route.c2sp else "(?:/v1)?") + "(?:/logs/(?P<log>[^/]+))?" + path)


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
