"""The short way of busy requests and the way through the application: the same answers, byte for byte."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httptools
import httpx
import orjson
import pytest

from muniment.event import parse_leaf
from muniment.hashing import leaf_hash
from muniment.receipt import Receipt
from muniment.tiles import decode_bundle, encode_bundle
from muniment.tree import Edge, grow
from muniment_server.access.asking import Asking
from muniment_server.access.callers import VIEW, Access, Caller
from muniment_server.app import create_app
from muniment_server.settings import Settings
from muniment_server.web.http.exchanges import AppendExchange, Exchange
from muniment_server.web.http.fast_path import FastPath, RequestHead
from muniment_server.web.http.wire import Outbox
from muniment_server.web.service import Service
from muniment_server.write.admission import EventDraft, draft_event, draft_raw
from muniment_server.write.receipts import ReceiptBuilder
from tests.live import PATIENCE, LiveServer
from tests.service.http_check import JSON, NDJSON, Verifier, bundle, client, head_size, ndjson
from tests.service.http_raw import address, request_bytes, statuses
from tests.service.http_world import DEFAULT, RAW, Instance, instance_on

SHORT = {"Accept": "application/json, image/png;q=0.1"}
LONG = {"Accept": "application/json, text/plain;q=0.1"}
"""The same wish; but whatever names text goes through the application."""
SIZE = 601

GETS = [
    "/proof/inclusion?index=0",
    "/proof/inclusion?index=600",
    "/proof/inclusion?index=255&tree_size=601",
    "/proof/inclusion?index=255&tree_size=600",
    "/proof/inclusion?index=601",
    "/proof/inclusion?index=01",
    "/proof/inclusion?index=0&index=1",
    "/proof/inclusion?index=",
    "/proof/inclusion?index=1&tree_size=99999999999999999999",
    "/proof/inclusion?index=1&leaf_hash=00",
    "/proof/inclusion?other=1",
    "/proof/inclusion?index=%31",
    "/proof/inclusion",
    "/tile/0/000",
    "/tile/0/001",
    "/tile/0/002.p/89",
    "/tile/0/002.p/90",
    "/tile/0/000.p/17",
    "/tile/0/000.p/256",
    "/tile/0/00",
    "/tile/0/000?x=1",
    "/tile/1/000.p/2",
    "/tile/1/000.p/3",
    "/tile/63/000",
    "/tile/64/000",
    "/tile/entries/000",
    "/tile/entries/000.p/9",
    "/tile/entries/002.p/89",
    "/tile/entries/x999/x999/999",
    "/tile/0/000/",
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Instance, LiveServer]]:
    """A server whose logs have 601 entries each, and are not written by the tests that read."""
    folder = tmp_path_factory.mktemp("hot")
    with (
        instance_on(request.param, request, folder, (DEFAULT, RAW)) as instance,
        instance.server() as server,
        client(server.url) as http,
    ):
        http.post("/entries/batch", content=ndjson(*({"n": n} for n in range(600))), headers=NDJSON)
        http.post("/logs/raw/entries/batch", content=bundle(*(b"leaf %d" % n for n in range(600))))
        yield instance, server


def told(answer: httpx.Response) -> tuple[Any, ...]:
    """Everything an answer says but the date."""
    headers = [(name.lower(), value) for name, value in answer.headers.multi_items() if name.lower() != "date"]
    return answer.status_code, headers, answer.content


@pytest.mark.parametrize("prefix", ["", "/v1", "/logs/default", "/logs/raw", "/v1/logs/raw", "/logs/none", "/logs/No"])
def test_what_is_read_is_the_same_on_both_ways(served: tuple[Instance, LiveServer], prefix: str):
    with client(served[1].url) as http:
        for url in GETS:
            long = told(http.get(prefix + url, headers=LONG))
            short = [told(http.get(prefix + url, headers=SHORT)) for _ in range(3)]  # cold, then from memory
            assert short == [long] * 3, prefix + url


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_bundle_that_is_not_in_memory_is_the_same_on_both_ways(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
):
    leaves = [b"%d" % n + bytes(2000 if n == 300 else 200 if n > 512 else 0) for n in range(1023)]
    urls = [f"/logs/raw/tile/entries/{n:03}" for n in range(5)] + ["/logs/raw/tile/entries/003.p/9"]
    with (
        instance_on(engine, request, tmp_path, (DEFAULT, RAW)) as instance,
        instance.server() as server,
        client(server.url) as http,
    ):
        http.post("/logs/raw/entries/batch", content=bundle(*leaves))
        for url in urls:
            first, long, again = (told(http.get(url, headers=way)) for way in (SHORT, LONG, SHORT))
            assert first == long == again, url
        (genesis,) = decode_bundle(http.get("/logs/raw/tile/entries/000").content)[:1]
        files = [http.get(url).content for url in urls[:4]]
    assert files == [encode_bundle([genesis, *leaves][256 * n :][:256]) for n in range(4)]


BODIES: list[tuple[str, str, bytes, dict[str, str]]] = [
    ("/entries", "event", b"{}", JSON),
    ("/entries", "event", b"[1]", JSON),
    ("/entries", "event", b'{"a":1,"a":2}', JSON),
    ("/entries", "event", b'{"a":1e400}', JSON),
    ("/entries", "event", b"\xff", JSON),
    ("/entries", "event", b"", JSON),
    ("/entries", "event", b'{"a":1}', {"Content-Type": "text/csv"}),
    ("/entries", "event", b'{"a":1}', JSON | {"Idempotency-Key": '"a'}),
    ("/entries", "event", b'{"a":"' + bytes(70_000) + b'"}', JSON),
    ("/entries?x=1", "event", b'{"a":1}', JSON),
    ("/entries", "event", b'{"a":1}', JSON | {"Authorization": "Bearer nothing"}),
    ("/entries", "event", b'{"a":1}', JSON | {"Content-Encoding": "gzip"}),
    ("/add", "event", b"x", {}),
    ("/entries", "raw", b"", {}),
    ("/entries", "raw", b'{"typ":"muniment/genesis@v1"}', {}),
    ("/entries", "raw", bytes(65_536), {}),
    ("/add", "raw", b"", {}),
    ("/add", "raw", bytes(65_536), {}),
]


@pytest.mark.parametrize(("path", "kind", "body", "headers"), BODIES)
def test_what_is_refused_is_refused_alike(
    served: tuple[Instance, LiveServer], path: str, kind: str, body: bytes, headers: dict[str, str]
):
    prefix = "/logs/raw" if kind == "raw" else ""
    with client(served[1].url) as http:
        before = head_size(http, prefix)
        long, short = (told(http.post(prefix + path, content=body, headers=headers | way)) for way in (LONG, SHORT))
        assert short == long
        assert 400 <= short[0] < 500
        assert head_size(http, prefix) == before == SIZE


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_what_is_appended_is_answered_alike(engine: str, request: pytest.FixtureRequest, tmp_path: Path):
    with (
        instance_on(engine, request, tmp_path, (DEFAULT, RAW)) as instance,
        instance.server() as server,
        client(server.url) as http,
    ):
        verifier = Verifier(instance.policy)
        number = 0
        for way in (SHORT, LONG) * 4:
            number += 1
            event = http.post(
                "/entries", json={"n": number, "b": [1, "zwei"]}, headers=way | {"Idempotency-Key": f"k{number // 3}"}
            )
            raw = http.post("/v1/logs/raw/entries", content=b"leaf %d" % (number // 2), headers=way)
            plain = http.post("/logs/raw/add", content=b"plain %d" % (number // 2), headers=way)
            for answer in (event, raw):
                if answer.status_code == 422:
                    assert answer.json()["code"] == "idempotency_mismatch"
                    continue
                found = verifier.receipt(answer)
                assert list(answer.json()) == list(Receipt.from_json(answer.json()).to_json()), "the order of members"
                assert answer.headers["location"].endswith(f"/entries/{found.index}")
                assert answer.headers["cache-control"] == "no-store"
            assert raw.status_code == (201 if number % 2 == 0 or number == 1 else 200)
            assert plain.headers["content-type"] == "text/plain; charset=utf-8"
            assert http.get(f"/logs/raw/entries/{plain.text}").json()["index"] == int(plain.text)


# --- receipts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [0, 1, 2, 100, 255, 256, 300])
@pytest.mark.parametrize("new", [1, 2, 3, 255, 256, 257, 600])
def test_a_receipt_from_memory_is_the_receipt(old: int, new: int):
    origin, note = 'example.com/"log"', "a note\n\n— with ümlauts\n"
    before = grow(Edge(), [leaf_hash(b"%d" % n) for n in range(old)]).edge
    drafts = [
        draft_raw(b"%d" % n) if n % 2 else draft_event(orjson.dumps({"n": n, "ä": None})) for n in range(old, old + new)
    ]
    leaves = [
        draft.leaf("2026-01-01T00:00:00.000Z") if isinstance(draft, EventDraft) else draft.leaf for draft in drafts
    ]
    growth = grow(before, [leaf_hash(leaf) for leaf in leaves])
    builder = ReceiptBuilder(origin, growth, note)
    for at, (draft, leaf) in enumerate(zip(drafts, leaves, strict=True)):
        receipt = Receipt.parse(builder.receipt(old + at, leaf, draft))
        assert (receipt.index, receipt.leaf, receipt.tree_size) == (old + at, leaf, old + new)
        assert list(receipt.proof) == builder.proof(old + at)
        assert (receipt.origin, receipt.checkpoint) == (origin, note)
        assert (receipt.commitment is None) == (parse_leaf(leaf) is None)
        assert builder.receipt(old + at, leaf, draft) == orjson.dumps(receipt.to_json())


# --- which requests -------------------------------------------------------------------------------------------------------

POST, GET = b"POST", b"GET"
LENGTH = (b"content-length", b"5")
TYPE = (b"content-type", b"application/json")
TAKEN = [
    (POST, b"/entries", [LENGTH, TYPE]),
    (POST, b"/v1/logs/default/entries", [TYPE, LENGTH, (b"connection", b"Keep-Alive"), (b"accept", b"*/*")]),
    (POST, b"/logs/raw/entries", [LENGTH]),
    (POST, b"/logs/raw/add", [LENGTH]),
    (GET, b"/proof/inclusion?index=0", []),
    (GET, b"/v1/proof/inclusion?index=0", [(b"host", b"127.0.0.1:8080")]),
    (GET, b"/proof/inclusion?index=1", []),
    (GET, b"/tile/0/001", []),
]
LEFT = [
    (POST, b"/entries", [LENGTH, TYPE, (b"host", b"page.example")]),
    (POST, b"/entries", [LENGTH, TYPE, (b"origin", b"https://page.example")]),
    (POST, b"/entries", [LENGTH]),
    (POST, b"/entries", [(b"content-length", b"99999999"), TYPE]),
    (POST, b"/entries", [(b"content-length", b"+5"), TYPE]),
    (POST, b"/entries", [LENGTH, TYPE, (b"expect", b"100-continue")]),
    (POST, b"/entries", [LENGTH, TYPE, (b"connection", b"close")]),
    (POST, b"/entries", [TYPE, (b"transfer-encoding", b"chunked")]),
    (POST, b"/entries", [LENGTH, TYPE, (b"x", bytes(40_000))]),
    (POST, b"/entries", [LENGTH, TYPE, (b"authorization", b"Bearer x")]),
    (POST, b"/add", [LENGTH]),
    (POST, b"/v1/logs/raw/add", [LENGTH]),
    (POST, b"/logs/none/entries", [LENGTH, TYPE]),
    (POST, b"/entries/batch", [LENGTH, TYPE]),
    (GET, b"/entries", []),
    (POST, b"/proof/inclusion?index=0", []),
    (GET, b"/proof/inclusion?index=0", [LENGTH]),
    (GET, b"/proof/inclusion?index=x", []),
    (GET, b"/v1/tile/0/000.p/1", []),
    (b"HEAD", b"/proof/inclusion?index=0", []),
]


def asked(fast_path: FastPath, one: tuple[bytes, bytes, list[tuple[bytes, bytes]]]) -> tuple[bytes, bytes, RequestHead]:
    method, url, headers = one
    if not any(name == b"host" for name, _ in headers):
        headers = [(b"host", b"localhost"), *headers]
    return method, url, fast_path.head(headers)


class Parsed:
    """What the real parser makes of bytes: one whole request and nothing else, or nothing."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.ends = b"", b"", 0
        self.headers: list[tuple[bytes, bytes]] = []
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(data)
            self.good = self.ends == 1 and parser.should_keep_alive() and parser.get_http_version() == "1.1"
        except httptools.HttpParserError:
            self.good = False
        self.method = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1


WHOLE = [
    b"POST /logs/raw/entries HTTP/1.1\r\nHost: localhost\r\nX-Odd: a b:c\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /proof/inclusion?index=0 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
]


def of_known(fast_path: FastPath, exchange: Exchange) -> tuple[bytes, bytes, RequestHead]:
    """What an exchange answers that was found by a head that came before, byte for byte."""
    assert isinstance(exchange, AppendExchange)
    return POST, exchange.post.request.raw_path, fast_path.head(exchange.post.request.headers)


def known_heads_hold_for_a_while(fast_path: FastPath, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a head says is remembered; who may do it is decided each time."""
    whole = WHOLE[0]
    seen: list[bytes] = []

    def find(method: bytes, url: bytes, fields: RequestHead, find: Any = fast_path.find) -> Exchange | None:
        seen.append(url)
        return find(method, url, fields)

    def looks_up() -> bool:
        seen.clear()
        assert fast_path.find_whole(whole)
        return bool(seen)

    fast_path.remember(whole, fast_path.head(Parsed(whole).headers))
    fast_path._posts.clear()
    monkeypatch.setattr(fast_path, "find", find)
    now = [access._read_at + 0.1]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert (looks_up(), looks_up()) == (True, False)
    with monkeypatch.context() as patch:
        patch.setattr(
            access,
            "_callers",
            {(Asking((), local=True), fast_path._log(b"raw").row.log_id): Caller("anonymous", frozenset({VIEW}))},
        )
        assert fast_path.find_whole(whole) is None, "the caller may no longer append"
    assert looks_up() is False
    now[0] = access._read_at + 0.6
    assert fast_path.find_whole(whole) is None, "the keys have to be read first"
    now[0] = access._read_at + 0.1
    for length in range(1, 2000):
        head = b"POST /logs/raw/entries HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length
        fast_path.remember(head, fast_path.head(Parsed(head).headers))
        assert fast_path.find_whole(head + bytes(length))
    assert len(fast_path._posts) <= 1024


def spoil_known_blocks(fast_path: FastPath) -> None:
    """Whatever happens to the bytes: only what the parser would understand the same way is answered without it."""
    answered = 0
    for whole in WHOLE:
        assert fast_path.find_whole(whole) is None, "no block is known yet"
        fast_path.remember(whole, fast_path.head(Parsed(whole).headers))
        assert fast_path.find_whole(whole)
        odd = [
            whole[:at] + bytes([byte]) + whole[at + cut :] for at in range(len(whole)) for cut in (0, 1) for byte in ODD
        ]
        short = [whole[:at] for at in range(len(whole))]
        joined = [one + other for one in WHOLE for other in WHOLE]
        for data in (*odd, *short, *joined):
            seen = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fast_path, "find", lambda *found, seen=seen: seen.append(found) or FOUND)
                found = fast_path.find_whole(data)
            if not found:
                continue
            answered += 1
            ((method, url, fields),) = seen or [of_known(fast_path, found[0])]
            parsed = Parsed(data)
            assert parsed.good, data
            assert (method, url, fields.headers, found[1]) == (parsed.method, parsed.url, parsed.headers, parsed.body)
    assert answered > 100, "other bodies and other resources are"
    for block in (
        b"Host : x",
        b"Host:x",
        b"Host:  x",
        b"Host: x ",
        b"A: b\r\n c",
        b"X: " + bytes(1025).replace(b"\0", b"y"),
    ):
        data = b"GET / HTTP/1.1\r\n%b\r\n\r\n" % block
        fast_path.remember(data, fast_path.head(Parsed(data).headers))
        assert fast_path.find_whole(data) is None, "not a block that looks the same to every reader"
    for number in range(1000):
        fast_path.remember(b"GET / HTTP/1.1\r\nX: %d\r\n\r\n" % number, fast_path.head([(b"x", b"%d" % number)]))
    assert len(fast_path._blocks) <= 256


FOUND: Any = object()
ODD = b'\0\t\n\r !"#%&+-./0159:;=?AHZ_az~\x7f\x80\xff'


class Transport:
    """Keeps what is written to it, unless it is closing or broken."""

    def __init__(self, *, closing: bool = False, broken: bool = False) -> None:
        self.closing, self.broken = closing, broken
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        if self.broken:
            raise RuntimeError("cannot write after EOF")
        self.written.append(data)


async def test_answers_leave_together_in_order_and_soon():
    outbox, one, two = Outbox(), Transport(), Transport()
    outbox.add(one, b"1")
    outbox.add(Transport(broken=True), b"x")
    outbox.add(closing := Transport(closing=True), b"x")
    outbox.add(two, b"2")
    outbox.add(one, b"3")
    assert not one.written
    await asyncio.sleep(0)
    assert (one.written, two.written, closing.written) == ([b"1", b"3"], [b"2"], [])
    for number in range(20):
        outbox.add(one, b"%d" % number)
    assert len(one.written) == 2 + 16, "eight at a time, without waiting for the loop"
    outbox.flush()
    assert one.written[2:] == [b"%d" % number for number in range(20)]


def test_a_request_in_pieces_is_the_same_request(served: tuple[Instance, LiveServer]):
    """However the bytes of a connection are cut: the same answers, whether fields are known or not, and alone or not."""
    one = request_bytes("GET", "/proof/inclusion?index=7")
    bad = request_bytes("POST", "/logs/raw/entries", b'{"typ":"muniment/x"}')
    expected = [200, 422, 200, 422]
    with socket.create_connection(address(served[1].url), timeout=PATIENCE) as connection:
        for at in range(1, len(one + bad), 7):
            for part in (one, bad, (one + bad)[:at], (one + bad)[at:]):
                connection.sendall(part)
                time.sleep(0.002)
            received = b""
            while len(statuses(received)) < 4:
                received += connection.recv(65536)
            assert statuses(received) == expected


def test_which_requests_go_the_short_way(tmp_path: Path, request: pytest.FixtureRequest):
    with instance_on("sqlite", request, tmp_path, (DEFAULT, RAW)) as instance:
        asyncio.run(_which(instance))


async def _which(instance: Instance) -> None:
    app = create_app(Settings(data=instance.data))
    service: Service = app.service
    await service.start()
    try:
        fast_path = FastPath(service)
        assert fast_path.find(*asked(fast_path, TAKEN[0])) is None, "API keys have to be read first"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            assert (await http.get("/proof/inclusion?index=0")).status_code == 200
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: service.access._read_at + 0.1)  # or the keys are read again
            for one in TAKEN:
                assert fast_path.find(*asked(fast_path, one)), one
            for one in LEFT:
                assert fast_path.find(*asked(fast_path, one)) is None, one
            spoil_known_blocks(fast_path)
            known_heads_hold_for_a_while(fast_path, service.access, patch)
    finally:
        await service.registry.close()
