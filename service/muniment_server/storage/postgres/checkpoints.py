"""Published checkpoints in Postgres."""

from __future__ import annotations

from collections.abc import Sequence

from muniment_server.errors import OtherTree
from muniment_server.failpoints import step
from muniment_server.storage.checkpoints import EdgeTile, Published
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.sessions import Sessions

# One row that says whether the tiles are those of the tree, and whether the checkpoints were larger than what was
# published.
_PUBLISH = """
WITH tree AS (
    SELECT NOT EXISTS (
        SELECT FROM unnest($7::smallint[], $8::bigint[], $9::bytea[]) AS u (level, index, data)
        WHERE u.data IS DISTINCT FROM (
            SELECT substr(string_agg(t.data, '' ORDER BY t.part), 1, octet_length(u.data)) FROM tiles t
            WHERE t.log_id = $1 AND t.level = u.level AND t.index = u.index)
    ) AS same
), larger AS (
    UPDATE heads SET published_size = $2 FROM tree WHERE log_id = $1 AND published_size < $3 AND tree.same
    RETURNING log_id
), stored AS (
    INSERT INTO checkpoints (log_id, size, note, published_at)
    SELECT larger.log_id, u.size, u.note, u.at
    FROM larger, unnest($4::bigint[], $5::text[], $6::bigint[]) AS u (size, note, at)
    ORDER BY u.size RETURNING size
)
SELECT tree.same, EXISTS (SELECT FROM stored) AS larger FROM tree
"""
_CHECKPOINT = "SELECT size, note, published_at FROM checkpoints WHERE log_id = $1 AND size ="
_OLDEST = "SELECT size, note, published_at FROM checkpoints WHERE log_id = $1 AND size >= $2 ORDER BY size LIMIT $3"
_NEWEST = (
    "SELECT size, note, published_at FROM checkpoints WHERE log_id = $1 AND size <= $2 ORDER BY size DESC LIMIT $3"
)


class PostgresCheckpoints:
    """See :class:`muniment_server.storage.checkpoints.Checkpoints`."""

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    @step("store.publish")
    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """See Checkpoints."""
        return await self._publish(log_id, (checkpoint,), edge)

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """See Checkpoints."""
        return await self._publish(log_id, checkpoints, ())

    async def _publish(self, log_id: int, checkpoints: Sequence[Published], edge: Sequence[EdgeTile]) -> bool:
        columns = [[one.size for one in checkpoints], [one.note for one in checkpoints]]
        columns += [[one.published_at for one in checkpoints], *([tile[at] for tile in edge] for at in range(3))]
        values = (log_id, checkpoints[-1].size, checkpoints[0].size, *columns)
        ((same, larger),) = await self._sessions.write(log_id, _PUBLISH, values)
        if not same:
            raise OtherTree(f"the database does not hold the tree of size {checkpoints[-1].size} that was signed")
        return bool(larger)

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """See Checkpoints."""
        wanted = "(SELECT published_size FROM heads WHERE log_id = $1)" if size is None else "$2"
        row = await self._pool.one(f"{_CHECKPOINT} {wanted}", log_id, *(() if size is None else (size,)))
        return Published(*row) if row else None

    async def checkpoints(self, log_id: int, start: int, limit: int, *, newest: bool = False) -> list[Published]:
        """See Checkpoints."""
        sql = _NEWEST if newest else _OLDEST
        return [Published(*row) for row in await self._pool.all(sql, log_id, start, limit)]
