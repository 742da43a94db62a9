"""A request and its answer, as handlers see them: whichever way they came in and go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
MAX_HEADERS = 32_768
"""Bytes of header fields; larger blocks are refused before they are complete."""


class Ask(NamedTuple):
    """A request without its body. Names of header fields are in lower case; `params` are those of the route's path."""

    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    params: Mapping[str, Any]
    request: Request | None = None  # where the body comes from, unless it is here already

    @classmethod
    def of(cls, request: Request) -> Ask:
        """Return what a handler needs of an ASGI request."""
        scope = request.scope
        raw_path = scope.get("raw_path", b"")
        return cls(scope["path"], raw_path, scope["query_string"], scope["headers"], scope["path_params"], request)

    def values(self, name: bytes) -> list[str]:
        """Return every value of a header field."""
        return [value.decode("latin-1") for found, value in self.headers if found == name]

    def value(self, name: bytes) -> str | None:
        """Return the first value of a header field, or None."""
        return next(iter(self.values(name)), None)


class Answer(NamedTuple):
    """An answer. `fields` are header fields as they go out, ``name: value`` CR LF each, without content type and length."""

    body: bytes
    media_type: str = JSON
    status: int = 200
    fields: bytes = b""

    def response(self) -> Response:
        """Return it as an ASGI application."""
        if self.status == 304:
            found = Response(None, 304)
        else:
            found = Response(self.body, self.status, media_type=self.media_type)
        own = [(name, value) for name, _, value in (line.partition(b": ") for line in self.fields.splitlines())]
        found.raw_headers = [*own, *found.raw_headers]
        return found
