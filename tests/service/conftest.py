"""Fixtures of the service tests: a rig on each store, and the choice of another Postgres.

    MUNIMENT_TEST_POSTGRES_MAJOR=15 pytest tests/service

runs everything on a Postgres of exactly that major version, started from the binaries of this machine, or skips saying why not.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from muniment_server.storage import Store
from muniment_server.storage.postgres.connect import OLDEST
from tests.live import PATIENCE
from tests.service.rig import Rig, open_rig


@contextmanager
def postgres_of(major: int) -> Iterator[str]:
    """URL of a Postgres of this major version. Skips the test where there are no binaries of it."""
    found = next((folder for folder in _binaries() if _major(folder) == major), None)
    if found is None:
        pytest.skip(f"no initdb and postgres of Postgres {major} on this machine")
    folder = Path(tempfile.mkdtemp(prefix="muniment-pg-"))
    as_other: dict[str, int | str] = {}
    if os.geteuid() == 0:  # Postgres refuses to run as root
        as_other = {"user": "nobody", "group": "nogroup"}
        shutil.chown(folder, "nobody", "nogroup")
        folder.chmod(0o755)
    data, port = folder / "data", "5432"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c port={port}"

    def run(program: str, *words: str | Path) -> None:
        with (folder / "output").open("ab") as output:
            done = subprocess.run(
                [found / program, *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
                **as_other,
            )
        if done.returncode:
            raise AssertionError(f"{program} failed: {(folder / 'output').read_text()}")

    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
    run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}&port={port}"
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> list[Path]:
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    return [*on_path, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


def _major(folder: Path) -> int:
    if not (folder / "initdb").exists() or not (folder / "postgres").exists():
        return 0
    said = subprocess.run(
        [folder / "postgres", "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    found = re.search(r"\) (\d+)", said.stdout)
    return int(found[1]) if found else 0


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """As everywhere, but MUNIMENT_TEST_POSTGRES_MAJOR chooses a version among the binaries of this machine."""
    if major := os.environ.get("MUNIMENT_TEST_POSTGRES_MAJOR"):
        with postgres_of(int(major)) as url:
            yield url
    else:
        yield request.getfixturevalue("postgres_server")


class _Databases:
    """Databases that are emptied after a test and given to the next one: making and dropping one costs ten times as much."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._made: list[str] = []
        self._free: list[str] = []

    def url(self, name: str) -> str:
        base, _, query = self._server.partition("?")
        return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")

    def take(self) -> str:
        if not self._free:
            name = f"muniment_test_{os.getpid()}_service_{len(self._made)}"
            asyncio.run(_execute(self._server, f"CREATE DATABASE {name}"))
            self._made.append(name)
            self._free.append(name)
        return self._free.pop()

    def give_back(self, name: str) -> None:
        asyncio.run(
            _execute(
                self.url(name),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
                f"ALTER DATABASE {name} RESET ALL",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
                "GRANT USAGE ON SCHEMA public TO PUBLIC",
            )
        )
        self._free.append(name)

    def close(self) -> None:
        for name in self._made:
            asyncio.run(_execute(self._server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


async def _execute(url: str, *statements: str) -> None:
    # As without settings of the database, which a test may have changed: a lock or a statement may take its time here.
    connection = await asyncpg.connect(url, server_settings={"lock_timeout": "0", "client_min_messages": "warning"})
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def _databases(postgres_server: str) -> Iterator[_Databases]:
    databases = _Databases(postgres_server)
    yield databases
    databases.close()


@pytest.fixture
def new_database(_databases: _Databases) -> Iterator[Callable[[], str]]:
    """Make empty databases on the Postgres server, as the fixture of this name does everywhere."""
    taken: list[str] = []

    def make() -> str:
        taken.append(_databases.take())
        return _databases.url(taken[-1])

    yield make
    for name in taken:
        _databases.give_back(name)


@pytest.fixture
async def rig(engine: str, database: str | None, tmp_path: Path, store: Store) -> AsyncIterator[Rig]:
    """A rig on each store in turn."""
    async with open_rig(engine, database, tmp_path, store) as made:
        yield made


@pytest.fixture
def oldest_postgres() -> Iterator[str]:
    """URL of the oldest Postgres that is supported."""
    with postgres_of(OLDEST) as url:
        yield url
