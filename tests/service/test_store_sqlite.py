"""What only the SQLite store must do: keep its settings, and know when it cannot tell."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from muniment.tiles import Tile
from muniment_server.errors import Corrupt, OutcomeUnknown, SchemaError, StoreUnavailable
from muniment_server.storage.sqlite.connect import connect
from muniment_server.storage.sqlite.database import Database
from muniment_server.storage.sqlite.open import open_sqlite
from tests.service.audit import audit
from tests.service.rig import Rig


@pytest.fixture
def engine() -> str:
    return "sqlite"


def database_of(rig: Rig) -> Database:
    return rig.store.reads._database


PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL
    "foreign_keys": 1,
    "recursive_triggers": 1,
    "trusted_schema": 0,
    "secure_delete": 1,
    "busy_timeout": 10_000,
}


async def test_every_connection_has_the_settings_that_durability_needs(rig: Rig):
    def look(connection: apsw.Connection) -> dict[str, object]:
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in [*PRAGMAS, "query_only"]}

    assert await database_of(rig).write(look) == PRAGMAS | {"query_only": 0}
    assert await database_of(rig).read(look) == PRAGMAS | {"query_only": 1}


def test_a_database_that_cannot_have_these_settings_is_refused():
    """SQLite answers a journal mode that it cannot have with the one it keeps: an in-memory database stands for a file system without WAL."""
    with pytest.raises(SchemaError, match="journal_mode=memory"):
        connect(Path(":memory:"))


def test_servers_that_start_at_once_on_a_new_database_all_open_it(tmp_path: Path):
    """SQLite tells one of two that turn the WAL on at once `busy` without waiting: about one of ten rounds here."""
    with ThreadPoolExecutor(8) as starting:
        for number in range(100):
            for connection in starting.map(connect, [tmp_path / f"{number}.db"] * 8):
                connection.close()


async def test_a_reader_cannot_write(rig: Rig):
    with pytest.raises(StoreUnavailable, match="readonly"):
        await database_of(rig).read(lambda db: db.execute("DELETE FROM idempotency").fetchall())


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("3.51.3", True),
        ("3.52.0", True),
        ("3.100.0", True),
        ("4.0.0", True),
        ("3.51.2", False),
        ("3.9.9", False),
        ("3.6.23.1", False),
        ("2.8.17", False),
    ],
)
def test_versions_are_compared_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, good: bool):
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    if good:
        connect(tmp_path / "db").close()
    else:
        with pytest.raises(SchemaError, match=version):
            connect(tmp_path / "db")
        assert not (tmp_path / "db").exists()


async def test_it_writes_ahead(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    wal = rig.folder / "store.sqlite-wal"
    assert wal.stat().st_size > 0
    assert (rig.folder / "store.sqlite-shm").exists()
    frozen = rig.folder / "frozen"
    frozen.mkdir()
    await bench.extend(b"b")
    for name in ("store.sqlite", "store.sqlite-wal"):  # what a power cut would leave: no -shm, nothing checkpointed
        shutil.copy(rig.folder / name, frozen / name)
    store = await open_sqlite(frozen / "store.sqlite")
    assert await store.reads.leaves(bench.log_id, 0, 9) == [b"a", b"b"]
    await store.close()
    await rig.store.close()
    assert not wal.exists(), "the last one to close cleans up"


async def test_a_busy_database_is_unavailable(rig: Rig):
    bench = await rig.log("raw")
    grown, expected = await bench.grown([b"a"])
    database_of(rig)._writer.set_busy_timeout(50)
    other = apsw.Connection(str(rig.folder / "store.sqlite"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await rig.store.log.append(grown, expected)
    assert (await rig.store.reads.head(bench.log_id)).size == 0, "readers do not wait for writers"
    other.execute("ROLLBACK")
    other.close()
    await rig.store.log.append(grown, expected)
    await audit(bench)


async def test_writers_of_two_processes_wait_for_each_other(rig: Rig):
    bench, other = await rig.log("raw"), await rig.log("raw")
    store = await rig.open()

    async def extend(which, through) -> None:
        for number in range(30):
            await through.log.append(*await which.grown([b"%d" % number]))

    await asyncio.gather(extend(bench, rig.store), extend(other, store))
    assert len(await audit(bench)) == len(await audit(other)) == 30


async def test_a_commit_that_fails_is_an_unknown_outcome(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    grown, expected = await bench.grown([b"b"])
    database_of(rig)._writer.set_commit_hook(lambda: True)
    with pytest.raises(OutcomeUnknown):
        await rig.store.log.append(grown, expected)
    with pytest.raises(OutcomeUnknown):
        await rig.store.log.fence(bench.log_id, expected)
    database_of(rig)._writer.set_commit_hook(None)
    await rig.store.log.append(grown, expected)
    assert await audit(bench) == [b"a", b"b"]


async def test_what_is_stored_but_cannot_be_read_back_is_an_unknown_outcome(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    bench = await rig.log("raw")
    grown, expected = await bench.grown([b"a"])

    async def reread(*words: object) -> None:
        raise StoreUnavailable("no more descriptors")

    monkeypatch.setattr(rig.store.reads, "reread", reread)
    with pytest.raises(OutcomeUnknown, match="stored, but not read back: no more descriptors"):
        await rig.store.log.append(grown, expected, (), [Tile(0, 0, 1)])
    assert await audit(bench) == [b"a"]


async def test_a_full_disk_is_unavailable_and_writes_nothing(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    pages = await database_of(rig).write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await database_of(rig).write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall())
    before = await rig.dump()
    with pytest.raises(StoreUnavailable, match="full"):
        await bench.extend(*[bytes([n]) * 60_000 for n in range(10)])
    assert await rig.dump() == before
    await database_of(rig).write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
    await bench.extend(*[bytes([n]) * 60_000 for n in range(10)])
    assert len(await audit(bench)) == 11


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path):
    (tmp_path / "text").write_text("no database, but text that is long enough to look at" * 100)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "store.sqlite"):
        with pytest.raises(StoreUnavailable):
            await open_sqlite(path)
    with pytest.raises(Corrupt):
        await open_sqlite(tmp_path / "text")


@pytest.mark.parametrize("kept", [0, 100])
async def test_a_wal_outlives_a_database_that_cannot_be_opened(rig: Rig, tmp_path: Path, kept: int):
    """A copy was put in place of the database, and its WAL was left: it holds entries that were answered."""
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % number * 1000 for number in range(300)])
    database_of(rig)._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    await bench.extend(b"a")
    file, wal = tmp_path / "other.sqlite", tmp_path / "other.sqlite-wal"
    shutil.copy(rig.folder / "store.sqlite-wal", wal)  # as after a kill
    data = (rig.folder / "store.sqlite").read_bytes()
    file.write_bytes(data[:kept].ljust(len(data), b"x"))
    before = file.read_bytes(), wal.read_bytes()
    for _ in range(2):
        with pytest.raises(Corrupt, match="move the three files away together"):
            await open_sqlite(file)
        assert (file.read_bytes(), wal.read_bytes()) == before


async def test_a_damaged_page_is_unavailable_not_a_crash(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(*[bytes([n]) * 3000 for n in range(100)])
    await rig.store.close()
    path = rig.folder / "store.sqlite"
    data = bytearray(path.read_bytes())
    for at in range(2 * 4096, len(data), 4096):
        data[at : at + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises((StoreUnavailable, SchemaError, Corrupt)):
        await read_all(path, bench.log_id)


async def read_all(path: Path, log_id: int) -> None:
    store = await open_sqlite(path)
    try:
        await store.reads.leaves(log_id, 0, 100)
    finally:
        await store.close()
