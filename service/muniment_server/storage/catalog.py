"""The logs of an instance, and the API keys to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from muniment_server.storage.log import Head


@dataclass(frozen=True, slots=True)
class LogRow:
    """A log as it was created.

    `kind` is "event" or "raw"; `public` allows reads, `open` reads of payloads, without a key.
    """

    log_id: int
    name: str
    origin: str
    kind: str
    public: bool
    open: bool
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """An API key without its secret: `digest` is SHA-256 of it; `log_name` None means every log."""

    key_id: str
    digest: bytes
    scopes: frozenset[str]
    log_name: str | None
    label: str
    created_at: int
    revoked_at: int | None


class Catalog(Protocol):
    """Logs and API keys."""

    async def logs(self) -> list[LogRow]:
        """Return all logs, in the order of their creation."""

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """Store a log (its log_id is ignored) with its empty head, and return it.

        Returns the stored one if it exists already. Raises HeadMoved when name or origin belong to a different log.
        """

    async def api_keys(self) -> list[ApiKeyRow]:
        """Return all API keys, oldest first."""

    async def create_key(self, row: ApiKeyRow) -> None:
        """Store an API key."""

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """Mark an API key as revoked; False when there is no such key or it was revoked before."""

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """Return the key with this digest, revoked or not."""

    async def forget_expired(self, now: int) -> int:
        """Delete idempotency rows that expired before `now`; return how many."""
