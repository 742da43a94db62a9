"""The contract of storage.search, sentence by sentence, on each store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import apsw
import pytest

from muniment_server.errors import Corrupt
from muniment_server.storage.postgres import search as postgres
from muniment_server.storage.postgres.connect import connect
from muniment_server.storage.postings import decode, encode
from muniment_server.storage.search import MOST_TAIL, IndexState, TermRow
from muniment_server.storage.sqlite import search as sqlite
from muniment_server.terms import Range
from tests.service.rig import Rig

GENERATION, LATER = bytes(range(16)), bytes(range(1, 17))
ALL = Range(b"", b"\xff" * 70)


@pytest.mark.parametrize("indices", [[0], [1], [127, 128, 2**14], [5, 6, 7, 2**40 - 1], list(range(0, 90_000, 300))])
def test_postings_come_back(indices: list[int]):
    assert decode(encode(indices)) == indices
    assert decode(encode([0, 3]) + encode(indices) + encode([2**40])) == [0, 3, *indices, 2**40]
    assert decode(b"") == []
    for cut in range(1, len(encode(indices))):
        with pytest.raises(Corrupt):
            decode(encode(indices)[:cut])


async def begun(rig: Rig, log_id: int, generation: bytes = GENERATION) -> IndexState:
    """An index that is empty, and clears no more."""
    await rig.store.search.restart_index(log_id, generation)
    while await rig.store.search.clear_index(log_id, generation, 1000):
        pass
    state = await rig.store.search.index_state(log_id)
    assert state
    return state


async def added(rig: Rig, log_id: int, size: int, postings: Mapping[bytes, list[int]]) -> bool:
    state = await rig.store.search.index_state(log_id)
    assert state
    return await rig.store.search.add_postings(log_id, state, size, postings)


async def found(rig: Rig, log_id: int, first: int, last: int, keys: Range = ALL) -> dict[bytes, list[int]]:
    """The postings of [first, last), by term, as a search reads them."""
    (rows,) = await rig.store.search.index_terms(log_id, [keys], 1000)
    there = {}
    for key, tail, chunked in rows:
        bodies = await rig.store.search.index_chunks(log_id, [key], first, last) if chunked else []
        there[key] = sorted(index for data in (*bodies, tail) for index in decode(data) if first <= index < last)
    return {key: indices for key, indices in there.items() if indices}


async def test_an_index_begins_empty_and_grows(rig: Rig):
    log_id, other = (await rig.log()).log_id, (await rig.log()).log_id
    assert await rig.store.search.index_state(log_id) is None
    assert await rig.store.search.restart_index(log_id, GENERATION) == IndexState(GENERATION, clearing=True)
    assert await begun(rig, log_id) == IndexState(GENERATION)
    keys = [b"", b"\0", b"\0\0", b"a\0b", b"\xff\xfe", "é".encode(), b"'; DROP TABLE logs; --"]
    assert await added(rig, log_id, 3, {key: [at % 3] for at, key in enumerate(keys)})
    assert await added(rig, log_id, 300, {keys[0]: [3, 4, 299], keys[3]: [130]})
    for store in (rig.store, await rig.open()):
        assert await store.search.index_state(log_id) == IndexState(GENERATION, 300)
        assert await store.search.index_terms(other, [ALL], 9) == [[]]
        assert await store.search.index_terms(log_id, [Range(b"\0", b"\0\0")], 9) == [
            [TermRow(b"\0", encode([1]), False)]
        ]
    assert (await found(rig, log_id, 0, 999))[b""] == [0, 3, 4, 299]
    (first,) = await rig.store.search.index_terms(log_id, [ALL], 3)
    assert [row.key for row in first] == sorted(keys)[:3]
    ranges = [Range(b"a", b"b"), Range(b"x", b"y"), Range(b"\0", b"\1")]
    several = await rig.store.search.index_terms(log_id, ranges, 9)
    assert [[row.key for row in rows] for rows in several] == [[b"a\0b"], [], [b"\0", b"\0\0"]]


async def test_only_to_the_state_that_was_read(rig: Rig):
    log_id = (await rig.log()).log_id
    state = await begun(rig, log_id)
    add = rig.store.search.add_postings
    assert await add(log_id, state, 2, {b"a": [1]})
    before = await rig.dump()
    for wrong in (state, IndexState(LATER, 2), IndexState(GENERATION, 2, 1), IndexState(GENERATION, 3)):
        assert not await add(log_id, wrong, 5, {b"a": [4], b"b": [4]})
    assert await rig.dump() == before
    read = IndexState(GENERATION, 2)
    raced = await asyncio.gather(*(add(log_id, read, 4, {b"a": [3]}) for _ in range(4)))
    assert sorted(raced) == [False, False, False, True]
    assert await found(rig, log_id, 0, 9) == {b"a": [1, 3]}
    # What erases counts: postings that were made before are not added any more.
    await rig.sql(f"UPDATE search_state SET erasures = erasures + 1 WHERE log_id = {log_id}")
    assert not await add(log_id, IndexState(GENERATION, 4), 5, {b"a": [4]})


async def test_long_tails_become_chunks_and_nothing_is_lost(rig: Rig):
    """Against a plain dictionary, in any range."""
    log_id, random = (await rig.log()).log_id, Random(3)
    await begun(rig, log_id)
    truth: dict[bytes, list[int]] = {}
    size = 0
    for _ in range(30):
        stop = size + random.choice((1, 40, 700))
        batch = {}
        for key, share in ((b"all", 1.0), (b"half", 0.5), (b"few", 0.01), (b"u%d" % size, 0.002)):
            if indices := [index for index in range(size, stop) if random.random() < share]:
                batch[key] = indices
                truth.setdefault(key, []).extend(indices)
        assert await added(rig, log_id, stop, batch)
        size = stop
    rows = {row.key: row for row in (await rig.store.search.index_terms(log_id, [ALL], 1000))[0]}
    assert rows[b"all"].chunked
    assert not rows[b"few"].chunked
    assert all(len(row.tail) <= MOST_TAIL for row in rows.values())
    for _ in range(40):
        first, last = sorted((random.randrange(size + 9), random.randrange(size + 9)))
        inside = {key: [index for index in indices if first <= index < last] for key, indices in truth.items()}
        assert await found(rig, log_id, first, last) == {key: indices for key, indices in inside.items() if indices}
    few = await rig.store.search.index_chunks(log_id, [b"all"], 5000, 5001)
    assert len(few) <= 2, "a range reads its own chunks"


async def test_a_rebuild_clears_in_parts(rig: Rig):
    log_id, other = (await rig.log()).log_id, (await rig.log()).log_id
    for each in (log_id, other):
        await begun(rig, each)
        await added(rig, each, 9000, {b"%03d" % n: [n] for n in range(250)} | {b"all": list(range(9000))})
    kept = await rig.sql(f"SELECT * FROM search_terms WHERE log_id = {other} ORDER BY key")
    assert await rig.store.search.restart_index(log_id, LATER) == IndexState(LATER, 0, 0, True)
    assert not await rig.store.search.add_postings(log_id, IndexState(LATER), 1, {b"a": [0]})
    parts = 0
    while await rig.store.search.clear_index(log_id, LATER, 100):
        parts += 1
    assert parts == 4
    assert await rig.store.search.index_state(log_id) == IndexState(LATER)
    for table in ("search_terms", "search_chunks"):
        assert await rig.sql(f"SELECT key FROM {table} WHERE log_id = {log_id}") == []
    assert await rig.sql(f"SELECT * FROM search_terms WHERE log_id = {other} ORDER BY key") == kept
    assert await added(rig, log_id, 1, {b"a": [0]})


async def test_many_chunks_of_one_term_are_cleared_in_parts_too(rig: Rig):
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    for size in range(500, 10_001, 500):
        await added(rig, log_id, size, {b"all": list(range(size - 500, size))})
    await rig.store.search.restart_index(log_id, LATER)
    counts = []
    while await rig.store.search.clear_index(log_id, LATER, 7):
        counts += await rig.sql("SELECT count(*) FROM search_chunks")
    assert counts == [(20,), (13,), (6,), (0,)]


async def test_what_was_filled_meanwhile_is_not_cleared(rig: Rig):
    """By a process that rested since it looked, until another had done its work."""
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    assert await added(rig, log_id, 900, {b"all": list(range(900)), b"a": [1]})
    before = await rig.dump()
    assert not await rig.store.search.clear_index(log_id, GENERATION, 9)
    assert await rig.dump() == before
    await rig.store.search.restart_index(log_id, LATER)
    before = await rig.dump()
    assert not await rig.store.search.clear_index(log_id, GENERATION, 9), "that of before, which was made anew since"
    assert await rig.dump() == before
    assert await rig.store.search.clear_index(log_id, LATER, 9)


async def test_rows_without_a_state_are_cleared(rig: Rig):
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    assert await added(rig, log_id, 900, {b"all": list(range(900)), b"a": [1]})
    await rig.sql("DELETE FROM search_state")
    await begun(rig, log_id)
    assert await found(rig, log_id, 0, 999) == {}


async def test_an_index_that_has_what_is_added_is_corrupt(rig: Rig):
    """Its state was set back. Its parts end where they did before."""
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    assert await added(rig, log_id, 900, {b"all": list(range(900))})
    await rig.sql("UPDATE search_state SET size = 0")
    before = await rig.dump()
    with pytest.raises(Corrupt, match="index rebuild"):
        await added(rig, log_id, 900, {b"all": list(range(900)), b"a": [1]})
    assert await rig.dump() == before


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_statistics_keep_no_value(rig: Rig):
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    await added(rig, log_id, 3000, {b"secret-%d" % n: [n] for n in range(3000)} | {b"all": list(range(3000))})
    await rig.sql("ANALYZE search_terms, search_chunks")
    columns = await rig.sql("SELECT DISTINCT attname FROM pg_stats WHERE tablename LIKE 'search_%'")
    assert not {name for (name,) in columns} & {"key", "tail", "body"}
    ((moved,),) = await rig.store.search.index_terms(log_id, [Range(b"all", b"all\0")], 9)
    assert moved == TermRow(b"all", b"", True)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_what_is_cleared_leaves_no_byte_in_the_file(rig: Rig):
    """What holds values is overwritten, and the WAL emptied by a checkpoint: nothing else keeps terms."""
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    await added(rig, log_id, 5000, {b"secret-%05d" % n: [n] for n in range(5000)} | {b"secret-all": list(range(5000))})
    assert b"secret-" in written(rig)
    await rig.store.search.restart_index(log_id, LATER)
    while await rig.store.search.clear_index(log_id, LATER, 1000):
        pass
    connection = apsw.Connection(str(rig.folder / "store.sqlite"))
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    connection.close()
    assert written(rig).count(b"secret-") == 0


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_what_grew_is_carried_over_before_an_append_has_to(rig: Rig):
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    file = rig.folder / "store.sqlite"
    for size in range(1000, 6000, 1000):
        assert b"secret-" not in file.read_bytes()
        await added(rig, log_id, size, {b"secret-%05d" % n: [n] for n in range(size - 1000, size)})
    assert b"secret-" in file.read_bytes()


def written(rig: Rig) -> bytes:
    return b"".join(path.read_bytes() for path in rig.folder.glob("store.sqlite*"))


# --- plans ------------------------------------------------------------------------------------------------------------

COUNT = 20_000
KEY = b"secret-00500"
KEYS, FIRSTS, LASTS = [KEY], [KEY, b"secret-07"], [b"secret-00600", b"secret-08"]
STATEMENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "sqlite": {
        sqlite._TERMS: (KEY, b"secret-00600", 50),
        sqlite._CHUNKS: (KEY, 700, 710),
        sqlite._WHOLE: (b"secret-00499", 50),
        **dict.fromkeys(sqlite._CLEAR, (50,)),
    },
    "postgres": {
        postgres._TERMS: (FIRSTS, LASTS, 50),
        postgres._CHUNKS: (KEYS, 700, 710),
        **dict.fromkeys(postgres._CLEAR, (50, GENERATION)),
    },
}


@pytest.fixture(params=[False, True], ids=["", "analyzed"])
async def large(rig: Rig, request: pytest.FixtureRequest) -> int:
    """The number of a log whose index has many terms, and many chunks of one."""
    log_id = (await rig.log()).log_id
    await begun(rig, log_id)
    await added(rig, log_id, COUNT, {b"secret-%05d" % n: [n] for n in range(COUNT)})
    numbers = f"WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {COUNT})"
    row = f"{log_id}, {rig.blob(KEY)}, n, {rig.blob(encode([1]))}"
    await rig.sql(f"{numbers} INSERT INTO search_chunks SELECT {row} FROM n")
    await rig.sql(f"UPDATE search_terms SET chunked = true WHERE key = {rig.blob(KEY)}")
    if request.param:
        await rig.sql("ANALYZE")
    return log_id


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_plans_go_by_the_keys_in_sqlite(rig: Rig, large: int):
    connection = apsw.Connection(str(rig.folder / "store.sqlite"))
    for sql, values in STATEMENTS["sqlite"].items():
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", (large, *values))]
        scans = [
            step for step in plan if step.startswith("SCAN") and step != "SCAN t"
        ]  # of at most as many as asked for
        assert not scans, (sql, plan)
        assert any("PRIMARY KEY (log_id=?" in step for step in plan), (sql, plan)
    connection.close()


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_plans_read_few_rows_in_postgres(rig: Rig, large: int):
    """With plans that are kept, as ours are; a planner without statistics would rather read half the table."""
    connection = await connect(rig.database or "")
    await rig.sql("UPDATE search_state SET clearing = true")
    try:
        for number, (sql, values) in enumerate(STATEMENTS["postgres"].items()):
            await connection.execute(f"PREPARE p{number} AS {sql}")
            literals = ", ".join(_literal(rig, value) for value in (large, *values))
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE p{number}({literals})"
            async with connection.transaction():
                plan = json.loads(await connection.fetchval(explain))[0]["Plan"]
            read = [node for node in _nodes(plan) if node.get("Relation Name", "").startswith("search_")]
            assert read, sql
            for node in read:
                rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                assert rows <= 200, (sql, node)
    finally:
        await connection.close()


def _literal(rig: Rig, value: Any) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(_literal(rig, one) for one in value)}]"
    return rig.blob(value) if isinstance(value, bytes) else str(value)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)
