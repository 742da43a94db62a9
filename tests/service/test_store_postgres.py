"""What only the Postgres store must do: tell a lost answer from a refusal, and not trust the defaults of roles and databases."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import asyncpg
import pytest

from muniment.hashing import leaf_hash
from muniment_server.errors import HeadMoved, OutcomeUnknown, SchemaError, StoreError, StoreUnavailable
from muniment_server.storage import Store
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import leaf_key
from muniment_server.storage.postgres import connect as connect_module
from muniment_server.storage.postgres import pool, sessions
from muniment_server.storage.postgres.connect import connect, migrate
from muniment_server.storage.postgres.open import open_postgres
from tests import shared
from tests.databases import databases
from tests.live import PATIENCE
from tests.service.audit import audit
from tests.service.proxy import proxy_before
from tests.service.rig import NOW, Bench, Rig, event, raw


@pytest.fixture
def engine() -> str:
    return "postgres"


def raising(level: str, code: str = "", table: str = "entries", when: str = "INSERT") -> list[str]:
    """SQL for a trigger that raises something whenever a statement touches a table."""
    using = f" USING ERRCODE = '{code}'" if code else ""
    return [
        (
            "CREATE FUNCTION test_raise() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN RAISE {level} 'test'{using}; RETURN NULL; END $$"
        ),
        f"CREATE TRIGGER test_raise AFTER {when} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION test_raise()",
    ]


QUIET = ["DROP FUNCTION test_raise CASCADE"]
SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
"""Ends the connections that others have to this database, as a fail-over does."""


async def appended(bench: Bench, leaf: bytes, store: Store | None = None) -> None:
    grown, expected = await bench.grown([leaf])
    await (store or bench.rig.store).log.append(grown, expected)


async def eventually(bench: Bench, leaf: bytes, store: Store | None = None) -> None:
    """Append as soon as the store is well again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await appended(bench, leaf, store)
        except StoreError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


# --- what Postgres says -------------------------------------------------------------------------------------------------


async def test_a_warning_makes_the_outcome_unknown(rig: Rig):
    bench = await rig.log("raw")
    await appended(bench, b"a")
    await rig.sql(*raising("WARNING"))
    with pytest.raises(OutcomeUnknown):
        await appended(bench, b"b")
    await rig.sql(*QUIET)
    assert (await rig.store.reads.head(bench.log_id)).size == 2, "the commit took place: only nobody may rely on it yet"
    await appended(bench, b"c")
    assert len(await audit(bench)) == 3


async def test_a_warning_counts_for_fences_and_publications_too(rig: Rig):
    bench = await rig.log("raw")
    await appended(bench, b"a")
    await rig.sql(*raising("WARNING", table="heads", when="UPDATE"))
    with pytest.raises(OutcomeUnknown):
        await rig.store.log.fence(bench.log_id, await rig.store.reads.head(bench.log_id))
    with pytest.raises(OutcomeUnknown):
        await rig.store.checkpoints.publish(bench.log_id, Published(1, "note", NOW))


async def test_a_role_that_hears_no_warnings_hears_these(rig: Rig):
    await rig.set_default("client_min_messages = error")
    store = await rig.open()
    bench = await rig.log("raw")
    await rig.sql(*raising("WARNING"))
    with pytest.raises(OutcomeUnknown):
        await appended(bench, b"a", store)


async def test_a_notice_is_no_warning(rig: Rig):
    bench = await rig.log("raw")
    await rig.sql(*raising("NOTICE"))
    await appended(bench, b"a")
    assert len(await audit(bench)) == 1


@pytest.mark.parametrize(
    ("code", "error", "ends"),
    [
        ("23514", HeadMoved, False),
        ("40001", HeadMoved, False),
        ("40P01", StoreUnavailable, True),
        ("25006", StoreUnavailable, True),  # read-only: a standby, or a default of its database
        ("42501", StoreUnavailable, True),
        ("53100", StoreUnavailable, True),  # disk full
        ("53200", StoreUnavailable, True),
        ("55P03", StoreUnavailable, True),
        ("P0001", StoreUnavailable, True),
        ("57014", OutcomeUnknown, True),  # cancelled: perhaps while the commit waited for a replica
        ("58030", OutcomeUnknown, True),
        ("XX001", OutcomeUnknown, True),
    ],
)
async def test_an_error_is_classed_by_what_it_says_of_the_commit(
    rig: Rig, code: str, error: type[Exception], ends: bool
):
    """And the session ends, unless a race was lost: nothing tells which other faults are its own."""
    bench = await rig.log("raw")
    session = (await rig.store.log.head_to_extend(bench.log_id)).session
    before = await rig.dump()
    await rig.sql(*raising("EXCEPTION", code))
    with pytest.raises(error):
        await appended(bench, b"a")
    assert await rig.dump() == before
    assert ((await rig.store.log.head_to_extend(bench.log_id)).session != session) is ends
    await rig.sql(*QUIET)
    await appended(bench, b"a")
    assert len(await audit(bench)) == 1


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_stricter_isolation_loses_races_the_same_way(rig: Rig, level: str):
    await rig.set_default(f"default_transaction_isolation = '{level}'")
    stores = [await rig.open(), await rig.open()]
    bench = await rig.log("raw")
    for number in range(15):
        made = [await bench.grown([b"%d %d" % (number, who)]) for who in range(2)]
        results = await asyncio.gather(
            *(store.log.append(*arguments) for store, arguments in zip(stores, made, strict=True)),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["HeadMoved", "tuple"], results
    assert len(await audit(bench)) == 15


@pytest.mark.parametrize(("given", "used"), [("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")])
async def test_answers_wait_for_the_disk_whatever_the_default_is(rig: Rig, given: str, used: str):
    await rig.set_default(f"synchronous_commit = {given}")
    store, bench = await rig.open(), await rig.log("raw")
    await rig.sql(
        "CREATE TABLE seen (setting text)",
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN INSERT INTO seen SELECT current_setting('synchronous_commit'); RETURN NULL; END $$",
        "CREATE TRIGGER see AFTER INSERT ON entries FOR EACH STATEMENT EXECUTE FUNCTION see()",
    )
    await appended(bench, b"a", store)
    assert await rig.sql("SELECT setting FROM seen") == [(used,)]


# --- what Postgres does not say -----------------------------------------------------------------------------------------


async def test_a_backend_killed_between_appends(rig: Rig):
    bench = await rig.log("raw")
    await appended(bench, b"a")
    await rig.sql(SESSIONS)
    with contextlib.suppress(OutcomeUnknown, StoreUnavailable):  # or it was noticed in time, and nothing is lost
        await appended(bench, b"b")
    await eventually(bench, b"c")
    leaves = await audit(bench)
    assert leaves[-1] == b"c"
    assert leaves in ([b"a", b"c"], [b"a", b"b", b"c"])
    assert await rig.store.catalog.logs()  # the readers' connections were killed as well


@pytest.mark.parametrize(
    ("setting", "reads_fail"), [("default_transaction_read_only = on", False), ("search_path = nowhere", True)]
)
async def test_a_fault_of_a_session_ends_with_it(rig: Rig, setting: str, reads_fail: bool):
    """What a connection was given when it was made stays with it: only a new one gets better."""
    bench, store = await rig.log("raw"), rig.store
    grown, expected = await bench.grown([b"a"])
    works = (
        lambda: store.log.append(grown, expected),
        lambda: store.catalog.forget_expired(NOW),
        lambda: store.reads.leaves(bench.log_id, 0, 1),
    )
    await rig.set_default(setting)
    await rig.sql(SESSIONS)
    with contextlib.suppress(StoreError):  # the connection that was ended, where nothing has noticed it yet
        await store.log.append(grown, expected)
    for work in works[: 3 if reads_fail else 2]:
        with pytest.raises(StoreUnavailable):
            await work()
    name = setting.partition(" ")[0]
    reset = f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET {name}', current_database()); END $$"
    await rig.sql("SET TRANSACTION READ WRITE", reset)
    for work in works:
        await work()
    assert await audit(bench) == [b"a"]


class DyingPool:
    """A pool whose next read meets a connection that died in it; everything else goes to the real pool."""

    def __init__(self, pool: asyncpg.Pool, error: Exception) -> None:
        self._pool, self._error = pool, error

    async def fetch(self, sql: str, *values: object) -> list[asyncpg.Record]:
        if error := self._error:
            self._error = None
            raise error
        return await self._pool.fetch(sql, *values)

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.CrashShutdownError("terminating connection because of crash of another server process"),
        asyncpg.CannotConnectNowError("the database system is shutting down"),
        asyncpg.IdleSessionTimeoutError("terminating connection due to idle-session timeout"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute DELETE in a read-only transaction"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        ConnectionResetError("connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_connection_that_died_in_the_pool_is_not_the_readers_failure(rig: Rig, error: Exception):
    bench = await rig.log("raw")
    shared = rig.store.reads._pool
    shared._connections = DyingPool(shared._connections, error)
    assert (await rig.store.reads.head(bench.log_id)).size == 0


@contextlib.asynccontextmanager
async def held_head(rig: Rig):
    """Hold the lock of the head row, so that appends wait."""
    connection = await asyncpg.connect(rig.database)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT 1 FROM heads FOR UPDATE")
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def waiting_backend(connection) -> int:
    """The process id of the one backend that waits for the lock."""
    while True:
        found = await connection.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        if found:
            return found
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_backend_stopped_during_an_append(rig: Rig, how: str):
    bench = await rig.log("raw")
    await appended(bench, b"a")
    before = await rig.dump()
    async with held_head(rig) as connection:
        append = asyncio.create_task(appended(bench, b"b"))
        await connection.fetchval(f"SELECT {how}($1)", await waiting_backend(connection))
        with pytest.raises(OutcomeUnknown):
            await append
    assert await rig.dump() == before
    await eventually(bench, b"c")
    assert await audit(bench) == [b"a", b"c"]


async def test_an_answer_that_never_comes_is_an_unknown_outcome(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "COMMAND_SECONDS", 1.5)
    bench, store = await rig.log("raw"), await rig.open()
    monkeypatch.undo()
    monkeypatch.setattr(sessions, "connect", lambda url: connect(url, 1.5))
    async with held_head(rig):
        with pytest.raises(OutcomeUnknown):
            await appended(bench, b"a", store)
        with pytest.raises(OutcomeUnknown):
            await store.log.fence(bench.log_id, await rig.store.reads.head(bench.log_id))
    await eventually(bench, b"b", store)
    assert (await audit(bench))[-1] == b"b"


async def test_an_answer_that_was_cut_off_is_an_unknown_outcome(rig: Rig):
    bench = await rig.log("raw")
    async with proxy_before(rig.database) as proxy:
        store = await open_postgres(proxy.url)
        try:
            await appended(bench, b"a", store)
            grown, expected = await bench.grown([b"b"])
            proxy.deaf = True
            with pytest.raises(OutcomeUnknown):
                await store.log.append(grown, expected)
            for _ in range(6000):
                if await rig.store.reads.head(bench.log_id) == grown.head:
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("the statement was sent, so it commits")
            proxy.deaf = False
            with pytest.raises(HeadMoved):  # the same again finds that it is done
                await store.log.append(grown, expected)
            await appended(bench, b"c", store)
        finally:
            await store.close()
    assert await audit(bench) == [b"a", b"b", b"c"]


async def test_a_server_that_is_gone_is_unavailable_and_may_come_back(rig: Rig):
    bench = await rig.log("raw")
    async with proxy_before(rig.database) as proxy:
        store = await open_postgres(proxy.url)
        try:
            await appended(bench, b"a", store)
            await proxy.stop()
            grown, expected = await bench.grown([b"b"])
            with pytest.raises((OutcomeUnknown, StoreUnavailable)):
                await store.log.append(grown, expected)
            for call in (
                lambda: store.log.append(grown, expected),
                lambda: store.log.fence(bench.log_id, expected),
                lambda: store.reads.head(bench.log_id),
                lambda: store.reads.leaves(bench.log_id, 0, 1),
                store.reads.clock,
                store.catalog.logs,
                store.catalog.api_keys,
                lambda: store.catalog.forget_expired(NOW),
            ):
                with pytest.raises(StoreUnavailable):
                    await call()
        finally:
            await store.close()
    await appended(bench, b"b")
    assert await audit(bench) == [b"a", b"b"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:hunter2@127.0.0.1:1/nowhere",
        "postgresql://someone:hunter2@/nowhere?host=/no/such/folder",
        "postgresql://someone:hunter2@name.invalid/nowhere",
    ],
)
async def test_no_server_is_unavailable_and_no_password_is_told(url: str):
    for work in (open_postgres, migrate):
        with pytest.raises(StoreUnavailable) as caught:
            await work(url)
        assert "hunter2" not in str(caught.value)


async def test_a_server_that_is_too_old_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connect_module, "OLDEST", 99)
    for work in (open_postgres, migrate):
        with pytest.raises(SchemaError, match="too old: 99"):
            await work(rig.database)


async def test_a_database_that_hides_damage_is_refused(rig: Rig):
    await rig.set_default("zero_damaged_pages = on")
    with pytest.raises(SchemaError, match=r"zero_damaged_pages = on.*acknowledged entries could be lost"):
        await rig.open()
    with pytest.raises(SchemaError, match="zero_damaged_pages"):
        await migrate(rig.database)


@pytest.fixture
def own_postgres() -> Iterator[str]:
    """URL of a migrated database on a server whose settings one test at a time may change."""
    with shared.alone("changes of settings"), databases(shared.postgres("changed")) as made:
        yield made.migrated()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_server_that_may_lose_commits_is_refused(own_postgres: str, setting: str):
    connection = await asyncpg.connect(own_postgres)
    try:
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
        await _reload(connection, setting, "off")
        with pytest.raises(SchemaError, match=f"{setting} = off"):
            await open_postgres(own_postgres)
    finally:
        await connection.execute(f"ALTER SYSTEM RESET {setting}")
        await _reload(connection, setting, "on")
        await connection.close()
    await (await open_postgres(own_postgres)).close()


async def _reload(connection: asyncpg.Connection, setting: str, expected: str) -> None:
    await connection.execute("SELECT pg_reload_conf()")
    for _ in range(6000):
        if await connection.fetchval(f"SHOW {setting}") == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{setting} is not {expected}")


async def test_an_append_is_one_round_trip(rig: Rig):
    """On a connection that is warm Postgres becomes ready for a query once: no BEGIN, no COMMIT, nothing to prepare."""
    bench = await rig.log("raw")
    async with proxy_before(rig.database) as proxy:
        store = await open_postgres(proxy.url)
        try:
            await appended(bench, b"a", store)
            grown, expected = await bench.grown([b"b", b"c"])
            proxy.answered.clear()
            await store.log.append(grown, expected)
            assert proxy.answered.count(b"Z\x00\x00\x00\x05I") == 1
        finally:
            await store.close()


async def test_many_logs_share_few_connections(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "_WRITERS", 4)
    benches = [await rig.log("raw") for _ in range(12)]
    for number in range(3):
        for bench in random.sample(benches, 12):
            await appended(bench, b"%d" % number)
        assert len(rig.store.log._sessions._writers) <= 4
    await asyncio.gather(*(appended(bench, b"all at once") for bench in benches))
    await asyncio.gather(*(appended(bench, b"and again") for bench in benches))
    for bench in benches:
        assert len(await audit(bench)) == 5


async def test_no_plan_of_a_young_database_reads_a_whole_log(rig: Rig):
    """Plans are made while the tables are empty and unanalyzed, and kept: they must still be good when there is something in them."""
    bench = await rig.log("event")
    sequencer = bench.sequencer()
    await sequencer.start()
    batches = 40
    for number in range(batches):
        await sequencer.run([event(*range(200), key=f"key {number}")])
        await rig.store.reads.find_keys(bench.log_id, [("alice", "key 0"), ("alice", "another")], NOW)
    await rig.store.close()  # its backends report what they read when they end
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = {str(name): int(read) for name, read in await rig.sql(READ)}
        if found["entries_pkey"] >= 200 * batches:
            break
        await asyncio.sleep(0.05)
    assert 200 * batches <= found["entries_pkey"] <= 210 * batches, "each is read back once"
    assert found["tiles_pkey"] <= 16 * batches, "some parts of the last tiles, in each append and read back"
    assert found["idempotency_pkey"] <= 4 * batches
    assert found["payloads_pkey"] <= 4 * batches


async def test_no_look_up_by_leaf_key_of_a_young_database_reads_a_whole_log(rig: Rig):
    """Likewise for what only raw logs ask: whether a leaf is there already."""
    bench = await rig.log("raw")
    sequencer = bench.sequencer()
    await sequencer.start()
    batches = 40
    for number in range(batches):
        leaves = [b"%d of %d" % (n, number) for n in range(200)]
        await sequencer.run([raw(*leaves)])
        assert await rig.store.reads.find_leaves(bench.log_id, [leaf_key(leaf_hash(leaves[7]))]) == [
            (200 * number + 7, leaves[7])
        ]
    await rig.store.close()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = {str(name): int(read) for name, read in await rig.sql(READ)}
        if found["entries_pkey"] >= 200 * batches and found["entries_leaf_key"] >= batches:
            break
        await asyncio.sleep(0.05)
    assert 200 * batches <= found["entries_pkey"] <= 210 * batches, "each is read back once"
    assert batches <= found["entries_leaf_key"] <= 2 * batches
    ((read,),) = await rig.sql("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'entries'")
    assert read <= batches


READ = "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes"
