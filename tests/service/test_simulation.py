"""A few short runs of the simulation, and that it would notice what it is there to notice. Long runs are the rig `simulation`."""

from __future__ import annotations

from typing import Any

import pytest

from muniment_server.storage.sqlite.append import SqliteAppend
from muniment_server.write.guard import Guard, Guarded
from tests.service.simulation import simulate


@pytest.mark.parametrize("seed", range(4))
def test_a_short_run(seed: int) -> None:
    counts = simulate(seed, 60)
    assert counts["answers"]
    assert counts["signatures"]


def test_a_run_replays_from_its_seed() -> None:
    assert simulate(5, 40) == simulate(5, 40)


def _no_swap(self: Guard, *_: Any, **__: Any) -> tuple[Guarded, bool]:
    """Remember nothing."""
    return self.read(), True


async def _no_fence(self: SqliteAppend, log_id: int, expected: Any) -> Any:
    """Let writes that are still on their way arrive."""
    return expected


def _hunt() -> None:
    for seed in range(20):
        simulate(seed, 100)


@pytest.mark.parametrize(
    ("owner", "name", "fault", "found"),
    [
        (Guard, "swap", _no_swap, "before the guard had it"),
        (SqliteAppend, "fence", _no_fence, "though its head was fenced"),
    ],
    ids=["guard", "fence"],
)
def test_a_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, fault: Any, found: str
) -> None:
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError, match=f"seed [0-9]+: .*({found})"):
        _hunt()
