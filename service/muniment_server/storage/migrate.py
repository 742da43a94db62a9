"""Numbered SQL files, applied forward only. Each is one transaction, and its checksum is remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Any

from muniment_server.errors import SchemaError

if TYPE_CHECKING:  # a server needs the library of one database, and each takes megabytes
    import apsw
    import asyncpg

_LOCK = 0x6D756E69  # any number, but the same in every version
_TABLE = (
    "CREATE TABLE IF NOT EXISTS schema_migrations "
    "(version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
)
_SELECT = "SELECT version, checksum FROM schema_migrations"


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file. `version` counts from 1; `checksum` is the hex SHA-256 of its text."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Hex SHA-256 of the SQL."""
        return sha256(self.sql.encode()).hexdigest()


def available(engine: str) -> list[Migration]:
    """Return the migrations for "sqlite" or "postgres", in order."""
    folder = resources.files("muniment_server") / "migrations" / engine
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8")) for file in files]


def pending(applied: Mapping[int, str], known: Sequence[Migration]) -> list[Migration]:
    """Return what is still to apply.

    Raises SchemaError when the database is newer than this version, or was changed.
    """
    by_version = {migration.version: migration for migration in known}
    for version, checksum in sorted(applied.items()):
        if version not in by_version:
            raise SchemaError(
                f"the database has schema version {version}, this release knows up to {max(by_version)}: "
                "install the newer release (schemas are never taken back)"
            )
        if by_version[version].checksum != checksum:
            raise SchemaError(
                f"migration {by_version[version].name} was applied with another content than this release has"
            )
    return [migration for migration in known if migration.version not in applied]


# --- SQLite ---


def migrate_sqlite(connection: apsw.Connection) -> list[Migration]:
    """Apply what is pending and return it. Each file is one transaction. Raises SchemaError."""
    done: list[Migration] = []
    while True:
        connection.execute("BEGIN IMMEDIATE")  # a second process waits here and then finds nothing to do
        try:
            connection.execute(_TABLE)
            todo = pending(dict(connection.execute(_SELECT)), available("sqlite"))
            if todo:
                connection.execute(todo[0].sql)
                connection.execute("INSERT INTO schema_migrations VALUES (?, ?, ?)", (*_row(todo[0]),))
            connection.execute("COMMIT")
        except BaseException:
            if (
                connection.in_transaction
            ):  # a full disk has rolled back already, and that is what the operator must read of
                connection.execute("ROLLBACK")
            raise
        if not todo:
            return done
        done.append(todo[0])


def check_sqlite(connection: apsw.Connection) -> None:
    """Raise SchemaError unless nothing is to apply. Changes nothing."""
    tables = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'").fetchall()
    if not tables or pending(dict(connection.execute(_SELECT)), available("sqlite")):
        raise SchemaError(
            "the database has the schema of an older release, and its folder can only be read: "
            "copy the folder to where it can be written"
        )


# --- Postgres ---


async def pending_postgres(connection: asyncpg.Connection[Any]) -> list[Migration]:
    """Return what is to apply, changing nothing. Raises SchemaError."""
    exists = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = await connection.fetch(_SELECT) if exists else []
    return pending({row["version"]: row["checksum"] for row in rows}, available("postgres"))


async def migrate_postgres(connection: asyncpg.Connection[Any]) -> list[Migration]:
    """Apply what is pending and return it. Each file is one transaction; only one process at a time.

    Raises SchemaError.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute("SET client_min_messages = warning")
        todo = await pending_postgres(connection)
        if todo:  # only then: a role that may not create anything can still find that nothing is to do
            await connection.execute(_TABLE)
        for migration in todo:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute("INSERT INTO schema_migrations VALUES ($1, $2, $3)", *_row(migration))
        return todo
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


def _row(migration: Migration) -> tuple[int, str, str]:
    return migration.version, migration.name, migration.checksum
