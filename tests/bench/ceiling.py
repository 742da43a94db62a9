"""The ceiling S: the store's own append, the same transaction as the server's, in a loop of its own without HTTP, guard or signature."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from muniment.hashing import EMPTY_ROOT, leaf_hash
from muniment.tree import Edge, grow
from muniment_server.admission import draft_event
from muniment_server.storage import Grown, Head, LogRow, NewEntry, Store, leaf_key
from muniment_server.storage.postgres import PostgresStore, migrate
from muniment_server.storage.sqlite import SqliteStore
from tests.bench.bodies import entry, entry_parts
from tests.bench.generator import percentile
from tests.bench.machine import SERVER_CORE, pinned

_SECONDS = 300


async def open_store(database: str | None, folder: Path) -> Store:
    """Open a store of its own."""
    if database is None:
        return await SqliteStore.open(folder / "ceiling.sqlite")
    await migrate(database)
    return await PostgresStore.open(database)


def _entries(kind: str, parts: tuple[bytes, bytes], numbers: range) -> list[NewEntry]:
    """Return entries as the sequencer hands them over: canonical payload and seed beside the leaf of an event."""
    made = []
    for number in numbers:
        body = entry(parts, number)
        if kind == "raw":
            made.append(NewEntry(body, leaf_key(leaf_hash(body))))
        else:
            draft = draft_event(body)
            leaf = draft.leaf("2026-11-20T12:00:00.000Z")
            made.append(NewEntry(leaf, leaf_key(leaf_hash(leaf)), draft.payload, draft.seed))
    return made


async def measure(store: Store, kind: str, batch: int, seconds: float, most: float = math.inf) -> dict[str, float]:
    """Append batches until `seconds` have gone into Store.append alone, or there are `most` entries; making them is not counted."""
    created = LogRow(0, f"{kind}-{batch}", f"bench.example/{kind}-{batch}", kind, True, False, 0)
    log = await store.create_log(created, Head(0, EMPTY_ROOT, 0, 0, "bench"))
    head, edge = Head(0, EMPTY_ROOT, 0, 0, "bench"), Edge()
    parts, taken = entry_parts(time.time_ns()), []
    while sum(taken) < seconds and head.size < most:
        entries = _entries(kind, parts, range(head.size, head.size + batch))
        growth = grow(edge, [leaf_hash(made.leaf) for made in entries])
        after = Head(growth.edge.size, growth.edge.root(), head.logged_at + 1, head.epoch, head.guard_id)
        started = time.perf_counter()
        await store.append(Grown(log.log_id, after, entries, growth.tiles), head)
        taken.append(time.perf_counter() - started)
        head, edge = after, growth.edge
    ordered = sorted(taken)
    return {
        "entries_per_second": batch * len(taken) / sum(taken),
        "p50_ms": percentile(ordered, 0.5) * 1000,
        "p99_ms": percentile(ordered, 0.99) * 1000,
        "entries": head.size,
    }


async def _main(database: str | None, folder: Path, seconds: float) -> dict[str, Any]:
    store = await open_store(database, folder)
    try:
        return {
            f"{kind}-{batch}": await measure(store, kind, batch, seconds)
            for kind in ("raw", "event")
            for batch in (1, 1_000)
        }
    finally:
        await store.close()


def run(database: str | None, folder: Path, seconds: float) -> dict[str, Any]:
    """Measure in a process on the server's core."""
    words = [sys.executable, "-m", "tests.bench.ceiling", str(folder), str(seconds)]
    with pinned(SERVER_CORE):
        done = subprocess.run(
            words,
            env=os.environ | {"BENCH_DATABASE": database or ""},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the storage ceiling failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url = os.environ.get("BENCH_DATABASE") or None
        print(json.dumps(runner.run(_main(url, Path(sys.argv[1]), float(sys.argv[2])))))
