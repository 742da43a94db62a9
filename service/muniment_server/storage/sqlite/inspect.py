"""What fsck reads in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw

from muniment_server.storage.log import IdempotencyRow
from muniment_server.storage.migrate import migrate_sqlite
from muniment_server.storage.row_ids import MOST, row_ids
from muniment_server.storage.sqlite import leaf_keys
from muniment_server.storage.sqlite.database import Database


class SqliteInspect:
    """See :class:`muniment_server.storage.inspect.Inspect`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entry_rows(self, log_id: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
        """See Inspect."""
        sql = 'SELECT "index", leaf, leaf_key FROM entries WHERE id >= ? AND id < ? ORDER BY id'
        return await self._database.all(sql, row_ids(log_id, start, stop))

    async def tile_rows(self, log_id: int, after: tuple[int, int], limit: int) -> list[tuple[int, int, int]]:
        """See Inspect."""
        sql = (
            'SELECT level, "index", length(data) FROM tiles WHERE log_id = ? AND (level, "index") > (?, ?) '
            'ORDER BY level, "index" LIMIT ?'
        )
        return [(level, index, width) for level, index, width in await self._database.all(sql, (log_id, *after, limit))]

    async def key_rows(self, log_id: int, after: tuple[str, str], limit: int) -> list[IdempotencyRow]:
        """See Inspect."""
        sql = (
            "SELECT caller, key, fingerprint, first_index, count, expires_at FROM idempotency "
            "WHERE log_id = ? AND (caller, key) > (?, ?) ORDER BY caller, key LIMIT ?"
        )
        return [IdempotencyRow(*row) for row in await self._database.all(sql, (log_id, *after, limit))]

    async def beyond(self, log_id: int, size: int) -> int | None:
        """See Inspect."""
        sql = (
            'SELECT min(i) FROM (SELECT "index" AS i FROM entries '
            "WHERE id = (SELECT min(id) FROM entries WHERE id >= ?3 AND id < ?4) "
            'UNION ALL SELECT min("index") FROM payloads WHERE log_id = ?1 AND "index" >= ?2)'
        )
        row = await self._database.one(sql, (log_id, size, *row_ids(log_id, size, MOST)))
        return None if row is None else row[0]

    async def integrity(self) -> list[str]:
        """See Inspect."""
        return await self._database.read(_integrity)

    async def leaf_key_damage(self) -> list[str]:
        """See Inspect."""
        return await self._database.read(leaf_keys.damage)


def _integrity(connection: apsw.Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    pattern = apsw.Connection(":memory:")
    try:
        migrate_sqlite(pattern)
        # Spoiled text of a trigger is no damage to SQLite, which reads it when the next connection opens.
        sql = "SELECT type, name, sql, lower(tbl_name) FROM sqlite_schema"
        stored, wanted = (set(db.execute(sql)) for db in (connection, pattern))
    finally:
        pattern.close()
    return found + [
        f"the schema's {kind} {name} is missing or changed" for kind, name, *_ in sorted(wanted - stored, key=repr)
    ]
