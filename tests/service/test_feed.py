"""The feed inside a server: every published checkpoint reaches every subscriber, in order and once, and none waits for another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from muniment.encoding import MAX_SIZE
from muniment.sse import HEARTBEAT, EventReader
from muniment_server.errors import StoreUnavailable
from muniment_server.read import feed as module
from muniment_server.read.feed import Feed
from muniment_server.settings import Settings
from muniment_server.storage.checkpoints import Published
from muniment_server.web.handlers import feed as handler
from muniment_server.web.room import Budget, Rooms
from tests.live import PATIENCE
from tests.service.rig import NOW, Bench, Rig

HEAD = 2_000
NEVER = 3600.0  # seconds: it looks when it is told to


class Followed:
    """A log of which checkpoints are published by hand, and its feed."""

    def __init__(self, bench: Bench, look_seconds: float = NEVER) -> None:
        self.store, self.log_id = bench.rig.store, bench.log_id
        self.feed = Feed(self.store.checkpoints, bench.log_id, bench.row.name, look_seconds)
        self.sizes: list[int] = []

    async def publish(self, *sizes: int) -> None:
        rows = [Published(size, f"{size}\n", NOW) for size in sizes]
        assert await self.store.checkpoints.publish_all(self.log_id, rows)
        self.sizes += sizes

    def stream(self, after: int) -> AsyncGenerator[bytes]:
        return self.feed.stream(after, lambda _end: None)

    def after(self, size: int) -> list[int]:
        return [one for one in self.sizes if one > size]


@pytest.fixture
async def log(rig: Rig) -> AsyncIterator[Followed]:
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(HEAD)])
    followed = Followed(bench)
    yield followed
    await followed.feed.close()


async def sizes_of(stream: AsyncGenerator[bytes], count: int) -> list[int]:
    """The sizes of the next events, as many as these or more."""
    reader, found = EventReader(), []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            for event in reader.read(await anext(stream)):
                assert event.note == f"{event.size}\n"
                found.append(event.size)
    return found


async def rest(stream: AsyncGenerator[bytes]) -> list[bytes]:
    """Everything that comes until a stream ends, but for heartbeats."""
    return [part async for part in stream if part != HEARTBEAT]


async def idle(log: Followed) -> None:
    """Wait until the feed knows what is published."""
    async with asyncio.timeout(PATIENCE):
        while log.feed._floor is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_what_is_published_later_comes_once_and_in_order(log: Followed) -> None:
    await log.publish(3, 5)
    async with aclosing(log.stream(0)) as all_of_it, aclosing(log.stream(5)) as new:
        assert await sizes_of(all_of_it, 2) == [3, 5]
        await idle(log)
        for sizes in ((7,), (8,), (9, 11, 20)):
            await log.publish(*sizes)
            log.feed.wake()
            assert await sizes_of(all_of_it, len(sizes)) == await sizes_of(new, len(sizes)) == list(sizes)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 6, 9])
async def test_it_goes_on_behind_any_size(log: Followed, after: int) -> None:
    """Whether that was published or not; also one that this process does not know yet."""
    await log.publish(2, 3, 5)
    async with aclosing(log.stream(after)) as stream:
        first = asyncio.ensure_future(sizes_of(stream, 1))
        await idle(log)
        await log.publish(6, 10)
        log.feed.wake()
        found = await first
        assert found + await sizes_of(stream, len(log.after(after)) - len(found)) == log.after(after)


async def test_beyond_the_largest_size_nothing_comes(log: Followed) -> None:
    await log.publish(2)
    async with aclosing(log.stream(MAX_SIZE - 1)) as beyond, aclosing(log.stream(0)) as other:
        following = asyncio.ensure_future(sizes_of(beyond, 1))
        await idle(log)
        await log.publish(HEAD)
        log.feed.wake()
        assert await sizes_of(other, 2) == [2, HEAD]
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64, 65, 200])
async def test_at_the_border_of_store_and_memory(log: Followed, count: int) -> None:
    """Subscribers that come at any size, while more is published than is kept."""
    await log.publish(*range(10, 10 + count))
    async with aclosing(log.stream(0)) as first:
        assert (await sizes_of(first, count))[:count] == log.sizes
        await idle(log)
        await log.publish(*range(300, 300 + count))
        await log.feed.look()
        floor = log.feed._floor or 0
        wanted = sorted(
            {
                0,
                10,
                floor - 1,
                floor,
                9 + count - 1,
                9 + count,
                300,
                300 + count - 2,
                *random.sample(log.sizes, min(9, count)),
            }
        )
        for after in (size for size in wanted if log.after(size)):
            async with aclosing(log.stream(after)) as stream:
                found = await sizes_of(stream, 1)
                assert found == log.after(after)[: len(found)], after
                found += await sizes_of(stream, len(log.after(after)) - len(found))
                assert found == log.after(after), after


async def test_many_at_once_while_much_is_published(log: Followed) -> None:
    await log.publish(1)

    async def follow(after: int) -> None:
        found: list[int] = []
        async with aclosing(log.stream(after)) as stream:
            while not found or found[-1] != HEAD:
                found += await sizes_of(stream, 1)
                await asyncio.sleep(random.choice((0, 0, 0.001)))
        assert found == log.after(after)

    tasks = [asyncio.create_task(follow(random.choice((0, 1, 2, 400, 1200)))) for _ in range(30)]
    at = 1
    while at < HEAD:
        sizes = sorted(random.sample(range(at + 1, HEAD + 1), min(random.choice((1, 1, 3, 90)), HEAD - at)))[:90]
        sizes = [size for size in sizes if size <= at + 200] or [at + 1]
        await log.publish(*sizes)
        at = sizes[-1]
        log.feed.wake()
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks)


async def test_nothing_waits_for_one_that_does_not_read(log: Followed) -> None:
    await log.publish(1)
    async with aclosing(log.stream(0)) as slow, aclosing(log.stream(1)) as quick:
        assert await sizes_of(slow, 1) == [1]  # and asks for nothing more
        await idle(log)
        for size in range(2, 50):
            following = asyncio.ensure_future(anext(quick))
            await asyncio.sleep(0)
            await log.publish(size)
            await log.feed.look()
            for _ in range(100):
                await asyncio.sleep(0)
            assert following.done(), "it was not told"
            assert [event.size for event in EventReader().read(following.result())] == [size]
        assert await sizes_of(slow, 48) == list(range(2, 50)), "it missed nothing, and goes on"


async def test_one_that_is_behind_all_that_is_kept_reads_the_store(log: Followed) -> None:
    await log.publish(1)
    async with aclosing(log.stream(0)) as slow:
        assert await sizes_of(slow, 1) == [1]
        await idle(log)
        for start in (2, 50, 100):
            await log.publish(*range(start, start + 48))
            await log.feed.look()
        assert len(log.feed._kept) == 64
        assert await sizes_of(slow, 144) == log.after(1)


async def test_while_nothing_happens_there_are_heartbeats(log: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    await log.publish(1)
    async with aclosing(log.stream(1)) as one, aclosing(log.stream(0)) as other:
        assert await sizes_of(other, 1) == [1]
        parts = [asyncio.ensure_future(anext(stream)) for stream in (one, other)]
        await idle(log)
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.0)
        await log.feed.look()
        assert await asyncio.wait_for(asyncio.gather(*parts), PATIENCE) == [HEARTBEAT, HEARTBEAT]


async def test_it_ends_when_it_is_told_to(log: Followed) -> None:
    await log.publish(1)
    ends: list[Any] = []
    streams = [log.feed.stream(0, ends.append) for _ in range(3)]
    for stream in streams:
        assert await sizes_of(stream, 1) == [1]
    waiting = [asyncio.ensure_future(rest(stream)) for stream in streams[:2]]
    await idle(log)
    for end in ends:
        end()
        end()
    assert await asyncio.wait_for(asyncio.gather(*waiting, rest(streams[2])), PATIENCE) == [[]] * 3
    assert log.feed.subscribers == 0
    async with asyncio.timeout(PATIENCE):
        while log.feed._task:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not log.feed._kept
    await log.publish(2)
    async with aclosing(log.stream(0)) as stream:
        assert await sizes_of(stream, 2) == [1, 2], "and begins again with what was published meanwhile"


async def test_a_key_is_asked_for_again(log: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of a log that is not public ends after a while: its reader comes again, with a key that still holds."""
    await log.publish(1)
    monkeypatch.setattr(handler, "_KEYED_SECONDS", 0.05)

    def pieces(*, public: bool) -> AsyncGenerator[bytes]:
        served: Any = SimpleNamespace(row=SimpleNamespace(public=public), heads=SimpleNamespace(feed=log.feed))
        budget = Budget(Rooms.of(Settings(data=Path("/nonexistent"))), None)
        return handler._Stream(served, 0).pieces(budget)

    async with aclosing(pieces(public=True)) as stays, aclosing(pieces(public=False)) as ends:
        assert await sizes_of(stays, 1) == [1]
        following = asyncio.ensure_future(sizes_of(stays, 1))
        assert len(await asyncio.wait_for(rest(ends), PATIENCE)) == 1
        await log.publish(2)
        log.feed.wake()
        assert await following == [2]


async def test_it_goes_on_after_a_database_that_was_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = await rig.log("raw")
    await bench.extend(b"a", b"b", b"c")
    log = Followed(bench, look_seconds=0.01)
    await log.publish(1)
    real, failures = log.store.checkpoints.checkpoints, 0

    async def fails(*_: Any, **__: Any) -> list[Published]:
        nonlocal failures
        failures += 1
        raise [StoreUnavailable("it is away"), ZeroDivisionError()][failures % 2]

    async with aclosing(log.stream(0)) as stream:
        assert await sizes_of(stream, 1) == [1]
        await idle(log)
        following = asyncio.ensure_future(sizes_of(stream, 1))
        await asyncio.sleep(0)
        monkeypatch.setattr(type(log.store.checkpoints), "checkpoints", fails)
        await log.publish(2)
        async with asyncio.timeout(PATIENCE):
            while failures < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        monkeypatch.setattr(type(log.store.checkpoints), "checkpoints", lambda _self, *a, **k: real(*a, **k))
        assert await asyncio.wait_for(following, PATIENCE) == [2], "without being woken: another process published it"
    await log.feed.close()
