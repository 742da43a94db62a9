"""What a monitor reads, and what it says of a log that is as it must be."""

from __future__ import annotations

import pytest

from muniment.monitor.follower import Status
from tests.client.fake_log import FakeLog, problem
from tests.monitor.desk import Desk

EVENTS = [{"action": f"act {number}"} for number in range(700)]


@pytest.mark.parametrize("sizes", [[1], [255, 1, 1], [256, 256], [300, 400], [511, 1, 100]])
async def test_every_entry_is_read_and_the_root_recomputed(desk: Desk, log: FakeLog, sizes: list[int]) -> None:
    for size in sizes:
        log.add_events(EVENTS[:size])
        log.publish()
        assert await desk.look() is Status.GOOD
    head = desk.events("head")[-1]
    assert head["tree_size"] == log.size
    assert head["root"] == log.edge.root().hex()
    assert not desk.findings()
    assert not any("tile/0" in path or "proof" in path for path in log.paths())


async def test_what_was_read_is_not_read_again(desk: Desk, log: FakeLog) -> None:
    log.add_events(EVENTS[:600])
    log.publish()
    await desk.look()
    log.requests.clear()
    log.add_events(EVENTS[600:])
    log.publish()
    await desk.look()
    assert {path for path in log.paths() if "tile" in path} == {"/tile/entries/002.p/189"}


async def test_a_smaller_checkpoint_is_not_yet_and_then_a_rollback(desk: Desk, log: FakeLog) -> None:
    log.add_events(EVENTS[:300])
    log.publish()
    await desk.look()
    log.published_sizes.pop()
    assert await desk.look() is Status.BEHIND
    assert not desk.findings()
    desk.now += 60_000
    assert await desk.look() is Status.FOUND
    assert desk.codes() == ["rollback"]
    assert desk.findings()[0]["rests_on"].startswith("unsigned")
    assert await desk.look() is Status.FOUND
    assert desk.codes() == ["rollback"]
    log.publish()
    assert await desk.look() is Status.GOOD
    assert [value["code"] for value in desk.events("cleared")] == ["rollback"]


async def test_a_replica_that_lags_now_and_then_is_no_rollback(desk: Desk, log: FakeLog) -> None:
    log.add_events(EVENTS[:10])
    log.publish()
    await desk.look()
    for _ in range(10):
        log.published_sizes.pop()
        assert await desk.look(step=20_000) is Status.BEHIND
        log.publish()
        assert await desk.look(step=20_000) is Status.GOOD
    assert not desk.findings()


async def test_a_log_that_was_away_has_not_lagged_meanwhile(desk: Desk, log: FakeLog) -> None:
    log.add_events(EVENTS[:10])
    log.publish()
    await desk.look()
    log.published_sizes.pop()
    assert await desk.look(step=5_000) is Status.BEHIND
    log.tamper = lambda request, response: problem(503, "down")
    assert await desk.look(2, step=600_000) is Status.UNREACHABLE
    log.tamper = None
    assert await desk.look(step=54_999) is Status.BEHIND
    assert await desk.look(step=1) is Status.BEHIND
    assert not desk.findings()
    assert await desk.look() is Status.FOUND


async def test_a_log_that_is_away_is_not_accused(desk: Desk, log: FakeLog) -> None:
    await desk.look()
    log.tamper = lambda request, response: problem(503, "down")
    assert await desk.look(2, step=10**9) is Status.UNREACHABLE
    log.tamper = lambda request, response: problem(403, "forbidden")
    assert await desk.look(2, step=10**9) is Status.REFUSED
    assert not desk.findings()
    assert [value["status"] for value in desk.events("status")] == ["unreachable", "refused"]


async def test_what_was_read_is_looked_at_again(desk: Desk, log: FakeLog) -> None:
    """An entry that is taken away long after it was read, and one bundle of several."""
    desk.patrol_every = 10_000
    log.add_events(EVENTS[:600])
    log.publish()
    async with desk.follower() as found:
        await found.look()
        log.tamper = lambda request, response: (
            problem(404, "not_found") if request.url.path == "/tile/entries/001" else response
        )
        for _ in range(60):
            await found.look()
            desk.now += 10_000
            if desk.findings():
                break
    assert desk.codes() == ["missing"]
    assert "256 to 511" in desk.findings()[0]["detail"]
