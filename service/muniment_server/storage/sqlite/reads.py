"""Reads of SQLite: the part of the store that :mod:`muniment_server.storage.sqlite.append` inherits."""

from __future__ import annotations

import time
from collections.abc import Sequence

import apsw

from muniment.hashing import RootHash
from muniment.tiles import TILE_WIDTH, Tile
from muniment_server.errors import StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage import SMALL_LEAF, Head, IdempotencyRow, Published, StoredKey, StoredPayload
from muniment_server.storage.row_ids import row_ids
from muniment_server.storage.sqlite.base import SqliteBase

_HEAD = "SELECT size, root, logged_at, epoch, guard_id FROM heads WHERE log_id = ?"
LEAVES = "SELECT leaf FROM entries WHERE id >= ? AND id < ? ORDER BY id"
# Blobs go through text here, and are cast back: in a database of UTF-8 text, which this is, that leaves every byte as it is. ?3 has the
# lengths as a bundle has them, two bytes each. The order is that of the inner query: what SQLite does, though its manual does not
# promise it. Asked for in group_concat it takes half as long again, and a test of the contract would notice.
_BUNDLE = (
    "SELECT CAST(group_concat(entry, '') AS BLOB) FROM ("  # noqa: S608 - composed of constants
    "SELECT substr(?3, 2 * length(leaf) + 1, 2) || leaf AS entry "
    f"FROM entries WHERE id >= ?1 AND id < ?2 AND length(leaf) <= {SMALL_LEAF} ORDER BY id) HAVING count(*) = {TILE_WIDTH}"
)
_LENGTHS = b"".join(length.to_bytes(2, "big") for length in range(SMALL_LEAF + 1))
_TILE = 'SELECT data FROM tiles WHERE log_id = ? AND level = ? AND "index" = ?'
_CHECKPOINT = "SELECT size, note, published_at FROM checkpoints WHERE log_id = ? AND size = ?"
_LATEST = (
    "SELECT c.size, note, published_at FROM heads h JOIN checkpoints c "
    "ON c.log_id = h.log_id AND c.size = h.published_size WHERE h.log_id = ?"
)


class SqliteReads(SqliteBase):
    """See storage.Read."""

    @step("store.head")
    async def head(self, log_id: int) -> Head:
        """See storage.Read."""
        row = await self._one(_HEAD, (log_id,))
        if row is None:
            raise StoreUnavailable(f"the database holds no head of log {log_id}")
        return Head(row[0], RootHash(row[1]), *row[2:])

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """See storage.Read."""
        return await self._read(lambda connection: read_tiles(connection, log_id, tiles))

    async def leaves(self, log_id: int, start: int, stop: int) -> list[bytes]:
        """See storage.Read."""
        return [leaf for (leaf,) in await self._all(LEAVES, row_ids(log_id, start, stop))]

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        """See storage.Read."""

        def work(connection: apsw.Connection) -> dict[int, bytes]:
            ranges = {index: row_ids(log_id, index * TILE_WIDTH, (index + 1) * TILE_WIDTH) for index in indices}
            return {
                index: data
                for index, ids in ranges.items()
                for (data,) in connection.execute(_BUNDLE, (*ids, _LENGTHS))
            }

        return await self._read(work)

    async def payloads(self, log_id: int, start: int, stop: int) -> list[StoredPayload]:
        """See storage.Read."""
        sql = 'SELECT "index", payload, seed FROM payloads WHERE log_id = ? AND "index" >= ? AND "index" < ? ORDER BY "index"'
        return [StoredPayload(*row) for row in await self._all(sql, (log_id, start, stop))]

    async def find_keys(
        self,
        log_id: int,
        keys: Sequence[tuple[str, str]],
        now: int,
        session: int | None = None,  # noqa: ARG002 - there are no sessions
    ) -> list[StoredKey]:
        """See storage.Read."""
        sql = (
            "SELECT caller, key, fingerprint, first_index, count, expires_at, seed FROM idempotency i "
            'LEFT JOIN payloads p ON p.log_id = i.log_id AND p."index" = i.first_index '
            "WHERE i.log_id = ? AND caller = ? AND key = ? AND expires_at > ?"
        )
        rows = await self._read(
            lambda db: [row for caller, key in keys for row in db.execute(sql, (log_id, caller, key, now))]
        )
        return [StoredKey(IdempotencyRow(*row[:6]), row[6]) for row in rows]

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """See storage.Read."""
        if size is None:
            row = await self._one(_LATEST, (log_id,))
        else:
            row = await self._one(_CHECKPOINT, (log_id, size))
        return Published(*row) if row else None

    async def checkpoints(self, log_id: int, start: int, limit: int) -> list[Published]:
        """See storage.Read."""
        sql = "SELECT size, note, published_at FROM checkpoints WHERE log_id = ? AND size >= ? ORDER BY size LIMIT ?"
        return [Published(*row) for row in await self._all(sql, (log_id, start, limit))]

    async def clock(self) -> int:
        """See storage.Read."""
        return time.time_ns() // 1_000_000  # the database is in this process


def read_tiles(connection: apsw.Connection, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
    """Return the hashes of tiles by level and index; what is not there is left out."""
    found = {}
    for tile in tiles:
        for (data,) in connection.execute(_TILE, (log_id, tile.level, tile.index)):
            found[tile.level, tile.index] = data
    return found
