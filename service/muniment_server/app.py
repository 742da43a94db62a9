"""Puts the parts together: settings in, an ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request as AsgiRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from muniment_server.access.callers import OPEN
from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics
from muniment_server.web import cors, problems
from muniment_server.web.grammar import Table, methods_of
from muniment_server.web.messages import MAX_HEADERS
from muniment_server.web.routes import ROUTES
from muniment_server.web.service import Service


class Application:
    """The ASGI application. `service` is what its routes share; its logs open when its lifespan starts."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._table = Table(ROUTES)
        self._origins = service.settings.cors_origins
        self._lifespan = Starlette(lifespan=self._live)

    @asynccontextmanager
    async def _live(self, _app: Starlette) -> AsyncIterator[None]:
        await self.service.start()
        yield
        await self.service.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event. HEAD is answered like GET, without the body (RFC 9110 section 9.3.2)."""
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        origin = cors.origin_of(scope["headers"], self._origins) if self._origins else None
        response = await self._answer(method, scope, receive, origin)
        if origin is not None and method != "OPTIONS":
            send = cors.sending_to(origin, send)
        await response(scope, receive, send if method == scope["method"] else _without_body(send))

    async def _answer(self, method: str, scope: Scope, receive: Receive, origin: str | None) -> Response:
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADERS:
            return problems.problem(
                "headers_too_large",
                f"the header fields have more than {MAX_HEADERS} bytes",
                "Send fewer or shorter header fields.",
            )
        path = scope["path"]
        if found := self._table.find(method, path):
            request = AsgiRequest({**scope, "method": method, "path_params": found.parameters}, receive)
            return await self.service.answer(found.route, request)
        routes = ROUTES if path == "*" else self._table.at(path)
        if method == "OPTIONS" and routes:
            for_all = methods_of([route for route in routes if route.method == "GET" or route.needs == OPEN])
            return cors.preflight(methods_of(routes), for_all, scope["headers"], origin)
        return problems.no_route(path, methods_of(routes), c2sp=any(route.c2sp for route in routes))


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def create_app(settings: Settings, metrics: Metrics | None = None) -> Application:
    """Return the application of an instance."""
    return Application(Service(settings, metrics or Metrics()))
