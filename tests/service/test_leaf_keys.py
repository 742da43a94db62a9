"""The table of leaf keys in SQLite is written behind the entries, and yet no look-up misses one."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.hashing import EMPTY_ROOT, leaf_hash
from muniment.tree import Edge, grow, partial_tiles
from muniment_server.errors import DuplicateLeaf, StoreError
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Grown, Head, leaf_key, leaf_keys_of
from muniment_server.storage.migrate import available, migrate_sqlite
from muniment_server.storage.sqlite import append as module
from muniment_server.storage.sqlite import database
from muniment_server.storage.sqlite import leaf_keys as table
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.storage.sqlite.recent_leaf_keys import SPANS, STEP, Recent, floor_of, span_of

LOG = LogRow(1, "raw", "example.com/raw", "raw", True, False, 0)


def carried_to(key: int, steps: int) -> int:
    """The index below which entries with keys of this span are in the table: found by going through all steps."""
    return max([(step + 1) * STEP for step in range(steps) if step % SPANS == span_of(key)], default=0)


@pytest.mark.parametrize("batches", [[1] * 2100, [STEP] * 66, [777] * 86, [10_000] * 8, [5, 100_000, 3, 70_000]])
def test_every_row_is_carried_over_once_and_in_its_turn(batches: list[int]):
    rng = random.Random(sum(batches))
    recent, keys, rows = Recent(0), [], []
    for number, batch in enumerate([*batches, 1]):
        due = recent.due()
        assert due == sorted(due)
        rows += due
        recent.carried()
        if number in (3, 40, len(batches)):
            tops = [carried_to(span << 58, recent.steps) for span in range(SPANS)]
            assert set(rows) == {(key, at) for at, key in enumerate(keys) if at < tops[span_of(key)]}
            assert floor_of(recent.steps) == min(tops)
            waiting = [(at, key) for at, key in enumerate(keys) if at >= tops[span_of(key)]]
            assert all(recent.holds([key]) and at in recent.find([key]) for at, key in waiting)
        assert recent.size == len(keys)
        new = [rng.getrandbits(64) - (1 << 63) for _ in range(batch)]
        recent.add(new)
        keys += new
        assert not recent.holds([key ^ 1 for key in new])
    assert len(set(rows)) == len(rows)


def test_entries_with_the_same_key_are_all_kept():
    recent = Recent(0)
    recent.add([7] * 5 + [1 << 60] * 3)
    assert sorted(recent.find([7, 8])) == [0, 1, 2, 3, 4]
    recent.add(range(9, STEP + 1))
    assert [row for row in recent.due() if row[0] == 7] == [(7, at) for at in range(5)]
    recent.add([7])
    recent.carried()
    assert recent.holds([7]), "the one behind the step"
    assert list(dict.fromkeys(recent.find([7]))) == [STEP]
    assert recent.holds([1 << 60]), "of another span"


def test_what_only_looks_like_a_key_is_none():
    first, second = b"\x10" * 7 + b"\x20", b"\x10" * 8
    recent = Recent(0)
    recent.add(int.from_bytes(key) for key in (first, second))
    shifted = [int.from_bytes((first + bytes(8) + second)[at : at + 8]) for at in range(1, 16)]
    assert not recent.holds(shifted)
    assert not list(recent.find(shifted))
    assert recent.holds([*shifted, int.from_bytes(second)])


def test_keys_take_little_memory():
    rng = random.Random(1)
    tracemalloc.start()
    recent = Recent(0)
    for _ in range(SPANS):
        recent.add(rng.getrandbits(64) - (1 << 63) for _ in range(STEP))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 40 * SPANS * STEP


@given(st.lists(st.binary(min_size=32, max_size=32)))
def test_keys_of_many_hashes_are_those_of_each(hashes: list[bytes]):
    assert leaf_keys_of(hashes) == list(map(leaf_key, hashes))


# --- in the database -----------------------------------------------------------------------------------------------------


def leaf(number: int) -> bytes:
    return b"leaf %d" % number


class Writer:
    """Appends numbered raw leaves to one store."""

    def __init__(self, store: Store, log_id: int) -> None:
        self.store = store
        self.log_id = log_id

    async def append(self, head: Head, edge: Edge, numbers: range, *, look: bool = False) -> tuple[Head, Edge]:
        hashes = [leaf_hash(leaf(number)) for number in numbers]
        keys = leaf_keys_of(hashes)
        growth = grow(edge, hashes)
        after = replace(head, size=growth.edge.size, root=growth.edge.root())
        grown = Grown(self.log_id, after, list(map(leaf, numbers)), keys, [], growth.tiles)
        await self.store.log.append(grown, head, keys if look else [])
        return after, growth.edge


async def filled(store: Store, sizes: list[int]) -> tuple[Writer, Head, Edge]:
    head, edge = Head(0, EMPTY_ROOT, 0, 0, "g"), Edge()
    writer = Writer(store, (await store.catalog.create_log(LOG, head)).log_id)
    for start, stop in pairwise([0, *sizes]):
        head, edge = await writer.append(head, edge, range(start, stop))
    return writer, head, edge


SIZES = [1, 700, 1023, 1024, 3000, 8000, *range(13_000, 83_000, 10_000)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with 73,000 entries: every span was carried over, the first ones twice."""
    path = tmp_path_factory.mktemp("leaf-keys") / "db"

    async def write() -> None:
        store = await open_sqlite(path)
        await filled(store, SIZES)
        await store.close()

    asyncio.run(write())
    return path


def copy(written: Path, folder: Path) -> Path:
    path = folder / "db"
    path.write_bytes(written.read_bytes())
    return path


async def test_every_entry_is_found_by_whoever_looks(written: Path, tmp_path: Path):
    store = await open_sqlite(copy(written, tmp_path))
    other = await open_sqlite(tmp_path / "db")
    head = await store.reads.head(1)
    rng = random.Random(3)
    wanted = sorted({0, head.size - 1, *rng.sample(range(head.size), 300), *range(head.size - 100, head.size)})
    keys = [leaf_key(leaf_hash(leaf(number))) for number in wanted]
    assert await other.reads.find_leaves(1, keys) == [(number, leaf(number)) for number in wanted], "never wrote"
    writer = Writer(store, 1)
    edge = Edge.of(head.size, await store.reads.tiles(1, partial_tiles(head.size)))
    for number in wanted[:: len(wanted) // 30]:
        with pytest.raises(DuplicateLeaf):
            await writer.append(head, edge, range(number, number + 1), look=True)
    head, edge = await writer.append(head, edge, range(head.size, head.size + 5000), look=True)
    assert await store.reads.find_leaves(1, keys) == [(number, leaf(number)) for number in wanted], "wrote"
    late = leaf_key(leaf_hash(leaf(head.size - 1)))
    assert (
        await other.reads.find_leaves(1, [late])
        == await store.reads.find_leaves(1, [late])
        == [(head.size - 1, leaf(head.size - 1))]
    )
    assert await store.inspect.leaf_key_damage() == []
    await store.close()
    await other.close()


async def test_writers_in_turn(tmp_path: Path):
    stores = [await open_sqlite(tmp_path / "db") for _ in range(2)]
    writer, head, edge = await filled(stores[0], [500, 1500])
    rng = random.Random(4)
    for _ in range(40):
        writer = Writer(rng.choice(stores), 1)
        head, edge = await writer.append(
            head, edge, range(head.size, head.size + rng.choice([1, 300, 1100, 2500])), look=True
        )
        again = range(number := rng.randrange(head.size), number + 1)
        with pytest.raises(DuplicateLeaf):
            await Writer(rng.choice(stores), 1).append(head, edge, again, look=True)
    assert await stores[0].inspect.leaf_key_damage() == []
    keys = [leaf_key(leaf_hash(leaf(number))) for number in range(0, head.size, 97)]
    for store in stores:
        assert len(await store.reads.find_leaves(1, keys)) == len(keys)
        await store.close()


async def test_the_keys_of_logs_that_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_WRITTEN", 2)
    store = await open_sqlite(tmp_path / "db")
    heads: list[tuple[Writer, Head, Edge]] = []
    for number in range(3):
        empty = Head(0, EMPTY_ROOT, 0, 0, "g")
        row = replace(LOG, name=f"log-{number}", origin=f"example.com/{number}")
        heads.append((Writer(store, (await store.catalog.create_log(row, empty)).log_id), empty, Edge()))
    for turn in range(12):
        writer, head, edge = heads[turn % 3]
        heads[turn % 3] = writer, *await writer.append(head, edge, range(head.size, head.size + 900), look=True)
        assert len(store.log._recent) <= 2
    for writer, head, edge in heads:
        for number in (0, head.size // 2, head.size - 1):
            with pytest.raises(DuplicateLeaf):
                await writer.append(head, edge, range(number, number + 1), look=True)
    assert await store.inspect.leaf_key_damage() == []
    await store.close()


@pytest.mark.parametrize("fails", ["sqlite.leaf_keys", "sqlite.commit"])
async def test_what_was_not_committed_was_not_carried_over(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch):
    store = await open_sqlite(tmp_path / "db")
    writer, head, edge = await filled(store, [1000, 2100])

    def broken(*_: object) -> None:
        raise apsw.FullError("disk full")

    where, name = (table, "carry_over") if fails == "sqlite.leaf_keys" else (database, "_end")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        with pytest.raises(StoreError):
            await writer.append(head, edge, range(2100, 3100))
    head, edge = await writer.append(head, edge, range(2100, 3100), look=True)
    with pytest.raises(DuplicateLeaf):
        await writer.append(head, edge, range(2099, 2100), look=True)
    assert await store.inspect.leaf_key_damage() == []
    await store.close()


DAMAGE = {
    "a wrong key": ('UPDATE leaf_keys SET leaf_key = leaf_key + 1 WHERE "index" = 7', "wrong row for entry 7 of"),
    "a wrong index": ('UPDATE leaf_keys SET "index" = 72999 WHERE "index" = 7', "lacks the row of entry 7 of"),
    "an index beyond": ('UPDATE leaf_keys SET "index" = 1000000 WHERE "index" = 7', "wrong row for entry 1000000"),
    "another log": ('UPDATE leaf_keys SET log_id = 9 WHERE "index" = 7', "wrong row for entry 7 of log 9"),
    "a row missing": ('DELETE FROM leaf_keys WHERE "index" = 7', "lacks the row of entry 7 of log 1"),
    "a row too early": (
        'INSERT INTO leaf_keys SELECT log_id, leaf_key, "index" FROM entries WHERE id >= (1 << 40) + 72990',
        "wrong row for entry 729",
    ),
    "too few steps": ("UPDATE leaf_keys_carried SET steps = steps - 8", "wrong row for entry"),
    "too many steps": ("UPDATE leaf_keys_carried SET steps = steps + 1", "lacks the row of entry"),
    "no steps": ("DELETE FROM leaf_keys_carried", "wrong row for entry"),
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_named(written: Path, tmp_path: Path, what: str):
    sql, said = DAMAGE[what]
    path = copy(written, tmp_path)
    connection = apsw.Connection(str(path))
    assert table.damage(connection) == []
    for name in connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'leaf_keys%'"
    ).fetchall():
        connection.execute(f"DROP TRIGGER {name[0]}")
    connection.execute(sql)
    assert any(said in line for line in table.damage(connection)), table.damage(connection)
    table.rebuild(connection)
    assert table.damage(connection) == []
    connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE leaf_keys SET leaf_key = 0",
        "DELETE FROM leaf_keys",
        "DELETE FROM leaf_keys_carried",
        "UPDATE leaf_keys_carried SET steps = 1",
    ],
)
def test_the_table_only_grows(written: Path, tmp_path: Path, sql: str):
    connection = apsw.Connection(str(copy(written, tmp_path)))
    with pytest.raises(apsw.ConstraintError, match="muniment: "):
        connection.execute(sql)
    connection.close()


def test_an_older_database_gets_its_table(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = apsw.Connection(str(tmp_path / "old"))
    with monkeypatch.context() as patch:
        patch.setattr("muniment_server.storage.migrate.available", lambda engine: available(engine)[:4])
        migrate_sqlite(old)
    old.execute("ATTACH ? AS new", (str(copy(written, tmp_path)),))
    old.execute("INSERT INTO logs SELECT * FROM new.logs; INSERT INTO heads SELECT * FROM new.heads")
    old.execute("INSERT INTO entries (id, leaf_key, leaf) SELECT id, leaf_key, leaf FROM new.entries ORDER BY id")
    migrate_sqlite(old)
    assert old.execute("SELECT log_id, steps FROM leaf_keys_carried").fetchall() == [(1, SIZES[-1] // STEP)]
    assert table.damage(old) == []
    old.close()


def test_a_leaf_key_is_looked_up_by_the_table(written: Path, tmp_path: Path):
    """The planner may not walk the log for a look-up: with one log, log_id alone selects nothing."""
    connection = apsw.Connection(str(copy(written, tmp_path)))
    for sql, values in ((table._FIND, (1, 2)), (table._ANY, (1, "[2]"))):
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
        assert "leaf_keys USING PRIMARY KEY (log_id=? AND leaf_key=?)" in plan.replace(" k ", " leaf_keys "), plan
        assert "SCAN entries" not in plan
        assert "SCAN e" not in plan
    connection.close()
