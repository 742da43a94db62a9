"""The table of misbehaviours, met by a monitor: one that followed the log while it was honest, and one that starts then."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from muniment import Client, evidence
from muniment.client import Retries
from muniment.monitor.follower import Status
from muniment.monitor.patrol import EVERY
from tests.monitor.desk import Desk
from tests.splitview.liar import lying
from tests.splitview.misbehaviours import TABLE

FOUND = {
    "wrong-tile": {"tile"},
    "short-tile": {"tile"},
    "cut-tile": {"tile"},
    "long-tile": {"tile"},
    "wrong-bundle": {"bundle"},
    "short-bundle": {"bundle"},
    "cut-bundle": {"bundle"},
    "long-bundle": {"bundle"},
    "hides-a-bundle": {"missing"},
    "wrong-origin": {"policy"},
    "wrong-key": {"key"},
    "bad-signature": {"key"},
    "only-unknown-lines": {"key"},
    "leading-zeros": {"format"},
    "windows-line-ends": {"format"},
    "size-without-entries": {"missing"},
    "forks": {"fork"},
    "forks-at-one-size": {"fork"},
    "forks-without-proofs": {"missing"},
    "rolls-back": {"rollback"},
    "rolls-back-and-goes-on": {"fork"},
    "forgets-an-append": {"fork"},
    "signs-old-heads-anew": {"fork"},
    "late-tiles": {"missing"},
    "freezes": {"stale"},
    "lies-about-time": {"time"},
}
"""What is found of each by a monitor that followed the log before, with `--stale`."""
NOT_ASKED = {"hides-entries", "proof-of-another-index", "receipt-of-another-entry", "receipt-of-another-leaf",
             "append-of-another-entry"}  # fmt: skip
"""Answers that a monitor does not ask for: it reads the tree, and the client that asks for them catches them."""
ANEW = {"wrong-bundle", "short-bundle", "cut-bundle", "long-bundle", "hides-a-bundle", "wrong-origin", "wrong-key",
        "bad-signature", "only-unknown-lines", "leading-zeros", "windows-line-ends", "size-without-entries",
        "late-tiles", "forks-without-proofs", "lies-about-time", "wrong-tile", "short-tile", "cut-tile", "long-tile", "signs-old-heads-anew"}  # fmt: skip
"""What a monitor that starts in the middle of it finds too: all that does not take a memory."""
LOOKS = 4


async def meets(desk: Desk, seed: int = 1) -> None:
    """Look some times, each with a patrol."""
    async with desk.follower(grace=0, stale=LOOKS * 10_000 - 1) as found:
        found.random = Random(seed)
        for _ in range(LOOKS + 1):
            await found.look()
            desk.now += 10_000


@pytest.mark.parametrize("name", TABLE)
async def test_what_a_monitor_finds_that_has_followed_the_log(tmp_path: Path, name: str) -> None:
    row = TABLE[name]
    with lying(row) as (liar, url):
        desk = Desk(tmp_path / "monitor", liar.policy, url, patrol_every=EVERY)
        with Client(url, policy=liar.policy, retries=Retries(tries=2, first_delay=0.0)) as client:
            await asyncio.to_thread(row.before, client)
            assert await desk.look(grace=0) is Status.GOOD
            liar.begin()
            await meets(desk)
        found = set(desk.codes())
        assert found - {"stale"} == FOUND.get(name, set()) - {"stale"}, desk.findings()
        assert found >= FOUND.get(name, set())
        for path in (desk.folder / "evidence").glob("*"):
            evidence.verify(evidence.Evidence.parse(path.read_bytes()), liar.policy)
        assert ("fork" in found) == (desk.folder / "evidence").exists()


@pytest.mark.parametrize("name", TABLE)
async def test_what_a_monitor_finds_that_starts_then(tmp_path: Path, name: str) -> None:
    with lying(TABLE[name]) as (liar, url):
        liar.begin()
        desk = Desk(tmp_path / "monitor", liar.policy, url, patrol_every=EVERY)
        await meets(desk)
        assert bool(set(desk.codes()) - {"stale"}) == (name in ANEW), desk.codes()


def test_every_row_is_found_or_it_is_said_why_not() -> None:
    """What harms no reader is not found; what differs by reader takes witnesses, or a monitor at another place."""
    others = {name for name, row in TABLE.items() if row.caught in ("witnesses", "none")}
    assert set(FOUND) | NOT_ASKED | others == set(TABLE)
    assert not set(FOUND) & (NOT_ASKED | others)
    assert all(name in FOUND for name, row in TABLE.items() if row.caught == "monitor")
