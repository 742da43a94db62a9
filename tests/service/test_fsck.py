"""`fsck`: a clean log is clean, and every kind of damage is found and its index named. On both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.policy import LogKey, Policy
from muniment_server.admission import commit
from muniment_server.fsck import Report, fsck
from muniment_server.fsck.entries import ERASURE_TYPE, erased_by
from muniment_server.fsck.workers import Database, Workers
from muniment_server.guard import SLOT
from muniment_server.storage import IdempotencyRow, Published
from tests.service.rig import Bench, Rig, event, genesis, new_entry, raw


def policy_of(bench: Bench) -> Policy:
    return Policy((LogKey(bench.key.vkey),))


async def check(bench: Bench, **more: object) -> Report:
    return await fsck(bench.rig.store, bench.row, policy_of(bench), bench.guard, **more)  # type: ignore[arg-type]


async def filled(rig: Rig, kind: str, count: int = 300) -> Bench:
    """A log of `count` entries, written by a sequencer, with checkpoints published at odd sizes."""
    bench = await rig.log(kind)
    sequencer = bench.sequencer()
    await sequencer.run([genesis(bench)])
    done = 1
    for step in (1, 6, 92, 157, count):
        numbers = range(done, min(done + step, count))
        if not numbers:
            continue
        if kind == "event":
            first, rest = numbers[0], numbers[1:]
            await sequencer.run([event(first, key=f"k{first}"), *([event(*rest, key=f"r{first}")] if rest else [])])
        else:
            await sequencer.run([raw(*(b"leaf %d" % n for n in numbers))])
        done = numbers[-1] + 1
        assert sequencer.signed
        await rig.store.publish(bench.log_id, Published(sequencer.signed.size, sequencer.signed.note, 1))
    return bench


async def spoil(rig: Rig, *statements: str) -> None:
    """Change rows past the triggers, as a fault of the disk or an owner with a grudge would."""
    if rig.database:
        tables = ("entries", "payloads", "tiles", "checkpoints", "heads", "logs")
        off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables]
        await rig.sql(*off, *statements, "SELECT 1")
        return
    triggers = await rig.sql("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
    await rig.sql(*(f"DROP TRIGGER {name}" for (name,) in triggers), *statements)


def codes(report: Report) -> set[tuple[str, int]]:
    return {(finding.code, finding.index) for finding in report.findings}


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_a_log_is_clean(rig: Rig, kind: str) -> None:
    bench = await filled(rig, kind)
    seen: list[tuple[int, int]] = []
    report = await check(bench, progress=lambda done, total: seen.append((done, total)))
    assert report.clean, report.findings
    assert (report.size, report.entries, report.tiles, report.checkpoints) == (300, 300, 3, 5)
    assert report.idempotency_keys == (9 if kind == "event" else 0)
    assert seen[-1] == (300, 300)
    assert json.loads(json.dumps(report.to_json()))["clean"] is True


async def test_small_and_empty_logs_are_clean(rig: Rig) -> None:
    bench = await rig.log("event")
    assert (await check(bench)).clean
    sequencer = bench.sequencer()
    await sequencer.run([genesis(bench)])
    for n in range(1, 4):
        assert (await check(bench)).clean
        await sequencer.run([event(n)])
