"""Planted defects: seed n plants the n-th defect of tests/rigs/planted, and the test it names must go red."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.rigs.planted.runner import all_defects, check
from tests.rigs.rig import Context, FaultRig

DEFECTS = all_defects()


def run(context: Context) -> None:
    """Points are defects that were caught, each also shown to be absent from the code as it is."""
    for seed in context.each():
        with tempfile.TemporaryDirectory(dir=context.folder) as folder:
            check(DEFECTS[seed], Path(folder))
        context.done()


RIGS = [
    FaultRig(
        name="planted",
        goal="planted defects caught",
        unit="defects",
        run=run,
        quick=5,
        full=len(DEFECTS),
    )
]
