"""restart-*: how long a killed server is away when its log is large. A seed fills a log, then kills and restarts the server ten times.

Measured from starting the process until POST /entries has answered 201, which includes the interpreter, recovery, the fence and the
first commit. Promised are SECONDS.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from muniment.tiles import encode_bundle
from tests.rigs.control import ORIGINS, PREFIXES, Deployment, on_postgres, on_sqlite
from tests.rigs.judge import bench_of, judge_heads
from tests.rigs.recorder import Recorder
from tests.rigs.rig import Context, FaultRig
from tests.rigs.wire import Lost, Wire
from tests.service.audit import audit

SECONDS = 2.0
ENTRIES = 1_000_000
_BATCH = 10_000
_RESTARTS = 10
_RAW = PREFIXES["raw"]
_OCTETS = {"Content-Type": "application/octet-stream"}


async def fill(url: str, recorder: Recorder, start: int, stop: int) -> None:
    """Append entries `start` to `stop` of the raw log, the first of which is its genesis."""
    wire = Wire()
    for low in range(start, stop, _BATCH):
        numbers = range(low, min(low + _BATCH, stop))
        body = encode_bundle([_leaf(number) for number in numbers])
        answer = await wire.ask(url, "POST", f"{_RAW}/entries/batch", body, _OCTETS)
        assert answer.status == 201, answer.body[:300]
        value = answer.json()
        assert value["indices"] == [[numbers.start, numbers.stop]], value["indices"]
        recorder.checkpoint(value["checkpoint"])
    wire.close()


def _leaf(number: int) -> bytes:
    return b"entry %d" % number


async def _restart(instance: Deployment, recorder: Recorder, index: int, rng: random.Random) -> tuple[float, float]:
    """Kill the server in the middle of an append, and return the seconds until a new one has taken entry `index`, and its CPU time."""
    appending = asyncio.create_task(_doomed(instance.url(), index))
    await asyncio.sleep(rng.uniform(0, 0.02))
    instance.kill()
    await appending
    started = time.monotonic()
    server = await asyncio.to_thread(instance.serve)
    wire = Wire()
    while True:
        answer = await wire.ask(server.url, "POST", f"{_RAW}/entries", _leaf(index), _OCTETS)
        if answer.status in (200, 201):  # 200: the one that was killed had stored it
            break
        await asyncio.sleep(0.005)
    took, cpu = time.monotonic() - started, _cpu_seconds(server.process.pid)
    assert recorder.proved(answer.json(), _leaf(index)).index == index
    wire.close()
    return took, cpu


def _cpu_seconds(pid: int) -> float:
    """Return what a process has used of the processors: on a busy machine that tells more than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _doomed(url: str, index: int) -> None:
    """Send entry `index` to a server that is about to die."""
    try:
        await Wire().ask(url, "POST", f"{_RAW}/entries", _leaf(index), _OCTETS)
    except Lost:
        return


async def _seed(context: Context, seed: int, folder: Path, database: str | None) -> None:
    instance = await asyncio.to_thread(Deployment, folder, database, traced=False)
    recorder = Recorder(instance.policy, ORIGINS["raw"])
    rng = random.Random(seed)
    try:
        server = await asyncio.to_thread(instance.serve)
        started = time.monotonic()
        await fill(server.url, recorder, 1, ENTRIES)
        filled = time.monotonic() - started
        found = [await _restart(instance, recorder, ENTRIES + number, rng) for number in range(_RESTARTS)]
        await asyncio.to_thread(instance.stop)
        await asyncio.to_thread(instance.fsck)
        leaves = await audit(await bench_of(instance, "raw"))
    finally:
        instance.close()
    times, cpu = zip(*found, strict=True)
    assert leaves[1:] == [_leaf(number) for number in range(1, ENTRIES + _RESTARTS)], f"seed {seed}: LOST entries"
    judge_heads(recorder, leaves)
    print(
        f"  restart, {instance.engine}: {ENTRIES} entries in {filled:.0f} s; {_RESTARTS} restarts took "
        f"{min(times):.2f} to {max(times):.2f} s, {max(cpu):.2f} s of CPU time at most",
        file=sys.stderr,
        flush=True,
    )
    assert max(times) <= SECONDS, f"seed {seed}: a restart took {max(times):.2f} s, not {SECONDS:.0f}"
    context.done(_RESTARTS, entries=ENTRIES, **{"slowest restart, ms": int(max(times) * 1000)})


_GOAL = "restart after kill"
RIGS = [
    FaultRig("restart-sqlite", _GOAL, "restarts", on_sqlite(_seed), quick=0, full=1, jobs=1, alone=True),
    FaultRig("restart-postgres", _GOAL, "restarts", on_postgres(_seed), quick=0, full=1, jobs=1, alone=True),
]
