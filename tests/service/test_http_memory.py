"""Memory that clients can take: bounded for all of them together, and shared, so that the next one still gets some."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import pytest
from starlette.requests import ClientDisconnect

from muniment.client import Client
from muniment.tiles import decode_bundle
from muniment_server.settings import Settings
from muniment_server.web.handlers.large import PAGE, page_of
from muniment_server.web.room import Budget, Room, Rooms, Turns
from tests.live import PATIENCE, LiveServer, free_of_tracebacks, free_port, until
from tests.service.http_check import NDJSON, assert_nothing_is_held, bundle, client, metric, published
from tests.service.http_raw import address, exchange, request_bytes, statuses
from tests.service.http_world import DEFAULT, RAW, Instance, KeySpec, instance_on

KEYS = tuple(KeySpec(name, frozenset({"append", "read"})) for name in ("greedy", "other"))
LEAVES = [bytes([number % 256]) * 59_996 + number.to_bytes(4, "big") for number in range(600)]
LEAST = 160 << 20
"""Bytes that a server may grow by: 128 MiB, and what it has for threads and the kernel's whims."""


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("memory"), (DEFAULT, RAW), KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(instance: Instance, metrics_port: int) -> Iterator[LiveServer]:
    settings = {"MUNIMENT_SERVER_CLIENT_SECONDS": "5", "MUNIMENT_SERVER_METRICS_PORT": str(metrics_port)}
    with instance.server(env=settings) as running:
        with client(running.url, instance.keys["other"]) as http:
            for start in range(0, len(LEAVES), 200):
                body = bundle(*LEAVES[start : start + 200])
                assert http.post("/logs/raw/entries/batch", content=body).status_code == 201
            published(http, "/logs/raw", len(LEAVES) + 1)  # the SDK reads no further than that
        yield running
        assert_nothing_is_held(metrics_port)
        running.stop()
        assert free_of_tracebacks(running.stderr())


@pytest.fixture
def http(server: LiveServer, instance: Instance) -> Iterator[httpx.Client]:
    with client(server.url, instance.keys["other"]) as made:
        made.timeout = 120
        yield made


def resident(server: LiveServer) -> int:
    """Bytes of memory that the server has by now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1]) << 10


class Watch:
    """The most memory that a server took while the block ran, above what it had before."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._before = resident(server)
        self._most = self._before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    @property
    def grown(self) -> int:
        return self._most - self._before

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, resident(self._server))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def silent(stack: ExitStack, url: str, data: bytes, buffer: int = 4096) -> socket.socket:
    """A connection that sends something and reads nothing."""
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect(address(url))
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    return connection


def repeated(http: httpx.Client, url: str) -> httpx.Response:
    """Ask for something large again, as it is told, for as long as there is no room for it."""
    deadline = time.monotonic() + PATIENCE
    while (answer := http.get(url)).status_code == 503:
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("busy", "1")
        assert time.monotonic() < deadline, "readers that do not read keep all room"
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text
    return answer


# --- pages --------------------------------------------------------------------------------------------------------------


def test_a_page_ends_by_its_bytes(http: httpx.Client) -> None:
    """`next` goes on where it ended: every entry is there once."""
    at, found = 0, []
    while at is not None:
        answer = http.get("/logs/raw/entries", params={"start": at, "limit": 1000})
        assert answer.status_code == 200
        assert len(answer.content) <= PAGE + 1000
        value = answer.json()
        assert [entry["index"] for entry in value["entries"]] == list(range(at, at + len(value["entries"])))
        found += value["entries"]
        at = value["next"]
    assert len(found) == value["tree_size"]
    assert len(found) > 600


def test_pages_of_small_entries_are_whole(http: httpx.Client) -> None:
    http.post("/entries/batch", content=b'{"a":1}\n' * 2000, headers={"Content-Type": "application/x-ndjson"})
    value = http.get("/entries", params={"limit": 1000}).json()
    assert len(value["entries"]) == 1000
    assert value["next"] == 1000
    assert value["entries"][999]["event"] == {"a": 1}
    value = http.get("/entries", params={"start": 1900, "limit": 1000}).json()
    assert value["next"] is None
    assert value["entries"][-1]["index"] == value["tree_size"] - 1
    assert http.get("/entries", params={"start": 10**9}).json()["entries"] == []


def test_the_sdk_follows_short_pages(server: LiveServer, instance: Instance) -> None:
    with Client(server.url, log="raw", policy=instance.policy, api_key=instance.keys["other"]) as log:
        assert [entry.leaf for entry in log.entries(1, 600)] == LEAVES[:599]


def test_readers_that_do_not_read(server: LiveServer, http: httpx.Client) -> None:
    page = request_bytes("GET", "/logs/raw/entries?limit=1000")
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(60):
            silent(stack, server.url, page)
        time.sleep(2)
        assert http.get("/logs/raw/entries/0").status_code == 200, "what is small needs no room"
        answer = repeated(http, "/logs/raw/entries?limit=1000")
        assert answer.json()["next"] == len(answer.json()["entries"])
        assert repeated(http, "/logs/raw/entries/5").json()["index"] == 5
    assert watch.grown < LEAST


LARGE_ANSWERS = {
    "bundles": ("/logs/raw/tile/entries/000", {}, 40),
    "bundles for the application": ("/logs/raw/tile/entries/001", {"Accept": "text/plain"}, 40),
    "entries": ("/logs/raw/entries/7", {}, 1500),
}


@pytest.mark.parametrize("case", LARGE_ANSWERS)
def test_large_answers_that_are_not_read(server: LiveServer, http: httpx.Client, case: str) -> None:
    """However many ask for them, and for another one on each connection."""
    path, headers, count = LARGE_ANSWERS[case]
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(count):
            silent(stack, server.url, request_bytes("GET", path, headers=headers) * 2)
        time.sleep(1)
        assert http.get("/logs/raw/checkpoint").status_code == 200
    assert watch.grown < LEAST


# --- readers that are slow ----------------------------------------------------------------------------------------------


def read_slowly(url: str, path: str, seconds: float, buffer: int = 0) -> bytes:
    """Read an answer in about so many seconds."""
    with socket.socket() as connection:
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        connection.connect(address(url))
        connection.sendall(request_bytes("GET", path))
        received = connection.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head.lower())
        assert found, head
        size, started, got = int(found[1]), time.monotonic(), [body]
        have = len(body)
        while have < size:
            time.sleep(max(0.0, started + seconds * have / size - time.monotonic()))
            part = connection.recv(min(65536, size - have))
            assert part, f"cut off after {have} of {size} bytes"
            got.append(part)
            have += len(part)
    return b"".join(got)


def test_slow_readers_are_all_served(server: LiveServer) -> None:
    """Each of them makes progress, so none is cut off for another, however much they are given together."""
    found: list[bytes] = []
    failed: list[BaseException] = []

    def read() -> None:
        try:
            found.append(read_slowly(server.url, "/logs/raw/tile/entries/001", 7))
        except BaseException as error:
            failed.append(error)

    with Watch(server) as watch:
        threads = [threading.Thread(target=read) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert {len(data) for data in found} == {256 * 60_002}
    assert decode_bundle(found[0])[1] == LEAVES[256]
    assert watch.grown < LEAST


def test_a_reader_is_not_late_while_the_kernel_sends(server: LiveServer, instance: Instance) -> None:
    """A socket holds megabytes: a client that reads them slowly makes progress, though the server gets rid of nothing meanwhile."""
    assert server.url, "its entries are there"
    with instance.server("--read-only", env={"MUNIMENT_SERVER_CLIENT_SECONDS": "1"}) as hasty:
        received = read_slowly(hasty.url, "/logs/raw/entries?limit=1000", 12, buffer=16_384)
        assert len(json.loads(received)["entries"]) > 40


# --- bodies -------------------------------------------------------------------------------------------------------------

SIZE = 15 << 20


def unfinished(path: str, size: int, key: str | None = None) -> bytes:
    """A request of which the last byte is missing."""
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    head = request_bytes("POST", path, b"", authorization | {"Content-Type": "application/json"})
    return head.replace(b"Content-Length: 0", b"Content-Length: %d" % size) + b"x" * (size - 1)


def test_unfinished_batches_of_one_key(server: LiveServer, instance: Instance, http: httpx.Client) -> None:
    data = unfinished("/logs/raw/entries/batch", SIZE, instance.keys["greedy"])
    chunked = data.replace(b"Content-Length: %d\r\n\r\n" % SIZE, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % SIZE)
    told: list[list[int]] = []
    with ExitStack() as stack, Watch(server) as watch:
        waiting = [silent(stack, server.url, chunked if number % 2 else data, 65536) for number in range(40)]
        time.sleep(0.5)
        body = bundle(*(b"another %d " % number + bytes(40_000) for number in range(300)))
        answer = http.post("/logs/raw/entries/batch", content=body)
        assert answer.status_code == 201, "one key does not take the room of all"
        for connection in waiting:
            connection.settimeout(0.01)
            with contextlib.suppress(OSError):
                told.append(statuses(connection.recv(65536)))
    assert watch.grown < LEAST
    assert told.count([503]) >= 30


def test_what_a_refused_body_is_told(server: LiveServer, instance: Instance) -> None:
    data = unfinished("/logs/raw/entries/batch", SIZE, instance.keys["greedy"])
    with ExitStack() as stack:
        for _ in range(2):
            silent(stack, server.url, data)
        time.sleep(0.2)
        received = exchange(server.url, data[:1000], answers=1)
        assert statuses(received) == [503]
        assert b"\r\nretry-after: 1\r\n" in received.lower()
        problem = json.loads(received.rpartition(b"\r\n\r\n")[2])
        assert problem["code"] == "busy"
        assert problem["hint"]


STRANGERS = {
    "receipts": ("/verify", 1 << 20, None, 150),
    "entries": ("/logs/raw/entries", 65_000, "greedy", 1500),
    "events": ("/entries", 65_000, "greedy", 1500),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_unfinished_small_bodies(server: LiveServer, instance: Instance, http: httpx.Client, case: str) -> None:
    path, size, key, count = STRANGERS[case]
    data = unfinished(path, size, key and instance.keys[key])
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(count):
            silent(stack, server.url, data, 65536)
        assert http.post("/logs/raw/entries", content=b"in between " + case.encode()).status_code == 201
        assert http.post("/verify", content=b"{}").status_code == 422
    assert watch.grown < LEAST


@pytest.mark.parametrize("line", [b"X: " + b"y" * 1000, b"a:"], ids=["long", "short"])
def test_unfinished_heads(server: LiveServer, http: httpx.Client, line: bytes) -> None:
    lines = (line + b"\r\n") * (30_000 // len(line) if len(line) > 2 else 255)
    data = request_bytes("GET", "/healthz")[:-2] + lines
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(3500):
            silent(stack, server.url, data)
        assert http.get("/logs/raw/checkpoint").status_code == 200
    assert watch.grown < LEAST


def test_requests_that_wait_behind_others(server: LiveServer, http: httpx.Client) -> None:
    """Those behind an answer that is not read do not begin; they may not fill the memory either."""
    fields = b"a:\r\n" * 250
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n"
    data = request_bytes("GET", "/logs/raw/tile/entries/000") + one * 99
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(120):
            silent(stack, server.url, data)
        assert http.get("/logs/raw/checkpoint").status_code == 200
    assert watch.grown < LEAST


def test_short_requests_that_wait_behind_others(server: LiveServer, http: httpx.Client) -> None:
    """A request of 40 bytes takes some thousands while it waits."""
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    data = request_bytes("GET", "/logs/raw/entries?limit=1000") + one * 95
    with ExitStack() as stack, Watch(server) as watch:
        for _ in range(800):
            silent(stack, server.url, data)
        assert http.get("/logs/raw/checkpoint").status_code == 200
    assert watch.grown < LEAST


def test_what_clients_asked_who_left_is_not_made(server: LiveServer, metrics_port: int, http: httpx.Client) -> None:
    """Also behind a request that waits, where nothing more is read of the connection."""
    page = request_bytes("GET", "/logs/raw/entries?limit=1000")
    count = 'request_seconds_count{log="raw",route="GET /entries"'
    http.get("/logs/raw/entries?limit=1000").raise_for_status()
    before = metric(metrics_port, count)
    with ExitStack() as stack:
        connections = [silent(stack, server.url, b"") for _ in range(150)]
        for connection in connections:
            connection.sendall(page * 2)
        http.get("/logs/raw/checkpoint")  # by then the server has read what came before
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: metric(metrics_port, "connections ") <= 2)
    assert metric(metrics_port, count) - before < 150
    assert http.get("/logs/raw/checkpoint").status_code == 200


def test_nothing_is_held_for_clients_who_left_while_it_was_read(
    server: LiveServer, metrics_port: int, http: httpx.Client
) -> None:
    http.post("/entries/batch", content=b'{"n":"%s"}\n' % (b"x" * 300) * 600, headers=NDJSON).raise_for_status()
    for number in range(100):
        with socket.create_connection(address(server.url)) as connection:
            connection.sendall(request_bytes("GET", f"/tile/entries/{number % 2:03}"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert_nothing_is_held(metrics_port)


def test_answers_to_entries_that_are_not_read(server: LiveServer, instance: Instance, http: httpx.Client) -> None:
    """An answer to an entry that is logged must be sent. So it is refused before, where there is no room for it."""
    size = http.get("/logs/raw/entries?limit=1").json()["tree_size"]
    told = 0
    with ExitStack() as stack, Watch(server) as watch:
        for number in range(1200):
            leaf = b"%d " % number + bytes(60_000)
            key = {"Authorization": f"Bearer {instance.keys['greedy']}"}
            silent(stack, server.url, request_bytes("POST", "/logs/raw/entries", leaf, key))
        time.sleep(1)
        told = http.get("/logs/raw/entries?limit=1").json()["tree_size"] - size
        assert http.post("/logs/raw/entries", content=b"small").status_code in (200, 201)
    assert watch.grown < LEAST
    assert told > 20


# --- who gets how much --------------------------------------------------------------------------------------------------


def test_one_gets_half_and_two_a_third_each() -> None:
    room = Room(1200)
    assert not room.take("a", 601)
    assert room.take("a", 600)
    assert not room.take("a", 1)
    assert room.take("b", 300)
    assert not room.take("b", 1)
    room.add("a", -200)
    assert room.take("b", 100)
    assert not room.take("b", 1), "both have 400, and so much is left"
    assert room.take("c", 200)


def test_there_is_always_some_left() -> None:
    room = Room(2**20)
    for number in range(2000):
        share = room.share(number)
        assert room.take(number, share)
        assert share >= 1 or room.taken >= 2**20 - 2
    assert room.taken <= 2**20


def test_no_client_is_remembered() -> None:
    room = Room(1000)
    for number in range(100):
        assert room.take(number, 5)
        room.add(number, -5)
    assert room.taken == 0
    assert not room._of


def test_a_lease_gives_back_what_it_holds() -> None:
    rooms = Rooms.of(Settings(data=Path("/nonexistent")))
    budget, other = Budget(rooms, ("127.0.0.1", 1)), Budget(rooms, ("127.0.0.1", 2))
    assert budget.peer != other.peer, "behind a proxy on this machine, each connection is one"
    assert Budget(rooms, ("192.0.2.1", 1)).peer == Budget(rooms, ("192.0.2.1", 2)).peer
    budget.take(rooms.batches, "key", 1000)
    assert budget.cover(5000)
    assert budget.cover(4000)
    assert (rooms.batches.taken, rooms.answers.taken) == (1000, 5000)
    assert other.cover(rooms.answers.share(other.peer))
    assert not other.cover(rooms.answers.most)
    budget.give_back()
    other.give_back()
    assert (rooms.batches.taken, rooms.answers.taken) == (0, 0)


async def _turns() -> None:
    turns, left = Turns(1), [False, False, False]
    had: list[int] = []

    async def wait(number: int) -> None:
        async with turns.of(lambda: left[number]):
            had.append(number)

    await turns.begin(lambda: False)
    waiting = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    left[0] = left[2] = True
    turns.end()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found] == [ClientDisconnect, type(None), ClientDisconnect]
    assert had == [1]
    for ends_first in (True, False):  # a turn that a task was given which was cancelled meanwhile is not lost
        await turns.begin(lambda: False)
        task = asyncio.create_task(wait(1))
        await asyncio.sleep(0)
        if ends_first:
            turns.end()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not ends_first:
            turns.end()
        async with asyncio.timeout(10):
            await turns.begin(lambda: False)
        turns.end()


def test_clients_who_left_get_no_turn_and_hold_up_no_other() -> None:
    asyncio.run(_turns())


def test_no_page_is_made_for_a_client_who_left() -> None:
    budget = Budget(Rooms.of(Settings(data=Path("/nonexistent"))), ("127.0.0.1", 1), gone=lambda: True)
    with pytest.raises(ClientDisconnect):
        asyncio.run(page_of(None, 0, 10, budget, with_payload=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1024, 64 << 20])
def test_the_largest_batch_has_its_place(most: int) -> None:
    """Whatever the settings say may be sent, can be: by one client, beside another one's."""
    rooms = Rooms.of(Settings(data=Path("/nonexistent"), max_batch_bytes=most, max_event_bytes=2**20))
    assert rooms.batches.take("a", most)
    assert rooms.batches.take("b", most)
    assert rooms.entries.take("a", 2**20)
