"""Fixtures of the service tests: a rig on each store, and the choice of another Postgres.

    MUNIMENT_TEST_POSTGRES_MAJOR=15 pytest tests/service

runs everything on a Postgres of exactly that major version, started from the binaries of this machine, or skips saying why not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muniment_server.storage import Store
from muniment_server.storage.postgres.connect import OLDEST
from tests import shared
from tests.live import PATIENCE
from tests.service.rig import Rig, open_rig


@contextmanager
def postgres_of(major: int) -> Iterator[str]:
    """URL of a Postgres of this major version. Skips the test where there are no binaries of it."""
    found = next((folder for folder in _binaries() if _major(folder) == major), None)
    if found is None:
        pytest.skip(f"no initdb and postgres of Postgres {major} on this machine")
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=shared.folder()))
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
