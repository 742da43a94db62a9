"""two-writers-*: two servers on one data folder, both under load, each stopped and continued at random moments. One history.

A contest is a lost compare-and-swap: a server found that the other had moved the head, changed nothing, and read it again. Servers
count them as ``muniment_races_lost_total``; the rig also counts how often a stopped server came back to a head that had moved on.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from tests.live import free_port
from tests.rigs.control import Deployment, metric, on_postgres, on_sqlite
from tests.rigs.judge import glance, judge
from tests.rigs.load import Load
from tests.rigs.rig import Context, FaultRig

SECONDS = 30.0
"""Length of one seed."""
_ADVANCE_SECONDS = 1.0
_RACES = "muniment_races_lost_total"


async def _seed(context: Context, seed: int, folder: Path, database: str | None) -> None:
    instance = await asyncio.to_thread(Deployment, folder, database)
    rng = random.Random(seed)
    load = Load(instance.url, instance.policy, seed, writers=8, readers=2, largest=40, behind=True)
    ports = [free_port(), free_port()]
    stops = overtaken = 0
    try:
        servers = [
            instance.launch(MUNIMENT_SERVER_METRICS_PORT=str(port), MUNIMENT_SERVER_PUBLISH_INTERVAL="0.3")
            for port in ports
        ]
        for server in servers:
            await asyncio.to_thread(server.wait)
        load.start()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            await load.sleep(rng.uniform(0.05, 0.5))
            overtaken += await _stop_one(load, servers[rng.randrange(2)].process, rng)
            stops += 1
        await load.finish()
        await asyncio.sleep(1.0)  # what one server acknowledged the other one knows once it is published
        contests = sum([await asyncio.to_thread(_races, port) for port in ports])
        await glance(instance, load)
        await asyncio.to_thread(instance.stop)
        found = await judge(instance, load)
        assert contests, "no server ever lost a race: this run shows nothing"
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await load.drop()
        instance.close()
    context.done(
        contests, stops=stops, overtaken=overtaken, **{"seconds of load": int(SECONDS)}, **load.counts, **found
    )


async def _stop_one(load: Load, process: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Stop a server wherever it is, let the other advance 1 to 300 entries, and continue it. Tell whether the other advanced."""
    target = load.counts["acknowledged"] + rng.randint(1, 300)
    process.send_signal(signal.SIGSTOP)
    try:
        deadline = (
            time.monotonic() + _ADVANCE_SECONDS
        )  # a server stopped with the database's lock in its hands holds up both
        while load.counts["acknowledged"] < target and time.monotonic() < deadline:
            await load.sleep(0.01)
    finally:
        process.send_signal(signal.SIGCONT)
    return load.counts["acknowledged"] >= target


def _races(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return int(metric(answer.read().decode(), _RACES))


_GOAL = "two writers on one database"
RIGS = [
    FaultRig("two-writers-sqlite", _GOAL, "contests", on_sqlite(_seed), quick=1, full=10, jobs=1),
    FaultRig("two-writers-postgres", _GOAL, "contests", on_postgres(_seed), quick=1, full=30, jobs=1),
]
