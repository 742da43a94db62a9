"""A request and its answer, as handlers see them: whichever way they came in and go out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.requests import Request as AsgiRequest
from starlette.responses import Response

from muniment_server.web.room import Lease

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
MAX_HEADERS = 32_768
"""Bytes of header fields; larger blocks are refused before they are complete."""


class Request(NamedTuple):
    """A request without its body. Names of header fields are in lower case; `params` are those of the route's path.

    `lease` is what it holds of the server's memory; None when the body is here already.
    """

    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    params: Mapping[str, Any]
    asgi: AsgiRequest | None = None  # where the body comes from, unless it is here already
    lease: Lease | None = None

    @classmethod
    def of(cls, request: AsgiRequest, lease: Lease) -> Request:
        """Return what a handler needs of an ASGI request."""
        scope = request.scope
        raw_path = scope.get("raw_path", b"")
        params = scope["path_params"]
        return cls(scope["path"], raw_path, scope["query_string"], scope["headers"], params, request, lease)

    def values(self, name: bytes) -> list[str]:
        """Return every value of a header field."""
        return [value.decode("latin-1") for found, value in self.headers if found == name]

    def value(self, name: bytes) -> str | None:
        """Return the first value of a header field, or None."""
        return next(iter(self.values(name)), None)


def lease_of(request: Request) -> Lease:
    """Return what a request holds of the server's memory. Requires one that came through the application."""
    if request.lease is None:
        raise AssertionError("this request came with its body, and holds nothing")
    return request.lease


class Pieces(Protocol):
    """A body that is too large to be in memory as a whole, and how many bytes it has."""

    @property
    def length(self) -> int:
        """How many bytes it has."""

    def pieces(self, lease: Lease) -> AsyncGenerator[bytes]:
        """Yield its bytes. Each piece is to be sent before the next one is asked for."""


class Answer(NamedTuple):
    """An answer. `fields` are header fields as they go out, ``name: value`` CR LF each.

    Content type and length are not among them. Of a large body there are `pieces`, and `body` is empty.
    """

    body: bytes
    media_type: str = JSON
    status: int = 200
    fields: bytes = b""
    pieces: Pieces | None = None

    def response(self) -> Response:
        """Return it as an ASGI application."""
        if self.status == 304:
            found = Response(None, 304)
        else:
            found = Response(self.body, self.status, media_type=self.media_type)
        own = [(name, value) for name, _, value in (line.partition(b": ") for line in self.fields.splitlines())]
        found.raw_headers = [*own, *found.raw_headers]
        return found
