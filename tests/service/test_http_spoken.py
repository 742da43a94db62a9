"""HTTP as clients of the field speak it: each input here failed once, or is a relative of one that did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest

from muniment.tiles import decode_bundle
from muniment_server import __version__
from tests.live import LiveServer, free_of_tracebacks, until
from tests.service.http_check import NDJSON, bundle, client, head_size, published
from tests.service.http_raw import exchange, statuses
from tests.service.http_world import DEFAULT, RAW, Instance, instance_on


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("spoken"), (DEFAULT, RAW)) as made:
        yield made


@pytest.fixture(scope="module")
def server(instance: Instance) -> Iterator[LiveServer]:
    with instance.server() as running:
        with client(running.url) as http:  # an entry that every test may ask for
            http.post("/entries", json={"a": 1}).raise_for_status()
            published(http, "", 2)
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


def test_blanks_after_a_value_are_none_of_it(server: LiveServer, http: httpx.Client) -> None:
    """RFC 9110 section 5.5. The length, the host and the key each went wrong in a way of its own."""
    size = head_size(http)
    for blank in (b" ", b"\t", b" \t "):
        fields = b"Content-Type: application/json%b\r\nContent-Length: %d%b\r\nIdempotency-Key: k1%b\r\n"
        fields %= blank, len(BODY), blank, blank
        data = b"POST /entries HTTP/1.1\r\nHost: localhost%b\r\n%b\r\n%b" % (blank, fields, BODY)
        assert statuses(exchange(server.url, data)) in ([200], [201])
    assert head_size(http) == size + 1


def test_a_path_of_no_route_is_answered_as_its_like(http: httpx.Client) -> None:
    """A log cannot have such a name; what asks for a file of an anchor is told in JSON all the same."""
    for path, plain in (("/logs/a%0Ab/anchors/64/checkpoint", False), ("/logs/a%0Ab/checkpoint", True)):
        answer = http.get(path)
        assert (answer.status_code, answer.headers["content-type"].startswith("text/plain")) == (404, plain), path


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


# --- web pages ----------------------------------------------------------------------------------------------------------

PAGE, OTHER = "https://app.example", "https://evil.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}


def granted(answer: httpx.Response) -> dict[str, str]:
    """What a preflight lets a page do."""
    start = "access-control-"
    return {name.removeprefix(start): value for name, value in answer.headers.items() if name.startswith(start)}


@pytest.mark.parametrize("path", ["/entries", "/v1/logs/none/entries", "/verify", "/log", "/tile/0/000", "/"])
def test_what_a_browser_asks_before(server: LiveServer, path: str) -> None:
    """Without a setting, pages may read what is public, and no page may append. OPTIONS says nothing of logs."""
    with client(server.url) as http:
        wishes = {
            method: ASKS | {"Access-Control-Request-Method": method, "Origin": PAGE} for method in ("GET", "POST")
        }
        found = {method: http.options(path, headers=fields) for method, fields in wishes.items()}
        assert {answer.status_code for answer in found.values()} == {204}
        reads, posts = (granted(found[method]) for method in ("GET", "POST"))
        takes = found["GET"].headers["allow"].split(", ")
        assert bool(reads) == ("GET" in takes)
        assert bool(posts) == (path == "/verify")
        for fields in (reads, posts):
            assert fields.get("allow-origin", "*") == "*"
            assert "Authorization" not in fields.get("allow-headers", "")


def test_options_in_general(server: LiveServer) -> None:
    received = exchange(server.url, request(b"OPTIONS *", b"") + request(b"OPTIONS /nowhere", b""), answers=2)
    assert statuses(received) == [204, 404]


def test_a_page_that_the_operator_names(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It may send a key and JSON, and sees what it needs of the answers; pages of other origins see what they saw."""
    origins = {"MUNIMENT_SERVER_CORS_ORIGINS": f"{PAGE}, http://localhost:3000"}
    # An instance of its own: the server of the other tests would see what is appended here a second later.
    with (
        instance_on("sqlite", request, tmp_path) as instance,
        instance.server(env=origins) as server,
        client(server.url) as http,
    ):
        http.post("/entries", json={"a": 1}).raise_for_status()
        published(http, "", 2)
        fields = granted(http.options("/entries", headers=ASKS | {"Origin": PAGE}))
        assert fields["allow-origin"] == PAGE
        assert "POST" in fields["allow-methods"]
        assert {"Authorization", "Content-Type", "Idempotency-Key"} <= set(fields["allow-headers"].split(", "))
        assert not granted(http.options("/entries", headers=ASKS | {"Origin": OTHER}))
        answer = http.post("/entries", json={"a": 1}, headers={"Origin": PAGE})
        assert (answer.status_code, granted(answer)["allow-origin"]) == (201, PAGE)
        assert "Location" in granted(answer)["expose-headers"]
        assert answer.headers["vary"] == "Origin"
        for path in ("/checkpoint", "/proof/inclusion?index=0", "/tile/0/000.p/1", "/entries/1"):
            mine, others = (http.get(path, headers={"Origin": origin}) for origin in (PAGE, OTHER))
            assert (granted(mine)["allow-origin"], granted(others)["allow-origin"]) == (PAGE, "*"), path
        assert "event" in http.get("/entries/1", headers={"Origin": PAGE}).json()
        assert http.post("/entries", json={"a": 1}, headers={"Origin": OTHER}).status_code == 401
        refused = http.get("/entries/x", headers={"Origin": PAGE})
        assert (refused.status_code, granted(refused)["allow-origin"]) == (400, PAGE)


def test_an_etag_can_be_read(http: httpx.Client) -> None:
    answer = http.get("/checkpoint", headers={"Origin": OTHER})
    assert answer.headers["etag"]
    assert granted(answer) == {"allow-origin": "*", "expose-headers": "ETag"}


STRANGERS = {
    "a page": {"Origin": OTHER},
    "a page of no origin": {"Origin": "null"},
    "a page of another port": {"Origin": "http://localhost:1"},
    "a name that points here": {"Host": "evil.example"},
    "a name that looks like ours": {"Host": "localhost.evil.example"},
    "an address elsewhere": {"Host": "192.0.2.1"},
    "no name": {"Host": ""},
}
NEIGHBOURS = [
    {},
    {"Host": "localhost"},
    {"Host": "LocalHost.:99"},
    {"Host": "[::1]:8080"},
    {"Host": "127.9.9.9"},
    {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_rights_of_the_address_are_not_for_web_pages(http: httpx.Client, stranger: str) -> None:
    """A browser on this machine sends what any page tells it to: that page is not the machine's user."""
    head, fields = head_size(http), STRANGERS[stranger]
    for kind in ("text/plain", "application/json"):
        answer = http.post("/entries", content=BODY, headers=fields | {"Content-Type": kind})
        assert answer.status_code == 401, answer.text
    assert http.post("/logs/raw/add", content=b"leaf", headers=fields).status_code == 401
    for path in ("/entries/1", "/entries?start=1", "/entries/1/receipt"):
        answer = http.get(path, headers=fields)
        assert answer.status_code == 200
        assert '"event"' not in answer.text
        assert '"disclosures"' not in answer.text
    assert head_size(http) == head


@pytest.mark.parametrize("fields", NEIGHBOURS)
def test_rights_of_the_address_are_for_programs(http: httpx.Client, fields: dict[str, str]) -> None:
    assert http.post("/entries", json={"a": 1}, headers=fields).status_code == 201
    for path in ("/entries/1", "/entries?start=1", "/entries/1/receipt"):
        answer = http.get(path, headers=fields)
        assert BODY in answer.content or '"disclosures"' in answer.text
        assert "access-control-allow-origin" not in answer.headers


# --- a JSON array is a batch ----------------------------------------------------------------------------------------------

ARRAYS = {
    b'[{"a":1},{"b":[1,{"c":"],["}]}]': 2,
    b' [ {"a":"\\"]"} ,\n{"a":","} ]\r\n': 2,
    b'[{"a":{"b":{}}}]': 1,
    b'[{"\xc3\xa9":"\xe2\x82\xac"},{"a":[]}]': 2,
}
NO_ARRAYS = {
    b"[]": "empty_batch",
    b" [ ] ": "empty_batch",
    b"": "invalid_json",
    b"[": "invalid_json",
    b"]": "invalid_json",
    b'{"a":1}': "invalid_json",
    b'{"a":1}\n{"a":2}\n': "invalid_json",
    b'[{"a":1},]': "invalid_json",
    b'[,{"a":1}]': "invalid_json",
    b'[{"a":1}]]': "invalid_json",
    b'[{"a":1}}': "invalid_json",
    b'[{"a":1}} ': "invalid_json",
    b'[{"a":1}] x': "invalid_json",
    b'[{"a":1}': "invalid_json",
    b'[{"a":1]': "invalid_json",
    b'[{"a":"x]': "invalid_json",
    b'[{"a":[1}]': "invalid_json",
    b'[{"a":1} {"b":1}]': "invalid_json",
    b'[{"a":1},{"a":1,"a":2}]': "duplicate_name",
    b'[[{"a":1}]]': "not_an_object",
    b"[1]": "not_an_object",
    b"[{}]": "empty_event",
    b'[{"a":"' + b"x" * 70_000 + b'"}]': "body_too_large",
    b"[" * 100_000: "body_too_large",
    b"[" + b'{"a":1},' * 10_000 + b'{"a":1}]': "too_many_entries",
    b'\xef\xbb\xbf[{"a":1}]': "invalid_json",
}


@pytest.mark.parametrize("body", ARRAYS)
def test_an_array_is_a_batch(http: httpx.Client, body: bytes) -> None:
    size = head_size(http)
    for kind in ("application/json", "application/json; charset=utf-8", "application/vnd.audit+json"):
        answer = http.post("/entries/batch?receipts=true", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["count"]) == (201, ARRAYS[body])
    events = json.loads(body)
    page = http.get("/entries", params={"start": size, "limit": 1000}).json()["entries"]
    assert [entry["event"] for entry in page] == events * 3


@pytest.mark.parametrize("body", NO_ARRAYS, ids=lambda body: str(body[:24]))
def test_what_is_no_array_of_events_writes_nothing(http: httpx.Client, body: bytes) -> None:
    size = head_size(http)
    answer = http.post("/entries/batch", content=body, headers={"Content-Type": "application/json"})
    assert (answer.json()["code"], 400 <= answer.status_code < 500) == (NO_ARRAYS[body], True)
    assert head_size(http) == size


def test_an_array_is_the_batch_of_its_lines(http: httpx.Client) -> None:
    """The same events under one Idempotency-Key, however they are written."""
    key = {"Idempotency-Key": "array"}
    first = http.post("/entries/batch", content=b'{"a":1}\n{"a":2}\n', headers=NDJSON | key)
    again = http.post("/entries/batch", json=[{"a": 1}, {"a": 2}], headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["indices"] == first.json()["indices"]


# --- compressed bundles ---------------------------------------------------------------------------------------------------

TAKES_GZIP = {
    "gzip": True,
    "gzip, identity": True,
    "br;q=1.0, GZip;q=0.8": True,
    "*": True,
    "x-gzip": True,
    "gzip;q=0": False,
    "gzip; q=0.000, *": False,
    "*;q=0": False,
    "identity": False,
    "br, deflate": False,
    "": False,
}


@pytest.mark.parametrize("wish", TAKES_GZIP)
def test_a_bundle_is_compressed_for_those_who_take_it(served_bundles: LiveServer, wish: str) -> None:
    """The same bytes, from the database and from memory, one by one and through the application."""
    url, zipped = served_bundles.url, TAKES_GZIP[wish]
    for path in ("/logs/raw/tile/entries/000", "/tile/entries/000"):
        for way in ({}, {}, {"Connection": "close"}):
            fields = {"Accept-Encoding": wish} | way
            plain, answer = (
                httpx.get(url + path, headers=given) for given in ({"Accept-Encoding": "identity"}, fields)
            )
            assert answer.headers.get("content-encoding") == ("gzip" if zipped else None)
            assert plain.content == answer.content
            assert len(decode_bundle(answer.content)) == 256
            assert (int(answer.headers["content-length"]) < len(plain.content)) == zipped
            for one in (plain, answer):
                assert one.headers["vary"] == "Accept-Encoding"
                assert one.headers["cache-control"] == "public, max-age=604800, immutable"


def test_what_does_not_get_smaller_is_sent_as_it_is(served_bundles: LiveServer) -> None:
    for path in ("/tile/0/000", "/tile/1/000.p/1", "/tile/entries/000.p/9", "/tile/entries/001.p/2", "/checkpoint"):
        answer = httpx.get(served_bundles.url + path, headers={"Accept-Encoding": "gzip"})
        assert (answer.status_code, answer.headers.get("content-encoding")) == (200, None), path


@pytest.fixture(scope="module")
def served_bundles(instance: Instance, server: LiveServer) -> LiveServer:
    """The server, with a full bundle in each of its logs, read from nothing but the database at first."""
    with client(server.url) as http:
        http.post("/entries/batch", content=b'{"a":"b"}\n' * 300, headers=NDJSON)
        http.post("/logs/raw/entries/batch", content=bundle(*(b"leaf %d of many" % n for n in range(300))))
        for prefix in ("", "/logs/raw"):
            published(http, prefix, head_size(http, prefix))
    return server


# --- the server itself --------------------------------------------------------------------------------------------------


def test_the_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"name": "muniment-server", "version": __version__}


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html", True),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("text/html;q=0", False),
        ("application/json, text/html;q=0.5", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_the_first_page_is_for_those_who_would_rather_have_one(http: httpx.Client, accept: str, page: bool) -> None:
    answer = http.get("/", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("text/html") == page


def _shows(http: httpx.Client, note: str) -> bool:
    return f"<pre>{note}</pre>" in unescape(http.get("/", headers={"Accept": "text/html"}).text)


def test_the_first_page(http: httpx.Client) -> None:
    """A page for browsers, with the checkpoint of each log and nothing from elsewhere; JSON for others."""
    value = http.get("/").json()
    assert value["name"] == "muniment-server"
    for path in ("/logs", "/docs", "/openapi.json"):
        assert path in value.values()
        assert http.get(path).status_code == 200
    answer = http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for log in http.get("/logs").json()["logs"]:
        assert f"<h2>{log['origin']}</h2>" in answer.text
        prefix = "" if log["name"] == "default" else f"/logs/{log['name']}"
        until(lambda: _shows(http, http.get(f"{prefix}/checkpoint").text), "the page has another checkpoint")  # noqa: B023
    for path in ("/docs", "/openapi.json", "/logs"):
        assert f'href="{path}"' in answer.text
    assert not re.search(r"<script|src=|href=\"?http", answer.text)
