"""Postgres through asyncpg: an append is one statement and one round trip, the function of migration 0007."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import asyncpg

from muniment.hashing import HASH_SIZE
from muniment.tiles import Tile
from muniment_server.errors import (
    DuplicateLeaf,
    HeadMoved,
    OtherTree,
    OutcomeUnknown,
    SchemaError,
    SessionLost,
    StoreUnavailable,
)
from muniment_server.failpoints import step
from muniment_server.storage import EdgeTile, Grown, Head, Published, Reread
from muniment_server.storage.migrate import migrate_postgres, pending_postgres
from muniment_server.storage.postgres.anchors import PostgresAnchors
from muniment_server.storage.postgres.base import FAILED, PART
from muniment_server.storage.postgres.catalog import PostgresCatalog
from muniment_server.storage.postgres.inspect import PostgresInspect
from muniment_server.storage.postgres.reads import HEAD, PostgresReads, head_of, reread_of

OLDEST = 15
_POOL = 8
_WRITERS = 32
_COMMAND_SECONDS = 30.0
# Every statement here, and those of the triggers, finds its rows by primary key. A plan is kept as long as its connection, so one that
# was made while a table was empty would go on reading the whole table while it grows, until somebody analyzes it. Left alone, Postgres
# plans small appends anew each time, which takes as long as a half of them.
_PLANS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
_CONNECT_SECONDS = 10.0
# Without these a commit that was answered may be gone, or half there, after a power cut or a failed fsync.
_DURABLE = {"fsync": "on", "full_page_writes": "on", "data_sync_retry": "off", "zero_damaged_pages": "off"}
# Errors of these classes are raised before the commit record: bad data, constraints, rollback, no resources, own triggers.
_NOT_COMMITTED = ("21", "22", "23", "25", "40", "42", "53", "54", "55", "P0")

_MOVED, _KNOWN = -2, -3
"""Levels of rows that are no tiles: see migration 0007."""

_EXPECTED = "log_id = $1 AND size = $2 AND root = $3 AND logged_at = $4 AND epoch = $5 AND guard_id = $6"
_APPEND = f"SELECT level, index, data FROM muniment_append({', '.join(f'${n}' for n in range(1, 29))})"  # noqa: S608 - numbers of parameters
_FENCE = f"UPDATE heads SET epoch = epoch + 1 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise
_ADOPT = f"UPDATE heads SET epoch = epoch + 1, guard_id = $7 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise
# A role or database may have other defaults: an answer before the commit is on disk, or no word of a replica that was not waited for.
_WRITER_SETTINGS = """
SELECT set_config('client_min_messages', 'warning', false),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
# One row that says whether the tiles are those of the tree, and whether the checkpoints were larger than what was published.
_PUBLISH = """
WITH tree AS (
    SELECT NOT EXISTS (
        SELECT FROM unnest($7::smallint[], $8::bigint[], $9::bytea[]) AS u (level, index, data) WHERE u.data IS DISTINCT FROM (
            SELECT substr(string_agg(t.data, '' ORDER BY t.part), 1, octet_length(u.data)) FROM tiles t
            WHERE t.log_id = $1 AND t.level = u.level AND t.index = u.index)
    ) AS same
), larger AS (
    UPDATE heads SET published_size = $2 FROM tree WHERE log_id = $1 AND published_size < $3 AND tree.same RETURNING log_id
), stored AS (
    INSERT INTO checkpoints (log_id, size, note, published_at)
    SELECT larger.log_id, u.size, u.note, u.at FROM larger, unnest($4::bigint[], $5::text[], $6::bigint[]) AS u (size, note, at)
    ORDER BY u.size RETURNING size
)
SELECT tree.same, EXISTS (SELECT FROM stored) AS larger FROM tree
"""


async def connect(url: str, command_timeout: float | None = _COMMAND_SECONDS) -> asyncpg.Connection[Any]:
    """Open one connection. Raises StoreUnavailable."""
    try:
        return await asyncpg.connect(
            url, timeout=_CONNECT_SECONDS, command_timeout=command_timeout, server_settings=_PLANS
        )
    except (*FAILED, ValueError) as error:
        raise StoreUnavailable(f"cannot connect to Postgres: {error}") from error


async def migrate(url: str, *, dry_run: bool = False) -> list[str]:
    """Apply pending migrations and return their names; with `dry_run` only name them. Raises SchemaError, StoreUnavailable."""
    connection = await connect(url, command_timeout=None)  # a migration may take long, or wait for another one
    try:
        await _check_server(connection)
        done = await pending_postgres(connection) if dry_run else await migrate_postgres(connection)
        return [migration.name for migration in done]
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailable(f"the connection was lost while migrating: {error}") from error
    except asyncpg.PostgresError as error:
        raise SchemaError(f"migration failed and was rolled back: {error}") from error
    finally:
        await connection.close()


async def _check_server(connection: asyncpg.Connection[Any]) -> None:
    """Raise SchemaError on a server that is too old, or set so that what it answers may not survive a power cut."""
    version = connection.get_server_version().major
    if version < OLDEST:
        raise SchemaError(f"Postgres {version} is too old: {OLDEST} or newer is needed")
    rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(_DURABLE))
    wrong = sorted(f"{row['name']} = {row['setting']}" for row in rows if row["setting"] != _DURABLE[row["name"]])
    if wrong:
        raise SchemaError(
            f"Postgres runs with {', '.join(wrong)}: acknowledged entries could be lost. "
            f"Set {', '.join(f'{name} = {value}' for name, value in _DURABLE.items())}"
        )


@step("postgres.statement")
async def _execute(connection: asyncpg.Connection[Any], sql: str, values: Sequence[Any]) -> list[Any]:
    return list(await connection.fetch(sql, *values))


async def _leave_as_is(_: asyncpg.Connection[Any]) -> None:
    """Do nothing to a connection that returns to the pool.

    Nothing here changes a session: each statement stands alone. What asyncpg would otherwise send is a second round trip for every read.
    """


_SESSIONS = itertools.count(1)


class _Session(NamedTuple):
    """A connection, and its number among all that this process made."""

    connection: asyncpg.Connection[Any]
    number: int


class PostgresStore(PostgresReads, PostgresInspect, PostgresCatalog, PostgresAnchors):
    """A Store in a Postgres database. Make it with :meth:`open`."""

    has_clock = True

    def __init__(self, url: str, pool: asyncpg.Pool[Any]) -> None:
        self._url = url
        self._pool = pool
        # One connection and one lock for each log: its sequencer has one write in flight.
        self._writers: dict[int, _Session] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._closed = False
        self._warned: set[int] = set()  # connections (by id) on which the server warned since the last statement

    @classmethod
    async def open(cls, url: str) -> PostgresStore:
        """Connect to a migrated database. Raises SchemaError with the command to run, or StoreUnavailable."""
        connection = await connect(url)
        try:
            await _check_server(connection)
            todo = await pending_postgres(connection)
        except FAILED as error:
            raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
        finally:
            await connection.close()
        if todo:
            raise SchemaError(
                f"the database lacks {len(todo)} migration(s), from {todo[0].name}: run `muniment-server migrate` first"
            )
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=_POOL,
                timeout=_CONNECT_SECONDS,
                command_timeout=_COMMAND_SECONDS,
                server_settings=_PLANS,
                reset=_leave_as_is,
            )
        except FAILED as error:
            raise StoreUnavailable(f"cannot connect to Postgres: {error}") from error
        return cls(url, pool)

    async def close(self) -> None:
        """Wait for the writes in flight and release every connection."""
        self._closed = True
        for log_id, lock in list(self._locks.items()):
            async with lock:  # a lock is fair: whoever was there before is done now
                if session := self._writers.pop(log_id, None):
                    await session.connection.close(timeout=_CONNECT_SECONDS)
        await self._pool.close()

    def check_premises(self, head: Head | None = None) -> None:
        """See storage.Append. The server keeps its own files; which server it is shows in the session."""
        if head is None or head.session is None:
            return
        open_ = (each.number for each in self._writers.values() if not each.connection.is_closed())
        if head.session not in open_:
            raise SessionLost("the connection that the head was read on is closed")

    # --- append ---------------------------------------------------------------------------------------------------------

    @step("store.head")
    async def head_to_extend(self, log_id: int) -> Head:
        """See storage.Append."""
        rows, session = await self._read_in_session(log_id, HEAD, (log_id,))
        return head_of(log_id, rows[0] if rows else None, session)

    async def reconnect(self, log_id: int) -> None:
        """See storage.Append."""
        async with self._locks.setdefault(log_id, asyncio.Lock()):
            if session := self._writers.pop(log_id, None):
                session.connection.terminate()
        await self._pool.expire_connections()

    @step("store.append")
    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """See storage.Append. Read in the transaction that stored it: what could not be read was not stored."""
        rows = await self._write(
            grown.log_id, _APPEND, _append_values(grown, expected, absent, tiles), expected.session
        )
        found = {(level, index): data for level, index, data in rows}
        if (_KNOWN, None) in found:
            raise DuplicateLeaf("an entry with one of these leaf keys is stored")
        if (_MOVED, None) in found:
            raise _moved(grown.log_id, expected)
        return reread_of(found)

    @step("store.fence")
    async def fence(self, log_id: int, expected: Head) -> Head:
        """See storage.Append."""
        rows = await self._write(log_id, _FENCE, _expected_values(log_id, expected), expected.session)
        if not rows:
            raise _moved(log_id, expected)
        return replace(expected, epoch=rows[0]["epoch"])

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """See storage.Append."""
        rows = await self._write(log_id, _ADOPT, (*_expected_values(log_id, expected), guard_id), expected.session)
        if not rows:
            raise _moved(log_id, expected)
        return replace(expected, epoch=rows[0]["epoch"], guard_id=guard_id)

    @step("store.publish")
    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """See storage.Append."""
        return await self._publish(log_id, (checkpoint,), edge)

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """See storage.Append."""
        return await self._publish(log_id, checkpoints, ())

    async def _publish(self, log_id: int, checkpoints: Sequence[Published], edge: Sequence[EdgeTile]) -> bool:
        columns = [[one.size for one in checkpoints], [one.note for one in checkpoints]]
        columns += [[one.published_at for one in checkpoints], *([tile[at] for tile in edge] for at in range(3))]
        values = (log_id, checkpoints[-1].size, checkpoints[0].size, *columns)
        ((same, larger),) = await self._write(log_id, _PUBLISH, values)
        if not same:
            raise OtherTree(f"the database does not hold the tree of size {checkpoints[-1].size} that was signed")
        return bool(larger)

    async def _write(self, log_id: int, sql: str, values: Sequence[Any], session: int | None = None) -> list[Any]:
        """Run one autocommit statement on the log's own connection.

        Raises HeadMoved, OutcomeUnknown, StoreUnavailable; or SessionLost when that connection is not `session`.
        """
        return (await self._run(log_id, sql, values, session))[0]

    async def _read_in_session(
        self, log_id: int, sql: str, values: Sequence[Any], session: int | None = None
    ) -> tuple[list[Any], int]:
        """See PostgresBase."""
        try:
            return await self._run(log_id, sql, values, session)
        except (HeadMoved, OutcomeUnknown) as error:
            raise StoreUnavailable(str(error)) from error

    async def _run(
        self, log_id: int, sql: str, values: Sequence[Any], expected: int | None = None
    ) -> tuple[list[Any], int]:
        """As :meth:`_write`; return the session too."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        async with self._locks.setdefault(log_id, asyncio.Lock()):
            connection, session = await self._session(log_id)
            if expected is not None and session != expected:
                raise SessionLost(f"the connection of log {log_id} was made anew since its head was read")
            self._warned.discard(id(connection))
            try:
                rows = await _execute(connection, sql, values)
            except FAILED as error:
                raise self._classify(log_id, error) from error
            except BaseException:  # cancelled, or a bug: nobody knows what this connection will say next
                self._writers.pop(log_id).connection.terminate()
                raise
            if id(connection) in self._warned:
                # A cancelled wait for a synchronous replica is committed here, perhaps not there, and shows only so.
                raise OutcomeUnknown("Postgres warned during the commit")
            return rows, session

    @step("postgres.connect")
    async def _session(self, log_id: int) -> _Session:
        """Return the log's own connection, made now if there is none that is open."""
        found = self._writers.get(log_id)
        if found is None or found.connection.is_closed():
            await self._make_room()
            connection = await connect(self._url)
            try:
                await connection.execute(_WRITER_SETTINGS)
            except FAILED as error:
                connection.terminate()
                raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
            connection.add_log_listener(self._on_message)
            found = self._writers[log_id] = _Session(connection, next(_SESSIONS))
        return found

    async def _make_room(self) -> None:
        """Close the connections of logs that write nothing at the moment, when there are too many."""
        for log_id in list(self._writers):
            if len(self._writers) < _WRITERS:
                return
            if not self._locks[log_id].locked() and (session := self._writers.pop(log_id, None)):
                with contextlib.suppress(*FAILED):
                    await session.connection.close(timeout=_CONNECT_SECONDS)

    def _on_message(self, connection: Any, message: Any) -> None:
        if message.sqlstate == "01000":
            self._warned.add(id(connection))

    def _classify(self, log_id: int, error: BaseException) -> Exception:
        state = getattr(error, "sqlstate", None) or ""
        if (
            state.startswith("23") or state == "40001"
        ):  # 40001: lost the race in a database that isolates more than it must
            return HeadMoved(f"Postgres: {error}")
        if state[:2] in _NOT_COMMITTED:
            return StoreUnavailable(f"Postgres: {error}")
        # The statement was sent and no clean answer came back: it may have committed.
        self._writers.pop(log_id).connection.terminate()
        return OutcomeUnknown(f"Postgres: {type(error).__name__}: {error}")


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
