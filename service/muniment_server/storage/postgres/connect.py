"""A connection to Postgres, the server behind it, and the migrations of its database."""

from __future__ import annotations

from typing import Any

import asyncpg

from muniment_server.database_url import read_url
from muniment_server.errors import SchemaError, SettingsError, StoreUnavailable
from muniment_server.storage.migrate import migrate_postgres, pending_postgres

OLDEST = 15
CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0
# Every statement here, and those of the triggers, finds its rows by primary key. A plan is kept as long as its
# connection, so one that was made while a table was empty would go on reading the whole table while it grows, until
# the table is analyzed. Left alone, Postgres plans small appends anew each time, which takes as long as a half of them.
PLANS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
FAILED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What a statement may fail with."""
# Without these a commit that was answered may be gone, or half there, after a power cut or a failed fsync.
_DURABLE = {"fsync": "on", "full_page_writes": "on", "data_sync_retry": "off", "zero_damaged_pages": "off"}


def is_lost_race(error: BaseException) -> bool:
    """Tell whether a statement failed for what others stored, and for nothing else.

    After any other fault its connection is not used again. A server that became a standby, a default that was changed
    meanwhile: such things stay with a connection for as long as it lives, and nothing tells them from a fault that
    passes.
    """
    state = getattr(error, "sqlstate", None) or ""
    # 40001: in a database that isolates more than it must.
    return state.startswith("23") or state == "40001"


def arguments(url: str) -> dict[str, Any]:
    """Return how to connect, for the driver. Raises SettingsError."""
    given = read_url(url)
    return {"timeout": CONNECT_SECONDS} | given | {"server_settings": PLANS | given.get("server_settings", {})}


async def connect(url: str, command_timeout: float | None = COMMAND_SECONDS) -> asyncpg.Connection[Any]:
    """Open one connection. Raises StoreUnavailable."""
    given = arguments(url)
    try:
        made: asyncpg.Connection[Any] = await asyncpg.connect(command_timeout=command_timeout, **given)
    except (*FAILED, ValueError) as error:
        raise StoreUnavailable(f"cannot connect to Postgres: {error}") from error
    return made


async def _first(url: str, command_timeout: float | None = COMMAND_SECONDS) -> asyncpg.Connection[Any]:
    """As `connect`; raises SettingsError where trying again would not help: a certificate is missing, say."""
    try:
        return await connect(url, command_timeout)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, asyncpg.exceptions.ClientConfigurationError):
            raise SettingsError(f"setting database: {error.__cause__}") from error
        raise


async def check_database(url: str) -> None:
    """Raise SchemaError unless the server and the schema of its database will do; SettingsError; StoreUnavailable."""
    connection = await _first(url)
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


async def migrate(url: str, *, dry_run: bool = False) -> list[str]:
    """Apply pending migrations and return their names; with `dry_run` only name them.

    Raises SchemaError, SettingsError, StoreUnavailable.
    """
    connection = await _first(url, command_timeout=None)  # a migration may take long, or wait for another one
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


async def make_schema(url: str) -> None:
    """Apply all migrations to a database that never had one; leave every other database as it is.

    Raises SchemaError, SettingsError, StoreUnavailable.
    """
    connection = await _first(url)
    try:
        fresh = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NULL")
    except FAILED as error:
        raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
    finally:
        await connection.close()
    if fresh:
        try:
            await migrate(url)
        except SchemaError as error:
            raise SchemaError(
                f"the database is empty and its tables cannot be made: {error}. "
                "Run `muniment-server migrate` with a role that may make them"
            ) from error


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
