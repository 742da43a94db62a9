"""What a handler needs of a request: strict parameters, a bounded body, and who is calling."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect

from muniment.encoding import parse_decimal
from muniment.errors import FormatError
from muniment.names import parse_names
from muniment.times import check_span, milliseconds
from muniment_server.access.callers import ANONYMOUS, Caller
from muniment_server.errors import Refused
from muniment_server.web.messages import Headers, Request, budget_of

_IDEMPOTENCY = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})')
_LENGTH = re.compile(r"[0-9]{1,19}")  # isdigit() also takes digits that int() does not
_PLAIN_TYPES = frozenset(("application/json", "application/octet-stream", "application/x-ndjson"))
_WEIGHT = re.compile(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*")
_ZERO = re.compile(rb"\s*q=0(\.0*)?\s*")
_FALSE_TRUE = {"false": False, "true": True}


_PLAIN_QUERY = re.compile(rb"[a-z_]+=[0-9a-z]*(?:&[a-z_]+=[0-9a-z]*)*")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def _items(query: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query. Most need no decoding, which takes longer than their answer.

    Raises FormatError on what is no text: with another text in its place, a caller would be told of what it did not
    ask for.
    """
    if not query:
        return []
    if _PLAIN_QUERY.fullmatch(query):
        return [(name, value) for name, _, value in (part.partition("=") for part in query.decode().split("&"))]
    if _BROKEN_ESCAPE.search(query):
        raise FormatError("a % in the query stands without two hexadecimal digits: write %25 for a % itself")
    try:
        return parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise FormatError("the query is not UTF-8") from None


class Query:
    """The query of a request: each parameter known, given at most once but for `repeated`, in its one spelling."""

    def __init__(self, request: Request, known: Collection[str], repeated: Collection[str] = ()) -> None:
        items = _items(request.query)
        self._items = items
        self._values = dict(items)
        if len(self._values) != len(items):
            names = [name for name, _ in items if name not in repeated]
            if len(set(names)) != len(names):
                raise FormatError("a query parameter is given twice")
        if unknown := sorted(set(self._values) - set(known)):
            raise FormatError(
                f"unknown query parameter {unknown[0][:40]!r}: known are {', '.join(sorted(known)) or 'none'}"
            )

    def number(self, name: str) -> int | None:
        """Return a decimal parameter, or None when it is not given. Raises FormatError."""
        return parse_decimal(self._values[name], name) if name in self._values else None

    def flag(self, name: str) -> bool:
        """Return a true/false parameter, by default false. Raises FormatError."""
        value = self._values.get(name, "false")
        if value not in _FALSE_TRUE:
            raise FormatError(f"{name} is true or false, not {value[:40]!r}")
        return _FALSE_TRUE[value]

    def text(self, name: str) -> str | None:
        """Return a parameter as it is, or None when it is not given."""
        return self._values.get(name)

    def names(self, name: str) -> set[str] | None:
        """Return the names of members in a parameter that may be repeated, or None when it is not given.

        Raises FormatError.
        """
        texts = [text for given, text in self._items if given == name]
        return {found for text in texts for found in parse_names(text)} if texts else None

    def page(self) -> tuple[int, int]:
        """Return start (default 0) and limit (default 100, in [1, 1000]). Raises FormatError."""
        limit = self.number("limit")
        limit = 100 if limit is None else limit
        if not 1 <= limit <= 1000:
            raise FormatError(f"limit is in 1..1000, not {limit}")
        return self.number("start") or 0, limit


def span_of(query: Query) -> tuple[int | None, int | None]:
    """Return the parameters `from` and `to` in milliseconds, None for one that is not given. Raises FormatError."""
    since, until = _time(query, "from"), _time(query, "to")
    check_span(since, until)
    return since, until


def _time(query: Query, name: str) -> int | None:
    text = query.text(name)
    if text is None:
        return None
    try:
        return milliseconds(text)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None


async def read_body(request: Request, limit: int, caller: Caller | None = None, *, batch: bool = False) -> bytes:
    """Return the body, at most `limit` bytes.

    Never holds more than that, nor more than there is room for. Raises Refused.
    """
    if any(value.lower() != "identity" for value in request.values(b"content-encoding")):
        raise Refused("content_encoding", "compressed bodies are not taken", "Send the body as it is.")
    asgi, budget = request.asgi, budget_of(request)
    if asgi is None:
        raise AssertionError("this request came with its body")
    length = request.value(b"content-length")
    if length is not None and (not _LENGTH.fullmatch(length) or int(length) > limit):
        raise too_large(limit)
    rooms = budget.rooms
    room = rooms.strangers if caller is None else rooms.batches if batch else rooms.entries
    owner = budget.peer if caller is None or caller.name == ANONYMOUS else caller.name
    if length is not None:  # all of it at once: a body that was begun is then never refused for want of room
        budget.take(room, owner, int(length))
    body = (
        bytearray()
    )  # grows in one piece: the C library gives back large ones, and thousands of small ones leave holes
    try:
        async for part in asgi.stream():
            if len(body) + len(part) > limit:
                raise too_large(limit)
            if length is None:
                budget.take(room, owner, len(part))
            body += part
    except ClientDisconnect:
        raise Refused("invalid_request", "the body was cut off", "Send the whole body.") from None
    return bytes(body)


def too_large(limit: int) -> Refused:
    """Return the refusal of a body beyond `limit` bytes."""
    return Refused("body_too_large", f"the body is larger than {limit} bytes", "Log a digest, or send smaller batches.")


def media_type(request: Request) -> str:
    """Return the content type in lower case, without parameters; "" when there is none.

    Raises Refused on another charset.
    """
    value = request.value(b"content-type") or ""
    if value in _PLAIN_TYPES:
        return value
    kind, _, parameters = value.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise Refused("unsupported_media_type", "only UTF-8 is taken", "Send the body as UTF-8.")
    return kind.strip().lower()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key, quoted or not, or None. Raises Refused."""
    values = request.values(b"idempotency-key")
    if not values:
        return None
    match = _IDEMPOTENCY.fullmatch(values[0])
    if len(values) > 1 or not match:
        raise Refused(
            "idempotency_key_invalid",
            "an Idempotency-Key is one string of 1 to 255 printable ASCII characters",
            'Send for example Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324".',
        )
    return match[1] or match[2]


def takes_gzip(headers: Headers) -> bool:
    """Tell whether the caller takes an answer as gzip (RFC 9110 section 12.5.3)."""
    weights = dict(
        _weighed(part) for name, value in headers if name == b"accept-encoding" for part in value.lower().split(b",")
    )
    return weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", False)))


def _weighed(part: bytes) -> tuple[bytes, bool]:
    """Return a coding, and whether it is taken: not with a weight of zero."""
    coding, _, weight = part.partition(b";")
    return coding.strip(), not _ZERO.fullmatch(weight)


def prefers_html(accept: str) -> bool:
    """Tell whether the caller would rather have a page than JSON (RFC 9110 section 12.5.1)."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        kind, _, weight = part.partition(";")
        found = _WEIGHT.fullmatch(weight)
        if kind.strip() in weights and (found or not weight.strip()):
            weights[kind.strip()] = float(found[1]) if found else 1.0
    return weights["text/html"] > 0 and weights["text/html"] >= weights["application/json"]


def wants_text(request: Request) -> bool:
    """Tell whether the caller asks for C2SP text rather than JSON."""
    accept = request.value(b"accept") or ""
    return "text/plain" in accept and "application/json" not in accept
