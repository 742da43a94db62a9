"""What fsck reads in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muniment.hashing import HASH_SIZE
from muniment_server.storage.log import IdempotencyRow
from muniment_server.storage.postgres.append import PART
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.row_ids import MOST, row_ids

_UNJOINED = f"""
SELECT DISTINCT log_id, level, index FROM (
    SELECT log_id, level, index, part, octet_length(data) AS size, sum(octet_length(data)) OVER
        (PARTITION BY log_id, level, index ORDER BY part) AS upto
    FROM tiles
) t WHERE (upto - size) / {PART * HASH_SIZE} <> part ORDER BY 1, 2, 3 LIMIT 100
"""  # noqa: S608 - composed of constants


class PostgresInspect:
    """See :class:`muniment_server.storage.inspect.Inspect`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def entry_rows(self, log_id: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
        """See Inspect."""
        sql = f"SELECT id % {MOST}, leaf FROM entries WHERE id >= $1 AND id < $2 ORDER BY id"  # noqa: S608 - likewise
        return await self._pool.all(sql, *row_ids(log_id, start, stop))

    async def tile_rows(self, log_id: int, after: tuple[int, int], limit: int) -> list[tuple[int, int, int]]:
        """See Inspect."""
        sql = (
            "SELECT level, index, sum(octet_length(data)) FROM tiles WHERE log_id = $1 AND (level, index) > ($2, $3) "
            "GROUP BY level, index ORDER BY level, index LIMIT $4"
        )
        return [(row[0], row[1], row[2]) for row in await self._pool.all(sql, log_id, *after, limit)]

    async def key_rows(self, log_id: int, after: tuple[str, str], limit: int) -> list[IdempotencyRow]:
        """See Inspect."""
        sql = (
            "SELECT caller, key, fingerprint, first_index, count, expires_at FROM idempotency "
            "WHERE log_id = $1 AND (caller, key) > ($2, $3) ORDER BY caller, key LIMIT $4"
        )
        return [IdempotencyRow(*row) for row in await self._pool.all(sql, log_id, *after, limit)]

    async def beyond(self, log_id: int, size: int) -> int | None:
        """See Inspect."""
        sql = (
            f"SELECT least((SELECT min(id) % {MOST} FROM entries "  # noqa: S608 - constants
            "WHERE id >= $3 AND id < $4), "
            "(SELECT min(index) FROM payloads WHERE log_id = $1 AND index >= $2)) AS index"
        )
        row = await self._pool.one(sql, log_id, size, *row_ids(log_id, size, MOST))
        return None if row is None else row["index"]

    async def integrity(self) -> list[str]:
        """See Inspect. Pages speak up themselves where data checksums are on, and indexes are read through."""
        return [
            f"the parts of tile {level}/{index} of log {log_id} do not join"
            for log_id, level, index in await self._pool.all(_UNJOINED)
        ]

    async def leaf_key_damage(self) -> list[str]:
        """See Inspect. An index of the table entries: pg_amcheck compares the two."""
        return []
