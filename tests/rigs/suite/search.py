"""search: random queries on a log of 5,000 hard entries find what a second evaluator finds, and both stores answer the same.

A seed is a log of its own on SQLite and on Postgres, with the same entries, and 500 queries: of all kinds, over times, in both orders,
in pages of any size, while the index has a part of the log, all but a few entries, or all. Every fourth seed is searched by some members
alone. The evaluator was written from docs/search.md, shares nothing with the code, and looks at every entry.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from tests.databases import databases
from tests.rigs.rig import Context, FaultRig
from tests.service.rig import open_rig
from tests.service.search_compare import compare

ENTRIES = 5_000
QUERIES = 500


async def _seed(seed: int, folder: Path, database: str) -> Counter[str]:
    await migrate(database)
    sqlite = await open_sqlite(folder / "store.sqlite")
    postgres = await open_postgres(database)
    try:
        async with (
            open_rig("sqlite", None, folder, sqlite) as one,
            open_rig("postgres", database, folder / "postgres", postgres) as other,
        ):
            return await compare([one, other], seed, ENTRIES, QUERIES)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await sqlite.close()
        await postgres.close()


def _run(context: Context) -> None:
    for seed in context.each():
        folder = context.folder / str(seed)
        folder.mkdir()
        with databases(context.postgres()) as made:
            counts = asyncio.run(_seed(seed, folder, made.empty()))
        context.done(QUERIES, **counts)


RIGS = [FaultRig("search", "queries that find what a scan finds, on both stores", "queries", _run, quick=1, full=20)]
