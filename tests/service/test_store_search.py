"""The contract of storage.search, sentence by sentence, on each store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

import pytest

from muniment_server.errors import Corrupt
from muniment_server.storage.postings import decode, encode
from muniment_server.storage.search import MOST_TAIL, IndexState, TermRow
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
    assert await rig.store.search.restart_index(log_id, GENERATION) == IndexState(GENERATION)
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
    state = await rig.store.search.restart_index(log_id, GENERATION)
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
    await rig.store.search.restart_index(log_id, GENERATION)
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
        await rig.store.search.restart_index(each, GENERATION)
        await added(rig, each, 9000, {b"%03d" % n: [n] for n in range(250)} | {b"all": list(range(9000))})
    kept = await rig.sql(f"SELECT * FROM search_terms WHERE log_id = {other} ORDER BY key")
    assert await rig.store.search.restart_index(log_id, LATER) == IndexState(LATER, 0, 0, True)
    assert not await rig.store.search.add_postings(log_id, IndexState(LATER), 1, {b"a": [0]})
    parts = 0
    while await rig.store.search.clear_index(log_id, 100):
        parts += 1
    assert parts == 4
    assert await rig.store.search.index_state(log_id) == IndexState(LATER)
    for table in ("search_terms", "search_chunks"):
        assert await rig.sql(f"SELECT key FROM {table} WHERE log_id = {log_id}") == []
    assert await rig.sql(f"SELECT * FROM search_terms WHERE log_id = {other} ORDER BY key") == kept
    assert await added(rig, log_id, 1, {b"a": [0]})


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_statistics_keep_no_value(rig: Rig):
    log_id = (await rig.log()).log_id
    await rig.store.search.restart_index(log_id, GENERATION)
    await added(rig, log_id, 3000, {b"secret-%d" % n: [n] for n in range(3000)} | {b"all": list(range(3000))})
    await rig.sql("ANALYZE search_terms, search_chunks")
    columns = await rig.sql("SELECT DISTINCT attname FROM pg_stats WHERE tablename LIKE 'search_%'")
    assert not {name for (name,) in columns} & {"key", "tail", "body"}
    ((moved,),) = await rig.store.search.index_terms(log_id, [Range(b"all", b"all\0")], 9)
    assert moved == TermRow(b"all", b"", True)
