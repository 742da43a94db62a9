"""The embedded store: SQLite through apsw, WAL, ``synchronous=FULL``, one writer thread and read connections apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from muniment_server.storage import Store
from muniment_server.storage.sqlite.anchors import SqliteAnchors
from muniment_server.storage.sqlite.append import SqliteAppend
from muniment_server.storage.sqlite.catalog import SqliteCatalog
from muniment_server.storage.sqlite.checkpoints import SqliteCheckpoints
from muniment_server.storage.sqlite.database import Database
from muniment_server.storage.sqlite.followers import SqliteFollowers
from muniment_server.storage.sqlite.inspect import SqliteInspect
from muniment_server.storage.sqlite.reads import SqliteReads
from muniment_server.storage.sqlite.recent_leaf_keys import Recent
from muniment_server.storage.sqlite.search import SqliteSearch
from muniment_server.storage.sqlite.sinks import SqliteSinks


async def open_sqlite(path: Path) -> Store:
    """Open, and create or migrate, the database at `path`. Raises SchemaError, Corrupt, or StoreUnavailable."""
    database = await asyncio.to_thread(Database.open, path)
    recent: dict[int, Recent] = {}
    reads = SqliteReads(database, recent)
    return Store(
        log=SqliteAppend(database, reads, recent),
        reads=reads,
        checkpoints=SqliteCheckpoints(database),
        inspect=SqliteInspect(database),
        catalog=SqliteCatalog(database),
        anchors=SqliteAnchors(database),
        followers=SqliteFollowers(database),
        search=SqliteSearch(database),
        sinks=SqliteSinks(database),
        close=database.close,
    )
