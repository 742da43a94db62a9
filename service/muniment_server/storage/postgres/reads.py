"""Reads of Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muniment.hashing import RootHash
from muniment.tiles import TILE_WIDTH, Tile
from muniment_server.errors import StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage.log import SMALL_LEAF, Head, IdempotencyRow, Reread, StoredKey, StoredPayload
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.sessions import Sessions
from muniment_server.storage.row_ids import MOST, row_ids

_JOINED = -1
"""Level of the row that holds leaves and no tile: see migration 0007."""

HEAD = "SELECT size, root, logged_at, epoch, guard_id FROM heads WHERE log_id = $1"
# `id / {MOST}` and not a range of ids: the rows are to be found by leaf key, and the planner shall have no choice.
_FIND = (
    f"SELECT id % {MOST} AS index, leaf FROM entries "  # noqa: S608 - composed of constants
    f"WHERE muniment_leaf_key(leaf) = ANY ($2::bigint[]) AND id / {MOST} = $1::integer"
)
_LEAVES = "SELECT leaf FROM entries WHERE id >= $1 AND id < $2 ORDER BY id"
# An int2 is sent in two bytes, big-endian.
_BUNDLES = (
    "SELECT u.index, b.data "  # noqa: S608 - composed of constants
    "FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS u (index, low, high), LATERAL ("
    "SELECT string_agg(int2send(octet_length(leaf)::int2) || leaf, '' ORDER BY id) AS data FROM entries "
    f"WHERE id >= u.low AND id < u.high AND octet_length(leaf) <= {SMALL_LEAF} HAVING count(*) = {TILE_WIDTH}) b"
)
_TILES = (
    "SELECT u.level, u.index, t.data FROM unnest($2::smallint[], $3::bigint[]) AS u (level, index), LATERAL ("
    "SELECT string_agg(data, '' ORDER BY part) AS data FROM tiles "
    "WHERE log_id = $1 AND level = u.level AND index = u.index HAVING count(*) > 0) t"
)
# OFFSET 0 keeps the look-up of each row a query of its own. As a plain join, the planner reads all rows of the log once
# and compares them, for as long as it believes that there are few.
_KEYS = (
    "SELECT i.caller, i.key, fingerprint, first_index, count, expires_at, seed "
    "FROM unnest($2::text[], $3::text[]) AS u (caller, key), LATERAL ("
    "SELECT * FROM idempotency WHERE log_id = $1 AND caller = u.caller AND key = u.key OFFSET 0) i "
    "LEFT JOIN LATERAL (SELECT seed FROM payloads WHERE log_id = $1 AND index = i.first_index OFFSET 0) p ON true "
    "WHERE expires_at > $4"
)
_REREAD = (
    f"{_TILES} "  # noqa: S608 - composed of constants
    "UNION ALL SELECT -1, 0, string_agg(int4send(octet_length(leaf)) || leaf, '') "
    "FROM (SELECT leaf FROM entries WHERE id >= $4 AND id < $5 ORDER BY id) e"
)


class PostgresReads:
    """See :class:`muniment_server.storage.log.Reads`."""

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    @step("store.head")
    async def head(self, log_id: int) -> Head:
        """See Reads."""
        return head_of(log_id, await self._pool.one(HEAD, log_id))

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """See Reads."""
        rows = await self._pool.all(_TILES, log_id, [tile.level for tile in tiles], [tile.index for tile in tiles])
        return {(row["level"], row["index"]): row["data"] for row in rows}

    async def leaves(self, log_id: int, start: int, stop: int) -> list[bytes]:
        """See Reads."""
        return [row["leaf"] for row in await self._pool.all(_LEAVES, *row_ids(log_id, start, stop))]

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        """See Reads."""
        ranges = [row_ids(log_id, index * TILE_WIDTH, (index + 1) * TILE_WIDTH) for index in indices]
        lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
        return {row["index"]: row["data"] for row in await self._pool.all(_BUNDLES, indices, lows, highs)}

    async def payloads(self, log_id: int, start: int, stop: int) -> list[StoredPayload]:
        """See Reads."""
        sql = (
            "SELECT index, payload, seed FROM payloads WHERE log_id = $1 AND index >= $2 AND index < $3 ORDER BY index"
        )
        return [StoredPayload(*row) for row in await self._pool.all(sql, log_id, start, stop)]

    async def find_leaves(
        self, log_id: int, keys: Sequence[int], session: int | None = None
    ) -> list[tuple[int, bytes]]:
        """See Reads."""
        # Sorted here: ORDER BY id would invite the planner to walk the whole primary key.
        rows = await self._look_up(log_id, session, _FIND, log_id, list(keys))
        return sorted((row["index"], row["leaf"]) for row in rows)

    async def find_keys(
        self, log_id: int, keys: Sequence[tuple[str, str]], now: int, session: int | None = None
    ) -> list[StoredKey]:
        """See Reads."""
        rows = await self._look_up(
            log_id, session, _KEYS, log_id, [caller for caller, _ in keys], [key for _, key in keys], now
        )
        return [StoredKey(IdempotencyRow(*tuple(row)[:6]), row["seed"]) for row in rows]

    async def _look_up(self, log_id: int, session: int | None, sql: str, *values: Any) -> list[Any]:
        """Run one statement in a session, or on any connection."""
        if session is None:
            return await self._pool.all(sql, *values)
        return (await self._sessions.read(log_id, sql, values, session))[0]

    async def clock(self) -> int:
        """See Reads."""
        row = await self._pool.one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now")
        return int(row["now"])

    async def reread(self, log_id: int, start: int, stop: int, tiles: Sequence[Tile]) -> Reread:
        """See Reads."""
        levels, indices = [tile.level for tile in tiles], [tile.index for tile in tiles]
        rows = await self._pool.all(_REREAD, log_id, levels, indices, *row_ids(log_id, start, stop))
        return reread_of({(level, index): data for level, index, data in rows})


def head_of(log_id: int, row: Any, session: int | None = None) -> Head:
    """Return the head in a row. Raises StoreUnavailable when there is none."""
    if row is None:
        raise StoreUnavailable(f"the database holds no head of log {log_id}")
    return Head(row["size"], RootHash(row["root"]), row["logged_at"], row["epoch"], row["guard_id"], session)


def reread_of(found: dict[tuple[int, int], bytes]) -> Reread:
    """Return leaves and tiles of what a statement gave that reads both."""
    return _split(found.pop((_JOINED, 0), b"") or b""), found


def _split(joined: bytes) -> list[bytes]:
    """Return what is joined, each behind its length. A row for each would take several times as long as reading it."""
    parts = []
    at = 0
    while at < len(joined):
        start = at + 4
        at = start + int.from_bytes(joined[at:start], "big")
        parts.append(joined[start:at])
    return parts
