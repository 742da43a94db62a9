"""The fuzz targets as a rig: whatever bytes come in, only the declared errors come out, and what is accepted has one spelling.

A seed is a fixed number of inputs of one target, so that the same seed is the same work on every machine. The numbers are those that
two busy cores do in about 15 seconds for the parsers of formats that others rely on, and in about 4 for the rest. An input that broke an oracle is seen
again with ``python -m tests.fuzz --replay``, which the failure spells out.
"""

from __future__ import annotations

from tests.fuzz.everything import TARGETS
from tests.fuzz.runner import Failure, run_one
from tests.rigs.rig import Context, Rig

INPUTS = {
    # the formats: about 15 seconds
    "note": 250_000, "checkpoint": 450_000, "vkey": 400_000, "tile-path": 700_000, "bundle": 500_000, "proof": 30_000, "tlog-proof": 150_000,
    "receipt": 100_000, "json": 350_000, "event": 300_000, "policy": 90_000, "query": 200_000, "encoding": 400_000,
    # the rest: about 4 seconds
    "signing-key": 80_000, "leaf": 90_000, "disclosure": 50_000, "state": 35_000, "answer": 45_000, "guard-slot": 80_000,
    "settings-file": 15_000, "settings-env": 35_000, "headers": 28_000, "admission": 30_000, "raw-batch": 120_000, "event-batch": 30_000,
    # proofs: about 20 seconds, and more than 100,000 files and replies in a full run
    "ots": 12_000, "ots-submission": 12_000, "ots-upgrade": 12_000, "anchor": 30_000,
}  # fmt: skip
ROUNDS = 3
"""Rounds through all targets in a full run: more than 10,000,000 inputs."""


def run(context: Context) -> None:
    """Run the targets in turn."""
    names = sorted(INPUTS)
    for seed in context.each():
        name = names[seed % len(names)]
        accepted = 0
        try:
            for number in range(INPUTS[name]):
                accepted += run_one(TARGETS[name], seed, number)
        except Failure as failure:
            raise AssertionError(f"fuzz, seed {seed}: {failure}") from failure
        if not 0 < accepted < INPUTS[name]:
            raise AssertionError(
                f"fuzz, seed {seed}: {name} accepted {accepted} of {INPUTS[name]}: the inputs are no test"
            )
        context.done(INPUTS[name], escapes=0, accepted=accepted)


if set(INPUTS) != set(TARGETS):
    raise AssertionError(f"a fuzz target without a number of inputs: {set(INPUTS) ^ set(TARGETS)}")
if ROUNDS * sum(INPUTS.values()) < 10_000_000:
    raise AssertionError("the full lane has fewer than 10,000,000 inputs")

RIGS = [
    Rig(
        name="fuzz",
        goal="parser fuzz inputs",
        unit="inputs",
        run=run,
        quick=len(INPUTS),
        full=ROUNDS * len(INPUTS),
    )
]
