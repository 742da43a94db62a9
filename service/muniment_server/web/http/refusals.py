"""What a connection is told before it is closed, by the reason that is counted."""

from __future__ import annotations

from muniment_server.errors import Refused
from muniment_server.web.http.framing import MAX_FIELDS, MAX_URL
from muniment_server.web.http.wire import encode_last
from muniment_server.web.messages import MAX_HEADERS
from muniment_server.web.problems import problem
from muniment_server.web.room import busy

MIN_RATE = 8192
"""Bytes per second a client must send or read, on average over `client_seconds`: 16 MiB may take 35 minutes."""
MAX_PIPELINED = 100


_LATE = Refused(
    "request_timeout",
    "the request was not here in time",
    f"Send it without pauses of {{seconds:g}} s, and at {MIN_RATE} bytes per second or more.",
)
_FULL = Refused("too_many_connections", "no more connections", "Retry later.", retry_after=1)
_REFUSALS = {
    "bad_request": Refused("invalid_request", "the request is malformed", "See RFC 9112."),
    "blank_lines": Refused(
        "invalid_request", "there are too many empty lines before the request", "See RFC 9112 section 2.2."
    ),
    "body_timeout": _LATE,
    "busy": busy(),
    "fragment": Refused("invalid_request", "the request target holds a fragment", "See RFC 9112 section 3.2."),
    "framing_too_large": Refused(
        "framing_too_large",
        "chunk sizes, chunk extensions and trailers take too many bytes beside the body",
        "Send larger chunks, and as header fields what stands in trailers: those are dropped.",
    ),
    "header_timeout": _LATE,
    "host": Refused(
        "invalid_request",
        "the request names no host, several, or what is none",
        "Send one field `Host: NAME`, or `Host: NAME:PORT`. See RFC 9112 section 3.2.",
    ),
    "headers_too_large": Refused(
        "headers_too_large",
        f"the header fields have more than {MAX_HEADERS} bytes, or are more than {MAX_FIELDS}",
        "Send fewer or shorter header fields.",
    ),
    "pipelining": Refused(
        "overloaded",
        f"more than {MAX_PIPELINED} requests wait on this connection",
        "Wait for answers before asking more.",
        retry_after=1,
    ),
    "too_many": _FULL,
    "too_many_from_address": _FULL,
    "transfer_coding": Refused(
        "transfer_coding",
        "the body comes in a transfer coding other than chunked",
        "Send the body as it is, with `Content-Length`, or with `Transfer-Encoding: chunked` alone.",
    ),
    "version": Refused("http_version", "this server speaks versions 1.1 and 1.0", "Send the request as HTTP 1.1."),
    "url_too_long": Refused(
        "url_too_long",
        f"the URL has more than {MAX_URL} bytes",
        "A query of a search is part of the URL, and each byte beyond ASCII takes three: search for less at once.",
    ),
}

_STATUSES = {"pipelining": 503}
"""Where it is not the one of the code: here the connection is full, not the log."""


def refusal(reason: str, seconds: float) -> bytes:
    """Return the answer that goes with a reason. `seconds` is how long a client has."""
    said = _REFUSALS[reason]
    status = _STATUSES.get(reason)
    return encode_last(problem(said.code, said.detail, said.hint.format(seconds=seconds), status, **said.extra))
