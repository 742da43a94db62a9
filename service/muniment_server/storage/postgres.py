"""Postgres through asyncpg: an append is one statement and one round trip, the function of migration 0007."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import asyncpg

from muniment.hashing import HASH_SIZE, RootHash
from muniment.tiles import TILE_WIDTH, Tile
from muniment_server.failpoints import step
from muniment_server.storage import (
    SMALL_LEAF,
    ApiKeyRow,
    Grown,
    Head,
    HeadMoved,
    IdempotencyRow,
    Known,
    LogRow,
    OutcomeUnknown,
    Published,
    Reread,
    SchemaError,
    StoredKey,
    StoredPayload,
    StoreUnavailable,
)
from muniment_server.storage.migrate import migrate_postgres, pending_postgres
from muniment_server.storage.postgres_anchors import PostgresAnchors
from muniment_server.storage.row_ids import MOST, row_ids

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
# What a connection says that died while it lay in the pool.
_GONE = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError, ConnectionError)
# InternalClientError: what asyncpg says when a connection dies between two steps of its own.
_FAILED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
# Errors of these classes are raised before the commit record: bad data, constraints, rollback, no resources, own triggers.
_NOT_COMMITTED = ("21", "22", "23", "25", "40", "42", "53", "54", "55", "P0")

_PART = 32
"""Hashes of a part of a tile: see migration 0006."""
_JOINED, _MOVED, _KNOWN = -1, -2, -3
"""Levels of rows that are no tiles: see migration 0007."""

_HEAD = "SELECT size, root, logged_at, epoch, guard_id FROM heads WHERE log_id = $1"
_EXPECTED = "log_id = $1 AND size = $2 AND root = $3 AND logged_at = $4 AND epoch = $5 AND guard_id = $6"
# `id / {MOST}` and not a range of ids: the rows are to be found by leaf key, and the planner shall have no choice.
_HAS_KEY = f"muniment_leaf_key(leaf) = ANY ({{}}::bigint[]) AND id / {MOST} = $1::integer"
_APPEND = f"SELECT level, index, data FROM muniment_append({', '.join(f'${n}' for n in range(1, 29))})"  # noqa: S608 - numbers of parameters
_FENCE = f"UPDATE heads SET epoch = epoch + 1 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise
_ADOPT = f"UPDATE heads SET epoch = epoch + 1, guard_id = $7 WHERE {_EXPECTED} RETURNING epoch"  # noqa: S608 - likewise
_LEAVES = "SELECT leaf FROM entries WHERE id >= $1 AND id < $2 ORDER BY id"
# An int2 is sent in two bytes, big-endian.
_BUNDLES = (
    "SELECT u.index, b.data FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS u (index, low, high), LATERAL ("  # noqa: S608 - constants
    "SELECT string_agg(int2send(octet_length(leaf)::int2) || leaf, '' ORDER BY id) AS data FROM entries "
    f"WHERE id >= u.low AND id < u.high AND octet_length(leaf) <= {SMALL_LEAF} HAVING count(*) = {TILE_WIDTH}) b"
)
_TILES = (
    "SELECT u.level, u.index, t.data FROM unnest($2::smallint[], $3::bigint[]) AS u (level, index), LATERAL ("
    "SELECT string_agg(data, '' ORDER BY part) AS data FROM tiles "
    "WHERE log_id = $1 AND level = u.level AND index = u.index HAVING count(*) > 0) t"
)
_UNJOINED = f"""
SELECT DISTINCT log_id, level, index FROM (
    SELECT log_id, level, index, part, octet_length(data) AS size, sum(octet_length(data)) OVER
        (PARTITION BY log_id, level, index ORDER BY part) AS upto
    FROM tiles
) t WHERE (upto - size) / {_PART * HASH_SIZE} <> part ORDER BY 1, 2, 3 LIMIT 100
"""  # noqa: S608 - composed of constants
# OFFSET 0 keeps the look-up of each row a query of its own. As a plain join, the planner reads all rows of the log once and compares
# them, for as long as it believes that there are few.
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
# A role or database may have other defaults: an answer before the commit is on disk, or no word of a replica that was not waited for.
_WRITER_SETTINGS = """
SELECT set_config('client_min_messages', 'warning', false),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
_PUBLISH = """
WITH larger AS (
    UPDATE heads SET published_size = $2 WHERE log_id = $1 AND published_size < $3 RETURNING log_id
)
INSERT INTO checkpoints (log_id, size, note, published_at)
SELECT larger.log_id, u.size, u.note, u.at FROM larger, unnest($4::bigint[], $5::text[], $6::bigint[]) AS u (size, note, at)
ORDER BY u.size RETURNING size
"""
_LOG = "SELECT log_id, name, origin, kind, public, open, created_at FROM logs"
_KEY = "SELECT key_id, digest, scopes, log_name, label, created_at, revoked_at FROM api_keys"


async def connect(url: str, command_timeout: float | None = _COMMAND_SECONDS) -> asyncpg.Connection[Any]:
    """Open one connection. Raises StoreUnavailable."""
    try:
        return await asyncpg.connect(
            url, timeout=_CONNECT_SECONDS, command_timeout=command_timeout, server_settings=_PLANS
        )
    except (*_FAILED, ValueError) as error:
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


class PostgresStore(PostgresAnchors):
    """A Store in a Postgres database. Make it with :meth:`open`."""

    has_clock = True

    def __init__(self, url: str, pool: asyncpg.Pool[Any]) -> None:
        self._url = url
        self._pool = pool
        # One connection and one lock for each log: its sequencer has one write in flight.
        self._writers: dict[int, asyncpg.Connection[Any]] = {}
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
        except _FAILED as error:
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
        except _FAILED as error:
            raise StoreUnavailable(f"cannot connect to Postgres: {error}") from error
        return cls(url, pool)

    async def close(self) -> None:
        """Wait for the writes in flight and release every connection."""
        self._closed = True
        for log_id, lock in list(self._locks.items()):
            async with lock:  # a lock is fair: whoever was there before is done now
                if connection := self._writers.pop(log_id, None):
                    await connection.close(timeout=_CONNECT_SECONDS)
        await self._pool.close()

    # --- append ---------------------------------------------------------------------------------------------------------

    @step("store.append")
    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """See storage.Append. Read in the transaction that stored it: what could not be read was not stored."""
        rows = await self._write(grown.log_id, _APPEND, _append_values(grown, expected, absent, tiles))
        found = {(level, index): data for level, index, data in rows}
        if (_KNOWN, None) in found:
            raise Known("an entry with one of these leaf keys is stored")
        if (_MOVED, None) in found:
            raise _moved(grown.log_id, expected)
        return _reread(found)

    @step("store.fence")
    async def fence(self, log_id: int, expected: Head) -> Head:
        """See storage.Append."""
        rows = await self._write(log_id, _FENCE, _expected_values(log_id, expected))
        if not rows:
            raise _moved(log_id, expected)
        return Head(expected.size, expected.root, expected.logged_at, rows[0]["epoch"], expected.guard_id)

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """See storage.Append."""
        rows = await self._write(log_id, _ADOPT, (*_expected_values(log_id, expected), guard_id))
        if not rows:
            raise _moved(log_id, expected)
        return Head(expected.size, expected.root, expected.logged_at, rows[0]["epoch"], guard_id)

    @step("store.publish")
    async def publish(self, log_id: int, checkpoint: Published) -> bool:
        """See storage.Append."""
        return await self.publish_all(log_id, (checkpoint,))

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """See storage.Append."""
        columns = zip(*((one.size, one.note, one.published_at) for one in checkpoints), strict=True)
        values = (log_id, checkpoints[-1].size, checkpoints[0].size, *map(list, columns))
        return bool(await self._write(log_id, _PUBLISH, values))

    async def _write(self, log_id: int, sql: str, values: Sequence[Any]) -> list[Any]:
        """Run one autocommit statement on the log's own connection. Raises HeadMoved, OutcomeUnknown or StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        async with self._locks.setdefault(log_id, asyncio.Lock()):
            connection = await self._writer(log_id)
            self._warned.discard(id(connection))
            try:
                rows = await _execute(connection, sql, values)
            except _FAILED as error:
                raise self._classify(log_id, error) from error
            except BaseException:  # cancelled, or a bug: nobody knows what this connection will say next
                self._writers.pop(log_id).terminate()
                raise
            if id(connection) in self._warned:
                # A cancelled wait for a synchronous replica is committed here, perhaps not there, and shows only so.
                raise OutcomeUnknown("Postgres warned during the commit")
            return rows

    @step("postgres.connect")
    async def _writer(self, log_id: int) -> asyncpg.Connection[Any]:
        connection = self._writers.get(log_id)
        if connection is None or connection.is_closed():
            await self._make_room()
            connection = await connect(self._url)
            try:
                await connection.execute(_WRITER_SETTINGS)
            except _FAILED as error:
                connection.terminate()
                raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
            connection.add_log_listener(self._on_message)
            self._writers[log_id] = connection
        return connection

    async def _make_room(self) -> None:
        """Close the connections of logs that write nothing at the moment, when there are too many."""
        for log_id in list(self._writers):
            if len(self._writers) < _WRITERS:
                return
            if not self._locks[log_id].locked() and (connection := self._writers.pop(log_id, None)):
                with contextlib.suppress(*_FAILED):
                    await connection.close(timeout=_CONNECT_SECONDS)

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
        self._writers.pop(log_id).terminate()
        return OutcomeUnknown(f"Postgres: {type(error).__name__}: {error}")

    # --- read -----------------------------------------------------------------------------------------------------------

    async def _all(self, sql: str, *values: Any) -> list[Any]:
        try:
            try:
                return list(await self._pool.fetch(sql, *values))
            except _GONE:  # the server was restarted, and every connection of the pool would say so once
                await self._pool.expire_connections()
                return list(await self._pool.fetch(sql, *values))
        except _FAILED as error:
            raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error

    async def _one(self, sql: str, *values: Any) -> Any:
        rows = await self._all(sql, *values)
        return rows[0] if rows else None

    @step("store.head")
    async def head(self, log_id: int) -> Head:
        """See storage.Read."""
        row = await self._one(_HEAD, log_id)
        if row is None:
            raise StoreUnavailable(f"the database holds no head of log {log_id}")
        return Head(row["size"], RootHash(row["root"]), row["logged_at"], row["epoch"], row["guard_id"])

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """See storage.Read."""
        rows = await self._all(_TILES, log_id, [tile.level for tile in tiles], [tile.index for tile in tiles])
        return {(row["level"], row["index"]): row["data"] for row in rows}

    async def reread(self, log_id: int, start: int, stop: int, tiles: Sequence[Tile]) -> Reread:
        """See storage.Read."""
        levels, indices = [tile.level for tile in tiles], [tile.index for tile in tiles]
        rows = await self._all(_REREAD, log_id, levels, indices, *row_ids(log_id, start, stop))
        return _reread({(level, index): data for level, index, data in rows})

    async def leaves(self, log_id: int, start: int, stop: int) -> list[bytes]:
        """See storage.Read."""
        return [row["leaf"] for row in await self._all(_LEAVES, *row_ids(log_id, start, stop))]

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        """See storage.Read."""
        ranges = [row_ids(log_id, index * TILE_WIDTH, (index + 1) * TILE_WIDTH) for index in indices]
        lows, highs = [low for low, _ in ranges], [high for _, high in ranges]
        return {row["index"]: row["data"] for row in await self._all(_BUNDLES, indices, lows, highs)}

    async def payloads(self, log_id: int, start: int, stop: int) -> list[StoredPayload]:
        """See storage.Read."""
        sql = (
            "SELECT index, payload, seed FROM payloads WHERE log_id = $1 AND index >= $2 AND index < $3 ORDER BY index"
        )
        return [StoredPayload(*row) for row in await self._all(sql, log_id, start, stop)]

    async def find_leaves(self, log_id: int, keys: Sequence[int]) -> list[tuple[int, bytes]]:
        """See storage.Read."""
        # Sorted here: ORDER BY id would invite the planner to walk the whole primary key.
        sql = f"SELECT id % {MOST} AS index, leaf FROM entries WHERE {_HAS_KEY.format('$2')}"  # noqa: S608 - composed of constants
        return sorted((row["index"], row["leaf"]) for row in await self._all(sql, log_id, list(keys)))

    async def find_keys(self, log_id: int, keys: Sequence[tuple[str, str]], now: int) -> list[StoredKey]:
        """See storage.Read."""
        rows = await self._all(_KEYS, log_id, [caller for caller, _ in keys], [key for _, key in keys], now)
        return [StoredKey(IdempotencyRow(*tuple(row)[:6]), row["seed"]) for row in rows]

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """See storage.Read."""
        wanted = "(SELECT published_size FROM heads WHERE log_id = $1)" if size is None else "$2"
        sql = f"SELECT size, note, published_at FROM checkpoints WHERE log_id = $1 AND size = {wanted}"  # noqa: S608 - constants
        row = await self._one(sql, log_id, *(() if size is None else (size,)))
        return Published(*row) if row else None

    async def checkpoints(self, log_id: int, start: int, limit: int) -> list[Published]:
        """See storage.Read."""
        sql = "SELECT size, note, published_at FROM checkpoints WHERE log_id = $1 AND size >= $2 ORDER BY size LIMIT $3"
        return [Published(*row) for row in await self._all(sql, log_id, start, limit)]

    async def clock(self) -> int:
        """See storage.Read."""
        row = await self._one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now")
        return int(row["now"])

    # --- inspect --------------------------------------------------------------------------------------------------------

    async def entry_rows(self, log_id: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
        """See storage.Inspect."""
        sql = f"SELECT id % {MOST}, leaf FROM entries WHERE id >= $1 AND id < $2 ORDER BY id"  # noqa: S608 - likewise
        return await self._all(sql, *row_ids(log_id, start, stop))

    async def tile_rows(self, log_id: int, after: tuple[int, int], limit: int) -> list[tuple[int, int, int]]:
        """See storage.Inspect."""
        sql = (
            "SELECT level, index, sum(octet_length(data)) FROM tiles WHERE log_id = $1 AND (level, index) > ($2, $3) "
            "GROUP BY level, index ORDER BY level, index LIMIT $4"
        )
        return [(row[0], row[1], row[2]) for row in await self._all(sql, log_id, *after, limit)]

    async def key_rows(self, log_id: int, after: tuple[str, str], limit: int) -> list[IdempotencyRow]:
        """See storage.Inspect."""
        sql = (
            "SELECT caller, key, fingerprint, first_index, count, expires_at FROM idempotency "
            "WHERE log_id = $1 AND (caller, key) > ($2, $3) ORDER BY caller, key LIMIT $4"
        )
        return [IdempotencyRow(*row) for row in await self._all(sql, log_id, *after, limit)]

    async def beyond(self, log_id: int, size: int) -> int | None:
        """See storage.Inspect."""
        sql = (
            f"SELECT least((SELECT min(id) % {MOST} FROM entries WHERE id >= $3 AND id < $4), "  # noqa: S608 - constants
            "(SELECT min(index) FROM payloads WHERE log_id = $1 AND index >= $2)) AS index"
        )
        row = await self._one(sql, log_id, size, *row_ids(log_id, size, MOST))
        return None if row is None else row["index"]

    async def integrity(self) -> list[str]:
        """See storage.Inspect. Pages speak up themselves where data checksums are on, and indexes are read through."""
        return [
            f"the parts of tile {level}/{index} of log {log_id} do not join"
            for log_id, level, index in await self._all(_UNJOINED)
        ]

    async def leaf_key_damage(self) -> list[str]:
        """See storage.Inspect. An index of the table entries: pg_amcheck compares the two."""
        return []

    # --- catalog --------------------------------------------------------------------------------------------------------

    async def logs(self) -> list[LogRow]:
        """See storage.Catalog."""
        return [LogRow(*row) for row in await self._all(f"{_LOG} ORDER BY log_id")]

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """See storage.Catalog."""
        sql = (
            "WITH made AS (INSERT INTO logs (name, origin, kind, public, open, created_at) VALUES ($1, $2, $3, $4, $5, $6) "
            "RETURNING log_id) INSERT INTO heads SELECT log_id, $7, $8, $9, $10, $11, 0 FROM made"
        )
        found = await self._one(f"{_LOG} WHERE name = $1 AND origin = $2", row.name, row.origin)
        if found is None:
            values = (row.name, row.origin, row.kind, row.public, row.open, row.created_at)
            try:
                await self._pool.execute(sql, *values, head.size, head.root, head.logged_at, head.epoch, head.guard_id)
            except asyncpg.UniqueViolationError as error:
                clash: asyncpg.UniqueViolationError | None = error
            except _FAILED as error:
                raise StoreUnavailable(f"Postgres: {error}") from error
            else:
                clash = None
            # Also after a clash: it may have been with somebody who made this very log.
            found = await self._one(f"{_LOG} WHERE name = $1 AND origin = $2", row.name, row.origin)
            if found is None:
                raise HeadMoved(f"name or origin belongs to another log: {clash}") from clash
        return LogRow(*found)

    async def api_keys(self) -> list[ApiKeyRow]:
        """See storage.Catalog."""
        return [_key(row) for row in await self._all(f"{_KEY} ORDER BY created_at, key_id")]

    async def create_key(self, row: ApiKeyRow) -> None:
        """See storage.Catalog."""
        sql = "INSERT INTO api_keys VALUES ($1, $2, $3, $4, $5, $6, NULL)"
        scopes = " ".join(sorted(row.scopes))
        await self._all(sql, row.key_id, row.digest, scopes, row.log_name, row.label, row.created_at)

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """See storage.Catalog."""
        sql = "UPDATE api_keys SET revoked_at = $2 WHERE key_id = $1 AND revoked_at IS NULL RETURNING key_id"
        return await self._one(sql, key_id, now) is not None

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """See storage.Catalog."""
        row = await self._one(f"{_KEY} WHERE digest = $1", digest)
        return _key(row) if row else None

    async def forget_expired(self, now: int) -> int:
        """See storage.Catalog."""
        rows = await self._all("DELETE FROM idempotency WHERE expires_at <= $1 RETURNING 1", now)
        return len(rows)


def _reread(found: dict[tuple[int, int], bytes]) -> Reread:
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
        [tile.old_width // _PART for tile in grown.tiles],
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


def _key(row: Any) -> ApiKeyRow:
    scopes = frozenset(row["scopes"].split())
    return ApiKeyRow(row[0], row[1], scopes, row[3], row[4], row[5], row[6])
