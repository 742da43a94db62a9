"""The search index in SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any
from zlib import crc32

import apsw

from muniment_server.failpoints import step
from muniment_server.storage.postings import chunk_is_there, encode_all, joined
from muniment_server.storage.row_ids import MOST, row_id
from muniment_server.storage.search import MOST_TAIL, IndexState, StoredEntry, TermRow, WholeTerm, gathered
from muniment_server.storage.sqlite.database import Database
from muniment_server.terms import Range

_STATE = "SELECT generation, size, erasures, clearing FROM search_state WHERE log_id = ?"
_RESTART = (
    "INSERT INTO search_state VALUES (?, ?, 0, 0, 1) ON CONFLICT (log_id) "
    "DO UPDATE SET generation = excluded.generation, size = 0, clearing = 1"
)
_SWAP = (
    "UPDATE search_state SET size = ? "
    "WHERE log_id = ? AND generation = ? AND size = ? AND erasures = ? AND NOT clearing"
)
# || makes text of blobs, and in a database of UTF-8 leaves every byte as it is.
_GROW = (
    "INSERT INTO search_terms VALUES (?1, ?2, ?3, 0) ON CONFLICT (log_id, key) "
    "DO UPDATE SET tail = CAST(tail || excluded.tail AS BLOB)"
)
# By itself: with RETURNING the statement above takes twice as long.
_LONG = "SELECT key, tail FROM search_terms WHERE log_id = ? AND key = ? AND length(tail) > ?"
_CHUNK = "INSERT INTO search_chunks VALUES (?, ?, ?, ?)"
_MOVED = "UPDATE search_terms SET tail = x'', chunked = 1 WHERE log_id = ? AND key = ?"
_TERMS = "SELECT key, tail, chunked FROM search_terms WHERE log_id = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?"
_CHUNKS = f"""
SELECT body FROM search_chunks WHERE log_id = ?1 AND key = ?2 AND stop > ?3 AND stop <= coalesce(
    (SELECT min(stop) FROM search_chunks WHERE log_id = ?1 AND key = ?2 AND stop >= ?4), {MOST})
"""  # noqa: S608 - composed of constants
_ENTRY = (
    "SELECT e.leaf, p.payload, p.seed FROM payloads p JOIN entries e ON e.id = ?3 "
    'WHERE p.log_id = ?1 AND p."index" = ?2'
)
_LEAF = "SELECT leaf FROM entries WHERE id = ?"
_WHOLE = """
SELECT t.key, t.tail, c.stop, c.body FROM (
    SELECT key, tail, chunked FROM search_terms WHERE log_id = ?1 AND key > ?2 ORDER BY key LIMIT ?3
) t LEFT JOIN search_chunks c ON t.chunked AND c.log_id = ?1 AND c.key = t.key ORDER BY t.key, c.stop
"""
# By its whole key: a term may have tens of thousands of chunks.
_CLEAR = tuple(
    f"DELETE FROM {table} WHERE ({key}) IN "  # noqa: S608 - composed of constants
    f"(SELECT {key} FROM {table} WHERE log_id = ? ORDER BY {key} LIMIT ?)"
    for table, key in (("search_terms", "log_id, key"), ("search_chunks", "log_id, key, stop"))
)

_CLEARING = "SELECT 1 FROM search_state WHERE log_id = ? AND generation = ? AND clearing"

_LOOKED = 16
_STEPS = 8
"""A tail is looked at when more than so many bytes were added to it, or else in one step of so many."""
_CARRIED = 4500
"""Terms that grow, most of them on pages of their own, until the WAL is carried over: two steps.

Otherwise a commit would do so, twice as many pages at a time, and an append would wait for both.
"""
_MOST_MOVED = 64
"""Tails that are moved in one step: those of words that are equally frequent all grow long at once."""


class SqliteSearch:
    """See :class:`muniment_server.storage.search.Search`."""

    # The write lock is held for some 20 ms then with a million entries, and for 100 with 2,000 at a time.
    most_entries = 200
    most_terms = 4000
    elsewhere = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self._grown = 0  # terms, since the WAL was carried over for them

    async def index_state(self, log_id: int) -> IndexState | None:
        """See Search."""
        row = await self._database.one(_STATE, (log_id,))
        return _state(row) if row else None

    @step("store.restart_index")
    async def restart_index(self, log_id: int, generation: bytes) -> IndexState:
        """See Search."""

        def work(connection: apsw.Connection) -> IndexState:
            connection.execute(_RESTART, (log_id, generation))
            return _state(connection.execute(_STATE, (log_id,)).fetchall()[0])

        return await self._database.write(work)

    async def clear_index(self, log_id: int, generation: bytes, limit: int) -> bool:
        """See Search."""

        def work(connection: apsw.Connection) -> bool:
            if not connection.execute(_CLEARING, (log_id, generation)).fetchall():
                return False
            for sql in _CLEAR:
                connection.execute(sql, (log_id, limit))
                if connection.changes():
                    return True
            connection.execute("UPDATE search_state SET clearing = 0 WHERE log_id = ?", (log_id,))
            return False

        return await self._database.write(work)

    @step("store.add_postings")
    async def add_postings(
        self, log_id: int, expected: IndexState, size: int, postings: Mapping[bytes, Sequence[int]]
    ) -> bool:
        """See Search."""
        # In the order of the keys: neighbours share pages.
        rows = [(log_id, key, data) for key, data in await encode_all(postings)]
        looked = [(log_id, key, MOST_TAIL) for _, key, data in rows if _is_looked_at(key, data, size)]
        old = (log_id, expected.generation, expected.size, expected.erasures)

        def work(connection: apsw.Connection) -> bool:
            connection.execute(_SWAP, (size, *old))
            if not connection.changes():
                return False
            connection.executemany(_GROW, rows)
            long = [*islice(connection.executemany(_LONG, looked), _MOST_MOVED)]
            try:
                connection.executemany(_CHUNK, [(log_id, key, size, joined(tail)) for key, tail in long])
            except apsw.ConstraintError as error:
                raise chunk_is_there() from error
            connection.executemany(_MOVED, [(log_id, key) for key, _ in long])
            return True

        added = await self._database.write(work)
        self._grown += len(rows)
        if self._grown >= _CARRIED:
            self._grown = 0
            await self._database.carry_over()
        return added

    async def index_terms(self, log_id: int, ranges: Sequence[Range], limit: int) -> list[list[TermRow]]:
        """See Search."""

        def work(connection: apsw.Connection) -> list[list[TermRow]]:
            return [
                [
                    TermRow(key, tail, bool(chunked))
                    for key, tail, chunked in connection.execute(_TERMS, (log_id, first, last, limit))
                ]
                for first, last in ranges
            ]

        return await self._database.read(work)

    async def index_chunks(self, log_id: int, keys: Sequence[bytes], start: int, stop: int) -> list[bytes]:
        """See Search."""

        def work(connection: apsw.Connection) -> list[bytes]:
            return [body for key in keys for (body,) in connection.execute(_CHUNKS, (log_id, key, start, stop))]

        return await self._database.read(work)

    async def stored_entries(self, log_id: int, indices: Sequence[int]) -> list[StoredEntry]:
        """See Search."""

        def work(connection: apsw.Connection) -> list[StoredEntry]:
            return [
                StoredEntry(index, *row)
                for index in indices
                for row in connection.execute(_ENTRY, (log_id, index, row_id(log_id, index)))
            ]

        return await self._database.read(work)

    async def leaves_at(self, log_id: int, indices: Sequence[int]) -> list[bytes]:
        """See Search."""

        def work(connection: apsw.Connection) -> list[bytes]:
            return [leaf for index in indices for (leaf,) in connection.execute(_LEAF, (row_id(log_id, index),))]

        return await self._database.read(work)

    async def whole_terms(self, log_id: int, after: bytes, limit: int) -> list[WholeTerm]:
        """See Search."""
        return gathered(await self._database.all(_WHOLE, (log_id, after, limit)))


def _is_looked_at(key: bytes, data: bytes, size: int) -> bool:
    """Tell whether a tail is looked at for its length after `data` was added to it.

    It grows by a few bytes mostly, and then one step in eight finds it in time.
    """
    return len(data) > _LOOKED or crc32(key, size) % _STEPS == 0


def _state(row: Sequence[Any]) -> IndexState:
    generation, size, erasures, clearing = row
    return IndexState(generation, size, erasures, bool(clearing))
