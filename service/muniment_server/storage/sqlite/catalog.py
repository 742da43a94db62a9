"""Logs, API keys and what expires, in SQLite."""

from __future__ import annotations

from typing import Any

import apsw

from muniment_server.storage.catalog import ApiKeyRow, LogRow
from muniment_server.storage.log import Head
from muniment_server.storage.sqlite.database import Database

_LOG = "SELECT log_id, name, origin, kind, public, open, created_at FROM logs"
_KEY = "SELECT key_id, digest, scopes, log_name, label, created_at, revoked_at FROM api_keys"


class SqliteCatalog:
    """See :class:`muniment_server.storage.catalog.Catalog`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def logs(self) -> list[LogRow]:
        """See Catalog."""
        return [_log(row) for row in await self._database.all(f"{_LOG} ORDER BY log_id", ())]

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """See Catalog."""

        def work(connection: apsw.Connection) -> LogRow:
            found = connection.execute(f"{_LOG} WHERE name = ? AND origin = ?", (row.name, row.origin)).fetchone()
            if found is None:
                connection.execute(
                    "INSERT INTO logs (name, origin, kind, public, open, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (row.name, row.origin, row.kind, row.public, row.open, row.created_at),
                )
                log_id = connection.last_insert_rowid()
                first = (log_id, head.size, head.root, head.logged_at, head.epoch, head.guard_id, 0)
                connection.execute("INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", first)
                found = connection.execute(f"{_LOG} WHERE log_id = ?", (log_id,)).fetchone()
            if found is None:
                raise AssertionError("a log that was just inserted is not there")
            return _log(found)

        return await self._database.write(work)

    async def api_keys(self) -> list[ApiKeyRow]:
        """See Catalog."""
        return [_key(row) for row in await self._database.all(f"{_KEY} ORDER BY created_at, key_id", ())]

    async def create_key(self, row: ApiKeyRow) -> None:
        """See Catalog."""
        values = (
            row.key_id,
            row.digest,
            " ".join(sorted(row.scopes)),
            row.log_name,
            row.label,
            row.created_at,
            None,
        )
        await self._database.write(lambda db: db.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """See Catalog."""

        def work(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE api_keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL", (now, key_id)
            )
            return bool(connection.changes())

        return await self._database.write(work)

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """See Catalog."""
        row = await self._database.one(f"{_KEY} WHERE digest = ?", (digest,))
        return _key(row) if row else None

    async def forget_expired(self, now: int) -> int:
        """See Catalog."""

        def work(connection: apsw.Connection) -> int:
            connection.execute("DELETE FROM idempotency WHERE expires_at <= ?", (now,))
            return connection.changes()

        return await self._database.write(work)


def _log(row: tuple[Any, ...]) -> LogRow:
    return LogRow(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5]), row[6])


def _key(row: tuple[Any, ...]) -> ApiKeyRow:
    return ApiKeyRow(row[0], row[1], frozenset(row[2].split()), *row[3:])
