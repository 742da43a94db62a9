"""Anchors in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

import apsw

from muniment_server.failpoints import step
from muniment_server.storage.anchors import HELD, AnchorRow, AnchorSummary, CalendarRow
from muniment_server.storage.sqlite.database import Database

_ANCHOR = tuple(field.name for field in fields(AnchorRow))
_CALENDAR = tuple(field.name for field in fields(CalendarRow))
_CHANGES = _ANCHOR[_ANCHOR.index("revision") + 1 :]

_SELECT = f"SELECT {', '.join(_ANCHOR)} FROM anchors WHERE log_id = ?"  # noqa: S608 - composed of constants
_ADD = f"INSERT INTO anchors (log_id, {', '.join(_ANCHOR)}) VALUES (?{', ?' * len(_ANCHOR)})"  # noqa: S608 - likewise
_SAVE = (
    "UPDATE anchors SET revision = revision + 1, state = ?, "  # noqa: S608 - likewise
    f"{', '.join(f'{name} = ?' for name in _CHANGES)} "
    "WHERE log_id = ? AND tree_size = ? AND revision = ?"
)
_CALENDARS = f"SELECT {', '.join(_CALENDAR)} FROM anchor_calendars WHERE log_id = ?"  # noqa: S608 - likewise
_ADD_CALENDAR = (
    f"INSERT INTO anchor_calendars (log_id, {', '.join(_CALENDAR)}) "  # noqa: S608 - likewise
    f"VALUES (?{', ?' * len(_CALENDAR)})"
)
_SAVE_CALENDAR = (
    f"UPDATE anchor_calendars SET {', '.join(f'{name} = ?' for name in _CALENDAR[2:])} "  # noqa: S608 - likewise
    "WHERE log_id = ? AND tree_size = ? AND url = ?"
)
_OPEN = "state IN ('queued', 'pending', 'complete')"
_DEGRADED = (
    "SELECT count(*) FROM anchors a "  # noqa: S608 - likewise
    "WHERE log_id = ?1 AND state IN ('queued', 'pending') AND ?2 > (SELECT count(*) "
    f"FROM anchor_calendars c WHERE c.log_id = ?1 AND c.tree_size = a.tree_size AND c.state IN {HELD})"
)


class SqliteAnchors:
    """See :class:`muniment_server.storage.anchors.Anchors`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @step("store.add_anchor")
    async def add_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
        """See Anchors."""

        def work(connection: apsw.Connection) -> bool:
            sql = "SELECT 1 FROM anchors WHERE log_id = ? AND tree_size >= ? LIMIT 1"
            if connection.execute(sql, (log_id, row.tree_size)).fetchone():
                return False
            connection.execute(_ADD, (log_id, *astuple(row)))
            for calendar in calendars:
                connection.execute(_ADD_CALENDAR, (log_id, *astuple(calendar)))
            return True

        return await self._database.write(work)

    @step("store.save_anchor")
    async def save_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow] = ()) -> bool:
        """See Anchors."""

        def work(connection: apsw.Connection) -> bool:
            values = (row.state, *(getattr(row, name) for name in _CHANGES))
            connection.execute(_SAVE, (*values, log_id, row.tree_size, row.revision))
            if not connection.changes():
                return False
            for calendar in calendars:
                _save_calendar(connection, log_id, calendar)
            return True

        return await self._database.write(work)

    async def anchor(self, log_id: int, tree_size: int | None = None) -> AnchorRow | None:
        """See Anchors."""
        if tree_size is None:
            rows = await self._anchors(f"{_SELECT} ORDER BY tree_size DESC LIMIT 1", log_id)
        else:
            rows = await self._anchors(f"{_SELECT} AND tree_size = ?", log_id, tree_size)
        return rows[0] if rows else None

    async def anchors(self, log_id: int, start: int, limit: int, states: Sequence[str] = ()) -> list[AnchorRow]:
        """See Anchors."""
        chosen = f"AND state IN ({', '.join('?' * len(states))}) " if states else ""
        sql = f"{_SELECT} AND tree_size >= ? {chosen}ORDER BY tree_size LIMIT ?"
        return await self._anchors(sql, log_id, start, *states, limit)

    async def covering_anchor(self, log_id: int, index: int) -> AnchorRow | None:
        """See Anchors."""
        sql = f"{_SELECT} AND tree_size > ? AND state = 'confirmed' ORDER BY height, tree_size LIMIT 1"
        rows = await self._anchors(sql, log_id, index)
        return rows[0] if rows else None

    async def anchor_calendars(self, log_id: int, start: int, stop: int) -> list[CalendarRow]:
        """See Anchors."""
        sql = f"{_CALENDARS} AND tree_size >= ? AND tree_size < ? ORDER BY tree_size, url"
        return [CalendarRow(*row) for row in await self._rows(sql, log_id, start, stop)]

    async def due_anchors(self, log_id: int, now: int, limit: int) -> list[AnchorRow]:
        """See Anchors."""
        return await self._anchors(f"{_SELECT} AND next_at <= ? ORDER BY next_at LIMIT ?", log_id, now, limit)

    async def due_calendars(self, log_id: int, url: str, now: int, limit: int, *, queued: bool) -> list[CalendarRow]:
        """See Anchors."""
        sql = f"{_CALENDARS} AND url = ? AND next_at <= ? AND (state = 'queued') = ? ORDER BY tree_size LIMIT ?"
        return [CalendarRow(*row) for row in await self._rows(sql, log_id, url, now, queued, limit)]

    async def unlogged_anchors(self, log_id: int, limit: int) -> list[AnchorRow]:
        """See Anchors."""
        sql = f"{_SELECT} AND state = 'confirmed' AND logged IS NULL ORDER BY tree_size LIMIT ?"
        return await self._anchors(sql, log_id, limit)

    async def own_entries(self, log_id: int, start: int) -> int:
        """See Anchors."""
        rows = await self._rows("SELECT count(*) FROM anchors WHERE log_id = ? AND logged >= ?", log_id, start)
        return int(rows[0][0])

    async def anchor_summary(self, log_id: int, held: int) -> AnchorSummary:
        """See Anchors."""

        def work(connection: apsw.Connection) -> AnchorSummary:
            def one(sql: str, *values: Any) -> Any:
                return connection.execute(sql, (log_id, *values)).get

            states = dict(
                connection.execute("SELECT state, count(*) FROM anchors WHERE log_id = ? GROUP BY state", (log_id,))
            )
            oldest = one(f"SELECT min(created_at) FROM anchors WHERE log_id = ? AND {_OPEN}")  # noqa: S608 - constants
            last = one("SELECT max(confirmed_at) FROM anchors WHERE log_id = ?")
            bad = one("SELECT count(*) FROM anchor_calendars WHERE log_id = ? AND state = 'bad_attestation'")
            return AnchorSummary(states, oldest, last, one(_DEGRADED, held), bad)

        return await self._database.read(work)

    async def _anchors(self, sql: str, *values: Any) -> list[AnchorRow]:
        return [AnchorRow(*row) for row in await self._rows(sql, *values)]

    async def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return await self._database.all(sql, values)


def _save_calendar(connection: apsw.Connection, log_id: int, row: CalendarRow) -> None:
    values = (*astuple(row)[2:], log_id, row.tree_size, row.url)
    connection.execute(_SAVE_CALENDAR, values)
    if not connection.changes():
        connection.execute(_ADD_CALENDAR, (log_id, *astuple(row)))
