"""The anchorer of one log, against calendars that speak the real protocol and blocks with real proof of work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from muniment.anchor.proof import parse_ots
from muniment.event import OwnLeaf, parse_leaf
from muniment.note import parse_note, verify_note
from muniment_server.follow.anchors import anchorer as module
from muniment_server.follow.anchors import rows
from muniment_server.follow.anchors.schedule import DAY, HOUR, MINUTE
from muniment_server.storage.anchors import CalendarRow
from tests.bitcoin.calendar import SSRF_URIS
from tests.service.anchors import Anchored, ChainSource, anchored, checked
from tests.service.rig import Rig


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """SQLite alone, where the store makes no difference."""
    return getattr(request, "param", "sqlite")


both = pytest.mark.parametrize("engine", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def world(rig: Rig, tmp_path) -> AsyncIterator[Anchored]:
    async with anchored(rig, tmp_path) as made:
        yield made


# --- the whole way ------------------------------------------------------------------------------------------------------


@both
async def test_a_checkpoint_goes_all_the_way_into_a_block_and_the_log(world: Anchored):
    await world.append(b"first", b"second")
    await world.step(HOUR)
    row = await world.row()
    assert (row.tree_size, row.state, row.ots) == (3, "queued", None)
    assert row.checkpoint.decode() == (await world.store.checkpoints.checkpoint(world.bench.log_id, 3)).note
    assert row.digest == sha256(row.checkpoint).digest()
    verify_note(parse_note(row.checkpoint), [world.bench.key.vkey])

    await world.step(3_000)
    row = await world.row(3)
    assert row.state == "pending"
    assert checked(row, world).state == "pending"
    assert {one.state for one in (await world.calendar_rows(3)).values()} == {"pending"}
    assert world.seen.last.degraded == 0
    assert len(world.seen.outcomes) == 2

    world.mine(1)
    await world.step(HOUR + MINUTE)
    row = await world.row(3)
    assert (row.state, row.confirmed_at) == ("complete", None)
    assert await world.own_leaves() == []

    world.chain.mine(5)
    await world.step(10 * MINUTE)
    row = await world.row(3)
    block = world.chain.at(101)
    assert (row.state, row.confirmed_at) == ("confirmed", world.now)
    assert (row.height, row.block_hash, row.header, row.block_time) == (101, block.hash, block.raw, block.time)
    assert checked(row, world).state == "confirmed"
    assert len(parse_ots(row.ots, own=True).pending) == 2, "promises are kept"

    (leaf,) = await world.own_leaves()
    entry = parse_leaf(leaf)
    assert isinstance(entry, OwnLeaf)
    assert entry.typ == "muniment/anchor@v1"
    assert set(entry.value) == {"anchor", "logged_at", "typ"}
    assert entry.value["anchor"] == {
        "block": {"hash": block.block_hash, "height": 101, "time": block.time},
        "checkpoint_sha256": row.digest.hex(),
        "tree_size": 3,
    }
    assert (await world.store.reads.leaves(world.bench.log_id, row.logged, row.logged + 1)) == [leaf]


async def test_a_log_that_grew_by_its_own_entries_alone_is_not_anchored_again(world: Anchored):
    await world.append(b"first")
    await world.step(HOUR)
    await world.step(3_000)
    world.mine()
    await world.step(HOUR + MINUTE)
    assert len(await world.own_leaves()) == 1
    await world.log.publisher.publish()
    assert (await world.store.checkpoints.checkpoint(world.bench.log_id)).size == 3
    await world.pass_time(5 * HOUR, HOUR)
    assert (await world.row()).tree_size == 2
    await world.append(b"a new one")
    await world.step(MINUTE)
    assert (await world.row()).tree_size == 4


async def test_many_entries_are_anchored_sooner_but_not_all_the_time(world: Anchored):
    await world.append(*[b"%d" % n for n in range(1000)])
    await world.step(9 * MINUTE)
    assert await world.store.anchors.anchor(world.bench.log_id) is None
    await world.step(MINUTE)
    first = await world.row()
    assert first.tree_size == 1001
    await world.append(*[b"%d" % n for n in range(1000, 2000)])
    await world.step(9 * MINUTE)
    assert (await world.row()).tree_size == 1001
    await world.step(MINUTE)
    assert (await world.row()).tree_size == 2001


# --- calendars that fail -------------------------------------------------------------------------------------------------


async def test_what_a_calendar_took_is_kept_and_the_rest_is_topped_up(world: Anchored):
    world.calendars[1].down()
    row = await world.submit()
    assert row.state == "pending"
    assert len(parse_ots(row.ots, own=True).pending) == 1
    missing = await world.of(row.tree_size, 1)
    assert (missing.state, missing.attempts) == ("queued", 1)
    await world.step()
    assert world.seen.last.degraded == 1
    world.calendars[1].up()
    await world.step(2 * MINUTE)
    row = await world.row(row.tree_size)
    assert {one.uri for one in parse_ots(row.ots, own=True).pending} == {one.url for one in world.calendars}
    assert len(world.calendars[0].posts) == 1
    assert world.seen.last.degraded == 0
    assert {message for _, message in world.calendars[0].posts} == {message for _, message in world.calendars[1].posts}


POST_FAULTS = ("hang", "drip", "redirect", "error", "portal", "reset", "big", "junk", "cut", "empty", "deep", "varuint")
POST_LIES = ("duplicate", "fake_height", "lie", "future", "wide", "sha1")


@pytest.mark.parametrize("fault", [*POST_FAULTS, *POST_LIES])
async def test_a_bad_reply_to_a_submission_is_a_failure_of_that_calendar_alone(world: Anchored, fault: str):
    bad, good = world.calendars
    bad.fault, bad.elsewhere = fault, f"{good.url}/digest"
    row = await world.submit()
    failed = await world.of(row.tree_size, 0)
    assert (failed.state, failed.attempts, failed.commitment) == ("queued", 1, None)
    assert failed.last_reason
    assert (await world.of(row.tree_size, 1)).state == "pending"
    assert {one.uri for one in parse_ots(row.ots, own=True).pending} == {good.url}
    assert len(good.requests) == 1, "nobody followed the redirect"
    bad.fault = ""
    await world.step(2 * MINUTE)
    assert (await world.of(row.tree_size, 0)).state == "pending"


POLL_FAULTS = ("hang", "drip", "redirect", "error", "portal", "reset", "big", "junk", "cut", "empty", "deep", "varuint")
POLL_NONSENSE = ("duplicate", "fake_height", "wide", "sha1")


@pytest.mark.parametrize("fault", [*POLL_FAULTS, *POLL_NONSENSE])
async def test_a_bad_answer_to_a_poll_changes_nothing_and_blocks_nobody(world: Anchored, fault: str):
    bad, good = world.calendars
    row = await world.submit()
    before = parse_ots(row.ots)
    world.mine()
    good.down()
    bad.fault, bad.elsewhere = fault, f"{good.url}/timestamp/00"
    await world.step(HOUR + MINUTE)
    row = await world.row(row.tree_size)
    assert parse_ots(row.ots, own=True) == before
    failed = await world.of(row.tree_size, 0)
    assert (failed.state, failed.attempts) == ("pending", 1)
    assert failed.last_reason
    good.up()
    await world.step(2 * MINUTE)
    assert (await world.row(row.tree_size)).state == "confirmed"
    bad.fault = ""
    await world.step(5 * MINUTE)
    assert (await world.of(row.tree_size, 0)).state == "complete", "polled on after the first success"


async def test_a_lie_is_never_merged_and_the_honest_calendar_decides(world: Anchored):
    liar, good = world.calendars
    row = await world.submit()
    world.mine()
    liar.fault = "lie"
    good.down()
    await world.step(HOUR + MINUTE)
    row = await world.row(row.tree_size)
    assert parse_ots(row.ots).bitcoin == ()
    assert row.state == "pending"
    assert (await world.of(row.tree_size, 0)).state == "bad_attestation"
    assert world.seen.last.bad == 1
    good.up()
    await world.step(2 * MINUTE)
    row = await world.row(row.tree_size)
    assert row.state == "confirmed"
    assert len(parse_ots(row.ots).bitcoin) == 1
    liar.fault = ""
    await world.step(HOUR)
    assert (await world.of(row.tree_size, 0)).state == "complete", "and it may still tell the truth"
    assert world.seen.last.bad == 0


async def test_a_block_that_nobody_has_seen_yet_is_not_believed(world: Anchored):
    row = await world.submit()
    world.calendars[0].fault = "future"
    world.calendars[1].fault = "silent"
    await world.step(HOUR + MINUTE)
    row = await world.row(row.tree_size)
    assert (row.state, parse_ots(row.ots).bitcoin) == ("pending", ())
    assert (await world.of(row.tree_size, 0)).state == "pending"


@pytest.mark.parametrize("uri", SSRF_URIS)
async def test_a_promise_that_names_another_place_is_kept_and_never_asked(rig: Rig, tmp_path, uri: str):
    async with anchored(rig, tmp_path, 1, uri=uri) as world:
        row = await world.submit()
        unlisted = await world.of(row.tree_size, 0)
        assert (unlisted.state, unlisted.next_at, unlisted.pending_uri) == ("unlisted", None, uri)
        assert parse_ots(row.ots, own=True).pending[0].uri == uri
        await world.pass_time(DAY, 4 * HOUR)
        assert world.calendars[0].polls == {}


async def test_a_promise_may_name_its_calendar_with_a_final_slash(rig: Rig, tmp_path):
    async with anchored(rig, tmp_path, 1) as world:
        world.calendars[0].uri += "/"
        row = await world.submit()
        assert (await world.of(row.tree_size, 0)).state == "pending"


async def test_the_commitment_is_polled_not_the_digest(world: Anchored):
    row = await world.submit()
    await world.step(HOUR + MINUTE)
    for one in world.calendars:
        ((_, message),) = one.posts
        assert set(one.polls) == {*one.commitments}
        assert message not in one.polls
        assert row.digest not in one.polls


async def test_what_a_calendar_says_is_made_safe_to_log(world: Anchored, capsys):
    row = await world.submit()
    world.calendars[0].fault = "control"
    await world.step(HOUR + MINUTE)
    reason = (await world.of(row.tree_size, 0)).last_reason
    assert reason.isprintable()
    assert reason == "Pending__2026-01-01 ERROR forged log line__2J__".replace("__2J", "__2J")
    assert len(reason) <= 160


async def test_a_lost_anchor_is_given_to_the_calendar_again(world: Anchored):
    row = await world.submit()
    world.calendars[0].fault = "not_found"
    world.calendars[0].faulty = {"GET"}
    await world.step(HOUR + MINUTE)
    assert (await world.of(row.tree_size, 0)).state == "queued"
    await world.step(MINUTE)
    assert (await world.of(row.tree_size, 0)).state == "pending"
    assert len(world.calendars[0].posts) == 2
    world.calendars[0].fault = ""
    world.mine()
    await world.step(HOUR + MINUTE)
    assert (await world.of(row.tree_size, 0)).state == "complete"


async def test_promises_that_wait_do_not_keep_a_new_anchor_from_its_calendar(world: Anchored, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    for _ in range(4):
        await world.submit()
    world.now += HOUR + 2 * MINUTE
    await world.anchorer.ask_all()  # "pending": the others are not asked for a while, and stay due
    row = await world.submit()
    assert {one.state for one in (await world.calendar_rows(row.tree_size)).values()} == {"pending"}


# --- all calendars down --------------------------------------------------------------------------------------------------


async def test_appends_go_on_while_all_calendars_are_down_and_the_newest_is_stamped(world: Anchored):
    for one in world.calendars:
        one.down()
    sizes = []
    for number in range(3):
        sizes.append(await world.append(b"%d" % number))
        await world.step(HOUR)
        await world.step(3_000)
    assert [row.state for row in await world.store.anchors.anchors(world.bench.log_id, 0, 9)] == [
        "superseded",
        "superseded",
        "queued",
    ]
    assert world.seen.last.degraded == 1
    assert world.seen.last.oldest_open == (await world.row()).created_at
    for one in world.calendars:
        one.up()
    await world.step(2 * HOUR)
    assert (await world.row()).state == "pending"
    assert [len(one.posts) for one in world.calendars] == [1, 1]
    world.mine()
    await world.step(HOUR + MINUTE)
    assert (await world.store.anchors.covering_anchor(world.bench.log_id, 0)).tree_size == sizes[-1]


async def test_a_dead_calendar_is_asked_less_and_less_and_given_up_after_two_days(world: Anchored):
    world.calendars[1].down()
    row = await world.submit()
    times = []
    for _ in range(0, 5 * DAY, HOUR):
        before = (await world.of(row.tree_size, 1)).attempts
        await world.step(HOUR)
        if (await world.of(row.tree_size, 1)).attempts > before:
            times.append(world.now)
    given_up = await world.of(row.tree_size, 1)
    assert (given_up.state, given_up.next_at) == ("given_up", None)
    assert times[-1] - times[0] > DAY
    assert (await world.row(row.tree_size)).state == "pending"


# --- blocks --------------------------------------------------------------------------------------------------------------


async def test_without_a_source_a_proof_is_complete_and_never_confirmed(rig: Rig, tmp_path):
    async with anchored(rig, tmp_path) as world:
        world.source = None
        world.anchorer = world.new_anchorer()
        row = await world.submit()
        world.mine()
        await world.step(HOUR + MINUTE)
        row = await world.row(row.tree_size)
        assert (row.state, row.confirmed_at, row.height) == ("complete", None, None)
        await world.pass_time(DAY, HOUR)
        assert (await world.row(row.tree_size)).state == "complete"
        assert await world.own_leaves() == []
        world.source = ChainSource(world.chain)
        world.restart()
        await world.step()
        assert (await world.row(row.tree_size)).state == "confirmed"


async def test_a_source_that_is_away_delays_and_loses_nothing(world: Anchored):
    row = await world.submit()
    world.mine()
    world.source.away = True
    await world.step(HOUR + MINUTE)
    assert (await world.row(row.tree_size)).state == "pending"
    assert (await world.of(row.tree_size, 0)).last_reason == "the node is away"
    world.source.away = False
    await world.step(10 * MINUTE)
    assert (await world.row(row.tree_size)).state == "confirmed"
    world.source.away = True
    await world.step(6 * HOUR)
    assert (await world.row(row.tree_size)).state == "confirmed"


async def test_a_reorganisation_takes_confirmed_back_and_the_same_bytes_are_submitted_again(world: Anchored):
    row = await world.submit()
    world.mine()
    await world.step(HOUR + MINUTE)
    before = await world.row(row.tree_size)
    assert before.state == "confirmed"
    world.chain.reorg(8, 1)
    await world.step(6 * HOUR)
    row = await world.row(row.tree_size)
    assert (row.state, row.confirmed_at, row.height, row.block_hash) == ("pending", None, None, None)
    assert await world.store.anchors.covering_anchor(world.bench.log_id, 0) is None
    await world.step()
    assert [len(one.posts) for one in world.calendars] == [2, 2]
    assert len({message for one in world.calendars for _, message in one.posts}) == 1
    world.mine()
    await world.step(HOUR + MINUTE)
    row = await world.row(row.tree_size)
    assert row.state == "confirmed"
    assert row.block_hash == world.chain.at(row.height).hash
    assert row.height != before.height or row.block_hash != before.block_hash
    assert len(await world.own_leaves()) == 1, "the log cannot be taken back, and is not told twice"


async def test_the_earliest_block_counts_whichever_came_first(world: Anchored):
    early, late = world.calendars
    row = await world.submit()
    early.publish()
    world.chain.mine(10)
    late.publish()
    world.chain.mine(10)
    early.down()
    await world.step(HOUR + MINUTE)
    assert (await world.row(row.tree_size)).height == 111
    early.up()
    await world.step(10 * MINUTE)
    row = await world.row(row.tree_size)
    assert (row.state, row.height) == ("confirmed", 101)


# --- what is frozen, and what must not be --------------------------------------------------------------------------------


async def test_a_cosignature_after_the_freeze_changes_nothing(world: Anchored):
    row = await world.submit()
    cosigned = row.checkpoint.decode() + "— witness.example/w AAAAAAECAwQFBgcICQ==\n"
    await world.bench.rig.sql(
        "DROP TRIGGER checkpoints_no_update", f"UPDATE checkpoints SET note = '{cosigned}' WHERE size = {row.tree_size}"
    )
    assert (await world.store.checkpoints.checkpoint(world.bench.log_id, row.tree_size)).note == cosigned
    world.mine()
    await world.step(HOUR + MINUTE)
    after = await world.row(row.tree_size)
    assert after.state == "confirmed"
    assert after.checkpoint == row.checkpoint
    assert sha256(after.checkpoint).digest() == after.digest == parse_ots(after.ots).digest


@both
async def test_a_log_smaller_than_its_largest_anchor_is_not_anchored(world: Anchored):
    await world.append(b"a")
    future = (await world.submit()).tree_size + 5
    row = await world.row()
    changed = rows.replace(row, tree_size=future, digest=bytes(32), ots=None, state="queued", revision=0)
    assert await world.store.anchors.add_anchor(world.bench.log_id, changed, [CalendarRow(future, "https://c.example")])
    await world.append(b"b")
    await world.step(3 * HOUR)
    assert world.seen.code == "anchor_ahead"
    assert (await world.row()).tree_size == future
    await world.append(*[b"more %d" % n for n in range(10)])
    await world.step(HOUR)
    assert world.seen.code == "anchor_root", "grown past it, but another history: nothing says what was anchored"


async def test_a_log_with_another_root_than_the_anchored_one_is_not_anchored(world: Anchored):
    await world.submit()
    last = await world.row()
    await world.append(b"next")
    forged = rows.replace(last, tree_size=last.tree_size + 1, root=bytes(32), revision=0, ots=None, state="queued")
    assert await world.store.anchors.add_anchor(world.bench.log_id, forged, [])
    await world.append(b"and one more")
    await world.step(2 * HOUR)
    assert world.seen.code == "anchor_root"
    assert (await world.row()).tree_size == forged.tree_size


async def test_only_one_of_two_anchorers_works(world: Anchored):
    await world.step(HOUR)
    other = world.new_lease(await world.bench.rig.open())
    assert not await other.take()
    assert not other.held
    world.now += 2 * MINUTE  # the first one died
    assert await other.take()
    assert not await world.lease.take()
    await other.release()
    assert await world.lease.take()


async def test_two_anchorers_at_once_are_only_wasteful(world: Anchored):
    row = await world.freeze()
    world.now += 3_000
    other = world.new_anchorer(await world.bench.rig.open())
    await asyncio.gather(world.anchorer.ask_all(), other.ask_all())
    world.mine()
    world.now += HOUR + MINUTE
    await asyncio.gather(world.anchorer.ask_all(), other.ask_all())
    after = await world.row(row.tree_size)
    assert after.state == "confirmed"
    parse_ots(after.ots, own=True)


async def test_nothing_is_asked_more_often_than_once_a_minute(world: Anchored):
    await world.submit()
    polls: list[int] = []
    for _ in range(0, 3 * HOUR, 50_000):
        before = sum(len(times) for times in world.calendars[0].polls.values())
        await world.step(50_000)
        if sum(len(times) for times in world.calendars[0].polls.values()) > before:
            polls.append(world.now)
    assert 3 <= len(polls) <= 6
    assert min(b - a for a, b in itertools.pairwise(polls)) >= MINUTE
