"""kill9-*: SIGKILL to the real server at random moments of HTTP load, also while it starts; clients retry with the same keys."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.rigs.control import Deployment, on_postgres, on_sqlite
from tests.rigs.judge import glance, judge
from tests.rigs.load import Load
from tests.rigs.rig import Context, FaultRig

KILLS = 15
"""Kills of one seed: all on one data folder."""
_AUDIT_EVERY = 8


async def _seed(context: Context, seed: int, folder: Path, database: str | None) -> None:
    instance = await asyncio.to_thread(Deployment, folder, database)
    rng = random.Random(seed)
    load = Load(lambda _: instance.url(), instance.policy, seed)
    early = 0
    try:
        await asyncio.to_thread(instance.serve)
        load.start()
        for number in range(1, KILLS + 1):
            await load.sleep(rng.uniform(0.02, 0.7))
            instance.kill()
            early += await _killed_early(instance, rng)
            await asyncio.to_thread(instance.serve)
            await glance(instance, load)
            if number % _AUDIT_EVERY == 0:
                await load.finish()
                instance.kill()  # what is judged is what a kill leaves
                await judge(instance, load)
                await asyncio.to_thread(instance.serve)
                load.start()
        await load.finish()
        await asyncio.to_thread(instance.stop)
        found = await judge(instance, load)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await load.drop()
        instance.close()
    extra = KILLS // _AUDIT_EVERY
    context.done(KILLS + extra + early, **load.counts, **found, **{"kills during start": early})


async def _killed_early(instance: Deployment, rng: random.Random) -> int:
    """Now and then the server is killed again while it starts: recovery is where logs die."""
    if rng.random() >= 0.15:
        return 0
    instance.launch()
    await asyncio.sleep(rng.uniform(0.3, 1.2))
    instance.kill()
    return 1


_GOAL = "kill -9 of the real server under load"
RIGS = [
    FaultRig("kill9-sqlite", _GOAL, "kills", on_sqlite(_seed), quick=2, full=48),
    FaultRig("kill9-postgres", _GOAL, "kills", on_postgres(_seed), quick=2, full=48),
]
