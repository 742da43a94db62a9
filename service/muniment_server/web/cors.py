"""What web pages of other origins may do: read what is public, and what the operator lets their origin do (CORS).

A browser asks before it sends a key or JSON from a page, and hides from the page what no header field gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from starlette.responses import Response
from starlette.types import Message, Send

from muniment_server.web.messages import Header, Headers

ANY = b"access-control-allow-origin: *\r\n"
EXPOSED = b"ETag, Idempotency-Replayed, Location, Muniment-Tree-Size, Retry-After, WWW-Authenticate"
_TAKEN = "Accept, Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID"
_TAKEN_OF_ALL = "Accept, Content-Type, If-None-Match, Last-Event-ID"
_SECONDS = "600"


def origin_of(headers: Headers, allowed: Collection[str]) -> str | None:
    """Return the origin of the page that sends a request, if it is one of those that are allowed."""
    found = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    return found[0] if len(found) == 1 and found[0] in allowed else None


def preflight(methods: Sequence[str], for_all: Sequence[str], headers: Headers, origin: str | None) -> Response:
    """Return the answer to OPTIONS for a path that has `methods`; `for_all` are those that every page may use.

    What the browser may do says the setting, not the log that is named: nothing is told of logs.
    """
    fields = {"Allow": ", ".join(methods)}
    asked = next((value.decode("latin-1") for name, value in headers if name == b"access-control-request-method"), None)
    if asked is not None and origin is not None:
        fields |= _granted(origin, methods, _TAKEN) | {"Vary": "Origin"}
    elif asked in for_all:
        fields |= _granted("*", for_all, _TAKEN_OF_ALL)
    return Response(None, 204, fields)


def _granted(origin: str, methods: Sequence[str], taken: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": ", ".join(methods),
        "Access-Control-Allow-Headers": taken,
        "Access-Control-Max-Age": _SECONDS,
    }


def sending_to(origin: str, send: Send) -> Send:
    """Return what sends an answer that a page of this origin may read."""
    fields: list[Header] = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", EXPOSED),
        (b"vary", b"Origin"),
    ]

    async def send_to(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [field for field in message["headers"] if not field[0].lower().startswith(b"access-control-")]
            message = {**message, "headers": [*own, *fields]}
        await send(message)

    return send_to
