"""The ceiling S: the store's own append, the same transaction as the server's, in a loop of its own without HTTP, guard or signature."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from muniment.hashing import EMPTY_ROOT, leaf_hash
from muniment.tree import Edge, grow
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Grown, Head, StoredPayload, leaf_keys_of
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.admission import draft_event
from tests.bench.bodies import entry, entry_parts
from tests.bench.generator import percentile
from tests.bench.machine import SERVER_CORE, pinned
from tests.bench.plan import BATCH

_SECONDS = 60


async def open_store(database: str | None, folder: Path) -> Store:
    """Open a store of its own."""
    if database is None:
        return await open_sqlite(folder / "ceiling.sqlite")
    await migrate(database)
    return await open_postgres(database)


class _Entries(NamedTuple):
    """Entries as the sequencer hands them over: canonical payload and seed beside the leaf of an event."""

    leaves: list[bytes]
    payloads: list[StoredPayload]


def _entries(kind: str, parts: tuple[bytes, bytes], numbers: range) -> _Entries:
    bodies = [entry(parts, number) for number in numbers]
    if kind == "raw":
        return _Entries(bodies, [])
    drafts = list(map(draft_event, bodies))
    leaves = [draft.leaf("2026-11-20T12:00:00.000Z") for draft in drafts]
    payloads = [StoredPayload(number, draft.payload, draft.seed) for number, draft in zip(numbers, drafts, strict=True)]
    return _Entries(leaves, payloads)


class _Appender:
    """Appends to one log of its own through store.log.append alone, as the sequencer would."""

    def __init__(self, store: Store, kind: str) -> None:
        self._writes = store.log
        self._catalog = store.catalog
        self._kind = kind
        self._parts = entry_parts(time.time_ns())
        self._head, self._edge = Head(0, EMPTY_ROOT, 0, 0, "bench"), Edge()
        self._log_id = 0

    @property
    def size(self) -> int:
        return self._head.size

    async def start(self, name: str) -> None:
        """Make the log."""
        row = LogRow(0, name, f"bench.example/{name}", self._kind, True, False, 0)
        self._log_id = (await self._catalog.create_log(row, self._head)).log_id

    async def append(self, batch: int) -> float:
        """Append a batch; return the seconds that took, without those of making it."""
        old = self._head
        entries = _entries(self._kind, self._parts, range(old.size, old.size + batch))
        hashes = [leaf_hash(leaf) for leaf in entries.leaves]
        keys = leaf_keys_of(hashes)
        growth = grow(self._edge, hashes)
        after = Head(growth.edge.size, growth.edge.root(), old.logged_at + 1, old.epoch, old.guard_id)
        grown = Grown(self._log_id, after, entries.leaves, keys, entries.payloads, growth.tiles)
        absent = keys if self._kind == "raw" else []
        started = time.perf_counter()
        await self._writes.append(grown, old, absent)
        took = time.perf_counter() - started
        self._head, self._edge = after, growth.edge
        return took


async def fill(store: Store, kind: str, entries: int, name: str = "filled") -> _Appender:
    """Make a log with at least so many entries."""
    made = _Appender(store, kind)
    await made.start(name)
    while made.size < entries:
        await made.append(BATCH)
    return made


async def measure(log: _Appender, batch: int, seconds: float) -> dict[str, float]:
    """Append batches to a log, until `seconds` have gone into store.log.append alone."""
    taken: list[float] = []
    while sum(taken) < seconds:
        taken.append(await log.append(batch))
    ordered = sorted(taken)
    return {
        "entries_per_second": batch * len(taken) / sum(taken),
        "p50_ms": percentile(ordered, 0.5) * 1000,
        "p99_ms": percentile(ordered, 0.99) * 1000,
        "entries": log.size,
    }


class Ceiling:
    """Measures S whenever asked, in a process on the server's core that keeps its logs: S is compared with what runs right after it."""

    def __init__(self, database: str | None, folder: Path, raw: int, event: int) -> None:
        """Start it. `raw` and `event` are how many entries the logs have that batches are appended to."""
        words = [sys.executable, "-m", "tests.bench.ceiling", str(folder), str(raw), str(event)]
        env = os.environ | {"BENCH_DATABASE": database or ""}
        with pinned(SERVER_CORE):
            self._process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, kind: str, batch: int, seconds: float) -> dict[str, float]:
        """Return what :func:`measure` does, for a log of this kind and size of batch."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("it was started with pipes")
        self._process.stdin.write(json.dumps([kind, batch, seconds]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the storage ceiling ended; its error is above")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End its process."""
        self._process.communicate(timeout=_SECONDS)


async def _serve(database: str | None, folder: Path, before: dict[str, int]) -> None:
    store = await open_store(database, folder)
    logs: dict[str, _Appender] = {}
    try:
        for line in sys.stdin:
            kind, batch, seconds = json.loads(line)
            name = f"{kind}-{batch}"
            if name not in logs:
                logs[name] = await fill(store, kind, before[kind] if batch > 1 else 0, name)
            print(json.dumps(await measure(logs[name], batch, seconds)), flush=True)
    finally:
        await store.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url = os.environ.get("BENCH_DATABASE") or None
        runner.run(_serve(url, Path(sys.argv[1]), {"raw": int(sys.argv[2]), "event": int(sys.argv[3])}))
