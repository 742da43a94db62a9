"""What no published checkpoint, and no confirmed anchor, covers yet: how much, and since when."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from muniment.encoding import b64url
from muniment.event import event_leaf, format_time, genesis_leaf
from muniment_server.errors import NotFound
from muniment_server.follow.exposure import Exposure
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.read.coverage import Coverage
from muniment_server.settings import Settings
from muniment_server.storage.anchors import AnchorRow
from muniment_server.storage.checkpoints import Published
from muniment_server.telemetry import Metrics
from tests.service.rig import NOW, Bench, Rig


async def covered_log(rig: Rig, kind: str, count: int) -> tuple[Bench, Coverage]:
    """A log with entries of which nothing is published."""
    bench = await rig.log(kind)
    if kind == "raw":
        await bench.extend(*[b"%d" % n for n in range(count)])
    else:
        digest = b64url(bytes(32))
        first = genesis_leaf(bench.row.origin, "event", [str(bench.key.vkey)], format_time(NOW))
        await bench.extend(first, *[event_leaf(digest, format_time(NOW + 1000 * n)) for n in range(1, count)])
    log = Log(rig.store, bench.row, Settings(data=Path("/nonexistent")), Metrics(), Cache(2**20), None)
    return bench, log.coverage


async def publish(bench: Bench, *sizes: int) -> None:
    rows = [Published(size, f"{size}\n", NOW + size) for size in sizes]
    assert await bench.rig.store.checkpoints.publish_all(bench.log_id, rows)


async def anchor(bench: Bench, size: int, *, confirmed: bool = True) -> None:
    anchors, note = bench.rig.store.anchors, f"{size}\n".encode()
    row = AnchorRow(size, bytes(32), note, sha256(note).digest(), bytes(16), NOW)
    assert await anchors.add_anchor(bench.log_id, row, [])
    if confirmed:
        stored = await anchors.anchor(bench.log_id, size)
        assert stored
        ready = replace(stored, state="complete", ots=b"ots", submitted_at=NOW)
        assert await anchors.save_anchor(bench.log_id, ready)
        stored = await anchors.anchor(bench.log_id, size)
        assert stored
        done = replace(
            stored, state="confirmed", confirmed_at=NOW, height=5, block_hash=bytes(32), header=bytes(80), block_time=1
        )
        assert await anchors.save_anchor(bench.log_id, done)


async def test_before_anything_is_published(rig: Rig) -> None:
    _, coverage = await covered_log(rig, "raw", 3)
    with pytest.raises(NotFound):
        await coverage.now()


async def test_of_a_raw_log_the_time_is_a_bound(rig: Rig) -> None:
    bench, coverage = await covered_log(rig, "raw", 9)
    await publish(bench, 2, 5)
    found = await coverage.now()
    by = found["checkpoint"]
    assert (by.size, by.tree_size, by.since, by.exact) == (9, 5, NOW + 5, False)
    by = found["anchor"]
    assert (by.size, by.tree_size, by.since, by.exact) == (9, 0, bench.row.created_at, False)
    await publish(bench, 9)
    by = (await coverage.now())["checkpoint"]
    assert (by.size, by.tree_size, by.since, by.exact) == (9, 9, None, True)


async def test_only_confirmed_anchors_cover(rig: Rig) -> None:
    bench, coverage = await covered_log(rig, "raw", 60)
    sizes = sorted(random.sample(range(1, 61), 12))
    await publish(bench, *sizes)
    largest = 0
    for number, size in enumerate(sizes):
        await anchor(bench, size, confirmed=bool(number % 3))
        largest = size if number % 3 else largest
        fresh = Coverage(rig.store, bench.row, coverage._entries)
        for one in (coverage, fresh):
            assert (await one.now())["anchor"].tree_size == largest


async def test_of_an_event_log_the_time_is_that_of_the_entry(rig: Rig) -> None:
    bench, coverage = await covered_log(rig, "event", 7)
    await publish(bench, 1, 4)
    metrics = Metrics()
    found = await coverage.now()
    assert (found["anchor"].since, found["checkpoint"].since) == (NOW, NOW + 4000)
    assert found["anchor"].exact
    await Exposure(coverage, "log", metrics).run_once()
    value = metrics.uncovered.labels("log", "checkpoint")._value.get()
    assert value == (NOW + 4000) / 1000
    await publish(bench, 7)
    await Exposure(coverage, "log", metrics).run_once()
    assert metrics.uncovered.labels("log", "checkpoint")._value.get() == 0
