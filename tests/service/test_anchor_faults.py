"""Crashes between any two steps of the anchorer, many anchors at once, and what fsck says of anchors that were tampered with."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from muniment.anchor.proof import parse_ots
from muniment.policy import LogKey, Policy
from muniment_server.check.fsck.anchors import check_anchors
from muniment_server.check.fsck.report import Report
from muniment_server.errors import Refused, StoreUnavailable
from muniment_server.follow.anchors.entries import Entries
from muniment_server.follow.anchors.schedule import HOUR, MINUTE, SECOND
from tests.live import PATIENCE
from tests.service.anchors import Anchored, ChainSource, anchored
from tests.service.faulty import Fault, Faulty
from tests.service.rig import Rig


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[Anchored]:
    async with anchored(rig, tmp_path) as made:
        yield made


# --- crashes -------------------------------------------------------------------------------------------------------------

CALLS = ("add_anchor", "save_anchor", "take_lease", "anchor", "anchor_calendars", "due_calendars", "due_anchors")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_crash_at_any_call_of_the_store_is_only_a_delay(world: Anchored, call: str, after: bool):
    """At each of the first calls in turn: the process dies, another one goes on, and the anchor is confirmed and logged once."""
    for nth in range(6):
        await world.append(b"entry %s %d" % (call.encode(), nth))
        faulty = Faulty(world.store)
        faulty.plan(call, *[None] * nth, Fault(StoreUnavailable("crash"), after=after))
        world.anchorer, world.entries = world.new_anchorer(faulty), Entries(faulty, world.log)
        world.now += 2 * HOUR  # for the trigger, and for the lease of the process before
        mined = 0
        for _ in range(12):
            try:
                await world.step(HOUR + MINUTE)
            except StoreUnavailable:
                world.restart()
            last = await world.store.anchors.anchor(world.bench.log_id)
            if last and last.state == "pending" and mined < 3:
                world.mine()
                mined += 1
            if last and last.logged is not None and mined:
                break
        assert last.state == "confirmed"
        assert len(parse_ots(last.ots, own=True).bitcoin) >= 1
        leaves = await world.own_leaves()
        assert (
            len(leaves)
            == len(set(leaves))
            == len(await world.store.anchors.anchors(world.bench.log_id, 0, 99, ("confirmed",)))
        )


async def test_a_crash_between_post_and_save_is_posted_again(world: Anchored):
    row = await world.freeze()
    world.now += 3_000
    faulty = Faulty(world.store)
    faulty.plan("save_anchor", Fault(StoreUnavailable("crash")), Fault(StoreUnavailable("crash")))
    with pytest.raises(StoreUnavailable):
        await world.new_anchorer(faulty).ask_all()
    async with asyncio.timeout(PATIENCE):  # the other calendar's answer
        while [len(one.posts) for one in world.calendars] != [1, 1]:  # noqa: ASYNC110 - a calendar is a thread
            await asyncio.sleep(0.01)
    assert (await world.row(row.tree_size)).ots is None
    world.restart()
    await world.step()
    assert [len(one.posts) for one in world.calendars] == [2, 2]
    assert (await world.row(row.tree_size)).state == "pending"
    world.mine()
    await world.step(HOUR + MINUTE)
    assert (await world.row(row.tree_size)).state == "confirmed"


async def _confirmed(world: Anchored) -> None:
    world.entries, entries = None, world.entries
    await world.submit()
    world.mine()
    await world.step(HOUR + MINUTE)
    world.entries = entries


@pytest.mark.parametrize("moment", ["before the append", "after the append"])
async def test_an_entry_is_logged_once_whenever_the_process_dies(world: Anchored, moment: str, monkeypatch):
    await _confirmed(world)
    real = world.log.append

    async def dies(submission):
        if moment == "after the append":
            await real(submission)
        raise asyncio.CancelledError

    monkeypatch.setattr(world.log, "append", dies)
    with pytest.raises(asyncio.CancelledError):
        await world.entries.log_confirmed()
    monkeypatch.setattr(world.log, "append", real)
    assert (await world.row()).logged is None
    await world.append(*[b"more %d" % n for n in range(2500)])  # the search goes on over pages
    world.restart()
    for _ in range(3):
        await world.entries.log_confirmed()
    assert len(await world.own_leaves()) == 1
    logged = (await world.row()).logged
    assert (await world.store.reads.leaves(world.bench.log_id, logged, logged + 1)) == await world.own_leaves()


async def test_an_append_of_unknown_outcome_is_not_repeated_before_it_is_known(world: Anchored, monkeypatch):
    await _confirmed(world)
    real = world.log.append
    submissions = []

    async def unknown(submission):
        submissions.append(submission)
        raise Refused("outcome_unknown", "who knows", "Retry.")

    monkeypatch.setattr(world.log, "append", unknown)
    with pytest.raises(Refused):
        await world.entries.log_confirmed()
    await world.entries.log_confirmed()
    assert len(submissions) == 1, "nothing was signed since: the append may still be under way"
    monkeypatch.setattr(world.log, "append", real)
    await real(submissions[0])  # it was
    await world.entries.log_confirmed()
    assert len(await world.own_leaves()) == 1
    assert (await world.row()).logged is not None


async def test_a_log_that_takes_nothing_at_the_moment_logs_its_anchors_later(world: Anchored, monkeypatch):
    await _confirmed(world)

    async def full(submission):
        raise Refused("overloaded", "full", "Retry.")

    with monkeypatch.context() as patch:
        patch.setattr(world.log, "append", full)
        with pytest.raises(Refused):
            await world.entries.log_confirmed()
    await world.entries.log_confirmed()
    assert len(await world.own_leaves()) == 1


# --- many ----------------------------------------------------------------------------------------------------------------


async def test_a_thousand_anchors_with_a_liar_and_a_hung_calendar(rig: Rig, tmp_path: Path):
    """All are confirmed through the honest calendar; none is asked for more than once a minute; nothing piles up."""
    many = int(os.environ.get("MUNIMENT_TEST_ANCHORS", "40"))
    async with anchored(rig, tmp_path, 3) as world:
        liar, hung, honest = world.calendars
        hung.fault = "hang"
        liar.fault, liar.faulty = "lie", {"GET"}
        world.entries = None
        for _ in range(many):
            await world.submit()
            world.now += 10 * SECOND
        rows = await world.store.anchors.anchors(world.bench.log_id, 0, many + 1)
        assert Counter(row.state for row in rows) == {"pending": many}
        memory = _memory()
        asked: dict[tuple[str, bytes], list[int]] = {}
        honest.publish()
        world.chain.mine(6)
        for _ in range(10 + many // 25):
            counts = _polls(world)
            await world.step(10 * MINUTE)
            for one, count in _polls(world).items():
                asked.setdefault(one, []).append(count - counts.get(one, 0))
        states = Counter(row.state for row in await world.store.anchors.anchors(world.bench.log_id, 0, many + 1))
        assert states == {"confirmed": many}, Counter(world.seen.outcomes)
        assert max(max(each) for each in asked.values()) == 1, "in ten minutes"
        assert world.seen.last.bad >= min(many, 100), (
            "its lies are counted, as far as it was asked: a hundred in a round"
        )
        assert hung.posts, "it was asked"
        assert len(hung.posts) < many / 2, "and then left alone"
        assert len(world.client._transport._pool.connections) <= 3
        gc.collect()
        assert _memory() - memory < 64 * 2**20


def _polls(world: Anchored) -> dict[tuple[str, bytes], int]:
    return {
        (one.url, commitment): len(times) for one in world.calendars for commitment, times in list(one.polls.items())
    }


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- fsck ----------------------------------------------------------------------------------------------------------------

SPOILED = {
    "anchor_digest": ("anchors", "checkpoint = CAST('x' || CAST(checkpoint AS TEXT) AS BLOB)"),
    "anchor_note": ("anchors", "digest = zeroblob(32), checkpoint = CAST('x' || CAST(checkpoint AS TEXT) AS BLOB)"),
    "anchor_root": ("anchors", "root = zeroblob(32)"),
    "anchor_ahead": ("anchors", "tree_size = 99"),
    "anchor_proof": ("anchors", "ots = CAST(ots || x'00' AS BLOB)"),
    "anchor_block": ("anchors", "height = height + 1"),
    "anchor_entry": ("anchors", "logged = 0"),
}


async def _check(world: Anchored, source: ChainSource | None) -> Report:
    report = Report(world.bench.row.name, world.bench.row.origin, 0)
    policy = Policy((LogKey(world.bench.key.vkey),))
    await check_anchors(world.store, world.bench.row, policy, source, report)
    return report


async def test_fsck_finds_nothing_wrong_with_good_anchors(world: Anchored):
    for _ in range(3):
        await world.submit()
        world.mine()
        await world.step(HOUR + MINUTE)
    await world.submit()
    for source in (ChainSource(world.chain), None):
        report = await _check(world, source)
        assert (report.anchors, report.findings, report.unreachable) == (4, [], [])
    away = ChainSource(world.chain)
    away.away = True
    report = await _check(world, away)
    assert report.clean
    assert len(report.unreachable) == 3
    world.chain.reorg(7)
    assert {one.code for one in (await _check(world, ChainSource(world.chain))).findings} == {"anchor_block"}


@pytest.mark.parametrize("code", SPOILED)
async def test_fsck_finds_what_was_tampered_with(world: Anchored, code: str):
    await world.submit()
    world.mine()
    await world.step(HOUR + MINUTE)
    assert (await _check(world, ChainSource(world.chain))).clean
    table, change = SPOILED[code]
    await world.bench.rig.sql(
        "PRAGMA foreign_keys = OFF", "DROP TRIGGER anchors_keep", f"UPDATE {table} SET {change}", "SELECT 1"
    )
    report = await _check(world, ChainSource(world.chain))
    assert code in {one.code for one in report.findings}, report.findings
    row = await world.row()
    assert replace(row, revision=0) != row
