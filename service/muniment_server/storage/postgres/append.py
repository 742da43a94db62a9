"""Appends to Postgres: each is one statement and one round trip, the function of migration 0007.

Its signature stays. A part that few commits have gets a function that calls it: see docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from muniment.hashing import HASH_SIZE
from muniment.tiles import Tile
from muniment_server.errors import DuplicateLeaf, HeadMoved
from muniment_server.failpoints import step
from muniment_server.storage.log import Grown, Head, Reread
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.reads import HEAD, head_of, reread_of
from muniment_server.storage.postgres.sessions import Sessions

PART = 32
"""Hashes of a part of a tile: see migration 0006."""
_MOVED, _KNOWN = -2, -3
"""Levels of rows that are no tiles: see migration 0007."""

_EXPECTED = "log_id = $1 AND size = $2 AND root = $3 AND logged_at = $4 AND epoch = $5 AND guard_id = $6"
_NUMBERS = ", ".join(f"${number}" for number in range(1, 29))
_APPEND = f"SELECT level, index, data FROM muniment_append({_NUMBERS})"  # noqa: S608 - numbers of parameters
_FENCE = f"UPDATE heads SET epoch = epoch + 1 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise
_ADOPT = f"UPDATE heads SET epoch = epoch + 1, guard_id = $7 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise


class PostgresAppend:
    """See :class:`muniment_server.storage.log.Append`."""

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    @step("store.head")
    async def head_to_extend(self, log_id: int) -> Head:
        """See Append."""
        rows, session = await self._sessions.read(log_id, HEAD, (log_id,))
        return head_of(log_id, rows[0] if rows else None, session)

    async def reconnect(self, log_id: int) -> None:
        """See Append."""
        await self._sessions.end(log_id)
        await self._pool.expire()

    def check_premises(self, head: Head | None = None) -> None:
        """See Append. The server keeps its own files; which server it is shows in the session."""
        if head is not None and head.session is not None:
            self._sessions.check(head.session)

    @step("store.append")
    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """See Append. Read in the transaction that stored it: what could not be read was not stored."""
        values = _append_values(grown, expected, absent, tiles)
        rows = await self._sessions.write(grown.log_id, _APPEND, values, expected.session)
        found = {(level, index): data for level, index, data in rows}
        if (_KNOWN, None) in found:
            raise DuplicateLeaf("an entry with one of these leaf keys is stored")
        if (_MOVED, None) in found:
            raise _moved(grown.log_id, expected)
        return reread_of(found)

    @step("store.fence")
    async def fence(self, log_id: int, expected: Head) -> Head:
        """See Append."""
        rows = await self._sessions.write(log_id, _FENCE, _expected_values(log_id, expected), expected.session)
        if not rows:
            raise _moved(log_id, expected)
        return replace(expected, epoch=rows[0]["epoch"])

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """See Append."""
        values = (*_expected_values(log_id, expected), guard_id)
        rows = await self._sessions.write(log_id, _ADOPT, values, expected.session)
        if not rows:
            raise _moved(log_id, expected)
        return replace(expected, epoch=rows[0]["epoch"], guard_id=guard_id)


def _expected_values(log_id: int, head: Head) -> tuple[Any, ...]:
    return (log_id, head.size, head.root, head.logged_at, head.epoch, head.guard_id)


def _moved(log_id: int, expected: Head) -> HeadMoved:
    return HeadMoved(f"the head of log {log_id} is no longer at size {expected.size}, epoch {expected.epoch}")


def _append_values(grown: Grown, expected: Head, absent: Sequence[int], tiles: Sequence[Tile]) -> list[Any]:
    head = grown.head
    keys = grown.idempotency
    return [
        *_expected_values(grown.log_id, expected),
        *(head.size, head.root, head.logged_at, head.epoch),
        list(absent),
        grown.leaves,
        *([row[column] for row in grown.payloads] for column in range(3)),
        [tile.level for tile in grown.tiles],
        [tile.index for tile in grown.tiles],
        [tile.old_width // PART for tile in grown.tiles],
        [tile.data[: tile.old_width * HASH_SIZE] or None for tile in grown.tiles],
        [tile.data[tile.old_width * HASH_SIZE :] for tile in grown.tiles],
        [key.caller for key in keys],
        [key.key for key in keys],
        [key.fingerprint for key in keys],
        [key.first_index for key in keys],
        [key.count for key in keys],
        [key.expires_at for key in keys],
        [tile.level for tile in tiles],
        [tile.index for tile in tiles],
    ]
