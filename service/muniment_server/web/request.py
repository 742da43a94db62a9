"""What a handler needs of a request: strict parameters, a bounded body, and who is calling."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from muniment.encoding import parse_decimal
from muniment.errors import FormatError
from muniment_server.admission import Refused
from muniment_server.catalog import SCOPES, Catalog, digest_of_key
from muniment_server.log import Log
from muniment_server.storage import ApiKeyRow

_KEYS_SECONDS = 0.5
_TOKEN = re.compile(r"mk_[A-Za-z0-9_-]{43}")
_IDEMPOTENCY = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})')
_LENGTH = re.compile(r"[0-9]{1,19}")  # isdigit() also takes digits that int() does not
_FALSE_TRUE = {"false": False, "true": True}


class Access:
    """Who may do what. Keys are read again after half a second, so a revoked one is dead within a second."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._asked = False  # whether a key was ever made, also one that is revoked by now
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    def _stale(self) -> bool:
        return time.monotonic() - self._read_at > _KEYS_SECONDS

    async def _current(self) -> dict[bytes, ApiKeyRow]:
        if self._stale():
            async with self._reading:  # one read for all who wait, not one for each of a thousand connections
                if self._stale():
                    rows = await self._catalog.store.api_keys()
                    self._keys = {row.digest: row for row in rows if row.revoked_at is None}
                    self._asked = bool(rows)
                    self._read_at = time.monotonic()
        return self._keys

    async def caller(self, request: Request, log: Log) -> Caller:
        """Return who is calling about `log`. Raises Refused on a key that is not valid."""
        keys = await self._current()
        headers = request.headers.getlist("authorization")
        if not headers:
            return Caller("anonymous", self._anonymous(log))
        scheme, _, token = headers[0].partition(" ")
        good = len(headers) == 1 and scheme.lower() == "bearer" and _TOKEN.fullmatch(token)
        row = keys.get(digest_of_key(token)) if good else None
        if row is None:
            raise Refused(401, "unauthorized", "the API key is not valid", "Send `Authorization: Bearer mk_...`.")
        if row.log_name not in (None, log.row.name):
            raise Refused(403, "forbidden", "the API key is for another log", "Use a key made for this log.")
        return Caller(row.key_id, row.scopes | self._anonymous(log))

    def _anonymous(self, log: Log) -> frozenset[str]:
        settings = self._catalog.settings
        if not self._asked and is_loopback(settings.host):
            return SCOPES  # the quick start: nobody else can reach this, and no key was ever asked for
        return frozenset(
            scope for scope, given in (("append", settings.allow_anonymous_writes), ("read", log.row.open)) if given
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, by API key id or "anonymous", and the scopes that gives."""

    name: str
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raise Refused unless the caller has `scope`."""
        if scope in self.scopes:
            return
        if self.name == "anonymous":
            hint = f"Ask the operator for `muniment-server key create --scope {scope}` and send it as a Bearer token."
            raise Refused(401, "unauthorized", f"this needs an API key with scope {scope}", hint)
        raise Refused(403, "forbidden", f"the API key lacks scope {scope}", f"Use a key with scope {scope}.")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Query:
    """The query of a request: each parameter known, given at most once, in its one spelling."""

    def __init__(self, request: Request, known: Collection[str]) -> None:
        items = request.query_params.multi_items()
        self._values = dict(items)
        if len(self._values) != len(items):
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

    def page(self) -> tuple[int, int]:
        """Return start (default 0) and limit (default 100, in [1, 1000]). Raises FormatError."""
        limit = self.number("limit")
        limit = 100 if limit is None else limit
        if not 1 <= limit <= 1000:
            raise FormatError(f"limit is in 1..1000, not {limit}")
        return self.number("start") or 0, limit


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, at most `limit` bytes; never holds more than that. Raises Refused."""
    if any(value.lower() != "identity" for value in request.headers.getlist("content-encoding")):
        raise Refused(415, "content_encoding", "compressed bodies are not taken", "Send the body as it is.")
    length = request.headers.get("content-length")
    if length is not None and (not _LENGTH.fullmatch(length) or int(length) > limit):
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "invalid_request", "the body was cut off", "Send the whole body.") from None
    return b"".join(parts)


def too_large(limit: int) -> Refused:
    """Return the refusal of a body beyond `limit` bytes."""
    return Refused(
        413, "body_too_large", f"the body is larger than {limit} bytes", "Log a digest, or send smaller batches."
    )


def media_type(request: Request) -> str:
    """Return the content type in lower case, without parameters; "" when there is none. Raises Refused on another charset."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise Refused(415, "unsupported_media_type", "only UTF-8 is taken", "Send the body as UTF-8.")
    return kind.strip().lower()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key, quoted or not, or None. Raises Refused."""
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    match = _IDEMPOTENCY.fullmatch(values[0])
    if len(values) > 1 or not match:
        raise Refused(
            400,
            "idempotency_key_invalid",
            "an Idempotency-Key is one string of 1 to 255 printable ASCII characters",
            'Send for example Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324".',
        )
    return match[1] or match[2]


def wants_text(request: Request) -> bool:
    """Tell whether the caller asks for C2SP text rather than JSON."""
    accept = request.headers.get("accept", "")
    return "text/plain" in accept and "application/json" not in accept
