"""The gate: who is calling about a log, and what that caller may do there.

It is asked once for each request, before its handler.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muniment_server.access.keys import SCOPES, digest_of_key
from muniment_server.errors import Refused, StoreError
from muniment_server.settings import Settings
from muniment_server.storage.catalog import ApiKeyRow, Catalog, LogRow
from muniment_server.telemetry import get_logger

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields of a request, their names in lower case."""

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
        scope = _SCOPE[permission]
        if self.name == ANONYMOUS:
            hint = f"Ask the operator for `muniment-server key create --scope {scope}` and send it as a Bearer token."
            raise Refused("unauthorized", f"this needs an API key with scope {scope}", hint)
        raise Refused("forbidden", f"the API key lacks scope {scope}", f"Use a key with scope {scope}.")


_ANY = Caller(ANONYMOUS, frozenset())


class Access:
    """Decides who may do what. Keys are read again after half a second, so a revoked one is dead within a second."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._keys: dict[bytes, ApiKeyRow] = {}
        self._callers: dict[tuple[bytes | None, int], Caller] = {}  # by header field and log, while these keys hold
        self._any_key = False  # whether a key was ever made, also one that is revoked by now
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._refresh: asyncio.Task[None] | None = None

    async def admit(self, headers: Headers, log: LogRow | None, needs: str) -> Caller:
        """Return who is calling about `log`, or about the instance.

        Raises Refused on a key that is not valid, and without the permission `needs`.
        """
        if needs == OPEN:
            return _ANY
        if self._age() > _KEYS_SECONDS:
            await self._read(_KEYS_SECONDS)
        return self._admit(headers, log, needs)

    def admit_now(self, headers: Headers, log: LogRow | None, needs: str) -> Caller | None:
        """As :meth:`admit`; None when the keys have to be read first."""
        age = self._age()
        if age > _KEYS_SECONDS:
            return None
        if age > _KEYS_AGAIN and self._refresh is None:
            self._refresh = asyncio.get_running_loop().create_task(self._read_beside())
        return self._admit(headers, log, needs)

    def _admit(self, headers: Headers, log: LogRow | None, needs: str) -> Caller:
        given = [value for name, value in headers if name == b"authorization"]
        key = (given[0] if given else None, log.log_id if log else 0)  # an empty field is a key that is not valid
        caller = self._callers.get(key) if len(given) < 2 else None
        if caller is None:
            caller = self._caller(given, log)
            if len(self._callers) >= _MAX_CALLERS:
                self._callers.clear()
            self._callers[key] = caller
        caller.need(needs)
        return caller

    def _caller(self, given: Sequence[bytes], log: LogRow | None) -> Caller:
        anonymous = self._anonymous(log)
        if not given:
            return Caller(ANONYMOUS, anonymous)
        scheme, _, token = given[0].decode("latin-1").partition(" ")
        good = len(given) == 1 and scheme.lower() == "bearer" and _TOKEN.fullmatch(token)
        row = self._keys.get(digest_of_key(token)) if good else None
        if row is None:
            raise Refused("unauthorized", "the API key is not valid", "Send `Authorization: Bearer mk_...`.")
        if row.log_name is not None and (log is None or row.log_name != log.name):
            raise Refused("forbidden", "the API key is for another log", "Use a key made for this log.")
        return Caller(row.key_id, _permissions(row.scopes) | anonymous)

    def _anonymous(self, log: LogRow | None) -> frozenset[str]:
        if not self._any_key and is_loopback(self._settings.host):
            return _permissions(
                SCOPES
            )  # the quick start: only this machine can reach it, and no key was ever asked for
        if log is None:
            return frozenset()
        scopes = (("append", self._settings.allow_anonymous_writes), ("read", log.open))
        return _permissions(scope for scope, given in scopes if given) | ({VIEW} if log.public else set())

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


@functools.cache
def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
