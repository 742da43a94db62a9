"""The seeded simulation of tests/service/simulation.py, for many seeds: each is a run of 300 steps that replays from its number."""

from __future__ import annotations

from tests.rigs.rig import Context, FaultRig
from tests.service.simulation import simulate

STEPS = 300


def run(context: Context) -> None:
    """Run the seeds; points are steps after which every invariant held."""
    for seed in context.each():
        context.done(STEPS, **simulate(seed, STEPS))


RIGS = [
    FaultRig(
        name="simulation",
        goal="seeded stateful simulation",
        unit="steps",
        run=run,
        quick=20,
        full=400,
    )
]
