"""What a handler needs of a request: strict parameters, a bounded body, and who is calling."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect

from muniment.encoding import parse_decimal
from muniment.errors import FormatError
from muniment_server.access.keys import SCOPES, digest_of_key
from muniment_server.errors import Refused, StoreError
from muniment_server.instance.registry import Catalog
from muniment_server.log import Log
from muniment_server.storage import ApiKeyRow
from muniment_server.telemetry import get_logger
from muniment_server.web.ask import Ask, Headers, lease_of

_KEYS_SECONDS = 0.5
_KEYS_AGAIN = 0.3  # after this they are read again beside the requests, so that hardly any has to wait for it
_TOKEN = re.compile(r"mk_[A-Za-z0-9_-]{43}")
_IDEMPOTENCY = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})')
_LENGTH = re.compile(r"[0-9]{1,19}")  # isdigit() also takes digits that int() does not
_PLAIN_TYPES = frozenset(("application/json", "application/octet-stream", "application/x-ndjson"))
_FALSE_TRUE = {"false": False, "true": True}
ANONYMOUS = "anonymous"
"""The name of a caller without a key."""


class Access:
    """Who may do what. Keys are read again after half a second, so a revoked one is dead within a second."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._nobody: dict[int, Caller] = {}  # a caller without a key, by log
        self._asked = False  # whether a key was ever made, also one that is revoked by now
        self.edition = 0  # how often the keys were read
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None

    def _age(self) -> float:
        return time.monotonic() - self._read_at

    async def _read(self, older_than: float) -> None:
        async with self._reading:  # one read for all who wait, not one for each of a thousand connections
            if self._age() > older_than:
                now = time.monotonic()  # a key revoked while they are read may be among them
                rows = await self._catalog.store.api_keys()
                self._keys = {row.digest: row for row in rows if row.revoked_at is None}
                self._asked = bool(rows)
                self._nobody = {}
                self.edition += 1
                self._read_at = now

    async def _read_beside(self) -> None:
        try:
            await self._read(_KEYS_AGAIN)
        except StoreError as error:  # whoever needs them says so, half a second after they were read last
            get_logger().debug("keys not read", error=str(error))
        finally:
            self._refresh = None

    def holds(self, edition: int) -> bool:
        """Tell whether a caller that :meth:`caller_now` found in this edition is who it was, and the keys need not be read again."""
        return edition == self.edition and time.monotonic() - self._read_at < _KEYS_AGAIN

    def caller_now(self, headers: Headers, log: Log) -> Caller | None:
        """Return who is calling about `log`; None when the keys have to be read first. Raises Refused as :meth:`caller`."""
        age = self._age()
        if age > _KEYS_SECONDS:
            return None
        if age > _KEYS_AGAIN and self._refresh is None:
            self._refresh = asyncio.get_running_loop().create_task(self._read_beside())
        return self._caller(headers, log)

    async def caller(self, ask: Ask, log: Log) -> Caller:
        """Return who is calling about `log`. Raises Refused on a key that is not valid."""
        if self._age() > _KEYS_SECONDS:
            await self._read(_KEYS_SECONDS)
        return self._caller(ask.headers, log)

    def _caller(self, headers: Headers, log: Log) -> Caller:
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            found = self._nobody.get(log.row.log_id)
            if found is None:
                found = self._nobody[log.row.log_id] = Caller(ANONYMOUS, self._anonymous(log))
            return found
        scheme, _, token = given[0].decode("latin-1").partition(" ")
        good = len(given) == 1 and scheme.lower() == "bearer" and _TOKEN.fullmatch(token)
        row = self._keys.get(digest_of_key(token)) if good else None
        if row is None:
            raise Refused("unauthorized", "the API key is not valid", "Send `Authorization: Bearer mk_...`.")
        if row.log_name not in (None, log.row.name):
            raise Refused("forbidden", "the API key is for another log", "Use a key made for this log.")
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
        if self.name == ANONYMOUS:
            hint = f"Ask the operator for `muniment-server key create --scope {scope}` and send it as a Bearer token."
            raise Refused("unauthorized", f"this needs an API key with scope {scope}", hint)
        raise Refused("forbidden", f"the API key lacks scope {scope}", f"Use a key with scope {scope}.")


@functools.cache
def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_PLAIN_QUERY = re.compile(rb"[a-z_]+=[0-9a-z]*(?:&[a-z_]+=[0-9a-z]*)*")


def _items(query: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query. Most need no decoding, which takes longer than their answer."""
    if not query:
        return []
    if _PLAIN_QUERY.fullmatch(query):
        return [(name, value) for name, _, value in (part.partition("=") for part in query.decode().split("&"))]
    return QueryParams(query).multi_items()


class Query:
    """The query of a request: each parameter known, given at most once, in its one spelling."""

    def __init__(self, ask: Ask, known: Collection[str]) -> None:
        items = _items(ask.query)
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


async def read_body(ask: Ask, limit: int, caller: Caller | None = None, *, batch: bool = False) -> bytes:
    """Return the body, at most `limit` bytes; never holds more than that, nor more than there is room for. Raises Refused."""
    if any(value.lower() != "identity" for value in ask.values(b"content-encoding")):
        raise Refused("content_encoding", "compressed bodies are not taken", "Send the body as it is.")
    request, lease = ask.request, lease_of(ask)
    if request is None:
        raise AssertionError("this request came with its body")
    length = ask.value(b"content-length")
    if length is not None and (not _LENGTH.fullmatch(length) or int(length) > limit):
        raise too_large(limit)
    rooms = lease.rooms
    room = rooms.strangers if caller is None else rooms.batches if batch else rooms.entries
    owner = lease.peer if caller is None or caller.name == ANONYMOUS else caller.name
    if length is not None:  # all of it at once: a body that was begun is then never refused for want of room
        lease.take(room, owner, int(length))
    body = (
        bytearray()
    )  # grows in one piece: the C library gives back large ones, and thousands of small ones leave holes
    try:
        async for part in request.stream():
            if len(body) + len(part) > limit:
                raise too_large(limit)
            if length is None:
                lease.take(room, owner, len(part))
            body += part
    except ClientDisconnect:
        raise Refused("invalid_request", "the body was cut off", "Send the whole body.") from None
    return bytes(body)


def too_large(limit: int) -> Refused:
    """Return the refusal of a body beyond `limit` bytes."""
    return Refused("body_too_large", f"the body is larger than {limit} bytes", "Log a digest, or send smaller batches.")


def media_type(ask: Ask) -> str:
    """Return the content type in lower case, without parameters; "" when there is none. Raises Refused on another charset."""
    value = ask.value(b"content-type") or ""
    if value in _PLAIN_TYPES:
        return value
    kind, _, parameters = value.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise Refused("unsupported_media_type", "only UTF-8 is taken", "Send the body as UTF-8.")
    return kind.strip().lower()


def idempotency_key(ask: Ask) -> str | None:
    """Return the Idempotency-Key, quoted or not, or None. Raises Refused."""
    values = ask.values(b"idempotency-key")
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


def wants_text(ask: Ask) -> bool:
    """Tell whether the caller asks for C2SP text rather than JSON."""
    accept = ask.value(b"accept") or ""
    return "text/plain" in accept and "application/json" not in accept
