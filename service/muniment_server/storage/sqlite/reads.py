"""Reads of SQLite."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import apsw

from muniment.hashing import RootHash
from muniment.tiles import TILE_WIDTH, Tile
from muniment_server.errors import StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage.log import SMALL_LEAF, Head, IdempotencyRow, Reread, StoredKey, StoredPayload
from muniment_server.storage.row_ids import row_ids
from muniment_server.storage.sqlite import leaf_keys
from muniment_server.storage.sqlite.database import Database
from muniment_server.storage.sqlite.recent_leaf_keys import Recent

_HEAD = "SELECT size, root, logged_at, epoch, guard_id FROM heads WHERE log_id = ?"
_AT_ONCE = 512
"""Entries that are read back without a thread: a fraction of a millisecond."""
_LEAVES = "SELECT leaf FROM entries WHERE id >= ? AND id < ? ORDER BY id"
# Blobs go through text here, and are cast back: in a database of UTF-8 text, which this is, that leaves every byte as
# it is. ?3 has the lengths as a bundle has them, two bytes each. The order is that of the inner query: what SQLite
# does, though its manual does not promise it. Asked for in group_concat it takes half as long again, and a test of the
# contract would notice.
_BUNDLE = (
    "SELECT CAST(group_concat(entry, '') AS BLOB) FROM ("  # noqa: S608 - composed of constants
    "SELECT substr(?3, 2 * length(leaf) + 1, 2) || leaf AS entry "
    f"FROM entries WHERE id >= ?1 AND id < ?2 AND length(leaf) <= {SMALL_LEAF} ORDER BY id) "
    f"HAVING count(*) = {TILE_WIDTH}"
)
_LENGTHS = b"".join(length.to_bytes(2, "big") for length in range(SMALL_LEAF + 1))
_PAYLOADS = (
    'SELECT "index", payload, seed FROM payloads WHERE log_id = ? AND "index" >= ? AND "index" < ? ORDER BY "index"'
)
_TILE = 'SELECT data FROM tiles WHERE log_id = ? AND level = ? AND "index" = ?'


class SqliteReads:
    """See :class:`muniment_server.storage.log.Reads`.

    `recent` has the last leaf keys of each log, which the table of them may lack.
    """

    def __init__(self, database: Database, recent: Mapping[int, Recent]) -> None:
        self._database = database
        self._recent = recent

    @step("store.head")
    async def head(self, log_id: int) -> Head:
        """See Reads."""
        row = await self._database.one(_HEAD, (log_id,))
        if row is None:
            raise StoreUnavailable(f"the database holds no head of log {log_id}")
        return Head(row[0], RootHash(row[1]), *row[2:])

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """See Reads."""
        return await self._database.read(lambda connection: read_tiles(connection, log_id, tiles))

    async def leaves(self, log_id: int, start: int, stop: int) -> list[bytes]:
        """See Reads."""
        return [leaf for (leaf,) in await self._database.all(_LEAVES, row_ids(log_id, start, stop))]

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        """See Reads."""

        def work(connection: apsw.Connection) -> dict[int, bytes]:
            ranges = {index: row_ids(log_id, index * TILE_WIDTH, (index + 1) * TILE_WIDTH) for index in indices}
            return {
                index: data
                for index, ids in ranges.items()
                for (data,) in connection.execute(_BUNDLE, (*ids, _LENGTHS))
            }

        return await self._database.read(work)

    async def reread(self, log_id: int, start: int, stop: int, tiles: Sequence[Tile]) -> Reread:
        """See Reads."""

        def work(connection: apsw.Connection) -> Reread:
            leaves = [leaf for (leaf,) in connection.execute(_LEAVES, row_ids(log_id, start, stop))]
            return leaves, read_tiles(connection, log_id, tiles)

        if stop - start <= _AT_ONCE:
            return self._database.read_now(work)
        return await self._database.read(work)

    async def payloads(self, log_id: int, start: int, stop: int) -> list[StoredPayload]:
        """See Reads."""
        return [StoredPayload(*row) for row in await self._database.all(_PAYLOADS, (log_id, start, stop))]

    async def find_leaves(
        self,
        log_id: int,
        keys: Sequence[int],
        session: int | None = None,  # noqa: ARG002 - there are no sessions
    ) -> list[tuple[int, bytes]]:
        """See Reads."""
        look_up = leaf_keys.find(log_id, keys, self._recent.get(log_id))
        return await self._database.read(look_up)

    async def find_keys(
        self,
        log_id: int,
        keys: Sequence[tuple[str, str]],
        now: int,
        session: int | None = None,  # noqa: ARG002 - there are no sessions
    ) -> list[StoredKey]:
        """See Reads."""
        sql = (
            "SELECT caller, key, fingerprint, first_index, count, expires_at, seed FROM idempotency i "
            'LEFT JOIN payloads p ON p.log_id = i.log_id AND p."index" = i.first_index '
            "WHERE i.log_id = ? AND caller = ? AND key = ? AND expires_at > ?"
        )
        rows = await self._database.read(
            lambda db: [row for caller, key in keys for row in db.execute(sql, (log_id, caller, key, now))]
        )
        return [StoredKey(IdempotencyRow(*row[:6]), row[6]) for row in rows]

    async def clock(self) -> int:
        """See Reads."""
        return time.time_ns() // 1_000_000  # the database is in this process


def read_tiles(connection: apsw.Connection, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
    """Return the hashes of tiles by level and index; what is not there is left out."""
    found = {}
    for tile in tiles:
        for (data,) in connection.execute(_TILE, (log_id, tile.level, tile.index)):
            found[tile.level, tile.index] = data
    return found
