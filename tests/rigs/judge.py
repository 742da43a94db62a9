"""The judge of every rig with real processes: what was acknowledged and signed, against what is stored. Shares no code with the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import apsw

from muniment.note import SigningKey
from muniment_server.storage.catalog import LogRow
from muniment_server.write.guard import Guard
from tests.rigs.control import ORIGINS, PREFIXES, Deployment
from tests.rigs.load import Load, check_entry
from tests.rigs.recorder import Recorder
from tests.rigs.wire import Wire
from tests.service.audit import Naive, audit
from tests.service.rig import Bench, Rig

NAMES = {"event": "default", "raw": "raw"}


class Stopped(Rig):
    """The database of an instance, read with bare SQL on connections of its own."""

    def __init__(self, instance: Deployment) -> None:
        super().__init__(instance.engine, instance.database, instance.data, None, contextlib.AsyncExitStack())

    def _sqlite(self, statements: Sequence[str]) -> list[list[tuple[Any, ...]]]:
        connection = apsw.Connection(str(self.folder / "muniment.sqlite"))
        try:
            connection.set_busy_timeout(10_000)
            with connection:
                return [connection.execute(statement).fetchall() for statement in statements]
        finally:
            connection.close()


async def bench_of(instance: Deployment, kind: str) -> Bench:
    """Return one log of an instance as the audit wants it."""
    rig = Stopped(instance)
    (row,) = await rig.sql(
        f"SELECT log_id, name, origin, kind, public, open, created_at FROM logs WHERE name = '{NAMES[kind]}'"
    )
    key = SigningKey.parse((instance.data / "keys" / f"{NAMES[kind]}.key").read_text("utf-8").strip())
    return Bench(rig, LogRow(*row), key, Guard(instance.data / "guard" / f"{NAMES[kind]}.guard"))


async def judge(instance: Deployment, load: Load) -> dict[str, int]:
    """Judge both logs of an instance that no server writes at the moment: audit, fsck, acknowledgements, signed heads."""
    await asyncio.to_thread(instance.fsck)
    counts = {}
    for kind in ORIGINS:
        bench = await bench_of(instance, kind)
        leaves = await audit(bench)
        payloads = await _payloads(bench) if kind == "event" else {}
        judge_entries(load.recorders[kind], leaves, payloads)
        await _judge_published(bench, load.recorders[kind])
        judge_heads(load.recorders[kind], leaves)
        counts[f"{kind} entries"] = len(leaves)
    return counts


async def _payloads(bench: Bench) -> dict[int, Any]:
    rows = await bench.rig.sql(f'SELECT "index", payload FROM payloads WHERE log_id = {bench.log_id}')
    return {index: json.loads(payload) for index, payload in rows}


async def _judge_published(bench: Bench, recorder: Recorder) -> None:
    for (note,) in await bench.rig.sql(f"SELECT note FROM checkpoints WHERE log_id = {bench.log_id}"):
        recorder.checkpoint(note)


def judge_entries(recorder: Recorder, leaves: Sequence[bytes], payloads: dict[int, Any]) -> None:
    """Check that each acknowledged entry is at its index, and that nothing that was sent is there twice."""
    for index, content in recorder.leaves.items():
        assert index < len(leaves), f"LOST: entry {index} was acknowledged, the log has {len(leaves)}"
        found = leaves[index] if isinstance(content, bytes) else payloads.get(index)
        assert found == content, f"LOST: entry {index} is {found!r}, was acknowledged as {content!r}"
    for index, leaf in recorder.bytes.items():
        assert leaves[index] == leaf, f"LOST: the leaf of entry {index} is not the one in its receipt"
    marks = [value["mark"] for value in payloads.values() if "mark" in value]
    assert len(set(marks)) == len(marks), "an event is in the log twice although its key was the same"


def judge_heads(recorder: Recorder, leaves: Sequence[bytes]) -> None:
    """Check that every signed head ever seen is a head of this one tree."""
    tree = Naive(leaves)
    for size, root in recorder.roots.items():
        assert size <= len(leaves), f"FORK: a head of {size} was signed, the log has {len(leaves)}"
        assert tree.root(size) == root, f"FORK: the root signed for size {size} is not this tree's"


async def glance(instance: Deployment, load: Load, count: int = 5) -> None:
    """Check a running server cheaply: newest and some other entries, and that /checkpoint is not behind what anybody saw."""
    wire = Wire()
    seen = {kind: max((size for _, which, size in load.shown if which == kind), default=0) for kind in ORIGINS}
    for kind, prefix in PREFIXES.items():
        recorder = load.recorders[kind]
        for acked in recorder.sample(load.dice, count):
            await check_entry(wire, instance.url(), kind, acked.index, acked.content)
        answer = await wire.ask(instance.url(), "GET", f"{prefix}/checkpoint")
        assert answer.status == 200, answer.body
        size = recorder.checkpoint(answer.body.decode())
        assert size >= seen[kind], f"{kind}: /checkpoint was at {seen[kind]} before the restart, now at {size}"
    wire.close()
