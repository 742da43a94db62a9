"""The store in Postgres, through asyncpg: a connection for each log that writes, and a pool for all that reads."""

from __future__ import annotations

from muniment_server.storage import Store
from muniment_server.storage.postgres.anchors import PostgresAnchors
from muniment_server.storage.postgres.append import PostgresAppend
from muniment_server.storage.postgres.catalog import PostgresCatalog
from muniment_server.storage.postgres.checkpoints import PostgresCheckpoints
from muniment_server.storage.postgres.connect import check_database
from muniment_server.storage.postgres.followers import PostgresFollowers
from muniment_server.storage.postgres.inspect import PostgresInspect
from muniment_server.storage.postgres.pool import Pool
from muniment_server.storage.postgres.reads import PostgresReads
from muniment_server.storage.postgres.search import PostgresSearch
from muniment_server.storage.postgres.sessions import Sessions
from muniment_server.storage.postgres.sinks import PostgresSinks


async def open_postgres(url: str) -> Store:
    """Connect to a migrated database. Raises SchemaError with the command to run, or StoreUnavailable."""
    await check_database(url)
    pool = await Pool.open(url)
    sessions = Sessions(url)

    async def close() -> None:
        await sessions.close()
        await pool.close()

    return Store(
        log=PostgresAppend(pool, sessions),
        reads=PostgresReads(pool, sessions),
        checkpoints=PostgresCheckpoints(pool, sessions),
        inspect=PostgresInspect(pool),
        catalog=PostgresCatalog(pool),
        anchors=PostgresAnchors(pool, sessions),
        followers=PostgresFollowers(sessions),
        search=PostgresSearch(pool, sessions),
        sinks=PostgresSinks(pool, sessions),
        close=close,
    )
