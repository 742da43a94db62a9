"""The feed under load: a thousand who follow a log, in one process, while others append as fast as answers come.

A seed is one server, or one that only reads beside the one that writes. Each subscriber must see every published checkpoint once and in
order, some of them are cut again and again and go on, others never read; when the server is stopped, it has ended in STOP_SECONDS. What
an append costs the server in processor time is taken with and without subscribers, in turns, for the figure is a ratio. Both figures are
printed: their aims are 1.1 and 2 s. A seed fails by them only where no other work on the machine explains it, since one ratio of four
slices varies by a tenth and more.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from muniment.sse import EventReader
from tests.live import LiveServer, free_of_tracebacks
from tests.rigs.rig import Context, FaultRig
from tests.service.http_raw import address, request_bytes
from tests.service.http_world import Instance, LogSpec, make_instance

SUBSCRIBERS = 1_000
DEAF = 20
CUT = 50  # of the subscribers: how many leave now and then, and come back
LANES = 64
PHASE_SECONDS = 2.0
TURNS = 2
MOST = 1.5  # processor time of an append with subscribers, to that without; the aim is 1.1
STOP_SECONDS = 10.0  # the aim is 2
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")
_TICK = os.sysconf("SC_CLK_TCK")


def spent(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@dataclass
class Subscriber:
    """One who follows, what it saw, and when."""

    url: str
    leaves: bool
    seen: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    async def follow(self) -> None:
        """Follow until the server ends the stream. One that leaves comes back."""
        rng = random.Random(id(self))
        while await self._once(rng.randrange(2, 6) if self.leaves else None):
            pass

    async def _once(self, most: int | None) -> bool:
        reader, writer = await asyncio.open_connection(*address(self.url))
        after = {"Last-Event-ID": str(self.seen[-1])} if self.seen else {}
        writer.write(request_bytes("GET", "/checkpoints/stream", headers=after))
        events, count = EventReader(), 0
        try:
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            while size := int(await reader.readline(), 16):
                for event in events.read((await reader.readexactly(size + 2))[:-2]):
                    self.seen.append(event.size)
                    self.at.append(time.monotonic())
                    count += 1
                if most is not None and count >= most:
                    return True
        finally:
            writer.close()
        return False


async def deaf(url: str) -> asyncio.StreamWriter:
    """Come and read nothing."""
    _, writer = await asyncio.open_connection(*address(url), limit=1)
    writer.write(request_bytes("GET", "/checkpoints/stream", headers={"Last-Event-ID": "0"}))
    return writer


class Lane(asyncio.Protocol):
    """Appends leaves, each as soon as the one before is answered. By hand: it has to keep a server busy, from this process."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._open = True
        self._received = b""
        self.count = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._append()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if end else None
        if length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(self._received)
        self._received = b""
        self.count += 1
        if self._open:
            self._append()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(exc)

    def _append(self) -> None:
        leaf = b"%d.%d.%d" % (self._number, self.count, time.monotonic_ns())
        self._transport.write(
            b"POST /add HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(leaf), leaf)
        )

    def stop(self) -> None:
        """Append no more after the next answer."""
        self._open = False


async def load(url: str, seconds: float, pid: int) -> tuple[int, float]:
    """Append as fast as answers come. Return how many were, and the seconds of processor time of a process meanwhile."""
    before, loop = spent(pid), asyncio.get_running_loop()
    lanes = [(await loop.create_connection(partial(Lane, number), *address(url)))[1] for number in range(LANES)]
    await asyncio.sleep(seconds)
    for lane in lanes:
        lane.stop()
    ends = await asyncio.gather(*(lane.closed for lane in lanes))
    assert ends == [None] * LANES
    return sum(lane.count for lane in lanes), spent(pid) - before


async def crowd(url: str) -> tuple[list[Subscriber], list[asyncio.Task[None]], list[asyncio.StreamWriter]]:
    """Return those who follow, once each of them has seen something."""
    every = SUBSCRIBERS // CUT
    subscribers = [Subscriber(url, leaves=number % every == 1) for number in range(SUBSCRIBERS)]
    tasks = [asyncio.create_task(one.follow()) for one in subscribers]
    silent = [await deaf(url) for _ in range(DEAF)]
    while not all(one.seen for one in subscribers):
        await asyncio.sleep(0.05)
        for task in tasks:
            if task.done():
                task.result()
    return subscribers, tasks, silent


async def leave(tasks: list[asyncio.Task[None]], silent: list[asyncio.StreamWriter]) -> None:
    """Go without a word."""
    for writer in silent:
        writer.transport.abort()
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def published(url: str) -> list[int]:
    """Return the sizes of all published checkpoints."""
    found: list[int] = []
    start: int | None = 0
    while start is not None:
        page = httpx.get(f"{url}/checkpoints", params={"start": start, "limit": 1000}, trust_env=False).json()
        found, start = found + [one["size"] for one in page["checkpoints"]], page["next"]
    return found


def check(subscribers: list[Subscriber], sizes: list[int]) -> int:
    """Check what each has seen: every checkpoint from its first one on, in order, once. Return how many events that were."""
    for one in subscribers:
        at = sizes.index(one.seen[0])
        assert one.seen == sizes[at : at + len(one.seen)], "a checkpoint is missing, or came twice"
    last = max(one.seen[-1] for one in subscribers)
    stay = [one for one in subscribers if not one.leaves]
    assert {one.seen[-1] for one in stay} == {last}, "some did not get the last one"
    return sum(len(one.seen) for one in subscribers)


def spread(subscribers: list[Subscriber]) -> list[float]:
    """Return how much later than the first of all each subscriber had each checkpoint, in seconds."""
    first: dict[int, float] = {}
    times = [
        (size, at) for one in subscribers if not one.leaves for size, at in zip(one.seen[1:], one.at[1:], strict=True)
    ]
    for size, at in times:
        first[size] = min(at, first.get(size, at))
    return [at - first[size] for size, at in times]


async def measure(context: Context, writing: LiveServer, serving: LiveServer) -> None:
    """Load the server that writes, with and without subscribers of the one that serves; then stop that one."""
    pid, cost = writing.process.pid, {False: [0, 0.0], True: [0, 0.0]}
    await load(writing.url, 1.0, pid)
    for turn in range(TURNS):
        for crowded in (False, True):
            found = await crowd(serving.url) if crowded else None
            count, seconds = await load(writing.url, PHASE_SECONDS, pid)
            cost[crowded][0] += count
            cost[crowded][1] += seconds
            if found is not None:
                await asyncio.sleep(2.5)  # the last checkpoint is published within a second
                context.done(check(found[0], await asyncio.to_thread(published, writing.url)))
                late = spread(found[0])
                context.counts["latest of all, ms"] = max(context.counts["latest of all, ms"], int(max(late) * 1000))
                context.counts["p99 behind the first, ms"] = int(statistics.quantiles(late, n=100)[98] * 1000)
                if turn == TURNS - 1:
                    await stop(context, serving, found[1])
                await leave(found[1], found[2])
    alone, crowded_ = (seconds / count for count, seconds in (cost[False], cost[True]))
    context.counts["processor time of an append alone, us"] = int(alone * 1e6)
    context.counts["with subscribers, us"] = int(crowded_ * 1e6)
    context.counts["ratio, thousandths"] = int(crowded_ / alone * 1000)
    assert crowded_ <= MOST * alone, f"an append costs {crowded_ / alone:.3f} times as much"


async def stop(context: Context, server: LiveServer, tasks: list[asyncio.Task[None]]) -> None:
    """Stop a server that all of them follow."""
    started = time.monotonic()
    await asyncio.to_thread(server.stop)
    took = time.monotonic() - started
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    fine = [one for one in ended if one is None or isinstance(one, OSError | asyncio.IncompleteReadError)]
    assert len(fine) == len(ended), next(one for one in ended if one not in fine)
    assert ended.count(None) >= SUBSCRIBERS - CUT, "streams were cut instead of ended"
    context.counts["stopped in, ms"] = max(context.counts["stopped in, ms"], int(took * 1000))
    assert took <= STOP_SECONDS, f"the server took {took:.1f} s to stop"


def run(context: Context, *, reads: bool) -> None:
    """Each seed is a log of its own."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for seed in context.each():
        instance = make_instance(context.folder / str(seed), None, [LogSpec("default", "raw")])
        with _server(instance) as writing:
            if not reads:
                asyncio.run(measure(context, writing, writing))
            else:
                with _server(instance, "--read-only") as serving:
                    asyncio.run(measure(context, writing, serving))
                    assert free_of_tracebacks(serving.stderr()), serving.stderr()[-3000:]
            assert free_of_tracebacks(writing.stderr()), writing.stderr()[-3000:]


def _server(instance: Instance, *flags: str) -> LiveServer:
    return LiveServer(instance.data, *flags, env={"MUNIMENT_SERVER_MAX_QUEUE_SECONDS": "60"}, traced=False)


def _rig(name: str, work: Callable[[Context], None]) -> FaultRig:
    return FaultRig(name, "a thousand who follow a log", "events", work, quick=1, full=10, jobs=1, alone=True)


RIGS = [_rig("feed", partial(run, reads=False)), _rig("feed-read-only", partial(run, reads=True))]
