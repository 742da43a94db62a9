"""HTTP as clients of the field speak it: each input here failed once, or is a relative of one that did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from tests.live import LiveServer, free_of_tracebacks
from tests.service.http_check import client, head_size
from tests.service.http_raw import exchange, statuses
from tests.service.http_world import DEFAULT, RAW, Instance, instance_on


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("spoken"), (DEFAULT, RAW)) as made:
        yield made


@pytest.fixture(scope="module")
def server(instance: Instance) -> Iterator[LiveServer]:
    with instance.server() as running:
        yield running
        running.stop()
        assert free_of_tracebacks(running.stderr())


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with client(server.url) as made:
        yield made


BODY = b'{"a":1}'
CHUNKS = b'3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
UPGRADES = {
    "h2c": H2C,
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "two fields": b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0, h2c\r\nUpgrade: x/1\r\n",
    "no connection": b"Upgrade: h2c\r\n",
    "no protocol": b"Connection: Upgrade\r\n",
    "an empty one": b"Connection: Upgrade\r\nUpgrade:\r\n",
}


def request(line: bytes, fields: bytes, body: bytes = b"", *, version: bytes = b"1.1") -> bytes:
    """A request; its body comes in chunks when its fields say so."""
    length = b"" if b"chunked" in fields or not body else b"Content-Length: %d\r\n" % len(body)
    kind = b"Content-Type: application/json\r\n" if body else b""
    return b"%b HTTP/%b\r\nHost: localhost\r\n%b%b%b\r\n%b" % (line, version, kind, fields, length, body)


# --- upgrades -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upgrade_is_ignored_and_the_body_kept(
    server: LiveServer, http: httpx.Client, upgrade: str, chunked: bool
) -> None:
    """Whatever a client would rather speak (RFC 9110 section 7.8), on any route, and the connection goes on."""
    events, leaves = head_size(http), head_size(http, "/logs/raw")
    fields = UPGRADES[upgrade] + (b"Transfer-Encoding: chunked\r\n" if chunked else b"")
    body = CHUNKS if chunked else BODY
    posts = request(b"POST /entries", fields, body) * 2 + request(b"POST /logs/raw/entries", fields, body)
    gets = request(b"GET /checkpoint", UPGRADES[upgrade]) + request(b"GET /healthz", b"")
    received = exchange(server.url, posts + gets, answers=5)
    assert statuses(received)[:2] == [201, 201], received
    assert statuses(received)[2] in (200, 201), "the same leaf again is a known one"
    assert statuses(received)[3:] == [200, 200]
    assert b"connection: close" not in received.lower()
    assert head_size(http) == events + 2
    assert head_size(http, "/logs/raw") <= leaves + 1
    entry = http.get(f"/entries/{events}").json()
    assert entry["event"] == json.loads(BODY)


def test_an_upgrade_in_http_1_0_and_one_that_closes(server: LiveServer, http: httpx.Client) -> None:
    size = head_size(http)
    for data in (
        request(b"POST /entries", H2C, BODY, version=b"1.0"),
        request(b"POST /entries", H2C.replace(b"Upgrade,", b"close, Upgrade,"), BODY),
    ):
        assert statuses(exchange(server.url, data)) == [201]
    assert head_size(http) == size + 2


def test_a_tunnel_is_not_made(server: LiveServer, http: httpx.Client) -> None:
    """What follows CONNECT is for nobody: it is not read as a request."""
    size = head_size(http)
    tunnel = b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n"
    received = exchange(server.url, tunnel + request(b"POST /entries", b"", BODY))
    assert all(400 <= status < 500 for status in statuses(received)), received
    assert len(statuses(received)) == 1
    assert head_size(http) == size


# --- transfer codings, hosts, versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "coding",
    [
        b"gzip, chunked",
        b"gzip",
        b"deflate, gzip, chunked",
        b"gzip\r\nTransfer-Encoding: chunked",
        b"identity",
        b"identity, chunked",
        b"xchunked",
        b"chunked;q=1",
        b'"chunked"',
        b", chunked",
    ],
)
@pytest.mark.parametrize("path", [b"/logs/raw/add", b"/logs/raw/entries", b"/entries", b"/verify"])
def test_codings_that_are_not_undone(server: LiveServer, http: httpx.Client, path: bytes, coding: bytes) -> None:
    """They are refused on every route: a raw log would take the coded bytes for its leaf."""
    sizes = head_size(http), head_size(http, "/logs/raw")
    data = request(b"POST " + path, b"Transfer-Encoding: %b\r\n" % coding, CHUNKS)
    data = data.replace(b"Content-Length: %d\r\n" % len(CHUNKS), b"")
    received = exchange(server.url, data)
    assert statuses(received) == [501], received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == "transfer_coding"
    assert (head_size(http), head_size(http, "/logs/raw")) == sizes


@pytest.mark.parametrize("version", [b"2.0", b"0.9"])
def test_versions_that_are_not_spoken(server: LiveServer, version: bytes) -> None:
    received = exchange(server.url, request(b"GET /healthz", b"", version=version))
    assert statuses(received) == [505], received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == "http_version"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "localhost:", "xn--bcher-kva.example", "a_b"],
)
def test_hosts_that_are_hosts(server: LiveServer, host: str) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert statuses(exchange(server.url, head)) == [200]


def test_a_host_is_optional_before_http_1_1(server: LiveServer) -> None:
    assert statuses(exchange(server.url, b"GET /healthz HTTP/1.0\r\n\r\n")) == [200]


def test_a_refused_head_ends_the_connection(server: LiveServer) -> None:
    """Nothing behind it is looked at: where it ends is what two readers would not agree on."""
    for bad in (b"GET /healthz HTTP/1.1\r\n\r\n", request(b"POST /entries", b"Transfer-Encoding: gzip, chunked\r\n")):
        received = exchange(server.url, request(b"GET /healthz", b"") + bad + request(b"GET /healthz", b""))
        assert statuses(received) in ([200, 400], [200, 501]), received
        assert re.search(rb"\r\nconnection: close\r\n", received.lower())
