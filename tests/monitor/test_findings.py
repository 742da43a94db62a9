"""Each way in which a log goes wrong, what a monitor makes of it, and on what it says that this rests."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from muniment import evidence
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.event import event_leaf, format_time
from muniment.hashing import RootHash
from muniment.monitor.follower import Status
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment.tiles import decode_bundle, encode_bundle
from tests.client.fake_log import NOON, FakeLog, problem
from tests.monitor.conftest import Shown
from tests.monitor.desk import LATER, Desk

EVENTS = [{"action": f"act {number}"} for number in range(1400)]
OTHERS = [{"action": f"other {number}"} for number in range(1400)]
GRACE = 60_000


def add(log: FakeLog, count: int, events: list[dict[str, str]] = EVENTS) -> None:
    start = log.size
    log.add_events(events[start : start + count])
    log.publish()


def proved(desk: Desk) -> evidence.Fork:
    """The fork that the one file of evidence proves, and that was found alone."""
    assert desk.codes() == ["fork"]
    (path,) = (desk.folder / "evidence").iterdir()
    assert desk.findings()[0]["facts"]["evidence"] == f"evidence/{path.name}"
    return evidence.verify(evidence.Evidence.parse(path.read_bytes()), desk.policy)


# --- forks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("common", "ours", "theirs"),
    [
        (1, 1, 1),
        (10, 5, 5),  # one size
        (10, 5, 9),  # the other is larger
        (10, 9, 5),  # and smaller
        (255, 1, 2),
        (256, 1, 300),
        (200, 100, 900),
        (200, 900, 100),
        (511, 257, 258),
        (512, 512, 511),
        (2, 6, 300),  # 8 is a power of two: RFC 9162 leaves the first node out
        (3, 252, 3),
        (200, 312, 900),
        (200, 900, 312),
    ],
)
async def test_a_fork_is_proved(desk: Desk, log: FakeLog, shown: Shown, common: int, ours: int, theirs: int) -> None:
    add(log, common)
    twin = log.fork()
    add(log, ours)
    await desk.look()
    add(twin, theirs, OTHERS)
    shown.log = twin
    assert await desk.look() is Status.FOUND
    fork = proved(desk)
    assert {fork.first.size, fork.second.size} == {log.size, twin.size}


async def test_a_fork_is_reported_once_and_never_taken_back(desk: Desk, log: FakeLog, shown: Shown) -> None:
    add(log, 10)
    twin = log.fork()
    add(log, 5)
    add(twin, 6, OTHERS)
    await desk.look()
    shown.log = twin
    await desk.look(3)
    add(twin, 6, OTHERS)
    await desk.look()
    shown.log = log
    assert await desk.look() is Status.FOUND
    proved(desk)


async def test_what_a_fork_showed_is_not_taken_for_the_log(desk: Desk, log: FakeLog, shown: Shown) -> None:
    add(log, 300)
    twin = log.fork()
    add(log, 5)
    add(twin, 600, OTHERS)
    await desk.look()
    shown.log = twin
    await desk.look()
    shown.log = log
    add(log, 500)
    await desk.look()
    assert desk.events("head")[-1]["root"] == log.edge.root().hex()


async def test_a_fork_that_hides_its_tiles_is_not_proved(desk: Desk, log: FakeLog, shown: Shown) -> None:
    add(log, 300)
    twin = log.fork()
    add(log, 5)
    add(twin, 9, OTHERS)
    await desk.look()
    twin.tamper = lambda request, response: (
        problem(404, "not_found") if request.url.path.startswith("/tile/0") else response
    )
    shown.log = twin
    assert await desk.look(2, step=GRACE) is Status.FOUND
    assert desk.codes() == ["bundle"]  # what is served instead of entries that were read before


# --- entries and roots --------------------------------------------------------------------------------------------------


def bundle(change: Callable[[list[bytes]], bytes]) -> Callable[[httpx.Request, httpx.Response], httpx.Response]:
    def tamper(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "/tile/entries" in request.url.path and response.status_code == 200:
            return httpx.Response(200, content=change(decode_bundle(response.content)))
        return response

    return tamper


SPOILED = {
    "another entry": lambda leaves: encode_bundle([*leaves[:-1], b"another"]),
    "an entry less": lambda leaves: encode_bundle(leaves[:-1]),
    "cut off": lambda leaves: encode_bundle(leaves)[:-1],
    "a byte more": lambda leaves: encode_bundle(leaves) + b"\0",
    "nothing": lambda leaves: b"",
    "in another order": lambda leaves: encode_bundle(leaves[::-1]),
    "an entry twice": lambda leaves: encode_bundle([*leaves[:-1], leaves[0]]),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("count", [40, 255, 300])
async def test_wrong_entries(desk: Desk, log: FakeLog, how: str, count: int) -> None:
    add(log, 5)
    await desk.look()
    add(log, count)
    log.tamper = bundle(SPOILED[how])
    assert await desk.look() is Status.BEHIND
    assert await desk.look(1, step=GRACE) is Status.BEHIND
    assert await desk.look() is Status.FOUND
    assert desk.codes() == ["bundle"]
    log.tamper = None
    assert await desk.look() is Status.GOOD
    assert desk.events("head")[-1]["root"] == log.edge.root().hex()


async def test_one_damaged_answer_is_no_finding(desk: Desk, log: FakeLog) -> None:
    add(log, 700)
    log.tamper = bundle(SPOILED["another entry"])
    assert await desk.look(grace=1) is Status.BEHIND
    log.tamper = None
    desk.now += GRACE
    assert await desk.look(grace=1) is Status.GOOD
    assert not desk.findings()


async def test_the_wrong_entry_is_named(desk: Desk, log: FakeLog) -> None:
    add(log, 700)
    log.tamper = bundle(lambda leaves: encode_bundle([*leaves[:7], b"another", *leaves[8:]]))
    assert await desk.look(grace=0) is Status.FOUND
    assert "entry 7 " in desk.findings()[0]["detail"]


async def test_a_root_that_nothing_leads_to(desk: Desk, log: FakeLog) -> None:
    add(log, 300)
    await desk.look()
    add(log, 10)
    log.notes[log.size] = str(sign_checkpoint(Checkpoint(log.origin, log.size, RootHash(b"x" * 32)), log.key))
    assert await desk.look(grace=0) is Status.FOUND
    assert desk.codes() == ["root"]


@pytest.mark.parametrize("count", [5, 256, 700])
async def test_missing_entries(desk: Desk, log: FakeLog, count: int) -> None:
    await desk.look()
    add(log, count)
    log.tamper = lambda request, response: problem(404, "not_found") if "entries" in request.url.path else response
    assert await desk.look() is Status.BEHIND
    desk.now += GRACE
    assert await desk.look() is Status.FOUND
    assert desk.codes() == ["missing"]
    log.tamper = None
    assert await desk.look() is Status.GOOD


async def test_an_enormous_size_that_is_signed(desk: Desk, log: FakeLog) -> None:
    await desk.look()
    log.published_sizes.append(2**63 - 1)
    log.notes[2**63 - 1] = str(sign_checkpoint(Checkpoint(log.origin, 2**63 - 1, RootHash(b"x" * 32)), log.key))
    assert await desk.look(grace=0) is Status.FOUND
    assert desk.codes() == ["missing"]


# --- checkpoints --------------------------------------------------------------------------------------------------------


def note_of(log: FakeLog, note: str) -> None:
    log.tamper = lambda request, response: (
        httpx.Response(200, text=note) if request.url.path == "/checkpoint" else response
    )


async def test_another_key(desk: Desk, log: FakeLog) -> None:
    await desk.look()
    note_of(log, str(sign_checkpoint(Checkpoint(log.origin, 1, log.edge.root()), SigningKey(log.origin, b"k" * 32))))
    assert await desk.look(2, step=GRACE) is Status.FOUND
    assert desk.codes() == ["key"]


async def test_another_origin(desk: Desk, log: FakeLog) -> None:
    key = SigningKey("example.com/other", b"k" * 32)
    desk.policy = Policy((LogKey(log.key.vkey), LogKey(key.vkey)))
    await desk.look()
    note_of(log, str(sign_checkpoint(Checkpoint("example.com/other", 1, log.edge.root()), key)))
    assert await desk.look(2, step=GRACE) is Status.FOUND
    assert desk.codes() == ["policy"]


async def test_an_origin_that_the_policy_does_not_have_at_this_url(desk: Desk, log: FakeLog) -> None:
    key = SigningKey("example.com/other", b"k" * 32)
    desk.policy = Policy((LogKey(log.key.vkey), LogKey(key.vkey, desk.url)))
    assert await desk.look(grace=0) is Status.FOUND
    assert desk.codes() == ["policy"]


@pytest.mark.parametrize("note", ["", "x", "<html></html>", "example.com/log\n01\nAAAA\n\n— a AAAA\n"])
async def test_no_checkpoint(desk: Desk, log: FakeLog, note: str) -> None:
    note_of(log, note)
    assert await desk.look() is Status.BEHIND
    assert await desk.look(2, step=GRACE) is Status.FOUND
    assert desk.codes() == ["format"]


async def test_a_size_with_leading_zeros(desk: Desk, log: FakeLog) -> None:
    text = str(Checkpoint(log.origin, 1, log.edge.root())).replace("\n1\n", "\n01\n")
    note_of(log, f"{text}\n{log.key.sign(text)}")
    assert await desk.look(grace=0) is Status.FOUND
    assert desk.codes() == ["format"]


async def test_unknown_signature_lines_do_no_harm(desk: Desk, log: FakeLog) -> None:
    note_of(log, log.note(1) + "— somewhere.example AAAAAAAA\n")
    assert await desk.look(grace=0) is Status.GOOD


# --- times --------------------------------------------------------------------------------------------------------------


def leaf_at(log: FakeLog, when: int) -> None:
    log._grow([event_leaf("A" * 43, format_time(when))])
    log.publish()


async def test_time_that_goes_back(desk: Desk, log: FakeLog) -> None:
    leaf_at(log, NOON + 10)
    leaf_at(log, NOON + 10)
    assert await desk.look() is Status.GOOD
    leaf_at(log, NOON + 9)
    await desk.look()
    assert desk.codes() == ["time"]
    assert desk.findings()[0]["facts"] == {"index": 3}


async def test_time_in_the_future(desk: Desk, log: FakeLog) -> None:
    leaf_at(log, LATER + 60_000)
    await desk.look()
    assert not desk.findings()
    leaf_at(log, LATER + 60_001)
    await desk.look()
    assert desk.codes() == ["time"]


async def test_entries_of_other_logs_say_nothing_of_it(desk: Desk, log: FakeLog) -> None:
    """A log that is not ours takes what looks like ours from any submitter."""
    log.leaves[0] = b"not a genesis"
    log.edge, leaves, log.leaves, log.tiles = type(log.edge)(), log.leaves, [], {}
    log.notes.clear()
    log._grow(leaves)
    for when in (NOON + 10**12, NOON):
        leaf_at(log, when)
    assert await desk.look() is Status.GOOD
    assert not desk.findings()


async def test_an_entry_that_is_published_late(desk: Desk, log: FakeLog) -> None:
    await desk.look(2, delay=1_000)
    leaf_at(log, LATER - 61_000)
    await desk.look(delay=1_000)
    assert not desk.findings()
    desk.now += 31_000
    await desk.look(delay=1_000)
    leaf_at(log, desk.now - 61_001)
    await desk.look(delay=1_000)
    assert desk.codes() == ["late"]


async def test_a_log_that_makes_no_new_checkpoints(desk: Desk, log: FakeLog) -> None:
    await desk.look(stale=10_000)
    desk.now += 10_000
    assert await desk.look(stale=10_000) is Status.GOOD
    desk.now += 1
    assert await desk.look(stale=10_000) is Status.FOUND
    assert desk.codes() == ["stale"]
    add(log, 1)
    await desk.look(stale=10_000)
    assert [value["code"] for value in desk.events("cleared")] == ["stale"]


async def test_anchors_that_do_not_come(desk: Desk) -> None:
    assert await desk.look(step=10_001, anchors=10_000) is Status.GOOD
    assert await desk.look(anchors=10_000) is Status.FOUND
    assert desk.codes() == ["anchor"]
