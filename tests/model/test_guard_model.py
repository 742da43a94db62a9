"""The guard's rule in its model: no interleaving forks it, healthy writers are not held up, and every weaker rule breaks."""

from __future__ import annotations

import pytest

from tests.model.__main__ import explore
from tests.model.guard_model import Writer
from tests.model.outside import HEALTHY
from tests.model.variants import VARIANTS, JudgedFirst

INTERLEAVINGS = 8_000
FIRST = {
    "OldRecord": 8,
    "SizesOnly": 244,
    "OwnTree": 1413,
    "StateKept": 2752,
    "SmallerUnproved": 8,
    "NoStat": 33,
    "LowerSequence": 250,
    "SeenWhenRead": 2481,
    "TwoReads": 937,
    "RootAlone": 204,
    "NotSynced": 12190,
    "TornIgnored": 11201,
    "FilesUnwatched": 4,
    "PublishedUnproved": 27,
}
"""The first interleaving in which each weaker rule breaks, as `python -m tests.model --variants` finds them: only to be quick."""


@pytest.mark.parametrize("part", range(2))
def test_the_rule_holds(part: int) -> None:
    found = explore(Writer, range(part * INTERLEAVINGS, (part + 1) * INTERLEAVINGS))
    assert not found.broken, found.first
    assert min(found.counts[name] for name in ("notes", "clone", "reconnect", "power cut", "guard put back")) > 1_000


def test_two_writers_on_one_database_never_hold_each_other_up() -> None:
    counts = explore(Writer, range(500), ()).counts
    assert counts["appends"] > 5_000
    assert counts["HeadMoved"] > 500
    assert not counts["refused"]
    assert not counts["OutcomeUnknown"]


def test_healthy_processes_never_refuse() -> None:
    """They are killed, answers are lost, and a standby takes over that lacks a head that nobody signed."""
    counts = explore(Writer, range(500), HEALTHY).counts
    assert min(counts[name] for name in ("kill", "lost reply", "unsigned lost")) > 500
    assert not counts["refused"]
    assert explore(JudgedFirst, range(500), HEALTHY).counts["refused"]


@pytest.mark.parametrize("rule", VARIANTS, ids=lambda rule: rule.__name__)
def test_a_weaker_rule_breaks(rule: type[Writer]) -> None:
    """Each is a mistake that was made, or nearly."""
    first = FIRST[rule.__name__]
    found = explore(rule, range(first, first + 1), stop=True)
    assert found.broken or explore(rule, range(100_000), stop=True).broken
