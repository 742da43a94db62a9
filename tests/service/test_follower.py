"""What every follower does: it works again and again whatever goes wrong, when it is woken, and only where its lease is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import structlog.testing

from muniment_server.errors import StoreUnavailable
from muniment_server.follow.follower import Follower, Retry
from muniment_server.follow.publisher import rest
from tests.live import PATIENCE

RETRY = Retry("it failed", 0.001, (StoreUnavailable,))


class Work:
    """Counts its calls. Each meets the next of these errors, then none."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> float:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 0.001


class Held:
    """A lease that can be given and taken away, or fail."""

    def __init__(self) -> None:
        self.held, self.fails, self.released = False, False, 0

    async def take(self) -> bool:
        if self.fails:
            raise StoreUnavailable("away")
        return self.held

    async def release(self) -> None:
        self.released += 1
        raise StoreUnavailable("away")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a follower says nothing when it has worked
            await asyncio.sleep(0.001)


async def test_it_works_again_whatever_goes_wrong_and_says_so() -> None:
    work = Work(StoreUnavailable("away"), KeyError("a bug"))
    follower = Follower("follower", "log", work, RETRY)
    with structlog.testing.capture_logs() as lines:
        follower.start()
        await until(lambda: work.calls > 4)
        await follower.close()
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("debug", "a follower waits"),
        ("warning", "it failed"),
    ]
    assert lines[1]["error"] == "KeyError: 'a bug'"
    calls = work.calls
    await asyncio.sleep(0.01)
    assert work.calls == calls, "closed"


async def test_an_error_of_our_own_has_its_traceback_and_a_longer_rest() -> None:
    retry = Retry("it failed", 0.001, (StoreUnavailable,), bug_seconds=60.0)
    work = Work(StoreUnavailable("away"), error := KeyError("a bug"))
    follower = Follower("follower", "log", work, retry)
    with structlog.testing.capture_logs() as lines:
        follower.start()
        await until(lambda: len(lines) == 2)
        await asyncio.sleep(0.01)
        await follower.close()
    assert work.calls == 2
    assert (lines[1]["log_level"], lines[1]["exc_info"]) == ("error", error)
    assert (retry.rest_after(StoreUnavailable("")), retry.rest_after(error)) == (0.001, 60.0)


async def test_one_that_is_woken_works_once_each_time_and_again_after_an_error() -> None:
    work = Work(StoreUnavailable("away"))
    follower = Follower("follower", "log", work, RETRY, on_wake=True)
    follower.start()
    await asyncio.sleep(0.01)
    assert work.calls == 0
    follower.wake()
    await until(lambda: work.calls == 2)
    await asyncio.sleep(0.01)
    assert work.calls == 2
    follower.wake()
    await until(lambda: work.calls == 3)
    await follower.close()


async def test_it_works_only_where_its_lease_is() -> None:
    work, lease = Work(), Held()
    follower = Follower("follower", "log", work, RETRY, lease=lease)
    lease.fails = True
    follower.start()
    await asyncio.sleep(0.01)
    lease.fails = False
    await asyncio.sleep(0.01)
    assert work.calls == 0
    lease.held = True
    await until(lambda: work.calls > 1)
    await follower.close()
    assert lease.released == 1, "what goes wrong then stays there: the lease ends by itself"


async def test_one_that_was_never_started_is_closed() -> None:
    await Follower("follower", "log", Work(), RETRY).close()


@pytest.mark.parametrize(
    ("interval", "took", "seconds"), [(1.0, 0.0, 0.8), (1.0, 0.1, 0.6), (1.0, 0.4, 0.0), (1.0, 9.0, 0.0)]
)
def test_a_publication_that_took_long_is_followed_by_a_shorter_rest(interval: float, took: float, seconds: float):
    assert rest(interval, took) == pytest.approx(seconds)
