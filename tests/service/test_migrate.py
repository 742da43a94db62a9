"""Migrations: forward, whole or not at all, once, and never under a release that does not know them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import apsw
import asyncpg
import pytest
from click.testing import CliRunner

from muniment.hashing import leaf_hash
from muniment.tree import Edge, grow
from muniment_server.cli import main
from muniment_server.errors import SchemaError, StoreUnavailable
from muniment_server.settings import PREFIX
from muniment_server.storage import Store
from muniment_server.storage import migrate as module
from muniment_server.storage.log import leaf_key
from muniment_server.storage.migrate import Migration, available, pending
from muniment_server.storage.postgres import connect as postgres
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.connect import connect
from muniment_server.storage.sqlite.open import open_sqlite
from tests.live import ORIGIN, run
from tests.service.audit import audit
from tests.service.rig import SQLITE_TABLES, TABLES, open_rig

REPOSITORY = Path(__file__).parents[2]
NEXT = len(available("sqlite")) + 1
LATER = Migration(NEXT, f"{NEXT:04}_more", "CREATE TABLE more (a integer); INSERT INTO more VALUES (7)")
BROKEN = Migration(NEXT, f"{NEXT:04}_broken", "CREATE TABLE more (a integer); INSERT INTO nowhere VALUES (7)")


class Database:
    """An empty database of one engine, and how to migrate, open and look into it."""

    def __init__(self, url: str | None, path: Path) -> None:
        self.url, self.path = url, path

    async def migrate(self) -> list[str]:
        if self.url:
            return await postgres.migrate(self.url)

        def work() -> list[str]:
            connection = connect(self.path)
            try:
                return [migration.name for migration in module.migrate_sqlite(connection)]
            finally:
                connection.close()

        return await asyncio.to_thread(work)

    async def open(self) -> Store:
        return await (open_postgres(self.url) if self.url else open_sqlite(self.path))

    async def sql(self, statement: str) -> list[tuple]:
        if self.url:
            connection = await asyncpg.connect(self.url)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()
        connection = apsw.Connection(str(self.path))
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    async def tables(self) -> set[str]:
        if self.url:
            rows = await self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        else:
            rows = await self.sql("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {name for (name,) in rows}


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest) -> str | None:
    """As everywhere, but of a Postgres that is not migrated yet."""
    return request.getfixturevalue("new_database")() if engine == "postgres" else None


@pytest.fixture
def empty(database: str | None, tmp_path: Path) -> Database:
    return Database(database, tmp_path / "store.sqlite")


def release(monkeypatch: pytest.MonkeyPatch, *more: Migration) -> None:
    """Pretend to be a release with these migrations after those of today."""
    real = available
    monkeypatch.setattr(module, "available", lambda engine: [*real(engine), *more])


# --- what there is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_versions_count_from_one_without_gap(kind: str):
    found = available(kind)
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    assert [migration.name for migration in found] == sorted(
        file.stem for file in (REPOSITORY / "migrations" / kind).glob("*.sql")
    )
    assert all(re.fullmatch(r"[0-9]{4}_[a-z0-9_]+", migration.name) for migration in found)


def test_both_engines_have_the_same_versions():
    assert [m.name for m in available("sqlite")] == [m.name for m in available("postgres")]


OWN = {("entries", "leaf_key"), ("entries", "log_id"), ("entries", "index"), ("tiles", "part")}
"""What one of them alone has: SQLite stores the leaf key and computes the two others, Postgres has tiles in parts."""


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_both_engines_have_the_same_tables_and_columns(database: str, tmp_path: Path):
    found = []
    for url in (database, None):
        opened = Database(url, tmp_path / "store.sqlite")
        await opened.migrate()
        tables = await opened.tables()
        assert tables == {*TABLES, *(() if url else SQLITE_TABLES), "schema_migrations"}
        if url:
            sql = "SELECT column_name, is_nullable = 'YES' FROM information_schema.columns WHERE table_name = '{}' ORDER BY ordinal_position"
        else:
            sql = "SELECT name, \"notnull\" = 0 AND pk = 0 FROM pragma_table_xinfo('{0}') ORDER BY cid"
        found.append(
            {
                table: [
                    (name, bool(null)) for name, null in await opened.sql(sql.format(table)) if (table, name) not in OWN
                ]
                for table in tables - {*SQLITE_TABLES}
            }
        )
    assert found[0] == found[1]


# --- applying -----------------------------------------------------------------------------------------------------------


async def test_a_fresh_database_gets_everything_once(empty: Database, engine: str):
    names = [migration.name for migration in available(engine)]
    assert await empty.migrate() == names
    assert await empty.migrate() == []
    store = await empty.open()
    await store.close()
    rows = await empty.sql("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
    assert rows == [(m.version, m.name, m.checksum) for m in available(engine)]


RELEASED = {
    "sqlite": [
        "12d9ad97aa058ec8",
        "7dae1668b4de2af8",
        "94f020f0668f5def",
        "8d22f668424ce7f1",
        "475d467e160fc217",
        "4e60ef7302f3ca7e",
        "0590ed75bf1d25df",
        "0c729b69e6b45846",
        "ea6302623721b236",
        "0aac97fd5a9bdc67",
    ],
    "postgres": [
        "4e67e302949a5547",
        "e1dae918e46a9937",
        "e6d63c0de8c7b3cb",
        "7fb5b29181015809",
        "1c0b7f802f5aa648",
        "1d470a1eed7bf767",
        "114b6a1d93e396b0",
        "2fcb5f6ece90a3b7",
        "91e4c9d4404deace",
        "56388546fd3cfd25",
    ],
}
"""The first 8 bytes of the SHA-256 of each migration that was released, in hex."""


def test_a_released_migration_never_changes(engine: str):
    """Not even in a comment: its checksum is stored, and every database that has it would be refused."""
    checksums = [migration.checksum[:16] for migration in available(engine)]
    assert checksums[: len(RELEASED[engine])] == RELEASED[engine]


async def test_a_migrated_database_works(empty: Database, engine: str, tmp_path: Path):
    await empty.migrate()
    store = await empty.open()
    try:
        async with open_rig(engine, empty.url, tmp_path, store) as rig:
            bench = await rig.log("raw")
            await bench.extend(*[b"%d" % n for n in range(300)])
            assert len(await audit(bench)) == 300
    finally:
        await store.close()


async def test_racing_migrators_apply_everything_once(empty: Database, engine: str):
    done = await asyncio.gather(*(empty.migrate() for _ in range(4)))
    assert sorted(name for names in done for name in names) == [m.name for m in available(engine)], (
        "whoever it was that applied which"
    )
    assert len(await empty.sql("SELECT 1 FROM schema_migrations")) == len(available(engine))


async def test_a_later_release_applies_only_what_is_new(empty: Database, monkeypatch: pytest.MonkeyPatch):
    await empty.migrate()
    release(monkeypatch, LATER)
    assert await empty.migrate() == [LATER.name]
    assert await empty.sql("SELECT a FROM more") == [(7,)]


async def test_a_migration_that_fails_leaves_nothing(empty: Database, engine: str, monkeypatch: pytest.MonkeyPatch):
    first = [migration.name for migration in available(engine)]
    release(monkeypatch, BROKEN)
    with pytest.raises((SchemaError, apsw.Error)):
        await empty.migrate()
    with pytest.raises((SchemaError, StoreUnavailable)):
        await empty.open()
    assert "more" not in await empty.tables()
    assert await empty.sql("SELECT name FROM schema_migrations") == [(name,) for name in first]
    monkeypatch.undo()
    release(monkeypatch, LATER)  # the release that repairs it
    assert await empty.migrate() == [LATER.name]
    await (await empty.open()).close()


async def test_the_first_migration_fails_whole(empty: Database, monkeypatch: pytest.MonkeyPatch):
    broken = Migration(1, "0001_log", BROKEN.sql)
    monkeypatch.setattr(module, "available", lambda engine: [broken])
    with pytest.raises((SchemaError, apsw.Error)):
        await empty.migrate()
    assert await empty.tables() <= {"schema_migrations"}
    monkeypatch.undo()
    assert await empty.migrate()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_entries_and_tiles_of_version_5_stay(empty: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Migration 0006 writes both tables anew: two logs are the same before and after, are guarded as before, and grow."""
    monkeypatch.setattr(module, "available", lambda engine: available(engine)[:5])
    await empty.migrate()
    store = await open_postgres(str(empty.url))
    try:
        async with open_rig("postgres", empty.url, tmp_path, store) as rig:
            benches = [await rig.log("raw"), await rig.log("raw")]
            leaves = [[b"%d of %d" % (n, log) for n in range(size)] for log, size in ((1, 700), (2, 300))]
            for bench, log in zip(benches, leaves, strict=True):
                await store_at_version_5(empty, bench.log_id, log)
            monkeypatch.undo()
            assert await empty.migrate() == [migration.name for migration in available("postgres")[5:]]
            for bench, log in zip(benches, leaves, strict=True):
                assert await audit(bench) == log
                await bench.extend(b"one more", b"and another")
                assert await audit(bench) == [*log, b"one more", b"and another"]
            assert await store.reads.find_leaves(benches[1].log_id, [leaf_key(leaf_hash(leaves[1][299]))]) == [
                (299, leaves[1][299])
            ]
            triggers = await rig.sql("SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal")
            assert {how for _, how in triggers} == {b"A"}
            assert {name for name, _ in triggers} >= {"entries_append_only", "entries_dense", "entries_no_truncate"}
            assert {name for name, _ in triggers} >= {"tiles_append_only", "tiles_grow", "tiles_no_truncate"}
            assert await empty.tables() == {*TABLES, "schema_migrations"}, "the old tables are gone"
    finally:
        await store.close()


async def store_at_version_5(database: Database, log_id: int, leaves: list[bytes]) -> None:
    """Store a log with bare SQL, as releases up to version 5 did."""
    growth = grow(Edge(), [leaf_hash(leaf) for leaf in leaves])
    entries = [(log_id, n, leaf_key(leaf_hash(leaf)), leaf) for n, leaf in enumerate(leaves)]
    tiles = [(log_id, tile.level, tile.index, tile.data) for tile in growth.tiles]
    connection = await asyncpg.connect(database.url)
    try:
        async with connection.transaction():  # moves the head first: entries have to end at it
            sql = "UPDATE heads SET size = $2, root = $3, logged_at = 1 WHERE log_id = $1"
            await connection.execute(sql, log_id, len(leaves), growth.edge.root())
            await connection.copy_records_to_table("entries", records=entries)
            await connection.executemany("INSERT INTO tiles VALUES ($1, $2, $3, $4)", tiles)
    finally:
        await connection.close()


# --- refusing -----------------------------------------------------------------------------------------------------------


async def test_a_migration_that_was_changed_afterwards_is_refused(
    empty: Database, engine: str, monkeypatch: pytest.MonkeyPatch
):
    await empty.migrate()
    before = await empty.sql("SELECT * FROM schema_migrations")
    changed = [Migration(m.version, m.name, m.sql + "-- one more comment\n") for m in available(engine)]
    monkeypatch.setattr(module, "available", lambda engine: changed)
    for work in (empty.migrate, empty.open):
        with pytest.raises(SchemaError, match="0001_log was applied with another content"):
            await work()
    assert await empty.sql("SELECT * FROM schema_migrations") == before


async def test_a_newer_schema_is_refused(empty: Database, monkeypatch: pytest.MonkeyPatch):
    release(monkeypatch, LATER)
    await empty.migrate()
    monkeypatch.undo()
    for work in (empty.migrate, empty.open):
        with pytest.raises(
            SchemaError, match=f"schema version {NEXT}, this release knows up to {NEXT - 1}: install the newer release"
        ):
            await work()
    assert await empty.sql("SELECT a FROM more") == [(7,)]


def test_what_is_pending_keeps_its_order():
    known = [Migration(n, f"{n:04}", f"{n}") for n in (1, 2, 3)]
    assert pending({}, known) == known
    assert pending({1: known[0].checksum}, known) == known[1:]
    assert pending({n.version: n.checksum for n in known}, known) == []
    with pytest.raises(SchemaError):
        pending({4: "x"}, known)
    with pytest.raises(SchemaError):
        pending({1: "x"}, known)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_postgres_is_not_migrated_by_opening_it(empty: Database):
    with pytest.raises(SchemaError, match="run `muniment-server migrate` first"):
        await empty.open()
    assert await empty.tables() == set()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_dry_run_names_and_changes_nothing(empty: Database):
    assert await postgres.migrate(empty.url, dry_run=True) == [m.name for m in available("postgres")]
    assert await empty.tables() == set()
    await postgres.migrate(empty.url)
    assert await postgres.migrate(empty.url, dry_run=True) == []


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_serve_on_an_unmigrated_postgres_names_the_command(empty: Database, tmp_path: Path):
    (tmp_path / "policy").write_text("quorum none\n")
    done = run("serve", "--data", tmp_path, "--port", "0", database=empty.url, check=False)
    assert done.returncode == 2, done
    assert "run `muniment-server migrate` first" in done.stderr
    assert asyncio.run(empty.tables()) == set()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_init_makes_the_schema_of_an_empty_postgres(empty: Database, tmp_path: Path):
    """Where it may; on a database of another release it changes nothing and names the command."""

    def init(url: str, *, exit_code: int) -> str:
        words = ["init", "--data", str(tmp_path / "data"), "--origin", ORIGIN]
        done = CliRunner().invoke(main, words, env={f"{PREFIX}DATABASE": url})
        assert done.exit_code == exit_code, done.output
        return done.output

    assert empty.url
    others = f"{empty.url}{'&' if '?' in empty.url else '?'}options=-c%20role%3Dpg_monitor"
    assert "`muniment-server migrate` with a role that may" in init(others, exit_code=2)
    assert asyncio.run(empty.tables()) == set()
    init(empty.url, exit_code=0)
    assert asyncio.run(empty.sql("SELECT name FROM logs")) == [("default",)]
    init(empty.url, exit_code=0)
    asyncio.run(empty.sql(f"DELETE FROM schema_migrations WHERE version = {NEXT - 1}"))
    assert "run `muniment-server migrate` first" in init(empty.url, exit_code=2)


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_role_that_may_not_look_is_told_so(empty: Database):
    await empty.migrate()
    role = "muniment_test_stranger"
    await empty.sql(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN CREATE ROLE {role} LOGIN; END IF; END $$"
    )
    stranger = re.sub(r"//[^@/]*@", f"//{role}@", empty.url)
    with pytest.raises((SchemaError, StoreUnavailable), match="permission denied"):
        await open_postgres(stranger)


async def test_the_oldest_postgres_works(oldest_postgres: str, tmp_path: Path):
    """Run the whole suite on it with MUNIMENT_TEST_POSTGRES_MAJOR=15."""
    database = Database(oldest_postgres, tmp_path)
    assert await database.migrate() == [m.name for m in available("postgres")]
    store = await database.open()
    try:
        async with open_rig("postgres", oldest_postgres, tmp_path, store) as rig:
            bench = await rig.log("raw")
            await bench.extend(*[b"%d" % n for n in range(300)])
            await bench.extend(b"more")
            assert len(await audit(bench)) == 301
    finally:
        await store.close()
