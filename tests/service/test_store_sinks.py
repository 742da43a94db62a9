"""The contract of storage.sinks, sentence by sentence, on each store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from muniment_server.storage.sinks import SinkState
from tests.service.rig import NOW, Rig

NEW = SinkState("siem", bytes(range(32)), 0, 0, 0, 5, 0, 0, NOW)


async def test_a_cursor_is_begun_once(rig: Rig):
    one, two = (await rig.log()).log_id, (await rig.log()).log_id
    assert await rig.store.sinks.sink(one, "siem") is None
    assert await rig.store.sinks.begin_sink(one, NEW)
    assert not await rig.store.sinks.begin_sink(one, replace(NEW, start=3, looked=3, stop=3))
    assert await rig.store.sinks.begin_sink(one, replace(NEW, name="archive"))
    for store in (rig.store, await rig.open()):
        assert await store.sinks.sink(one, "siem") == NEW
        assert [state.name for state in await store.sinks.sinks(one)] == ["archive", "siem"]
        assert await store.sinks.sinks(two) == []


async def test_a_cursor_moves_from_the_place_where_it_is(rig: Rig):
    log_id = (await rig.log()).log_id
    await rig.store.sinks.begin_sink(log_id, NEW)
    cut = replace(NEW, looked=1, stop=4, tree_size=9)
    assert await rig.store.sinks.move_sink(log_id, NEW, cut)
    before = await rig.dump()
    for other in (
        NEW,
        replace(cut, stop=5),
        replace(cut, looked=0),
        replace(cut, mark=bytes(32)),
        replace(cut, name="x"),
    ):
        assert not await rig.store.sinks.move_sink(log_id, other, replace(other, last_error="moved"))
        assert await rig.dump() == before
    failed = replace(cut, failures=3, next_at=NOW + 9, last_error="what it was — ñ")
    assert await rig.store.sinks.move_sink(log_id, cut, failed)
    assert await rig.store.sinks.sink(log_id, "siem") == failed
    taken = replace(cut, start=4, looked=4, moved_at=NOW + 1)
    assert await rig.store.sinks.move_sink(log_id, cut, taken), "a try that failed elsewhere changes nothing"
    assert await rig.store.sinks.sink(log_id, "siem") == taken


async def test_of_racing_processes_one_moves_it(rig: Rig):
    log_id, other = (await rig.log()).log_id, await rig.open()
    await rig.store.sinks.begin_sink(log_id, NEW)
    moved = [replace(NEW, stop=n, tree_size=n) for n in (1, 2, 3, 4)]
    stores = (rig.store, other, rig.store, other)
    won = await asyncio.gather(*(s.sinks.move_sink(log_id, NEW, to) for s, to in zip(stores, moved, strict=True)))
    assert won.count(True) == 1
    assert await rig.store.sinks.sink(log_id, "siem") == moved[won.index(True)]


@pytest.mark.parametrize("change", [{"start": 2}, {"mark": bytes(32)}, {"name": "x"}, {"looked": 2}])
async def test_a_cursor_never_goes_back(rig: Rig, change: dict[str, object]):
    log_id = (await rig.log()).log_id
    at = replace(NEW, start=3, looked=3, stop=3)
    await rig.store.sinks.begin_sink(log_id, at)
    with pytest.raises(AssertionError):
        await rig.store.sinks.move_sink(log_id, at, replace(at, **change))
    assert await rig.store.sinks.sink(log_id, "siem") == at
