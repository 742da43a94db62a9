"""What comes beside bodies: it has one limit on every path, and how it is cut into segments changes no answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics
from muniment_server.web.http.connections import Connections
from muniment_server.web.http.framing import MAX_FIELDS, MAX_FRAMING, MAX_URL
from muniment_server.web.http.protocol import Protocol
from muniment_server.web.messages import MAX_HEADERS
from muniment_server.web.problems import CODES
from tests.live import PATIENCE, LiveServer, free_of_tracebacks
from tests.service.http_check import client, head_size
from tests.service.http_raw import Connection, address, exchange, statuses
from tests.service.http_world import DEFAULT, RAW, Instance, KeySpec, instance_on

KEYS = (KeySpec("append", frozenset({"append", "read"})),)
POST = b"POST /logs/raw/add HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = b"POST /entries HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("framing"), (DEFAULT, RAW), KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def server(instance: Instance) -> Iterator[LiveServer]:
    with instance.server("--allow-anonymous-writes") as running:
        yield running
        running.stop()
        assert free_of_tracebacks(running.stderr())


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with client(server.url) as made:
        yield made


def resident(server: LiveServer) -> int:
    """Bytes of memory that the server has by now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def problem(received: bytes) -> dict[str, Any]:
    """The last answer in what was received."""
    found: dict[str, Any] = json.loads(received.rpartition(b"\r\n\r\n")[2])
    assert found["title"] == CODES[found["code"]].title
    assert found["hint"]
    return found


# --- without end --------------------------------------------------------------------------------------------------------


def flood(url: str, first: bytes, drop: bytes, most: int) -> tuple[bytes, int]:
    """Send `first`, then `drop` again and again until the server answers. Return the answer, and how many bytes went out."""
    sent, received = 0, b""
    with socket.create_connection(address(url), timeout=PATIENCE) as connection:
        connection.sendall(first)
        with contextlib.suppress(ConnectionError):
            while sent < most and not received:
                connection.sendall(drop)
                sent += len(drop)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    received = connection.recv(65536)
                connection.settimeout(10)
            while not received and (part := connection.recv(65536)):
                received += part
    return received, sent


ENDLESS = {
    "trailers": (CHUNKED + b"5\r\nabcde\r\n0\r\n", b"".join(b"X%d: y\r\n" % n for n in range(5000))),
    "a trailer's value": (CHUNKED + b"5\r\nabcde\r\n0\r\nX: ", b"y" * 50_000),
    "a trailer's name": (CHUNKED + b"5\r\nabcde\r\n0\r\n", b"y" * 50_000),
    "a chunk extension": (CHUNKED + b"5;", b"y" * 50_000),
    "the extension of the last chunk": (CHUNKED + b"5\r\nabcde\r\n0;", b"y" * 50_000),
    "a chunk size": (CHUNKED, b"0" * 50_000),
    "chunks of one byte": (CHUNKED, b"1\r\nx\r\n" * 9000),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_beside_a_body(server: LiveServer, http: httpx.Client, case: str) -> None:
    """It is refused within bytes, not megabytes, and costs no memory."""
    size, before = head_size(http, "/logs/raw"), resident(server)
    received, sent = flood(server.url, *ENDLESS[case], most=64 << 20)
    assert statuses(received) == [400], f"after {sent} bytes: {received[:200]!r}"
    assert problem(received)["code"] == "framing_too_large"
    assert sent < 16 << 20, "that is what buffers of the kernel hold"
    assert resident(server) - before < 24 << 20
    assert head_size(http, "/logs/raw") == size


def test_blank_lines_without_end(server: LiveServer) -> None:
    received, sent = flood(server.url, b"", b"\r\n" * 10_000, most=64 << 20)
    assert statuses(received) == [400]
    assert sent < 16 << 20


def test_many_small_fields(server: LiveServer) -> None:
    """Each takes a hundred bytes of memory beside its own."""
    head = b"GET /healthz HTTP/1.1\r\nHost:x\r\nConnection: close\r\n"
    assert statuses(exchange(server.url, head + b"a:\r\n" * (MAX_FIELDS - 2) + b"\r\n")) == [200]
    received = exchange(server.url, head + b"a:\r\n" * (MAX_FIELDS - 1) + b"\r\n")
    assert statuses(received) == [431]
    assert problem(received)["code"] == "headers_too_large"


@pytest.mark.parametrize(("method", "start"), [("GET", "/tile/"), ("POST", "/entries?")])
async def test_long_urls_are_not_kept(server: LiveServer, method: str, start: str) -> None:
    """What is made of a URL is remembered for thousands of them, but not of URLs as long as these."""
    before = resident(server)
    async with await Connection.open(server.url) as connection:
        for number in range(4200):
            assert (await connection.request(method, f"{start}{number:0>16000}")).status in (400, 404)
    assert resident(server) - before < 24 << 20


# --- fields that come too late ------------------------------------------------------------------------------------------


def late(first: bytes, last: bytes) -> list[tuple[bytes, ...]]:
    return [(first + last,), (first, last)]


def sent_in(url: str, parts: Sequence[bytes]) -> list[int]:
    """Send parts as segments of their own, and return the statuses of what comes back."""
    with socket.create_connection(address(url), timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.15)
        connection.settimeout(2)
        received = b""
        with contextlib.suppress(TimeoutError):
            while not received and (found := connection.recv(65536)):
                received += found
    return statuses(received)


BODY = b'7\r\n{"a":1}\r\n0\r\n'
JSON_TYPE = b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "trailer", "status"),
    [
        (EVENT, JSON_TYPE, 415),
        (EVENT + JSON_TYPE, b"Content-Encoding: gzip\r\n", 201),
        (EVENT + JSON_TYPE, b"Idempotency-Key: a, b\r\n", 201),
        (EVENT + JSON_TYPE, b"Authorization: Bearer nonsense\r\n", 201),
        (EVENT + JSON_TYPE, b"Content-Length: 7\r\n", None),
        (EVENT + JSON_TYPE, b"Transfer-Encoding: gzip\r\n", None),
    ],
    ids=["type", "encoding", "idempotency", "authorization", "length", "transfer"],
)
def test_a_field_in_the_trailer(server: LiveServer, head: bytes, trailer: bytes, status: int | None) -> None:
    """It is no field of the request, whether it comes with the rest or later."""
    found = [sent_in(server.url, parts) for parts in late(head + b"\r\n" + BODY, trailer + b"\r\n")]
    assert found[0] == found[1]
    assert status is None or found[0] == [status]


def test_a_key_in_the_trailer(instance: Instance) -> None:
    """Authorization that comes behind the body opens nothing."""
    token = instance.keys["append"].encode()
    trailer = b"Authorization: Bearer %b\r\n\r\n" % token
    path = b"POST /entries HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n" + JSON_TYPE
    with instance.server() as server:
        found = [sent_in(server.url, parts) for parts in late(path + b"\r\n" + BODY, trailer)]
        assert found == [[401], [401]]
        assert sent_in(server.url, (path + trailer + BODY + b"\r\n",)) == [201], "in the head it does"


# --- however it is cut --------------------------------------------------------------------------------------------------


def get(path: bytes, extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path, extra)


LEAF = b"5\r\nabcde\r\n0\r\n"
SPLIT = {
    "get": get(b"/checkpoint"),
    "two gets": get(b"/checkpoint") + get(b"/healthz"),
    "get behind blank lines": b"\r\n\r\n" + get(b"/healthz") + b"\r\n" + get(b"/checkpoint"),
    "post with a length": POST + b"Content-Length: 5\r\n\r\nabcde",
    "post and get": POST + b"Content-Length: 5\r\n\r\nab\r\n\r" + get(b"/healthz"),
    "empty post": POST + b"Content-Length: 0\r\n\r\n" + get(b"/healthz"),
    "chunks": CHUNKED + b"2\r\nab\r\n03;x=y\r\ncde\r\n0\r\n\r\n" + get(b"/healthz"),
    "a chunk that looks like an end": CHUNKED + b"9\r\na\r\n0\r\n\r\nb\r\n0\r\n\r\n" + get(b"/healthz"),
    "trailers": CHUNKED + LEAF + b"A: b\r\nAuthorization: Bearer x\r\n\r\n" + get(b"/healthz"),
    "trailers that are none": CHUNKED + LEAF + b"A b\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"5\r\nabcde\r\nzz\r\n",
    "a chunk that is too long": CHUNKED + b"4\r\nabcde\r\n0\r\n\r\n",
    "line feeds": POST.replace(b"\r\n", b"\n") + b"\n",
    "a folded field": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + LEAF + b"\r\n",
    "not there": get(b"/nowhere") + get(b"/tile/0/99"),
    "a fragment": get(b"/checkpoint#a"),
    "an empty field": b"GET /healthz HTTP/1.1\r\nHost:\r\nA:\r\nB: \r\n\r\n",
    "upgrade": get(b"/healthz", b"Connection: upgrade\r\nUpgrade: h2c\r\n") + get(b"/healthz"),
    "upgrade with a body": POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nabcde"
    + get(b"/healthz"),
    "upgrade with chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    + LEAF
    + b"\r\n"
    + get(b"/healthz"),
    "a coding that is not undone": CHUNKED.replace(b"chunked", b"gzip, chunked") + LEAF + b"\r\n" + get(b"/healthz"),
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n" + get(b"/healthz"),
    "the last one": get(b"/healthz", b"Connection: close\r\n") + get(b"/healthz"),
    "expect": POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
    "no type": EVENT + b"\r\n" + BODY + b"Content-Type: application/json\r\n\r\n",
    "no key": b"GET /entries/0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n" + get(b"/healthz"),
}


async def answered(url: str, parts: Sequence[bytes], room: asyncio.Semaphore, expected: int = 99) -> list[int]:
    """Send parts some milliseconds apart, and return the statuses of what comes back."""
    reader, writer = await asyncio.open_connection(*address(url))
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received: list[int] = []
    async with room:
        reading = asyncio.create_task(_read(reader, received, expected))
        for part in parts:
            with contextlib.suppress(ConnectionError):
                writer.write(part)
                await writer.drain()
            await asyncio.sleep(0.004)
        await reading
        writer.close()
    return received


async def _read(reader: asyncio.StreamReader, received: list[int], expected: int) -> None:
    """Read statuses until there are as many as expected; or the end, or silence."""
    data = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while len(received) < expected:
            part = await asyncio.wait_for(reader.read(65536), 20 if expected < 99 else 3)
            if not part:
                return
            data += part
            received[:] = [status for status in statuses(data) if status != 100]


async def every_split(url: str, data: bytes) -> tuple[list[int], dict[int, list[int]]]:
    """Return the statuses of `data` in one segment, and of each cut that changes them; cut 0 is after every byte."""
    room = asyncio.Semaphore(48)
    whole = await answered(url, (data,), room)
    cuts = range(1, len(data))
    split = [[data[at : at + 1] for at in range(len(data))], *([data[:at], data[at:]] for at in cuts)]
    found = await asyncio.gather(*(answered(url, parts, room, len(whole)) for parts in split))
    return whole, {at: statuses for at, statuses in enumerate(found) if statuses != whole}


@pytest.mark.parametrize("case", SPLIT)
def test_every_cut_gets_the_same_answers(server: LiveServer, case: str) -> None:
    exchange(server.url, POST + b"Content-Length: 5\r\n\r\nabcde", answers=1)
    whole, other = asyncio.run(every_split(server.url, SPLIT[case]))
    assert whole, "it is answered at all"
    assert not other


# --- to the byte --------------------------------------------------------------------------------------------------------


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = write_eof = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Never hold anything up."""

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        """Go on: what was sent comes anyway."""

    resume_reading = pause_reading


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with a digest of all it sees of a request."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    seen = repr((scope["method"], scope["raw_path"], scope["headers"], body)).encode()
    text = sha256(seen).hexdigest().encode()
    fields = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": text})


async def spoken(parts: Sequence[bytes]) -> list[bytes]:
    """What a connection answers to these segments: status lines, and digests."""
    connections = Connections(Settings(data=Path("/nonexistent")), Metrics())
    config = uvicorn.Config(echo, log_config=None, lifespan="off")
    made = Protocol(config, ServerState(), {}, connections=connections, _loop=asyncio.get_running_loop())
    wire = Wire()
    made.connection_made(wire)
    for part in parts:
        made.data_received(part)
        if len(parts) < 100:
            await asyncio.sleep(0)
    while made.server_state.tasks:
        await asyncio.gather(*made.server_state.tasks)
        await asyncio.sleep(0)  # they are taken off by a callback, which Python 3.13 calls no sooner
    made.connection_lost(None)
    return re.findall(rb"HTTP/1.1 \d+|[0-9a-f]{64}|\"code\":\"\w+\"", wire.written)


def head(extra: int, body: bytes = b"\r\n") -> bytes:
    """A request whose head has just so many bytes more than all that may be there."""
    start, field = b"POST / HTTP/1.1\r\nHost: localhost\r\n", b"A: b\r\n"
    padding = MAX_FRAMING + extra - len(start) - len(field) - len(body)
    return start + b"A:" + b" " * (padding + 1) + b"b\r\n" + body


def fields(size: int) -> bytes:
    """A request whose header fields have `size` bytes, as they are counted."""
    return b"GET /%b HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"u" * (MAX_URL - 1), b"b" * (size - 14))


TRAILING = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def chunks(count: int, size: int) -> bytes:
    return TRAILING + b"%x\r\n%b\r\n" % (size, b"z" * size) * count + b"0\r\n\r\n"


def trailing(extra: int) -> bytes:
    """Trailers whose bytes, with all before them, are just so many more than there may be. The chunk pays for one of them."""
    before = TRAILING + b"4\r\nabcd\r\n0\r\n"
    return before + b"T: " + b"t" * (MAX_FRAMING + extra - (len(before) - 4) + 1 - 7) + b"\r\n\r\n"


TO_THE_BYTE = {
    "the longest head": head(0),
    "a head too long": head(1),
    "a head too long by its last byte": head(0, b"") + b"\r\n\r\n",
    "a head that is far too long": head(20_000),
    "behind a request": SMALL + head(1),
    "behind a request, not too long": SMALL + head(0),
    "behind a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab\r\n\r" + head(1),
    "behind chunks": chunks(2, 5) + head(1),
    "behind chunks, not too long": chunks(2, 5) + head(0),
    "blank lines": b"\r\n" * (MAX_FRAMING // 2 - 14) + SMALL,
    "one blank line too many": b"\r\n" * (MAX_FRAMING // 2 - 13) + SMALL,
    "blank lines behind a request": SMALL + b"\r\n" * (MAX_FRAMING // 2 + 1) + SMALL,
    "fields and url at their limits": fields(MAX_HEADERS),
    "a url beyond its limit": b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"u" * MAX_URL),
    "a url without end": b"GET /" + b"u" * (MAX_FRAMING + 10),
    "rubbish in a url that is too long": b"GET /" + b"u" * 20_000 + b"\x00",
    "as many fields as may be": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * (MAX_FIELDS - 1) + b"\r\n",
    "one field too many": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * MAX_FIELDS + b"\r\n",
    "as many trailers as may be": chunks(1, 5)[:-2] + b"a:\r\n" * MAX_FIELDS + b"\r\n" + SMALL,
    "one trailer too many": chunks(1, 5)[:-2] + b"a:\r\n" * (MAX_FIELDS + 1) + b"\r\n" + SMALL,
    "the longest trailers": trailing(0) + SMALL,
    "trailers too long": trailing(1) + SMALL,
    "rubbish behind the limit": trailing(1)[:-3] + b"\x00",
    "small chunks": chunks(12_000, 1),
    "enough small chunks": chunks(9000, 24),
    "a chunk size of zeros": TRAILING + b"0" * 40_000 + b"5\r\nabcde\r\n0\r\n\r\n" + SMALL,
    "large chunks": chunks(3, 40_000) + SMALL,
}


def segmentations(data: bytes, rng: random.Random) -> Iterator[list[bytes]]:
    yield [data[at : at + 1] for at in range(len(data))]
    for at in (MAX_FRAMING - 1, MAX_FRAMING, MAX_FRAMING + 1, len(data) - 1):
        yield [data[:at], data[at:]]
    for most in (3, 700, 20_000, 60_000):
        parts, at = [], 0
        while at < len(data):
            size = rng.randint(1, most)
            parts.append(data[at : at + size])
            at += size
        yield parts


@pytest.mark.parametrize("case", TO_THE_BYTE)
async def test_limits_are_the_same_however_it_is_cut(case: str) -> None:
    data = TO_THE_BYTE[case]
    whole = await spoken([data])
    assert whole
    for parts in segmentations(data, random.Random(case)):
        found = await spoken([part for part in parts if part])
        assert found == whole, f"{len(parts)} parts, the first of {len(parts[0])} bytes"


ALLOWED = ["the longest head", "behind a request, not too long", "behind chunks, not too long", "blank lines", "the longest trailers",
           "fields and url at their limits", "as many fields as may be", "as many trailers as may be", "enough small chunks",
           "a chunk size of zeros", "large chunks"]  # fmt: skip


@pytest.mark.parametrize("case", TO_THE_BYTE)
async def test_limits_are_where_they_are_said_to_be(case: str) -> None:
    """Trailers change nothing that the application sees, and no limit is a byte off."""
    found = await spoken([TO_THE_BYTE[case]])
    refused = [word for word in found if word.startswith(b'"code"')]
    assert bool(refused) == (case not in ALLOWED), found
