"""deploy/postgres-roles.sql: a server that can add to a log and cannot change it, readers that cannot write, an owner nobody logs in as."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests import shared
from tests.live import PATIENCE, LiveServer, init, run

ROLES = (Path(__file__).parents[1] / "deploy" / "postgres-roles.sql").read_text("utf-8")
NAMES = ("muniment_app", "muniment_reader", "muniment_migrate", "muniment_owner")
REFUSED = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ReadOnlySQLTransactionError,
)


def as_role(url: str, name: str) -> str:
    """The URL of the same database for another role."""
    return re.sub(r"//[^/@]*@", f"//{name}@", url, count=1)


def execute(url: str, *statements: str) -> list[list[tuple[object, ...]]]:
    """Run statements on one connection, each in a transaction of its own."""

    async def work() -> list[list[tuple[object, ...]]]:
        connection = await asyncpg.connect(url)
        try:
            return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements]
        finally:
            await connection.close()

    return asyncio.run(work())


def script(url: str, text: str) -> None:
    """Run a file of SQL, as psql would."""

    async def work() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(text)
        finally:
            await connection.close()

    asyncio.run(work())


@pytest.fixture
def new_owned(new_database: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """Make empty databases with the roles in them; URLs of the superuser. What the roles own there goes with the database."""
    made: list[str] = []

    def make() -> str:
        made.append(new_database())
        with shared.alone("roles"):
            script(made[-1], ROLES)
        return made[-1]

    yield make
    if made:
        with shared.alone("roles"):
            drop_roles(made)


def drop_roles(urls: list[str]) -> None:
    """Drop what the roles own in these databases, and the roles, unless another test on this server uses them."""
    for url in urls:
        for name in NAMES:
            execute(url, f"DROP OWNED BY {name} CASCADE")
    with contextlib.suppress(asyncpg.DependentObjectsStillExistError):
        for name in NAMES:
            execute(urls[0], f"DROP ROLE {name}")


@pytest.fixture
def owned(new_owned: Callable[[], str], tmp_path: Path) -> str:
    """A database migrated by muniment_migrate, with an instance made by muniment_app in tmp_path/data."""
    url = new_owned()
    run("migrate", "--data", tmp_path / "data", database=as_role(url, "muniment_migrate"))
    run("init", "--data", tmp_path / "data", "--origin", "example.com/log", database=as_role(url, "muniment_app"))
    return url


def post(server: LiveServer, *numbers: int) -> int:
    """POST events, as one batch, and return the status."""
    body = b"".join(b'{"n":%d}\n' % number for number in numbers)
    request = urllib.request.Request(f"{server.url}/entries/batch", body, {"Content-Type": "application/x-ndjson"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_for_size(server: LiveServer, size: int) -> None:
    """Wait until the published checkpoint covers `size` entries."""
    for _ in range(1200):
        with urllib.request.urlopen(f"{server.url}/checkpoint", timeout=PATIENCE) as answer:
            if int(answer.read().split(b"\n")[1]) >= size:
                return
        time.sleep(0.05)
    raise AssertionError(f"size {size} was not published")


def test_a_server_works_as_app_and_readers_as_reader(owned: str, tmp_path: Path) -> None:
    data, app, reader = tmp_path / "data", as_role(owned, "muniment_app"), as_role(owned, "muniment_reader")
    run("log", "create", "second", "--data", data, "--origin", "example.com/second", "--kind", "raw", database=app)
    with LiveServer(data, database=app) as server:
        assert [post(server, *range(at, at + 60)) for at in range(0, 300, 60)] == [
            201
        ] * 5  # tiles that grow, and full ones
        with LiveServer(data, "--read-only", database=reader) as mirror:
            assert post(mirror, 1) == 503
            wait_for_size(mirror, 301)  # a reader knows what was published, which may be a second old
            with urllib.request.urlopen(f"{mirror.url}/entries?start=290&limit=5", timeout=PATIENCE) as answer:
                assert len(json.load(answer)["entries"]) == 5
    created = json.loads(run("key", "create", "--scope", "append", "--json", "--data", data, database=app).stdout)
    run("key", "revoke", created["key_id"], "--data", data, database=app)
    for report in json.loads(run("fsck", "--data", data, "--json", database=reader).stdout):
        assert report["clean"]
    run("backup", "--data", data, "--to", tmp_path / "backup", "--payloads", database=reader)
    assert (tmp_path / "backup" / "default" / "checkpoint").read_text("utf-8").split("\n")[1] == "301"
    assert run("key", "create", "--scope", "append", "--data", data, database=reader, check=False).returncode != 0


def test_app_restores_a_backup(owned: str, new_owned: Callable[[], str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("backup", "--data", data, "--to", tmp_path / "backup", database=as_role(owned, "muniment_reader"))
    other = new_owned()
    run("migrate", "--data", tmp_path / "other", database=as_role(other, "muniment_migrate"))
    words = (
        "--from",
        tmp_path / "backup" / "default",
        "--data",
        tmp_path / "other",
        "--policy",
        data / "policy",
        "--public",
        "--json",
    )
    done = run("restore", *words, database=as_role(other, "muniment_app"))
    assert json.loads(done.stdout)["tree_size"] == 1


def test_roles_take_over_a_database_that_one_role_owned(
    new_database: Callable[[], str], new_owned: Callable[[], str], tmp_path: Path
) -> None:
    new_owned()  # so that the roles go away at the end
    url = new_database()
    init(tmp_path / "data", url)
    with shared.alone("roles"):
        script(url, ROLES)
        script(url, ROLES)
    owners = execute(url, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")[0]
    assert owners == [("muniment_owner",)]
    with LiveServer(tmp_path / "data", database=as_role(url, "muniment_app")) as server:
        assert post(server, 1) == 201
    with pytest.raises(REFUSED):
        execute(as_role(url, "muniment_app"), "DELETE FROM entries")
    execute(url, *(f"DROP OWNED BY {name} CASCADE" for name in NAMES))


def test_a_table_of_a_later_migration_can_be_read_without_a_new_grant(owned: str) -> None:
    execute(as_role(owned, "muniment_migrate"), "CREATE TABLE later (x integer)")
    for name in ("muniment_app", "muniment_reader"):
        execute(as_role(owned, name), "SELECT * FROM later")
        with pytest.raises(REFUSED):
            execute(as_role(owned, name), "INSERT INTO later VALUES (1)")


BYPASSES = (
    "UPDATE entries SET leaf = 'x' WHERE id & 1 = 0",
    "DELETE FROM entries WHERE id & 1 = 0",
    "UPDATE log_entries SET leaf = 'x'",
    "DELETE FROM log_entries",
    "INSERT INTO log_entries (id, leaf) VALUES (1, 'x')",
    "TRUNCATE entries",
    "TRUNCATE entries, payloads, tiles, checkpoints, heads, logs, idempotency CASCADE",
    "INSERT INTO entries SELECT id, 'x' FROM entries ON CONFLICT (id) DO UPDATE SET leaf = excluded.leaf",
    "MERGE INTO entries e USING (SELECT 1 AS log_id) s ON e.id >> 40 = s.log_id WHEN MATCHED THEN UPDATE SET leaf = 'x'",
    "INSERT INTO entries VALUES ((1::bigint << 40) + 7, 'a gap')",
    "UPDATE payloads SET payload = 'x'",
    "DELETE FROM payloads",
    "TRUNCATE search_terms, search_chunks",
    "DELETE FROM search_state",
    "ALTER TABLE search_terms ALTER COLUMN key SET STATISTICS 100",
    "TRUNCATE payloads",
    "UPDATE tiles SET data = substring(data FOR 32) || repeat('x', 32)::bytea WHERE octet_length(data) > 64 OR true",
    "UPDATE tiles SET data = repeat('x', octet_length(data))::bytea",
    "UPDATE tiles SET level = level + 1",
    "DELETE FROM tiles",
    "UPDATE checkpoints SET note = 'x'",
    "DELETE FROM checkpoints",
    "INSERT INTO checkpoints SELECT log_id, size, note, 0 FROM checkpoints",
    "UPDATE heads SET size = size - 1, published_size = 0",
    "UPDATE heads SET root = decode(repeat('00', 32), 'hex')",
    "UPDATE heads SET epoch = epoch - 1",
    "UPDATE heads SET epoch = epoch + 2",
    "UPDATE heads SET logged_at = logged_at + 1",
    "UPDATE heads SET size = size + 1, logged_at = 4102444800000",
    "INSERT INTO checkpoints SELECT log_id, size + 1, 'x', 0 FROM heads",
    "UPDATE heads SET guard_id = 'x'",
    "DELETE FROM heads",
    "UPDATE logs SET origin = 'example.com/other'",
    "DELETE FROM logs",
    "DELETE FROM anchors",
    "TRUNCATE anchors, anchor_calendars",
    "UPDATE anchors SET digest = repeat('x', 32)::bytea, revision = revision + 1",
    "UPDATE anchor_calendars SET url = 'x'",
    "DELETE FROM followers",
    "DELETE FROM sinks",
    "UPDATE sinks SET mark = repeat('x', 32)::bytea",
    "DELETE FROM api_keys",
    "UPDATE api_keys SET scopes = 'append read'",
    "DELETE FROM schema_migrations",
    "INSERT INTO schema_migrations VALUES (99, 'x', 'x')",
    "SET session_replication_role = replica",
    "ALTER TABLE entries DISABLE TRIGGER ALL",
    "ALTER TABLE entries DISABLE TRIGGER entries_append_only",
    "DROP TRIGGER entries_append_only ON entries",
    "ALTER TABLE entries DROP CONSTRAINT entries_pkey",
    "ALTER TABLE entries RENAME TO old_entries",
    "ALTER TABLE entries OWNER TO CURRENT_USER",
    "DROP TABLE payloads",
    "CREATE RULE r AS ON INSERT TO entries DO INSTEAD NOTHING",
    "CREATE TRIGGER t BEFORE INSERT ON entries EXECUTE FUNCTION muniment_refuse()",
    "CREATE OR REPLACE FUNCTION muniment_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    "CREATE TABLE extra (x integer)",
    "CREATE TEMPORARY TABLE entries (x integer)",
    "CREATE SCHEMA other",
    "COPY entries FROM PROGRAM 'true'",
    "COPY entries TO '/tmp/muniment-never'",
    "SELECT pg_read_file('/etc/hostname')",
    "SELECT muniment_grants()",
    "SET ROLE muniment_owner",
    "SET ROLE muniment_migrate",
    "SET SESSION AUTHORIZATION muniment_migrate",
    "GRANT muniment_owner TO CURRENT_USER",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "ALTER SYSTEM SET fsync = off",
)
READER_TOO = (
    "SET default_transaction_read_only = off; DELETE FROM search_terms",
    "SET default_transaction_read_only = off; UPDATE sinks SET start = 9",
    "SET default_transaction_read_only = off; UPDATE search_state SET size = 0",
    "SET default_transaction_read_only = off; INSERT INTO search_chunks VALUES (1, 'a', 1, 'a')",
    "SET default_transaction_read_only = off; INSERT INTO api_keys VALUES ('x', repeat('x', 32)::bytea, 'append', NULL, '', 0, NULL)",
    "SET default_transaction_read_only = off; INSERT INTO idempotency VALUES (1, 'c', 'k', 'f', 0, 1, 0)",
    "SET default_transaction_read_only = off; UPDATE heads SET epoch = epoch + 1",
    "SET default_transaction_read_only = off; UPDATE api_keys SET revoked_at = 0",
    "SET default_transaction_read_only = off; DELETE FROM idempotency",
)


async def _not_refused(url: str, statements: tuple[str, ...]) -> list[str]:
    """Return the statements that were not refused. Those that Postgres would only warn of and ignore count as not refused."""
    connection = await asyncpg.connect(url)
    passed: list[str] = []
    try:
        for statement in statements:
            try:
                await connection.execute(statement)
            except REFUSED:
                continue
            passed.append(statement)
    finally:
        await connection.close()
    return passed


def test_no_way_round(owned: str, tmp_path: Path) -> None:
    app, reader = as_role(owned, "muniment_app"), as_role(owned, "muniment_reader")
    with LiveServer(tmp_path / "data", database=app) as server:
        assert post(server, 1, 2) == 201
    tables = (
        *("entries", "payloads", "tiles", "checkpoints", "heads", "logs", "api_keys", "schema_migrations"),
        *("anchors", "anchor_calendars", "followers"),
    )
    everything = [f"SELECT * FROM {table} ORDER BY 1, 2" for table in tables]
    before = execute(owned, *everything)
    assert asyncio.run(_not_refused(app, BYPASSES)) == []
    assert asyncio.run(_not_refused(reader, BYPASSES + READER_TOO)) == []
    # That a reader's transactions only read is a courtesy: without it there is still no right to write.
    unset = ("SET default_transaction_read_only = off", *BYPASSES)
    assert asyncio.run(_not_refused(reader, unset)) == list(unset[:1])
    assert execute(owned, *everything) == before
    assert not Path("/tmp/muniment-never").exists()
    for name in ("muniment_app", "muniment_reader"):
        held = execute(owned, *(f"SELECT has_table_privilege('{name}', '{table}', 'UPDATE')" for table in tables))
        assert held == [[(False,)]] * len(tables)

    # The owner is stopped by triggers, and nobody logs in as it.
    with pytest.raises(asyncpg.PostgresError, match="not permitted to log in"):
        execute(as_role(owned, "muniment_owner"), "SELECT 1")
    for statement in ("UPDATE entries SET leaf = 'x'", "DELETE FROM tiles", "TRUNCATE entries", "DELETE FROM heads"):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            execute(as_role(owned, "muniment_migrate"), statement)


def test_what_the_owner_can_still_do_is_found_by_fsck(owned: str, tmp_path: Path) -> None:
    statements = (
        "ALTER TABLE entries DISABLE TRIGGER ALL",
        "UPDATE entries SET leaf = 'forged' WHERE id & 1099511627775 = 0",
    )
    execute(as_role(owned, "muniment_migrate"), *statements)
    done = run("fsck", "--data", tmp_path / "data", "--json", database=as_role(owned, "muniment_reader"), check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)[0]["first_bad_index"] == 0
