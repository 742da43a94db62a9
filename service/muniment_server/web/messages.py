"""A request and its answer, as handlers see them: whichever way they came in and go out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from starlette.requests import ClientDisconnect
from starlette.requests import Request as AsgiRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muniment_server.telemetry import get_logger
from muniment_server.web.room import Budget

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
MAX_HEADERS = 32_768
"""Bytes of header fields; larger blocks are refused before they are complete."""


class Request(NamedTuple):
    """A request without its body. Names of header fields are in lower case; `params` are those of the route's path.

    `budget` is what it holds of the server's memory; None when the body is here already.
    """

    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    params: Mapping[str, Any]
    asgi: AsgiRequest | None = None  # where the body comes from, unless it is here already
    budget: Budget | None = None

    @classmethod
    def of(cls, request: AsgiRequest, budget: Budget) -> Request:
        """Return what a handler needs of an ASGI request."""
        scope = request.scope
        raw_path = scope.get("raw_path", b"")
        params = scope["path_params"]
        return cls(scope["path"], raw_path, scope["query_string"], scope["headers"], params, request, budget)

    def values(self, name: bytes) -> list[str]:
        """Return every value of a header field."""
        return [value.decode("latin-1") for found, value in self.headers if found == name]

    def value(self, name: bytes) -> str | None:
        """Return the first value of a header field, or None."""
        return next(iter(self.values(name)), None)


def budget_of(request: Request) -> Budget:
    """Return what a request holds of the server's memory. Requires one that came through the application."""
    if request.budget is None:
        raise AssertionError("this request came with its body, and holds nothing")
    return request.budget


class Pieces(Protocol):
    """A body that is too large to be in memory as a whole, or has no end yet."""

    @property
    def length(self) -> int | None:
        """How many bytes it has; None where that is not known before. Such an answer goes through the application."""

    def pieces(self, budget: Budget) -> AsyncGenerator[bytes]:
        """Yield its bytes. Each piece is to be read by the client before the next one is asked for."""


class Streamed(Response):
    """An answer of the application whose body is `pieces`: no more than one of them is in memory."""

    def __init__(self, pieces: Pieces, budget: Budget, status: int, media_type: str) -> None:
        super().__init__(None, status, media_type=media_type)
        self._pieces = pieces
        self._budget = budget
        length = pieces.length
        self.raw_headers = [] if length is None else [(b"content-length", b"%d" % length)]
        self.raw_headers.append((b"content-type", media_type.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - a client only reads
        """Send it. What cannot be had any more is left out, and the server closes the connection."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if scope["method"] != "HEAD":
                await self._send_body(send)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the head of the answer is already sent
            get_logger().warning("an answer was cut off", error=f"{type(error).__name__}: {error}")
            return
        finally:
            self._budget.give_back()
        await send({"type": "http.response.body", "body": b""})

    async def _send_body(self, send: Send) -> None:
        async with aclosing(self._pieces.pieces(self._budget)) as found:
            async for piece in found:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await self._budget.drained()
                self._budget.check_client()


class Answer(NamedTuple):
    """An answer. `fields` are header fields as they go out, ``name: value`` CR LF each.

    Content type and length are not among them. Of a large body there are `pieces`, and `body` is empty.
    """

    body: bytes
    media_type: str = JSON
    status: int = 200
    fields: bytes = b""
    pieces: Pieces | None = None

    def response(self, budget: Budget) -> Response:
        """Return it as an ASGI application; `budget` holds what its pieces take."""
        if self.status == 304:
            found = Response(None, 304)
        elif self.pieces:
            found = Streamed(self.pieces, budget, self.status, self.media_type)
        else:
            found = Response(self.body, self.status, media_type=self.media_type)
        own = [(name, value) for name, _, value in (line.partition(b": ") for line in self.fields.splitlines())]
        found.raw_headers = [*own, *found.raw_headers]
        return found
