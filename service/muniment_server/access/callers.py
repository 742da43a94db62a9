"""The gate: who is calling about a log, and what that caller may do there.

It is asked once for each request, before its handler.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from muniment_server.access.asking import Asking, Headers, is_loopback
from muniment_server.access.keys import SCOPES, digest_of_key
from muniment_server.errors import NotFound, Refused, StoreError
from muniment_server.settings import Settings
from muniment_server.storage.catalog import ApiKeyRow, Catalog, LogRow
from muniment_server.telemetry import get_logger

OPEN = "open"
"""Permission that every caller has, with whatever key. Routes that need it look at no key."""
VIEW = "view"
"""Permission to see heads, proofs, files and entries without their payloads. On a public log every caller has it."""
READ = "read"
"""Permission to see payloads."""
APPEND = "append"
"""Permission to append entries."""
PERMISSIONS = {"append": frozenset({APPEND}), "read": frozenset({VIEW, READ})}
"""What each scope of an API key permits."""
_SCOPE = {VIEW: "read", READ: "read", APPEND: "append"}

_KEYS_SECONDS = 0.5
_KEYS_AGAIN = 0.3  # after this they are read again beside the requests, so that hardly any has to wait for it
_MAX_CALLERS = 4096
"""Callers that are remembered while the keys of one read hold. The same key can be spelled in several ways."""
_TOKEN = re.compile(r"mk_[A-Za-z0-9_-]{43}")
ANONYMOUS = "anonymous"
"""The name of a caller without a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, by API key id or "anonymous", and what that caller may do."""

    name: str
    permissions: frozenset[str]

    def need(self, permission: str) -> None:
        """Raise Refused unless the caller has a permission."""
        if permission in self.permissions:
            return
        if self.name == ANONYMOUS:
            raise _missing(permission)
        scope = _SCOPE[permission]
        raise Refused("forbidden", f"the API key lacks scope {scope}", f"Use a key with scope {scope}.")


_ANY = Caller(ANONYMOUS, frozenset())


class Access:
    """Decides who may do what. Keys are read again after half a second, so a revoked one is dead within a second."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._callers: dict[tuple[Asking, int], Caller] = {}  # by what they say and log, while these keys hold
        self._any_key = False  # whether a key was ever made, also one that is revoked by now
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None

    def asking(self, headers: Headers) -> Asking:
        """Return what the fields of a request say of who sends it. It stays the same for the same fields."""
        return Asking.of(headers, self._settings.cors_origins)

    async def admit(self, headers: Headers, log: LogRow | None, needs: str) -> Caller:
        """Return who is calling about `log`, or about the instance.

        Raises Refused on a key that is not valid, and without the permission `needs`.
        """
        if needs == OPEN:
            return _ANY
        await self._current()
        return self._admit(self.asking(headers), log, needs)

    def admit_now(self, asking: Asking, log: LogRow | None, needs: str) -> Caller | None:
        """As :meth:`admit`; None when the keys have to be read first."""
        age = self._age()
        if age > _KEYS_SECONDS:
            return None
        if age > _KEYS_AGAIN and self._refresh is None:
            self._refresh = asyncio.get_running_loop().create_task(self._read_beside())
        return self._admit(asking, log, needs)

    async def check(self) -> None:
        """Raise StoreError unless the keys can be read."""
        await self._read(_KEYS_SECONDS)

    async def refuse_unknown(self, headers: Headers, name: str, needs: str) -> Refused:
        """Return the refusal of a log that there is not.

        To those who may not see every log it is the one of a log that they may not see. Raises Refused on a key that is
        not valid.
        """
        await self._current()
        asking = self.asking(headers)
        if self._key(asking) is None and VIEW not in self._anonymous(asking, None):
            return _missing(needs)
        return _unknown(name)

    async def visible(self, headers: Headers, logs: Iterable[LogRow]) -> list[LogRow]:
        """Return the logs whose heads the sender of a request may see. Raises Refused on a key that is not valid."""
        await self._current()
        asking = self.asking(headers)
        row = self._key(asking)
        return [log for log in logs if _may_ask(row, log) and VIEW in self._permissions(asking, row, log)]

    def _admit(self, asking: Asking, log: LogRow | None, needs: str) -> Caller:
        key = (asking, log.log_id if log else 0)
        caller = self._callers.get(key)
        if caller is None:
            caller = self._caller(asking, log)
            if len(self._callers) >= _MAX_CALLERS:
                self._callers.clear()
            self._callers[key] = caller
        caller.need(needs)
        return caller

    def _caller(self, asking: Asking, log: LogRow | None) -> Caller:
        row = self._key(asking)
        if log is not None and not _may_ask(row, log):
            raise _unknown(log.name)
        return Caller(row.key_id if row else ANONYMOUS, self._permissions(asking, row, log))

    def _key(self, asking: Asking) -> ApiKeyRow | None:
        """Return the API key of a request; None when it has none. Raises Refused on one that is not valid."""
        if not asking.keys:
            return None
        scheme, _, token = asking.keys[0].decode("latin-1").partition(" ")
        good = len(asking.keys) == 1 and scheme.lower() == "bearer" and _TOKEN.fullmatch(token)
        row = self._keys.get(digest_of_key(token)) if good else None
        if row is None:
            raise Refused("unauthorized", "the API key is not valid", "Send `Authorization: Bearer mk_...`.")
        return row

    def _permissions(self, asking: Asking, row: ApiKeyRow | None, log: LogRow | None) -> frozenset[str]:
        anonymous = self._anonymous(asking, log)
        if row is None or row.log_name not in (None, log.name if log else None):
            return anonymous
        return _permissions(row.scopes) | anonymous

    def _anonymous(self, asking: Asking, log: LogRow | None) -> frozenset[str]:
        if asking.local and not self._any_key and is_loopback(self._settings.host):
            return _permissions(
                SCOPES
            )  # the quick start: only this machine can reach it, and no key was ever asked for
        if log is None:
            return frozenset()
        scopes = (("append", self._settings.allow_anonymous_writes), ("read", log.open))
        return _permissions(scope for scope, given in scopes if given) | ({VIEW} if log.public else set())

    async def _current(self) -> None:
        if self._age() > _KEYS_SECONDS:
            await self._read(_KEYS_SECONDS)

    def _age(self) -> float:
        return time.monotonic() - self._read_at

    async def _read(self, older_than: float) -> None:
        async with self._reading:  # one read for all who wait, not one for each of a thousand connections
            if self._age() > older_than:
                now = time.monotonic()  # a key revoked while they are read may be among them
                rows = await self._catalog.api_keys()
                self._keys = {row.digest: row for row in rows if row.revoked_at is None}
                self._any_key = bool(rows)
                self._callers = {}
                self._read_at = now

    async def _read_beside(self) -> None:
        try:
            await self._read(_KEYS_AGAIN)
        except StoreError as error:  # a request that needs them says so, half a second after they were read last
            get_logger().debug("keys not read", error=str(error))
        finally:
            self._refresh = None


def _permissions(scopes: Iterable[str]) -> frozenset[str]:
    return frozenset[str]().union(*(PERMISSIONS[scope] for scope in scopes))


def _may_ask(row: ApiKeyRow | None, log: LogRow) -> bool:
    """Tell whether a key may know of a log: one that is made for another log knows of those that all may see."""
    return row is None or log.public or row.log_name in (None, log.name)


def _unknown(name: str) -> Refused:
    return NotFound("unknown_log", f"there is no log {name[:63]!r}", "GET /logs lists the logs that you may see.")


def _missing(permission: str) -> Refused:
    """Return the refusal of a caller without a key."""
    scope = _SCOPE[permission]
    hint = f"Ask the operator for `muniment-server key create --scope {scope}` and send it as a Bearer token."
    return Refused("unauthorized", f"this needs an API key with scope {scope}", hint)
