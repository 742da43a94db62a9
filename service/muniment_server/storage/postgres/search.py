"""The search index in Postgres.

Its columns with values have no statistics, so a planner that may choose would take a range of keys for half the table:
each statement here is made of look-ups that end after a number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from muniment_server.errors import HeadMoved
from muniment_server.failpoints import step
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.sessions import FOLLOWERS, Sessions
from muniment_server.storage.postings import chunk_is_there, encode_all
from muniment_server.storage.row_ids import MOST, row_id
from muniment_server.storage.search import MOST_TAIL, IndexState, StoredEntry, TermRow, WholeTerm, gathered
from muniment_server.terms import Range

_STATE = "SELECT generation, size, erasures, clearing FROM search_state WHERE log_id = $1"
_RESTART = (
    "INSERT INTO search_state VALUES ($1, $2, 0, 0, true) ON CONFLICT (log_id) "
    "DO UPDATE SET generation = excluded.generation, size = 0, clearing = true "
    "RETURNING generation, size, erasures, clearing"
)
_ADD = "SELECT muniment_index($1, $2, $3, $4, $5, $6, $7, $8)"
_TERMS = """
SELECT r.n, t.key, t.tail, t.chunked
FROM unnest($2::bytea[], $3::bytea[]) WITH ORDINALITY AS r (first, last, n), LATERAL (
    SELECT key, tail, chunked FROM search_terms WHERE log_id = $1 AND key >= r.first AND key < r.last
    ORDER BY log_id, key LIMIT $4
) t ORDER BY r.n, t.key
"""
_CHUNKS = f"""
SELECT c.body FROM unnest($2::bytea[]) AS k (key), LATERAL (
    SELECT body FROM search_chunks WHERE log_id = $1 AND key = k.key AND stop > $3 AND stop <= coalesce((
        SELECT stop FROM search_chunks WHERE log_id = $1 AND key = k.key AND stop >= $4
        ORDER BY log_id, key, stop LIMIT 1
    ), {MOST}) ORDER BY log_id, key, stop LIMIT {MOST}
) c
"""  # noqa: S608 - composed of constants
_ENTRIES = """
SELECT p.index, e.leaf, p.payload, p.seed FROM unnest($2::bigint[], $3::bigint[]) WITH ORDINALITY AS u (index, id, n)
JOIN payloads p ON p.log_id = $1 AND p.index = u.index JOIN entries e ON e.id = u.id ORDER BY u.n
"""
_LEAVES = """
SELECT e.leaf FROM unnest($1::bigint[]) WITH ORDINALITY AS u (id, n) JOIN entries e ON e.id = u.id ORDER BY u.n
"""
_WHOLE = f"""
SELECT t.key, t.tail, c.stop, c.body FROM (
    SELECT key, tail, chunked FROM search_terms WHERE log_id = $1 AND key > $2 ORDER BY log_id, key LIMIT $3
) t LEFT JOIN LATERAL (
    SELECT stop, body FROM search_chunks WHERE t.chunked AND log_id = $1 AND key = t.key
    ORDER BY log_id, key, stop LIMIT {MOST}
) c ON true ORDER BY t.key, c.stop
"""  # noqa: S608 - composed of constants
# The state is locked, so that nothing is added meanwhile.
_CLEARING = "WITH state AS (SELECT FROM search_state WHERE log_id = $1 AND generation = $3 AND clearing FOR UPDATE)"
# By its whole key: a term may have tens of thousands of chunks.
_CLEAR = tuple(
    f"{_CLEARING} DELETE FROM {table} WHERE ({key}) IN "  # noqa: S608 - composed of constants
    f"(SELECT {key} FROM {table} WHERE log_id = $1 AND EXISTS (SELECT FROM state) ORDER BY {key} LIMIT $2) RETURNING 1"
    for table, key in (("search_terms", "log_id, key"), ("search_chunks", "log_id, key, stop"))
)
_CLEARED = "UPDATE search_state SET clearing = false WHERE log_id = $1 AND generation = $2"


class PostgresSearch:
    """See :class:`muniment_server.storage.search.Search`."""

    # No append waits for it, and each term that grows leaves a dead row: few large steps.
    most_entries = 2000
    most_terms = 40_000
    elsewhere = True

    def __init__(self, pool: Pool, sessions: Sessions) -> None:
        self._pool = pool
        self._sessions = sessions

    async def index_state(self, log_id: int) -> IndexState | None:
        """See Search."""
        row = await self._pool.one(_STATE, log_id)
        return row and IndexState(*row)

    @step("store.restart_index")
    async def restart_index(self, log_id: int, generation: bytes) -> IndexState:
        """See Search."""
        rows = await self._sessions.write(FOLLOWERS, _RESTART, (log_id, generation))
        return IndexState(*rows[0])

    async def clear_index(self, log_id: int, generation: bytes, limit: int) -> bool:
        """See Search."""
        for sql in _CLEAR:
            if await self._sessions.write(FOLLOWERS, sql, (log_id, limit, generation)):
                return True
        await self._sessions.write(FOLLOWERS, _CLEARED, (log_id, generation))
        return False

    @step("store.add_postings")
    async def add_postings(
        self, log_id: int, expected: IndexState, size: int, postings: Mapping[bytes, Sequence[int]]
    ) -> bool:
        """See Search."""
        encoded = await encode_all(postings)
        keys, lists = [key for key, _ in encoded], [data for _, data in encoded]
        old = (log_id, expected.generation, expected.size, expected.erasures)
        try:
            rows = await self._sessions.write(FOLLOWERS, _ADD, (*old, size, keys, lists, MOST_TAIL))
        except HeadMoved as error:
            if isinstance(error.__cause__, asyncpg.UniqueViolationError):
                raise chunk_is_there() from error
            raise
        return bool(rows[0][0])

    async def index_terms(self, log_id: int, ranges: Sequence[Range], limit: int) -> list[list[TermRow]]:
        """See Search."""
        firsts, lasts = [each.first for each in ranges], [each.last for each in ranges]
        found: list[list[TermRow]] = [[] for _ in ranges]
        for number, key, tail, chunked in await self._pool.all(_TERMS, log_id, firsts, lasts, limit):
            found[number - 1].append(TermRow(key, tail, chunked))
        return found

    async def index_chunks(self, log_id: int, keys: Sequence[bytes], start: int, stop: int) -> list[bytes]:
        """See Search."""
        rows = await self._pool.all(_CHUNKS, log_id, list(keys), start, stop)
        return [row[0] for row in rows]

    async def stored_entries(self, log_id: int, indices: Sequence[int]) -> list[StoredEntry]:
        """See Search."""
        ids = [row_id(log_id, index) for index in indices]
        return [StoredEntry(*row) for row in await self._pool.all(_ENTRIES, log_id, list(indices), ids)]

    async def leaves_at(self, log_id: int, indices: Sequence[int]) -> list[bytes]:
        """See Search."""
        return [leaf for (leaf,) in await self._pool.all(_LEAVES, [row_id(log_id, index) for index in indices])]

    async def whole_terms(self, log_id: int, after: bytes, limit: int) -> list[WholeTerm]:
        """See Search."""
        return gathered(await self._pool.all(_WHOLE, log_id, after, limit))
