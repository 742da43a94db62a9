"""The scrub: quiet about a good log, loud about damage at rest, slow on purpose. On both databases."""

from __future__ import annotations

import asyncio
import time

import pytest
import structlog

from muniment_server.check.scrub import Scrub
from muniment_server.telemetry import Metrics
from tests.live import PATIENCE
from tests.service.rig import Rig, event, raw
from tests.service.test_fsck import filled, spoil


def value(metrics: Metrics, name: str, log: str) -> float:
    found = metrics.registry.get_sample_value(f"muniment_scrub_{name}", {"log": log})
    assert found is not None, name
    return found


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_good_log_is_walked_to_its_end(rig: Rig, kind: str) -> None:
    bench = await filled(rig, kind)
    metrics, before = Metrics(), time.time()
    with structlog.testing.capture_logs() as lines:
        await Scrub(rig.store, bench.row, metrics, 1e6).run_once()
    assert value(metrics, "entries_total", bench.row.name) == 300
    assert value(metrics, "position", bench.row.name) == 300
    assert value(metrics, "last_pass_timestamp_seconds", bench.row.name) >= before
    assert value(metrics, "mismatches_total", bench.row.name) == 0
    assert not lines


DAMAGE = {
    "entries": ('UPDATE entries SET leaf = {zero} WHERE "index" = 77', "leaf_hash", 77),
    "missing": ('DELETE FROM entries WHERE "index" = 299', "entry_missing", 299),
    "payloads": ('DELETE FROM payloads WHERE "index" = 270', "payload_missing", 270),
    "parent": ("UPDATE tiles SET data = {zero} WHERE level = 1", "tile", 0),
    "leaf tile": ('UPDATE tiles SET data = {zero} WHERE level = 0 AND "index" = 1', "leaf_hash", 256),
    "head too large": ("UPDATE heads SET size = 1099511627776", "entry_missing", 512),
    "head": ("UPDATE heads SET root = {zero}", "head_root", 299),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_is_named_once(rig: Rig, what: str) -> None:
    bench = await filled(rig, "event")
    sql, code, index = DAMAGE[what]
    await spoil(rig, sql.format(zero=rig.blob(bytes(32))))
    metrics = Metrics()
    scrub = Scrub(rig.store, bench.row, metrics, 1e6)
    with structlog.testing.capture_logs() as lines:
        await scrub.run_once()
        await scrub.run_once()
    found = [(line["code"], line["index"]) for line in lines]
    assert (code, index) in found
    assert len(found) == len(set(found)) == value(metrics, "mismatches_total", bench.row.name)
    assert {line["log_level"] for line in lines} == {"error"}


async def test_it_keeps_to_its_rate(rig: Rig) -> None:
    bench = await filled(rig, "raw", 100)
    began = time.monotonic()
    await Scrub(rig.store, bench.row, Metrics(), 400).run_once()
    assert 0.2 <= time.monotonic() - began < PATIENCE


async def test_it_runs_beside_a_writer(rig: Rig) -> None:
    bench = await filled(rig, "event", 250)
    metrics, sequencer = Metrics(), bench.sequencer()
    scrub = Scrub(rig.store, bench.row, metrics, 5_000, delay=0)
    scrub.follower.start()
    for n in range(30):
        await sequencer.run([event(1000 + n)])
    for _ in range(6000):
        if value(metrics, "entries_total", bench.row.name) >= 250:
            break
        await asyncio.sleep(0.01)
    await scrub.follower.close()
    assert value(metrics, "entries_total", bench.row.name) >= 250
    assert value(metrics, "mismatches_total", bench.row.name) == 0


async def test_a_database_that_is_away_is_asked_again(rig: Rig) -> None:
    bench = await filled(rig, "raw", 10)
    metrics = Metrics()
    store = await rig.open()
    await store.close()
    scrub = Scrub(store, bench.row, metrics, 1e6, delay=0)
    with structlog.testing.capture_logs() as lines:
        scrub.follower.start()
        await asyncio.sleep(0.05)
        assert not scrub.follower._task.done()
        await scrub.follower.close()
    assert {line["log_level"] for line in lines} == {"debug"}
    assert value(metrics, "mismatches_total", bench.row.name) == 0
    await bench.sequencer().run([raw(b"more")])
