"""Cursors of sinks in SQLite."""

from __future__ import annotations

import apsw

from muniment_server.failpoints import step
from muniment_server.storage.sinks import SinkState, check_move
from muniment_server.storage.sqlite.database import Database

_COLUMNS = "name, mark, start, looked, stop, tree_size, failures, next_at, moved_at, last_error"
_ALL = f"SELECT {_COLUMNS} FROM sinks WHERE log_id = ? ORDER BY name"  # noqa: S608 - composed of constants
_ONE = f"SELECT {_COLUMNS} FROM sinks WHERE log_id = ? AND name = ?"  # noqa: S608 - composed of constants
_BEGIN = "INSERT INTO sinks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (log_id, name) DO NOTHING"
_MOVE = (
    "UPDATE sinks SET start = ?, looked = ?, stop = ?, tree_size = ?, failures = ?, next_at = ?, moved_at = ?, "
    "last_error = ? WHERE log_id = ? AND name = ? AND mark = ? "
    "AND start = ? AND looked = ? AND stop = ?"
)


class SqliteSinks:
    """See :class:`muniment_server.storage.sinks.Sinks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sinks(self, log_id: int) -> list[SinkState]:
        """See Sinks."""
        return [SinkState(*row) for row in await self._database.all(_ALL, (log_id,))]

    async def sink(self, log_id: int, name: str) -> SinkState | None:
        """See Sinks."""
        row = await self._database.one(_ONE, (log_id, name))
        return SinkState(*row) if row else None

    async def begin_sink(self, log_id: int, state: SinkState) -> bool:
        """See Sinks."""
        return await self._changes(_BEGIN, (log_id, state.name, state.mark, *state.values()))

    @step("store.move_sink")
    async def move_sink(self, log_id: int, expected: SinkState, state: SinkState) -> bool:
        """See Sinks."""
        check_move(expected, state)
        where = (log_id, expected.name, expected.mark, *expected.place())
        return await self._changes(_MOVE, (*state.values(), *where))

    async def _changes(self, sql: str, values: tuple[object, ...]) -> bool:
        def work(connection: apsw.Connection) -> bool:
            connection.execute(sql, values)
            return bool(connection.changes())

        return await self._database.write(work)
