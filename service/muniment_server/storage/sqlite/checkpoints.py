"""Published checkpoints in SQLite."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from muniment.hashing import HASH_SIZE
from muniment.tiles import Tile
from muniment_server.errors import OtherTree
from muniment_server.failpoints import step
from muniment_server.storage.checkpoints import EdgeTile, Published
from muniment_server.storage.sqlite.database import Database
from muniment_server.storage.sqlite.reads import read_tiles

_CHECKPOINT = "SELECT size, note, published_at FROM checkpoints WHERE log_id = ? AND size = ?"
_OLDEST = "SELECT size, note, published_at FROM checkpoints WHERE log_id = ? AND size >= ? ORDER BY size LIMIT ?"
_NEWEST = "SELECT size, note, published_at FROM checkpoints WHERE log_id = ? AND size <= ? ORDER BY size DESC LIMIT ?"
_LATEST = (
    "SELECT c.size, note, published_at FROM heads h JOIN checkpoints c "
    "ON c.log_id = h.log_id AND c.size = h.published_size WHERE h.log_id = ?"
)


class SqliteCheckpoints:
    """See :class:`muniment_server.storage.checkpoints.Checkpoints`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @step("store.publish")
    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """See Checkpoints."""
        return await self._publish(log_id, (checkpoint,), edge)

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """See Checkpoints."""
        return await self._publish(log_id, checkpoints, ())

    async def _publish(self, log_id: int, checkpoints: Sequence[Published], edge: Sequence[EdgeTile]) -> bool:
        def work(connection: apsw.Connection) -> bool:
            if not _begins_with(connection, log_id, edge):
                raise OtherTree(f"the database does not hold the tree of size {checkpoints[-1].size} that was signed")
            sql = "SELECT 1 FROM heads WHERE log_id = ? AND published_size < ?"
            if not connection.execute(sql, (log_id, checkpoints[0].size)).fetchone():
                return False
            rows = [(log_id, one.size, one.note, one.published_at) for one in checkpoints]
            connection.executemany("INSERT INTO checkpoints VALUES (?, ?, ?, ?)", rows)
            sql = "UPDATE heads SET published_size = ? WHERE log_id = ?"  # last: what is published is there
            connection.execute(sql, (checkpoints[-1].size, log_id))
            return True

        larger = await self._database.write(work)
        self._database.check_premises()
        return larger

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """See Checkpoints."""
        if size is None:
            row = await self._database.one(_LATEST, (log_id,))
        else:
            row = await self._database.one(_CHECKPOINT, (log_id, size))
        return Published(*row) if row else None

    async def checkpoints(self, log_id: int, start: int, limit: int, *, newest: bool = False) -> list[Published]:
        """See Checkpoints."""
        sql = _NEWEST if newest else _OLDEST
        return [Published(*row) for row in await self._database.all(sql, (log_id, start, limit))]


def _begins_with(connection: apsw.Connection, log_id: int, edge: Sequence[EdgeTile]) -> bool:
    """Tell whether the stored tiles begin with these hashes."""
    stored = read_tiles(connection, log_id, [Tile(level, index, len(data) // HASH_SIZE) for level, index, data in edge])
    return all(stored.get((level, index), b"")[: len(data)] == data for level, index, data in edge)
