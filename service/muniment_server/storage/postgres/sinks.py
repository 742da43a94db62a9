"""Cursors of sinks in Postgres."""

from __future__ import annotations

from muniment_server.failpoints import step
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.sessions import FOLLOWERS, Sessions
from muniment_server.storage.sinks import SinkState, check_move

_COLUMNS = "name, mark, start, looked, stop, tree_size, failures, next_at, moved_at, last_error"
_ALL = f"SELECT {_COLUMNS} FROM sinks WHERE log_id = $1 ORDER BY name"  # noqa: S608 - composed of constants
_ONE = f"SELECT {_COLUMNS} FROM sinks WHERE log_id = $1 AND name = $2"  # noqa: S608 - composed of constants
_BEGIN = (
    "INSERT INTO sinks VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) "
    "ON CONFLICT (log_id, name) DO NOTHING RETURNING 1"
)
_MOVE = (
    "UPDATE sinks SET start = $1, looked = $2, stop = $3, tree_size = $4, failures = $5, next_at = $6, moved_at = $7, "
    "last_error = $8 WHERE log_id = $9 AND name = $10 AND mark = $11 "
    "AND start = $12 AND looked = $13 AND stop = $14 RETURNING 1"
)


class PostgresSinks:
    """See :class:`muniment_server.storage.sinks.Sinks`."""

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    async def sinks(self, log_id: int) -> list[SinkState]:
        """See Sinks."""
        return [SinkState(*row) for row in await self._pool.all(_ALL, log_id)]

    async def sink(self, log_id: int, name: str) -> SinkState | None:
        """See Sinks."""
        row = await self._pool.one(_ONE, log_id, name)
        return SinkState(*row) if row else None

    async def begin_sink(self, log_id: int, state: SinkState) -> bool:
        """See Sinks."""
        values = (log_id, state.name, state.mark, *state.values())
        return bool(await self._sessions.write(FOLLOWERS, _BEGIN, values))

    @step("store.move_sink")
    async def move_sink(self, log_id: int, expected: SinkState, state: SinkState) -> bool:
        """See Sinks."""
        check_move(expected, state)
        where = (log_id, expected.name, expected.mark, *expected.place())
        return bool(await self._sessions.write(FOLLOWERS, _MOVE, (*state.values(), *where)))
