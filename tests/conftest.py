"""Fixtures all tests share: a real Postgres, and databases and servers that belong to one test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from muniment_server.storage import Store
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.telemetry import configure_logging
from tests import shared
from tests.databases import Databases, databases
from tests.live import ORIGIN, LiveServer, run

# Hypothesis: the same examples on every run where CI is set. No deadline, no minimal speed: a busy machine is no bug.
settings.register_profile(
    "muniment",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("muniment")


@pytest.hookimpl(tryfirst=True)  # before pytest chooses a folder for tmp_path
def pytest_configure(config: pytest.Config) -> None:
    """Begin a run; workers are in the run of the process that started them."""
    shared.begin()
    configure_logging("console", "debug")  # tests look at lines of every level
    if config.option.basetemp is None:
        config.option.basetemp = str(shared.folder() / "tmp")


_failed = False


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remember whether there is something to look at."""
    global _failed  # noqa: PLW0603 - there is no other way from this hook to the next
    _failed = exitstatus not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


def pytest_unconfigure() -> None:
    """End the run, in the process that began it."""
    shared.end(keep=_failed)


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """URL of a real Postgres: MUNIMENT_TEST_POSTGRES, or the one of this run, from the binaries that PyPI carries."""
    return os.environ.get("MUNIMENT_TEST_POSTGRES") or shared.postgres()


@pytest.fixture
def postgres_databases(postgres_server: str) -> Iterator[Databases]:
    """Databases on the Postgres server, dropped after the test."""
    with databases(postgres_server) as made:
        yield made


@pytest.fixture
def new_database(postgres_databases: Databases) -> Callable[[], str]:
    """Make empty databases on the Postgres server, dropped after the test."""
    return postgres_databases.empty


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    """Run the test once on each store."""
    return request.param


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest) -> str | None:
    """URL of a migrated Postgres database, or None for the embedded SQLite."""
    return request.getfixturevalue("postgres_databases").migrated() if engine == "postgres" else None


@pytest.fixture
async def store(engine: str, database: str | None, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty, migrated store."""
    if database:
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
            run("init", "--data", folder, "--origin", ORIGIN, "--kind", kind, database=database)
        server = LiveServer(folder, *flags, database=database, env=env)
        started.append(server)
        return server.wait()

    yield start
    for server in started:
        server.stop()
