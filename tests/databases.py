"""Databases for tests on a Postgres: empty ones, and migrated ones, which are copies of one that was migrated once."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import asyncpg

from muniment_server.storage.migrate import available
from muniment_server.storage.postgres.connect import migrate
from tests import shared

_counter = itertools.count()
_templates: set[tuple[str, str]] = set()
"""Server and name of those that this process knows to be there."""


class Databases:
    """Databases on the Postgres at `server`. `made` are those that :meth:`close` drops."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.made: list[str] = []

    def empty(self) -> str:
        """URL of a new database with nothing in it."""
        return self._copy("template0")

    def migrated(self) -> str:
        """URL of a new database as `migrate` leaves it."""
        return self._copy(self._template())

    def close(self) -> None:
        """Drop what was made, whoever is still connected to it."""
        made, self.made = self.made, []
        _execute(self.server, *(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in made))

    def _copy(self, template: str) -> str:
        name = f"muniment_test_{os.getpid()}_{next(_counter)}"
        # Not by way of the write-ahead log, which is the default: that takes twice as long.
        _execute(self.server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        self.made.append(name)
        return self._url(name)

    def _template(self) -> str:
        """Name of the database that is copied: that of its migrations, for a server may have one from another time."""
        migrations = "".join(migration.sql for migration in available("postgres"))
        name = f"muniment_template_{sha256(migrations.encode()).hexdigest()[:12]}"
        if (self.server, name) not in _templates:
            with shared.alone("template"):
                self._make_template(name)
            _templates.add((self.server, name))
        return name

    def _make_template(self, name: str) -> None:
        if _execute(self.server, f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
            return
        _execute(self.server, f"DROP DATABASE IF EXISTS {name}_new", f"CREATE DATABASE {name}_new")
        asyncio.run(migrate(self._url(f"{name}_new")))
        _execute(self.server, f"ALTER DATABASE {name}_new RENAME TO {name}")

    def _url(self, name: str) -> str:
        base, _, query = self.server.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")


@contextmanager
def databases(server: str) -> Iterator[Databases]:
    """Databases that are dropped at the end."""
    made = Databases(server)
    try:
        yield made
    finally:
        made.close()


def _execute(url: str, *statements: str) -> list[asyncpg.Record]:
    """Run statements, each in a transaction of its own, and return the rows of the last one."""

    async def work() -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = []
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                found = await connection.fetch(statement)
        finally:
            await connection.close()
        return found

    return asyncio.run(work()) if statements else []
