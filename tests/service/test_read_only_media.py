"""A data folder on a medium that is mounted read-only: everything that only reads works, and nothing else is tried."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from muniment.policy import Policy
from muniment_server.storage.sqlite.open import open_sqlite
from tests.live import PATIENCE, LiveServer, command, environment, init
from tests.service.http_audit import audit
from tests.service.http_check import JSON, client, published

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a folder read-only")
MOUNTED = "tests.service.read_only_mount"
ENTRIES = 5


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that was stopped: nothing of its database stands in a WAL."""
    data = tmp_path_factory.mktemp("media") / "data"
    init(data)
    _append(data)
    return data


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, stopped: Path) -> Path:
    """The folder of a server that was killed: its last entries stand in the WAL."""
    data = tmp_path_factory.mktemp("media") / "data"
    shutil.copytree(stopped, data)
    server = LiveServer(data, traced=False)
    with server.wait(), client(server.url) as http:
        http.post("/entries", content=b'{"last":1}', headers=JSON).raise_for_status()
        published(http, "", 2 + ENTRIES)
        server.process.kill()
        server.process.wait()
    assert (data / "muniment.sqlite-wal").stat().st_size
    return data


def _append(data: Path) -> None:
    with LiveServer(data) as server, client(server.url) as http:
        for n in range(ENTRIES):
            http.post("/entries", content=b'{"n":%d}' % n, headers=JSON).raise_for_status()


def mounted(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command on a folder that is mounted read-only."""
    return subprocess.run(
        command(*words, module=MOUNTED),
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )


def files(data: Path) -> dict[str, bytes]:
    """What stands in the folder. The index of a WAL is made anew by each process that reads it."""
    return {
        str(path.relative_to(data)): path.read_bytes()
        for path in sorted(data.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("state", ["stopped", "killed"])
def test_what_reads_works_and_changes_nothing(state: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = request.getfixturevalue(state)
    before, size = files(data), 1 + ENTRIES + (state == "killed")
    for words in (["fsck"], ["log", "list"], ["key", "list"], ["guard", "show"], ["backup", "--to", tmp_path / "copy"]):
        done = mounted(*words, "--data", data)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    with LiveServer(data, "--read-only", traced=False, module=MOUNTED) as server, client(server.url) as http:
        assert audit(http, Policy.read(data / "policy")).checkpoint.size == size
        assert http.get("/readyz").json()["writes"] == {"default": False}
        refused = http.post("/entries", content=b'{"n":0}', headers=JSON)
        assert (refused.status_code, refused.json()["code"]) == (503, "read_only")
    assert server.process.returncode == 0, server.stderr()
    assert files(data) == before


def test_what_would_write_says_what_to_do(stopped: Path) -> None:
    done = mounted("serve", "--port", "0", "--data", stopped)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pass --read-only to serve reads" in done.stderr
    done = mounted("key", "create", "--scope", "append", "--data", stopped)
    assert done.returncode == 4, done.stderr
    assert "can only be read" in done.stderr


def test_a_wal_without_its_index_cannot_be_read_there(killed: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(killed, data, ignore=shutil.ignore_patterns("*-shm"))
    done = mounted("log", "list", "--data", data)
    assert done.returncode == 4
    assert "Copy the folder to where it can be written" in done.stderr


async def test_where_only_this_process_may_not_write_another_may(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened as one that nothing changes, a database would be read as it was, or as pages of two times."""
    data = tmp_path / "data"
    shutil.copytree(stopped, data)
    with monkeypatch.context() as patched:
        patched.setattr("muniment_server.storage.sqlite.database.is_writable", lambda _: False)
        store = await open_sqlite(data / "muniment.sqlite")
    try:
        before = (await store.reads.head(1)).size
        await asyncio.to_thread(_append, data)
        assert (await store.reads.head(1)).size == before + ENTRIES
    finally:
        await store.close()


def test_an_older_schema_is_not_migrated_there(stopped: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(stopped, data)
    _forget_the_last_migration(data)
    done = mounted("log", "list", "--data", data)
    assert done.returncode == 2
    assert "schema of an older release" in done.stderr


def _forget_the_last_migration(data: Path) -> None:
    import apsw  # noqa: PLC0415

    with apsw.Connection(str(data / "muniment.sqlite")) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations)")
    connection.close()
