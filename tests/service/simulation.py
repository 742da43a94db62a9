"""A log in a storm, replayable from one seed: real sequencers, guard and SQLite, and everything around them going wrong.

A :class:`World` has a log with one to three writers. Each step appends, races, restarts, steps the clock, damages the guard, restores an
old database or publishes, drawn from one random source; writers are held at chosen calls instead of being raced by time, so the
same seed takes the same way. The model is what was acknowledged: leaves by index, and what each Idempotency-Key stands for. After
every step the invariants of `docs/reliability.md` must hold for it.

======= =================================================================================================
I1, I9  an acknowledged entry is at its index, byte for byte; no index twice, same key and same raw leaf, same index
I2, I3  one root for a size, whoever signed it; no writer and no published checkpoint goes back
I8, I12 what is signed was made durable by a clean reply to the very writer that signs
I17     a guard that is missing, damaged or ahead stops the signature, and the reads go on
======= =================================================================================================
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from muniment_server.storage.sqlite.open import open_sqlite
from tests.service.rig import open_rig
from tests.service.world import World


async def _simulate(seed: int, steps: int, folder: Path) -> Counter[str]:
    rng = Random(seed)
    store = await open_sqlite(folder / "store.sqlite")
    async with open_rig("sqlite", None, folder, store) as rig:
        bench = await rig.log(rng.choice(["raw", "event"]))
        world = World(rng, rig, bench)
        try:
            await world.begin()
            for number in range(steps):
                await world.step()
                if number % 25 == 24:
                    await world.audit()
            await world.finish()
        except Exception as error:
            steps_done = ", ".join(world.done[-25:])
            raise AssertionError(
                f"simulation, seed {seed}: {type(error).__name__}: {error}\nlast steps: {steps_done}"
            ) from error
        finally:
            await world.close()
    return world.model.counts


def simulate(seed: int, steps: int) -> Counter[str]:
    """Run `steps` steps of the world of `seed`; return what happened how often. Raises AssertionError naming seed and step."""
    memory = Path("/dev/shm")  # what is simulated is not the disk: see the power rig for that
    with tempfile.TemporaryDirectory(
        prefix="muniment-sim-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        return asyncio.run(_simulate(seed, steps, Path(folder)))
