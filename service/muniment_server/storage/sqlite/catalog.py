"""Logs, API keys and what expires, in SQLite: the part of the store that :mod:`muniment_server.storage.sqlite.append` inherits."""

from __future__ import annotations

from typing import Any

import apsw

from muniment_server.storage import ApiKeyRow, Head, LogRow
from muniment_server.storage.sqlite.base import SqliteBase

_LOG = "SELECT log_id, name, origin, kind, public, open, created_at FROM logs"
_KEY = "SELECT key_id, digest, scopes, log_name, label, created_at, revoked_at FROM api_keys"


class SqliteCatalog(SqliteBase):
    """See storage.Catalog."""

    async def logs(self) -> list[LogRow]:
        """See storage.Catalog."""
        return [_log(row) for row in await self._all(f"{_LOG} ORDER BY log_id", ())]

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """See storage.Catalog."""

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

        return await self._write(work)

    async def api_keys(self) -> list[ApiKeyRow]:
        """See storage.Catalog."""
        return [_key(row) for row in await self._all(f"{_KEY} ORDER BY created_at, key_id", ())]

    async def create_key(self, row: ApiKeyRow) -> None:
        """See storage.Catalog."""
        values = (
            row.key_id,
            row.digest,
            " ".join(sorted(row.scopes)),
            row.log_name,
            row.label,
            row.created_at,
            None,
        )
        await self._write(lambda db: db.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """See storage.Catalog."""

        def work(connection: apsw.Connection) -> bool:
            connection.execute(
                "UPDATE api_keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL", (now, key_id)
            )
            return bool(connection.changes())

        return await self._write(work)

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """See storage.Catalog."""
        row = await self._one(f"{_KEY} WHERE digest = ?", (digest,))
        return _key(row) if row else None

    async def forget_expired(self, now: int) -> int:
        """See storage.Catalog."""

        def work(connection: apsw.Connection) -> int:
            connection.execute("DELETE FROM idempotency WHERE expires_at <= ?", (now,))
            return connection.changes()

        return await self._write(work)


def _log(row: tuple[Any, ...]) -> LogRow:
    return LogRow(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5]), row[6])


def _key(row: tuple[Any, ...]) -> ApiKeyRow:
    return ApiKeyRow(row[0], row[1], frozenset(row[2].split()), *row[3:])
