"""The fuzz targets as a rig: whatever bytes come in, only the declared errors come out, and what is accepted has one spelling.

A seed is a fixed number of inputs of one target, so that the same seed is the same work on every machine. The numbers are those that
two busy cores do in about 8 seconds for the parsers of formats that others rely on, and in about 2 for the rest. An input
that broke an oracle is seen again with ``python -m tests.fuzz --replay``, which the failure spells out.
"""

from __future__ import annotations

from tests.fuzz.everything import TARGETS
from tests.fuzz.runner import Failure, run_one
from tests.rigs.rig import Context, FaultRig

INPUTS = {
    # the formats: about 8 seconds
    "sse": 20_000, "note": 125_000, "checkpoint": 225_000, "vkey": 200_000, "tile-path": 350_000, "bundle": 250_000, "proof": 15_000, "tlog-proof": 75_000,
    "receipt": 50_000, "receipts": 25_000, "json": 175_000, "event": 150_000, "policy": 45_000, "query": 100_000, "encoding": 200_000,
    # the rest: about 2 seconds
    "signing-key": 40_000, "leaf": 45_000, "disclosure": 25_000, "state": 17_500, "answer": 22_500, "guard-slot": 40_000,
    "settings-file": 7_500, "settings-env": 17_500, "headers": 14_000, "admission": 15_000, "raw-batch": 60_000, "event-batch": 15_000,
    "event-array": 15_000,
    # proofs: about 10 seconds, and more than 100,000 files and replies in a full run
    "ots": 6_000, "ots-submission": 6_000, "ots-upgrade": 6_000, "anchor": 15_000,
    "search-query": 170_000,  # a million in a full run
    "evidence": 25_000,
}  # fmt: skip
ROUNDS = 6
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
    FaultRig(
        name="fuzz",
        goal="parser fuzz inputs",
        unit="inputs",
        run=run,
        quick=len(INPUTS),
        full=ROUNDS * len(INPUTS),
    )
]
