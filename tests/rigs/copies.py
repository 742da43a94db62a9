"""Copies of a log's database on either store, made, put in the place of each other and dropped while writers are on them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Protocol

import apsw
import asyncpg

from muniment_server.storage import Store
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite


class Copies(Protocol):
    """Databases by name."""

    async def first(self) -> str:
        """Make an empty database."""

    async def open(self, name: str) -> Store:
        """Open a store on a database, as another process would."""

    async def copy(self, name: str) -> str:
        """Copy a database as it is now, whoever writes it, and return the name of the copy."""

    async def drop(self, name: str) -> None:
        """Remove a database."""


class SqliteCopies:
    """Files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0

    def _name(self) -> str:
        self._made += 1
        return f"{self._made}.sqlite"

    async def first(self) -> str:
        """See Copies."""
        name = self._name()
        await (await self.open(name)).close()
        return name

    async def open(self, name: str) -> Store:
        """See Copies."""
        return await open_sqlite(self.folder / name)

    async def copy(self, name: str) -> str:
        """See Copies."""
        copied = self._name()
        await asyncio.to_thread(backup, self.folder / name, self.folder / copied)
        return copied

    async def replace(self, name: str, by: str) -> None:
        """Put a copy in the place of a database that may be open, as a restore does."""
        for end in ("-wal", "-shm"):
            (self.folder / (name + end)).unlink(missing_ok=True)
        (self.folder / by).replace(self.folder / name)

    async def drop(self, name: str) -> None:
        """See Copies."""
        for end in ("", "-wal", "-shm"):
            (self.folder / (name + end)).unlink(missing_ok=True)


def backup(source: Path, target: Path) -> None:
    """Copy a SQLite database that may be written meanwhile."""
    one, two = apsw.Connection(str(source)), apsw.Connection(str(target))
    one.set_busy_timeout(10_000)
    with two.backup("main", one, "main") as copying:
        copying.step()
    two.close()
    one.close()


class PostgresCopies:
    """Databases of one server. A copy cuts every connection to its source: CREATE DATABASE wants it unused."""

    def __init__(self, server: str, names: str) -> None:
        self.server = server
        self._names = names
        self._made = 0

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        before, slash, after = self.server.partition("?")
        return f"{before.rsplit('/', 1)[0]}/{name}{'?' if slash else ''}{after}"

    async def first(self) -> str:
        """See Copies."""
        name = await self._create("")
        await migrate(self.url(name))
        return name

    async def _create(self, more: str) -> str:
        self._made += 1
        name = f"{self._names}_{self._made}"
        await self._sql(f"CREATE DATABASE {name} {more}")
        return name

    async def open(self, name: str) -> Store:
        """See Copies."""
        return await open_postgres(self.url(name))

    async def copy(self, name: str) -> str:
        """See Copies."""
        await self._sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            await self.cut(name)
            return await self._create(f"TEMPLATE {name}")
        finally:
            await self._sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    async def cut(self, name: str) -> None:
        """End every connection to a database, and wait until they are gone."""
        where = f"FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        async with asyncio.timeout(30):
            while await self._sql(f"SELECT pg_terminate_backend(pid) {where}"):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.005)

    async def drop(self, name: str) -> None:
        """See Copies."""
        await self._sql(f"DROP DATABASE {name} WITH (FORCE)")

    async def _sql(self, statement: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.url("postgres"), timeout=10)
        try:
            return await connection.fetch(statement)
        finally:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                await connection.close()
