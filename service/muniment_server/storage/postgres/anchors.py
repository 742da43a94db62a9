"""Anchors in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import Any

from muniment_server.errors import HeadMoved
from muniment_server.failpoints import step
from muniment_server.storage.anchors import HELD, AnchorRow, AnchorSummary, CalendarRow
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.sessions import FOLLOWERS, Sessions

_ANCHOR = tuple(field.name for field in fields(AnchorRow))
_CALENDAR = tuple(field.name for field in fields(CalendarRow))
_CHANGES = _ANCHOR[_ANCHOR.index("revision") + 1 :]
_TYPES = {
    "tree_size": "bigint",
    "next_at": "bigint",
    "submitted_at": "bigint",
    "attempts": "integer",
    "height": "integer",
}


def _numbers(first: int, count: int) -> str:
    return ", ".join(f"${at}" for at in range(first, first + count))


def _arrays(first: int) -> str:
    """Return one array parameter for each column of a calendar."""
    kinds = (_TYPES.get(name, "bytea" if name == "commitment" else "text") for name in _CALENDAR)
    return ", ".join(f"${first + at}::{kind}[]" for at, kind in enumerate(kinds))


_SELECT = f"SELECT {', '.join(_ANCHOR)} FROM anchors WHERE log_id = $1"  # noqa: S608 - composed of constants
_CALENDARS = f"SELECT {', '.join(_CALENDAR)} FROM anchor_calendars WHERE log_id = $1"  # noqa: S608 - likewise
# One statement each: the anchor and its calendars change together, or not at all.
_ADD = f"""
WITH added AS (
    INSERT INTO anchors (log_id, {", ".join(_ANCHOR)}) SELECT {_numbers(1, 1 + len(_ANCHOR))}
    WHERE NOT EXISTS (SELECT FROM anchors WHERE log_id = $1 AND tree_size >= $2)
    RETURNING log_id
), calendars AS (
    INSERT INTO anchor_calendars (log_id, {", ".join(_CALENDAR)})
    SELECT added.log_id, u.* FROM added, unnest({_arrays(2 + len(_ANCHOR))}) AS u
)
SELECT log_id FROM added
"""  # noqa: S608 - likewise
_SAVE = f"""
WITH saved AS (
    UPDATE anchors SET revision = revision + 1, state = $4,
        {", ".join(f"{name} = ${at}" for at, name in enumerate(_CHANGES, 5))}
    WHERE log_id = $1 AND tree_size = $2 AND revision = $3 RETURNING log_id
), calendars AS (
    INSERT INTO anchor_calendars (log_id, {", ".join(_CALENDAR)})
    SELECT saved.log_id, u.* FROM saved, unnest({_arrays(5 + len(_CHANGES))}) AS u
    ON CONFLICT (log_id, tree_size, url)
    DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _CALENDAR[2:])}
)
SELECT log_id FROM saved
"""  # noqa: S608 - likewise
_SUMMARY = f"""
SELECT (SELECT min(created_at) FROM anchors WHERE log_id = $1 AND state IN ('queued', 'pending', 'complete')),
    (SELECT max(confirmed_at) FROM anchors WHERE log_id = $1),
    (SELECT count(*) FROM anchors a WHERE log_id = $1 AND state IN ('queued', 'pending') AND $2 > (SELECT count(*)
        FROM anchor_calendars c WHERE c.log_id = $1 AND c.tree_size = a.tree_size AND c.state IN {HELD})),
    (SELECT count(*) FROM anchor_calendars WHERE log_id = $1 AND state = 'bad_attestation')
"""  # noqa: S608 - likewise


class PostgresAnchors:
    """See :class:`muniment_server.storage.anchors.Anchors`."""

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    @step("store.add_anchor")
    async def add_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
        """See Anchors."""
        try:
            return await self._change(_ADD, (log_id, *astuple(row), *_columns(calendars)))
        except HeadMoved:  # another process stored it in this moment
            return False

    @step("store.save_anchor")
    async def save_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow] = ()) -> bool:
        """See Anchors."""
        changes = (row.state, *(getattr(row, name) for name in _CHANGES))
        return await self._change(_SAVE, (log_id, row.tree_size, row.revision, *changes, *_columns(calendars)))

    async def _change(self, sql: str, values: Sequence[Any]) -> bool:
        return bool(await self._sessions.write(FOLLOWERS, sql, values))

    async def anchor(self, log_id: int, tree_size: int | None = None) -> AnchorRow | None:
        """See Anchors."""
        if tree_size is None:
            rows = await self._anchors(f"{_SELECT} ORDER BY tree_size DESC LIMIT 1", log_id)
        else:
            rows = await self._anchors(f"{_SELECT} AND tree_size = $2", log_id, tree_size)
        return rows[0] if rows else None

    async def anchors(self, log_id: int, start: int, limit: int, states: Sequence[str] = ()) -> list[AnchorRow]:
        """See Anchors."""
        sql = f"{_SELECT} AND tree_size >= $2 AND ($4::text[] = '{{}}' OR state = ANY ($4)) ORDER BY tree_size LIMIT $3"
        return await self._anchors(sql, log_id, start, limit, list(states))

    async def covering_anchor(self, log_id: int, index: int) -> AnchorRow | None:
        """See Anchors."""
        sql = f"{_SELECT} AND tree_size > $2 AND state = 'confirmed' ORDER BY height, tree_size LIMIT 1"
        rows = await self._anchors(sql, log_id, index)
        return rows[0] if rows else None

    async def anchor_calendars(self, log_id: int, start: int, stop: int) -> list[CalendarRow]:
        """See Anchors."""
        sql = f'{_CALENDARS} AND tree_size >= $2 AND tree_size < $3 ORDER BY tree_size, url COLLATE "C"'
        return [CalendarRow(*row) for row in await self._pool.all(sql, log_id, start, stop)]

    async def due_anchors(self, log_id: int, now: int, limit: int) -> list[AnchorRow]:
        """See Anchors."""
        return await self._anchors(f"{_SELECT} AND next_at <= $2 ORDER BY next_at LIMIT $3", log_id, now, limit)

    async def due_calendars(self, log_id: int, url: str, now: int, limit: int, *, queued: bool) -> list[CalendarRow]:
        """See Anchors."""
        sql = f"{_CALENDARS} AND url = $2 AND next_at <= $3 AND (state = 'queued') = $5 ORDER BY tree_size LIMIT $4"
        return [CalendarRow(*row) for row in await self._pool.all(sql, log_id, url, now, limit, queued)]

    async def unlogged_anchors(self, log_id: int, limit: int) -> list[AnchorRow]:
        """See Anchors."""
        sql = f"{_SELECT} AND state = 'confirmed' AND logged IS NULL ORDER BY tree_size LIMIT $2"
        return await self._anchors(sql, log_id, limit)

    async def own_entries(self, log_id: int, start: int) -> int:
        """See Anchors."""
        rows = await self._pool.all("SELECT count(*) FROM anchors WHERE log_id = $1 AND logged >= $2", log_id, start)
        return int(rows[0][0])

    async def anchor_summary(self, log_id: int, held: int) -> AnchorSummary:
        """See Anchors."""
        states = await self._pool.all("SELECT state, count(*) FROM anchors WHERE log_id = $1 GROUP BY state", log_id)
        (row,) = await self._pool.all(_SUMMARY, log_id, held)
        return AnchorSummary(dict(states), *row)

    async def _anchors(self, sql: str, *values: Any) -> list[AnchorRow]:
        return [AnchorRow(*row) for row in await self._pool.all(sql, *values)]


def _columns(calendars: Sequence[CalendarRow]) -> list[list[Any]]:
    return [[getattr(row, name) for row in calendars] for name in _CALENDAR]
