"""`fsck` and the search index: each way in which the index may be wrong is told, and a rebuild mends it."""

from __future__ import annotations

import pytest

from muniment_server.check.fsck.index import check_index, repair_index
from muniment_server.check.fsck.report import Report
from muniment_server.storage.postings import encode
from muniment_server.terms import mark_of
from tests.service.rig import Rig
from tests.service.test_search import Searched

COUNT = 600


@pytest.fixture
async def log(rig: Rig) -> Searched:
    made = await Searched.of(rig)
    await made.append([{"a": "x", "n": n, "t": f"word{n % 40} and more"} for n in range(COUNT)])
    await made.fill()
    return made


async def checked(log: Searched) -> Report:
    report = Report("log", "origin", COUNT + 1)
    await check_index(log.bench.rig.store, log.bench.row, log.members, report)
    return report


async def key_of(rig: Rig, where: str) -> bytes:
    ((key,),) = await rig.sql(f"SELECT key FROM search_terms WHERE {where} ORDER BY key LIMIT 1")
    return bytes(key)


async def test_each_damage_is_told_and_mended(log: Searched, rig: Rig):
    assert (await checked(log)).clean, "an index as it was made"
    one, long = await key_of(rig, "NOT chunked"), await key_of(rig, "chunked")
    ours, theirs = rig.blob(one), rig.blob(long)
    ((tail,),) = await rig.sql(f"SELECT tail FROM search_terms WHERE key = {ours}")
    damages = {
        f"DELETE FROM search_terms WHERE key = {ours}": {"index_lacks"},
        f"INSERT INTO search_terms VALUES ({log.bench.log_id}, {rig.blob(b'vnothing')}, {rig.blob(encode([7]))}, false)": {
            "index_extra"
        },
        f"UPDATE search_terms SET tail = {rig.blob(bytes(tail)[:-1] + bytes([255]))} WHERE key = {ours}": {
            "index_list",
            "index_lacks",
        },
        f"UPDATE search_terms SET tail = {rig.blob(encode([9]))} WHERE key = {theirs}": {"index_list", "index_lacks"},
        f"UPDATE search_terms SET chunked = false WHERE key = {theirs}": {"index_lacks"},
        f"DELETE FROM search_chunks WHERE key = {theirs}": {"index_lacks"},
        f"UPDATE search_chunks SET stop = 3 WHERE key = {theirs} AND stop = "
        f"(SELECT min(stop) FROM search_chunks WHERE key = {theirs})": {"index_list", "index_lacks"},
        "UPDATE search_state SET size = 9999": {"index_ahead"},
        "UPDATE search_state SET size = 300": {"index_extra"},
        "UPDATE search_state SET clearing = true": {"index_ahead"},
        f"UPDATE search_state SET generation = {rig.blob(bytes(12) + mark_of(frozenset({'a'})))}": {"index_members"},
    }
    for damage, expected in damages.items():
        await rig.sql(damage)
        found = await checked(log)
        assert {finding.code for finding in found.findings} == expected, damage
        assert await repair_index(rig.store, log.bench.row, log.members, found) == ["search_index"]
        assert (await checked(log)).clean, "one that is being made anew is as it may be"
        await log.fill()
        assert (await checked(log)).clean, damage
        assert not await repair_index(rig.store, log.bench.row, log.members, await checked(log))


async def test_the_entry_is_named(log: Searched, rig: Rig):
    (key,) = [key for key, tail, _ in (await every(rig, log)) if tail == encode([500])][:1]
    await rig.sql(f"DELETE FROM search_terms WHERE key = {rig.blob(key)}")
    assert [finding[:2] for finding in (await checked(log)).findings] == [("index_lacks", 500)]


async def every(rig: Rig, log: Searched) -> list[tuple[bytes, bytes, int]]:
    return [(term.key, term.tail, 0) for term in await rig.store.search.whole_terms(log.bench.log_id, b"", 10_000)]


async def test_an_index_that_lags_or_grows_is_no_finding(log: Searched):
    await log.append([{"a": "x", "n": n} for n in range(300)])
    assert (await checked(log)).clean
    await log.fill(COUNT + 100)
    assert (await checked(log)).clean
