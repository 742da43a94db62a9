"""Logs, API keys and what expires, in Postgres."""

from __future__ import annotations

from typing import Any

import asyncpg

from muniment_server.errors import HeadMoved, StoreUnavailable
from muniment_server.storage.catalog import ApiKeyRow, LogRow
from muniment_server.storage.log import Head
from muniment_server.storage.postgres.connect import FAILED
from muniment_server.storage.postgres.pool import Pool

_LOG = "SELECT log_id, name, origin, kind, public, open, created_at FROM logs"
_KEY = "SELECT key_id, digest, scopes, log_name, label, created_at, revoked_at FROM api_keys"


class PostgresCatalog:
    """See :class:`muniment_server.storage.catalog.Catalog`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def logs(self) -> list[LogRow]:
        """See Catalog."""
        return [LogRow(*row) for row in await self._pool.all(f"{_LOG} ORDER BY log_id")]

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """See Catalog."""
        sql = (
            "WITH made AS (INSERT INTO logs (name, origin, kind, public, open, created_at) "
            "VALUES ($1, $2, $3, $4, $5, $6) RETURNING log_id) "
            "INSERT INTO heads SELECT log_id, $7, $8, $9, $10, $11, 0 FROM made"
        )
        found = await self._pool.one(f"{_LOG} WHERE name = $1 AND origin = $2", row.name, row.origin)
        if found is None:
            values = (row.name, row.origin, row.kind, row.public, row.open, row.created_at)
            try:
                await self._pool.execute(sql, *values, head.size, head.root, head.logged_at, head.epoch, head.guard_id)
            except asyncpg.UniqueViolationError as error:
                clash: asyncpg.UniqueViolationError | None = error
            except FAILED as error:
                raise StoreUnavailable(f"Postgres: {error}") from error
            else:
                clash = None
            # Also after a clash: it may have been with a process that made this very log.
            found = await self._pool.one(f"{_LOG} WHERE name = $1 AND origin = $2", row.name, row.origin)
            if found is None:
                raise HeadMoved(f"name or origin belongs to another log: {clash}") from clash
        return LogRow(*found)

    async def api_keys(self) -> list[ApiKeyRow]:
        """See Catalog."""
        return [_key(row) for row in await self._pool.all(f"{_KEY} ORDER BY created_at, key_id")]

    async def create_key(self, row: ApiKeyRow) -> None:
        """See Catalog."""
        sql = "INSERT INTO api_keys VALUES ($1, $2, $3, $4, $5, $6, NULL)"
        scopes = " ".join(sorted(row.scopes))
        await self._pool.all(sql, row.key_id, row.digest, scopes, row.log_name, row.label, row.created_at)

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """See Catalog."""
        sql = "UPDATE api_keys SET revoked_at = $2 WHERE key_id = $1 AND revoked_at IS NULL RETURNING key_id"
        return await self._pool.one(sql, key_id, now) is not None

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """See Catalog."""
        row = await self._pool.one(f"{_KEY} WHERE digest = $1", digest)
        return _key(row) if row else None

    async def forget_expired(self, now: int) -> int:
        """See Catalog."""
        rows = await self._pool.all("DELETE FROM idempotency WHERE expires_at <= $1 RETURNING 1", now)
        return len(rows)


def _key(row: Any) -> ApiKeyRow:
    scopes = frozenset(row["scopes"].split())
    return ApiKeyRow(row[0], row[1], scopes, row[3], row[4], row[5], row[6])
