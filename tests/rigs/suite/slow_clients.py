"""Slow clients: five hundred connections that trickle, stall or do not read, and good clients beside them that must not notice."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import time
from dataclasses import dataclass, field

import httpx

from tests.live import LiveServer, free_of_tracebacks, free_port
from tests.rigs.rig import Context, FaultRig
from tests.service.http_audit import audit, fsck
from tests.service.http_check import JSON, assert_nothing_is_held, bundle
from tests.service.http_raw import Connection, address, request_bytes, statuses
from tests.service.http_world import DEFAULT, RAW, make_instance

CLIENTS = 500
CUT_SECONDS = 15.0
GOOD_LANES = 4
QUIET_SECONDS = 4.0  # how long good requests are measured with nobody else there
HEAD = b"POST /entries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Kind:
    """A kind of slow client: what it sends at once, what it then sends every second, and whether it reads."""

    name: str
    first: bytes
    drop: bytes = b""
    reads: bool = True
    answers: tuple[int, ...] = ()  # what it may be told before it is cut; nothing is always possible


KINDS = [
    Kind("silent", b""),
    Kind("header trickled", HEAD + b"X: ", b"y", answers=(408,)),
    Kind("header lines trickled", HEAD, b"X: y\r\n", answers=(408,)),
    Kind("header stalled", HEAD, answers=(408,)),
    Kind("empty lines", b"", b"\r\n"),
    Kind("body trickled", HEAD + b"Content-Length: 50000\r\n\r\n", b"{", answers=(408,)),
    Kind("body stalled", HEAD + b"Content-Length: 60000\r\n\r\n" + b" " * 50_000, answers=(408,)),
    Kind("chunks trickled", HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", answers=(408,)),
    Kind("body after its refusal", HEAD + b"Content-Length: 999999999\r\n\r\n", b" " * 1000, answers=(413,)),
    Kind("answer not read", request_bytes("GET", "/logs/raw/tile/entries/000"), reads=False, answers=(200,)),
    Kind("second header trickled", request_bytes("GET", "/healthz") + HEAD, b"X: y\r\n", answers=(200, 408)),
]


@dataclass
class Seen:
    """How long connections lived, in seconds, by kind, and how long good requests took."""

    lived: dict[str, list[float]] = field(default_factory=dict)
    good: list[float] = field(default_factory=list)


async def slow(url: str, kind: Kind, seen: Seen) -> None:
    """Be a slow client until the server ends it. Raises AssertionError when it does not."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(connection, address(url))
    started, received = time.monotonic(), b""
    try:
        if kind.first:
            await loop.sock_sendall(connection, kind.first)
        while time.monotonic() - started < 2 * CUT_SECONDS:
            try:
                ended, received = await asyncio.wait_for(_wait(loop, connection, kind, received), 1.0)
                if ended:
                    break
            except TimeoutError:
                if kind.drop:
                    await loop.sock_sendall(connection, kind.drop)
    except ConnectionError:
        pass
    finally:
        connection.close()
    lived = time.monotonic() - started
    seen.lived.setdefault(kind.name, []).append(lived)
    assert lived <= CUT_SECONDS, f"a client of kind {kind.name!r} was there for {lived:.1f} s"
    told = statuses(received) if kind.reads else []
    assert tuple(told) in ((), kind.answers), f"a client of kind {kind.name!r} was told {told}"


async def _wait(
    loop: asyncio.AbstractEventLoop, connection: socket.socket, kind: Kind, received: bytes
) -> tuple[bool, bytes]:
    if kind.reads:
        part = await loop.sock_recv(connection, 65536)
        return not part, received + part
    while True:  # one who does not read sees only that the connection was reset
        await asyncio.sleep(0.2)
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return True, b""


async def good(url: str, stop: asyncio.Event, times: list[float], number: int) -> None:
    """Append and read, as fast as answers come, and keep the time each takes."""
    async with await Connection.open(url) as connection:
        while not stop.is_set():
            started = time.perf_counter()
            answer = await connection.request("POST", "/entries", b'{"good":%d}' % number, JSON)
            times.append(time.perf_counter() - started)
            assert answer.status == 201, answer
            answer = await connection.request("GET", "/checkpoint")
            assert answer.status == 200, answer
            await asyncio.sleep(0.005)


async def _during(url: str, work: asyncio.Task[None], times: list[float]) -> None:
    stop = asyncio.Event()
    lanes = [asyncio.create_task(good(url, stop, times, number)) for number in range(GOOD_LANES)]
    try:
        await work
    finally:
        stop.set()
        await asyncio.gather(*lanes)


async def crowd(url: str, rng: random.Random, seen: Seen) -> None:
    """Let every slow client come within two seconds, and wait until all are gone."""

    async def come(kind: Kind) -> None:
        await asyncio.sleep(rng.random() * 2)
        await slow(url, kind, seen)

    await asyncio.gather(*(come(KINDS[number % len(KINDS)]) for number in range(CLIENTS)))


async def measure(url: str, rng: random.Random) -> tuple[Seen, list[float]]:
    """Return what was seen with the crowd, and how long good requests took before it came."""
    before: list[float] = []
    await _during(url, asyncio.create_task(asyncio.sleep(QUIET_SECONDS)), before)
    seen = Seen()
    await _during(url, asyncio.create_task(crowd(url, rng, seen)), seen.good)
    return seen, before


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


def run(context: Context) -> None:
    """Each seed is one crowd."""
    instance = make_instance(context.folder / "data", None, (DEFAULT, RAW))
    for seed in context.each():
        port = free_port()
        with instance.server(env={"MUNIMENT_SERVER_METRICS_PORT": str(port)}) as server:
            if seed == context.seeds.start:
                fill(server)
            seen, before = asyncio.run(measure(server.url, random.Random(seed)))
            with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
                time.sleep(1.5)
                audit(http, instance.policy)
            assert_nothing_is_held(port)
        assert free_of_tracebacks(server.stderr()), server.stderr()[-3000:]
        lived = [seconds for kind in seen.lived.values() for seconds in kind]
        assert len(lived) == CLIENTS, f"seed {seed}"
        context.done(len(lived), good_requests=len(seen.good))
        for name, value in {
            "longest lived ms": max(lived),
            "good p99 before, us": p99(before) * 1000,
            "good p99 with the crowd, us": p99(seen.good) * 1000,
        }.items():
            context.counts[name] = max(context.counts[name], int(value * 1000))
    fsck(instance)


def fill(server: LiveServer) -> None:
    """Put in what makes an answer of 5 MB."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        leaves = (bytes([number]) * 20_000 for number in range(256))
        http.post("/logs/raw/entries/batch", content=bundle(*leaves)).raise_for_status()


RIGS = [FaultRig("slow-clients", "slow clients cut off", "slow connections", run, quick=1, full=20, jobs=1, alone=True)]
