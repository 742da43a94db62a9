"""Bad input over HTTP: refused with a 4xx that has a code and a hint, nothing written, and the next request is fine.

One server serves all cases. Every case ends by appending a good entry that must get the index a refusal left free.
"""

from __future__ import annotations

import gzip
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from muniment_server.errors import Refused
from muniment_server.web.problems import CODES
from muniment_server.web.routes import ROUTES
from muniment_server.write.admission import draft_event
from tests.bench.machine import cpu_seconds
from tests.live import PATIENCE, LiveServer, free_of_tracebacks, until
from tests.service.http_audit import audit, fsck
from tests.service.http_check import JSON, NDJSON, bundle, client, document, expect_problem, head_size, published
from tests.service.http_raw import address, exchange, request_bytes, statuses
from tests.service.http_world import DEFAULT, LogSpec, instance_on

LOG_ROUTES = [route for route in ROUTES if route.on == "log"]

ENV = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05", "MUNIMENT_SERVER_CLIENT_SECONDS": "600"}
MAX_RSS_GROWTH = 150_000  # KiB over all cases of this module, 16 MiB bodies and 8 MiB headers among them


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    logs = (DEFAULT, LogSpec("raw", "raw"))
    with (
        instance_on("sqlite", request, tmp_path_factory.mktemp("bad"), logs) as instance,
        instance.server(env=ENV) as running,
    ):
        with client(running.url) as http:  # so that there are tiles, and a size that is not published
            http.post("/entries/batch", content=b'{"a":1}\n' * 300, headers=NDJSON)
            http.post("/logs/raw/entries/batch", content=bundle(*(b"leaf %d" % n for n in range(300))))
            until(lambda: http.get("/search").status_code == 200)  # the index is begun a second after the start
        before = rss(running)
        yield running
        assert free_of_tracebacks(running.stderr())
        assert rss(running) - before < MAX_RSS_GROWTH
        with client(running.url) as http:
            for prefix in ("", "/logs/raw"):
                published(http, prefix, head_size(http, prefix))
                assert audit(http, instance.policy, prefix).checkpoint.size == head_size(http, prefix)
        fsck(instance)


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with client(server.url) as made:
        yield made


def rss(server: LiveServer) -> int:
    """Resident memory of a server in KiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


@contextmanager
def cheap(server: LiveServer) -> Iterator[None]:
    """Check that the block takes the server little processor time: that of the clock is up to who else is busy."""
    before = cpu_seconds(server.process.pid)
    yield
    assert cpu_seconds(server.process.pid) - before < 5


@contextmanager
def nothing_written(http: httpx.Client, prefix: str = "") -> Iterator[None]:
    """Check that the block writes nothing, and that the next good entry is taken."""
    size = head_size(http, prefix)
    yield
    if prefix:
        assert http.post(f"{prefix}/add", content=b"good %d" % size).text == str(size)
    else:
        answer = http.post("/entries", content=b'{"good":1}', headers=JSON)
        assert (answer.status_code, answer.json()["index"]) == (201, size)


def named(value: Any) -> str:
    """A test id that fits on a line."""
    text = repr(value)[:48].encode("ascii", "backslashreplace").decode()
    return re.sub(r"[^ -~]", "?", text)


# --- JSON that is no event ----------------------------------------------------------------------------------------------

DEEP = 33
NOT_NUMBERS = [
    *b"01 +1 .5 1. 1e 1e+ 0x10 --1 1_0 1,0 -01 - + 0b1 1e1.5 -NaN nan inf".split(),
    b"1 0",
    b"\xd9\xa1",  # Arabic-Indic one
    b"\xef\xbc\x91",  # fullwidth one
    b"\xe2\x88\x921",  # minus sign
]
OUT_OF_RANGE = (
    b"9007199254740992 -9007199254740992 9007199254740993 9007199254740991.1 9007199254740991.5 -9007199254740991.01 "
    b"9.007199254740992e15 9007199254740992.0 90071992547409920e-1 0.9007199254740992E16 1E16 1e+16 1e400 -1e400 "
    b"1e999999999 18446744073709551616 9223372036854775808 123456789012345678901234567890 1e-400 -1e-400 "
    b"0.00000000000000000000000000000001e-300"
).split()
EVENTS: list[tuple[bytes, str, str | None]] = [
    # empty, truncated, not JSON
    (b"", "invalid_json", ""),
    (b" ", "invalid_json", ""),
    (b"{", "invalid_json", ""),
    (b'{"a"', "invalid_json", ""),
    (b'{"a":', "invalid_json", ""),
    (b'{"a":1', "invalid_json", ""),
    (b'{"a":"x', "invalid_json", ""),
    (b'{"a":"\\', "invalid_json", ""),
    (b'{"a":"\\u12', "invalid_json", ""),
    (b'{"a":1}}', "invalid_json", ""),
    (b'{"a":1}{"b":2}', "invalid_json", ""),
    (b'{"a":1} x', "invalid_json", ""),
    (b'{"a":1},', "invalid_json", ""),
    (b'{"a":1,}', "invalid_json", ""),
    (b'{"a":[1,]}', "invalid_json", ""),
    (b"{'a':1}", "invalid_json", ""),
    (b"{a:1}", "invalid_json", ""),
    (b'{"a" 1}', "invalid_json", ""),
    (b'{"a":1 /* c */}', "invalid_json", ""),
    (b'{"a":tRUE}', "invalid_json", ""),
    (b'{"a":undefined}', "invalid_json", ""),
    (b'{"a":"\\x41"}', "invalid_json", ""),
    (b'{"a":"\x00"}', "invalid_json", ""),
    (b'{"a":"\x1f"}', "invalid_json", ""),
    (b'{"a":"\t"}', "invalid_json", ""),
    (b'{"a":1}\x00', "invalid_json", ""),
    (b'\x0c{"a":1}', "invalid_json", ""),
    (b'\xef\xbb\xbf{"a":1}', "invalid_json", ""),
    ('{"a":1}'.encode("utf-16-le"), "invalid_json", ""),
    (gzip.compress(b'{"a":1}', mtime=0), "invalid_utf8", ""),
    # not UTF-8
    ('{"a":1}'.encode("utf-16"), "invalid_utf8", ""),
    (b'{"a":"\xff"}', "invalid_utf8", ""),
    (b'{"a":"\xc0\x80"}', "invalid_utf8", ""),
    (b'{"a":"\xed\xa0\x80"}', "invalid_utf8", ""),
    (b'{"a":"\xf5\x80\x80\x80"}', "invalid_utf8", ""),
    (b'{"a":"\xe2\x82"}', "invalid_utf8", ""),
    (b'{"\xe9":1}', "invalid_utf8", ""),
    # not an object, or not of the right width
    *((body, "not_an_object", "") for body in (b"null", b"true", b"1", b'"x"', b"[]", b'[{"a":1}]', b"1.5", b"-0")),
    (b"{}", "empty_event", ""),
    (b" {\t} ", "empty_event", ""),
    (json.dumps({str(n): n for n in range(257)}).encode(), "too_many_members", ""),
    # names
    (b'{"a":1,"a":1}', "duplicate_name", "/a"),
    (b'{"a":1,"\\u0061":2}', "duplicate_name", "/a"),
    (b'{"x":{"b":1,"c":2,"b":3}}', "duplicate_name", "/x/b"),
    (b'{"x":[0,{"~/":1,"~/":2}]}', "duplicate_name", "/x/1/~0~1"),
    (b'{"":1,"":2}', "duplicate_name", "/"),
    ('{"é":1,"\\u00e9":2}'.encode(), "duplicate_name", "/é"),
    # numbers
    *((b'{"n":%s}' % word, "invalid_number", "/n") for word in (b"NaN", b"Infinity", b"-Infinity")),
    (b'{"a":[{"b":NaN}]}', "invalid_number", "/a/0/b"),
    *((b'{"n":%s}' % word, "invalid_json", "") for word in NOT_NUMBERS),
    *((b'{"n":%s}' % word, "number_range", "/n") for word in OUT_OF_RANGE),
    (b'{"n":%s}' % (b"9" * 5000), "number_range", "/n"),
    (b'{"n":1%s}' % (b"0" * 5000), "number_range", "/n"),
    (b'{"n":0.%s1}' % (b"0" * 5000), "number_range", "/n"),
    (b'{"n":[1,2,[9007199254740992]]}', "number_range", "/n/2/0"),
    # text
    *(
        (b'{"t":"%s"}' % word, "lone_surrogate", "/t")
        for word in (b"\\ud800", b"\\udfff", b"x\\udc00y", b"\\ud800\\ud800", b"\\udc00\\ud800", b"\\ud83d\\u0041")
    ),
    (b'{"\\ud800":1}', "lone_surrogate", "/\ufffd"),
    (b'{"a":{"\\udfff":1}}', "lone_surrogate", "/a/\ufffd"),
    *((f'{{"t":"{char}"}}'.encode(), "noncharacter", "/t") for char in ("\ufffe", "\uffff", "\ufdd0", "\U0010ffff")),
    (b'{"t":"\\uffff"}', "noncharacter", "/t"),
    # depth
    (b'{"a":' + b"[" * (DEEP - 1) + b"]" * (DEEP - 1) + b"}", "too_deep", "/a" + "/0" * (DEEP - 2)),
    (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "too_deep", "/a" * (DEEP - 1)),
    (b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}", "too_deep", None),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep", None),
]
GOOD_EVENT = json.dumps({"actor": "ålice", "n": [1, -2.5e-3, None, True], "o": {"é": "\U0001f600"}}).encode()
EVENTS += [(GOOD_EVENT[: len(GOOD_EVENT) * part // 16], "invalid_json", "") for part in range(1, 16)]


@pytest.mark.parametrize(("body", "code", "pointer"), EVENTS, ids=named)
def test_json_that_is_no_event(body: bytes, code: str, pointer: str | None) -> None:
    with pytest.raises(Refused) as caught:
        draft_event(body)
    assert caught.value.code == code
    if pointer is not None:
        assert caught.value.extra["pointer"] == pointer


def over_http() -> list[tuple[bytes, str, str | None]]:
    """What a server is asked too: of each code the first event, and the longest."""
    chosen = []
    for code in dict.fromkeys(code for _, code, _ in EVENTS):
        same = [case for case in EVENTS if case[1] == code]
        longest = max(same, key=lambda case: len(case[0]))
        chosen += [same[0]] if same[0] is longest else [same[0], longest]
    return chosen


@pytest.mark.parametrize(("body", "code", "pointer"), over_http(), ids=named)
def test_the_same_over_http(
    server: LiveServer, http: httpx.Client, body: bytes, code: str, pointer: str | None
) -> None:
    with nothing_written(http):
        with cheap(server):
            found = expect_problem(http.post("/entries", content=body, headers=JSON), 422, code)
        if pointer is not None:
            assert found["pointer"] == pointer
        assert "line" not in found


@pytest.mark.parametrize(("body", "code", "pointer"), [case for case in over_http() if b"\n" not in case[0]], ids=named)
def test_the_same_as_one_line_of_a_batch(http: httpx.Client, body: bytes, code: str, pointer: str | None) -> None:
    with nothing_written(http):
        batch = b'{"first":1}\n' + body + b'\n{"last":1}\n'
        found = expect_problem(http.post("/entries/batch", content=batch, headers=NDJSON), 422, code)
        assert found["line"] == 2
        if pointer is not None:
            assert found["pointer"] == pointer


ODD_BUT_GOOD: list[bytes] = [
    b'{"n":9007199254740991}',
    b'{"n":-9007199254740991}',
    b'{"n":9007199254740991.0}',
    b'{"n":-0}',
    b'{"n":-0.0}',
    b'{"n":0e999999}',
    b'{"n":1E2}',
    b'{"n":5e-324}',
    b'{"":null}',
    b'{"a":""}',
    b' \t\r\n{ "a" : 1 } \r\n',
    b'{"a":"\\u0000"}',
    b'{"a":"\\ud83d\\ude00"}',
    b'{"__proto__":{},"constructor":1}',
    '{"\N{RIGHT-TO-LEFT OVERRIDE}":"\u2028\u2029\x7f\x1b[31m"}'.replace("\x1b", "\\u001b").encode(),
    b'{"a":' + b"[" * 31 + b"]" * 31 + b"}",
    json.dumps({str(n): n for n in range(256)}).encode(),
    json.dumps({"x": "y" * (65_536 - 9)}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", ODD_BUT_GOOD, ids=named)
def test_odd_but_good_events(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/entries", content=body, headers=JSON)
    assert answer.status_code == 201, answer.text
    stored = http.get(f"/entries/{answer.json()['index']}").json()["event"]
    assert stored == json.loads(body)


# --- sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [65_537, 655_360, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_event_that_is_too_large(http: httpx.Client, size: int, chunked: bool) -> None:
    body = b'{"x":"' + b"y" * (size - 8) + b'"}'
    with nothing_written(http):
        answer = http.post("/entries", content=chunks(body) if chunked else body, headers=JSON)
        expect_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize("size", [65_536, 655_360, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_leaf_that_is_too_large(http: httpx.Client, size: int, chunked: bool) -> None:
    body = b"y" * size
    with nothing_written(http, "/logs/raw"):
        found = expect_problem(
            http.post("/logs/raw/entries", content=chunks(body) if chunked else body), 413, "entry_too_large"
        )
        assert "digest" in found["hint"]
        plain = http.post("/logs/raw/add", content=chunks(body) if chunked else body)
        assert (plain.status_code, plain.headers["content-type"]) == (413, "text/plain; charset=utf-8")


def chunks(body: bytes) -> Iterator[bytes]:
    """The same body without a Content-Length."""
    return (body[at : at + 16_384] for at in range(0, len(body), 16_384))


def test_the_largest_bodies_are_taken(http: httpx.Client) -> None:
    assert http.post("/logs/raw/add", content=chunks(b"z" * 65_535)).status_code == 200
    assert http.post("/logs/raw/entries", content=b"Z" * 65_535).status_code == 201
    event = b'{"x":"' + b"y" * (65_536 - 8) + b'"}'
    assert http.post("/entries", content=event, headers=JSON).status_code == 201
    assert http.post("/entries", content=chunks(event), headers=JSON).status_code == 201


def test_batches_that_are_too_large(http: httpx.Client) -> None:
    with nothing_written(http):
        many = http.post("/entries/batch", content=b'{"a":1}\n' * 10_001, headers=NDJSON)
        expect_problem(many, 413, "too_many_entries")
        for body in (b" " * (16 * 2**20 + 1), chunks(b"\n" * (16 * 2**20 + 1))):
            expect_problem(http.post("/entries/batch", content=body, headers=NDJSON), 413, "body_too_large")
        long = b'{"a":1}\n{"x":"' + b"y" * 65_536 + b'"}\n'
        assert (
            expect_problem(http.post("/entries/batch", content=long, headers=NDJSON), 413, "body_too_large")["line"]
            == 2
        )
        blank = http.post("/entries/batch", content=b"\n" * 100_000, headers=NDJSON)
        expect_problem(blank, 413, "too_many_entries")
    with nothing_written(http, "/logs/raw"):
        expect_problem(http.post("/logs/raw/entries/batch", content=bundle(b"x") * 10_001), 413, "too_many_entries")
        expect_problem(http.post("/logs/raw/entries/batch", content=bundle(b"x" * 65_535) * 257), 413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        (b"", "empty_batch", None),
        (b"\n", "invalid_json", 1),
        (b'{"a":1}\n\n{"a":1}\n', "invalid_json", 2),
        (b'{"a":1}\n\n', "invalid_json", 2),
        (b'\n{"a":1}\n', "invalid_json", 1),
        (b'[{"a":1},{"a":2}]', "not_an_object", 1),
        (b'{"a":1}\x1e{"a":2}', "invalid_json", 1),
        (b'{"a":1}\r{"a":2}', "invalid_json", 1),
        ('{"a":1}\u2028{"a":2}'.encode(), "invalid_json", 1),
        (b'{"a":\n1}', "invalid_json", 1),
        (b'{"a":1}\n' * 999 + b'{"a":1', "invalid_json", 1000),
    ],
    ids=named,
)
def test_batches_that_are_not_ndjson(http: httpx.Client, body: bytes, code: str, line: int | None) -> None:
    with nothing_written(http):
        found = expect_problem(http.post("/entries/batch", content=body, headers=NDJSON), 422, code)
        assert found.get("line") == line


def test_crlf_between_lines_is_white_space(http: httpx.Client) -> None:
    answer = http.post("/entries/batch", content=b'{"a":1}\r\n{"a":2}\r\n', headers=NDJSON)
    assert answer.json()["count"] == 2


# --- raw leaves ---------------------------------------------------------------------------------------------------------

RESERVED = [
    b'{"typ":"muniment/genesis@v1"}',
    b'{"typ":"muniment/"}',
    b' \r\n\t{"typ" : "muniment/x"}',
    b'{"a":1,"typ":"muniment/event@v1","b":{}}',
    b'{"typ":"x","typ":"muniment/erasure@v1"}',
    b'{"typ":"muniment/erasure@v1","typ":"x"}',
    b'{"\\u0074yp":"muniment/x"}',
    b'{"typ":"\\u006duniment/x"}',
    b'{"typ":"muniment\\/x"}',
    b'{"TYP":"muniment/x"}',
    b'\xef\xbb\xbf{"typ":"muniment/x"}',
    '{"typ":"muniment/x"}'.encode("utf-16"),
    '{"typ":"muniment/x"}'.encode("utf-16-be"),
    '{"typ":"muniment/x"}'.encode("utf-32-le"),
    b'{"typ":"muniment/x"} trailing',
    b'{"typ":"muniment/x","n":NaN}',
    b'{"typ":"muniment/x","n":1e999}',
]


@pytest.mark.parametrize("leaf", RESERVED, ids=named)
def test_leaves_that_look_like_the_logs_own(http: httpx.Client, leaf: bytes) -> None:
    with nothing_written(http, "/logs/raw"):
        expect_problem(http.post("/logs/raw/entries", content=leaf), 422, "reserved_leaf")
        assert http.post("/logs/raw/add", content=leaf).status_code == 422
        batch = http.post("/logs/raw/entries/batch", content=bundle(b"good", leaf))
        assert expect_problem(batch, 422, "reserved_leaf")["line"] == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_batch"),
        (b"\x00", "invalid_bundle"),
        (b"\x00\x00", "empty_entry"),
        (b"\x00\x05abc", "invalid_bundle"),
        (b"\x00\x03abcd", "invalid_bundle"),
        (b"\x00\x03abc\x00", "invalid_bundle"),
        (b"\xff\xff" + b"x" * 65_534, "invalid_bundle"),
        (b"\x03\x00abc", "invalid_bundle"),
        (b'{"a":1}\n', "invalid_bundle"),
        (bundle(b"a", b"b")[:-1], "invalid_bundle"),
        (bundle(b"a") + b"\x00\x00" + bundle(b"b"), "empty_entry"),
    ],
    ids=named,
)
def test_bodies_that_are_no_bundle(http: httpx.Client, body: bytes, code: str) -> None:
    with nothing_written(http, "/logs/raw"):
        expect_problem(http.post("/logs/raw/entries/batch", content=body), 422, code)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/logs/raw/entries/batch", bundle(b"x") * 5_500_000),
        ("/logs/raw/entries/batch", bundle(b"") * 8_000_000),
        ("/entries/batch", b"\n" * 16_000_000),
        ("/entries/batch", b"{}\n" * 5_500_000),
    ],
    ids=named,
)
def test_millions_of_entries_are_refused_before_they_are_looked_at(
    server: LiveServer, http: httpx.Client, path: str, body: bytes
) -> None:
    """Nobody else is served in the meantime."""
    size = head_size(http)
    with cheap(server):
        expect_problem(http.post(path, content=body, headers=NDJSON), 413, "too_many_entries")
    assert head_size(http) == size


def test_an_empty_leaf(http: httpx.Client) -> None:
    with nothing_written(http, "/logs/raw"):
        expect_problem(http.post("/logs/raw/entries", content=b""), 422, "empty_entry")
        assert http.post("/logs/raw/add", content=b"").status_code == 422


# --- content type and encoding ------------------------------------------------------------------------------------------

WRONG_TYPES = [
    None,
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/xml",
    "application/octet-stream",
    "application/jsonx",
    "json",
    "application/json, text/plain",
    "application/json; charset=utf-16",
    "application/json; charset=iso-8859-1",
    "x" * 10_000,
]


@pytest.mark.parametrize("kind", [*WRONG_TYPES, "application/x-ndjson"], ids=named)
def test_an_event_with_another_content_type(http: httpx.Client, kind: str | None) -> None:
    with nothing_written(http):
        headers = {} if kind is None else {"Content-Type": kind}
        found = expect_problem(
            http.post("/entries", content=b'{"a":1}', headers=headers), 415, "unsupported_media_type"
        )
        assert "charset" in str(kind) or "curl --json" in found["hint"]


@pytest.mark.parametrize("kind", WRONG_TYPES, ids=named)
def test_a_batch_with_another_content_type(http: httpx.Client, kind: str | None) -> None:
    with nothing_written(http):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = http.post("/entries/batch", content=b'{"a":1}\n', headers=headers)
        found = expect_problem(answer, 415, "unsupported_media_type")
        assert "charset" in str(kind) or "application/x-ndjson" in found["hint"]


@pytest.mark.parametrize(
    "encoding", ["gzip", "br", "deflate", "zstd", "x-gzip", "gzip, gzip", "identity, gzip", "", "GZIP"]
)
def test_compressed_bodies(http: httpx.Client, encoding: str) -> None:
    body = gzip.compress(b'{"a":1}')
    headers = {"Content-Encoding": encoding}
    with nothing_written(http):
        expect_problem(http.post("/entries", content=body, headers=JSON | headers), 415, "content_encoding")
        expect_problem(http.post("/entries/batch", content=body, headers=NDJSON | headers), 415, "content_encoding")
        expect_problem(http.post("/verify", content=body, headers=JSON | headers), 415, "content_encoding")
    with nothing_written(http, "/logs/raw"):
        assert http.post("/logs/raw/add", content=body, headers=headers).status_code == 415


def test_identity_is_no_compression(http: httpx.Client) -> None:
    answer = http.post("/entries", content=b'{"a":1}', headers=JSON | {"Content-Encoding": "identity"})
    assert answer.status_code == 201


# --- Idempotency-Key ----------------------------------------------------------------------------------------------------


BAD_KEYS = [
    "", '""', "a b", '"a', 'a"', '"a" "b"', '"a"b', '"a\\"b"', "a\\b", "a\tb", "a, b", "x" * 256, '"' + "x" * 256 + '"', "é", '"é"',
    "x" * 20_000, '"', "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS, ids=named)
def test_bad_idempotency_keys(http: httpx.Client, key: str) -> None:
    with nothing_written(http):
        for path, body, kind in (("/entries", b'{"a":1}', JSON), ("/entries/batch", b'{"a":1}\n', NDJSON)):
            headers = [*kind.items(), ("Idempotency-Key", key.encode())]
            answer = http.post(path, content=body, headers=headers)  # type: ignore[arg-type]
            expect_problem(answer, 400, "idempotency_key_invalid")


def test_two_idempotency_keys(http: httpx.Client) -> None:
    with nothing_written(http):
        headers = [*JSON.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
        expect_problem(http.post("/entries", content=b'{"a":1}', headers=headers), 400, "idempotency_key_invalid")


# --- parameters ---------------------------------------------------------------------------------------------------------

ODD_NUMBERS = [
    "+1", "-1", "-0", "01", "00", "1_0", " 1", "1 ", "1.0", "1.", "1e0", "1E0", "0x1", "0b1", "1,0", "\u0661", "1\u0662", "\uff11", "²", "½", "Ⅷ", "一",
    "true", "null", "NaN", "inf", "one", "a", "[1]", "{}", "'1'", '"1"', "1;", "1\x00", "\x001", "1\n", "1\r\n", "\u20281", "1%", "%31",
    "9223372036854775808", "18446744073709551616", "99999999999999999999", "9" * 5000, "1' OR '1'='1", "$1", "../1",
]  # fmt: skip
NUMBERS = [  # every place for a number, with the other parameters it needs
    "/entries?start=", "/entries?limit=", "/checkpoints?start=", "/checkpoints?limit=", "/entries/0/receipt?tree_size=",
    "/proof/inclusion?index=", "/proof/inclusion?index=0&tree_size=", "/proof/consistency?first=",
    "/proof/consistency?first=1&second=", "/entries/", "/entries/{}/receipt",
]  # fmt: skip


@pytest.mark.parametrize("place", NUMBERS)
@pytest.mark.parametrize("prefix", ["", "/v1/logs/raw"])
def test_numbers_in_odd_spellings(http: httpx.Client, prefix: str, place: str) -> None:
    for number in ODD_NUMBERS + ([""] if "?" in place else []):
        spelled = quote(number, safe="")
        path = place.format(spelled) if "{}" in place else place + spelled
        answer = http.get(prefix + path)
        if "?" not in place and ("/" in number or "\n" in number):
            expect_problem(answer, 404, "not_found")  # another path, or none at all
        else:
            found = expect_problem(answer, 400, "bad_parameter")
            assert len(found["detail"]) < 300


@pytest.mark.parametrize("limit", ["0", "1001", "9223372036854775807"])
def test_limits_out_of_range(http: httpx.Client, limit: str) -> None:
    for path in ("/entries", "/checkpoints"):
        expect_problem(http.get(f"{path}?limit={limit}"), 400, "bad_parameter")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/entries/999999", "no_entry"),
        (f"/entries/{2**63 - 1}", "no_entry"),
        ("/entries/999999/receipt", "no_entry"),
        (f"/entries/{2**63 - 1}/receipt", "no_entry"),
        ("/entries/0/receipt?tree_size=999999", "no_checkpoint"),
        (f"/entries/0/receipt?tree_size={2**63 - 1}", "no_checkpoint"),
        ("/proof/inclusion?index=999999", "no_entry"),
        (f"/proof/inclusion?index={2**63 - 1}", "no_entry"),
        ("/proof/inclusion?index=0&tree_size=999999", "no_such_size"),
        (f"/proof/inclusion?index=0&tree_size={2**63 - 1}", "no_such_size"),
        (f"/proof/inclusion?index={2**63 - 1}&tree_size={2**63 - 1}", "no_such_size"),
        ("/proof/inclusion?index=0&tree_size=0", "no_entry"),
        ("/proof/consistency?first=999999", "no_such_size"),
        (f"/proof/consistency?first=1&second={2**63 - 1}", "no_such_size"),
        (f"/proof/consistency?first={2**63 - 1}&second={2**63 - 1}", "no_such_size"),
    ],
)
def test_numbers_out_of_range(http: httpx.Client, path: str, code: str) -> None:
    for prefix in ("", "/logs/raw"):
        expect_problem(http.get(prefix + path), 404, code)


NOT_HEX = [
    "", "0", "00", "a" * 63, "a" * 65, "a" * 66, "A" * 64, "g" * 64, "0x" + "a" * 62, " " + "a" * 63, "a" * 63 + " ", "é" * 64,
    "a" * 62 + "\n\n", "a" * 32 + "  " + "a" * 30, "\u0661" * 64, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "a" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("wanted", NOT_HEX, ids=named)
def test_leaf_hashes_that_are_no_hex(http: httpx.Client, wanted: str) -> None:
    answer = http.get("/proof/inclusion", params={"leaf_hash": wanted})
    expect_problem(answer, 400, "bad_parameter")


@pytest.mark.parametrize(
    "query",
    [
        "/proof/inclusion",
        "/proof/inclusion?tree_size=5",
        f"/proof/inclusion?index=1&leaf_hash={'a' * 64}",
        "/proof/consistency",
        "/proof/consistency?second=5",
        "/proof/consistency?first=0",
        "/proof/consistency?first=0&second=0",
    ],
)
def test_parameters_missing_or_too_many(http: httpx.Client, query: str) -> None:
    expect_problem(http.get(query), 400, "bad_parameter")


def test_unknown_and_repeated_parameters(http: httpx.Client) -> None:
    """A misspelled parameter must not silently mean its default."""
    for route in LOG_ROUTES:
        if route.c2sp:
            continue
        path = route.path.replace("{index}", "1")
        known = {
            p["name"]: {"limit": "1", "receipts": "true"}.get(p["name"], "1")
            for p in route.parameters
            if p["in"] == "query"
        }
        known.pop("leaf_hash", None)
        for prefix in ("", "/v1/logs/default"):
            with nothing_written(http):
                bad = ["x=1", "=", "%00=1", "tree_size%00=1", "Limit=1", "limit[]=1", "%ff=1", "é=1", "&&a", "start.=1"]
                bad += ["x=%ff", "x=%", "x=%4", "x=%4g"]
                bad += [f"{name}={value}&{name}={value}" for name, value in known.items() if name != "members"]
                for query in bad:
                    required = "".join(
                        f"&{name}={value}" for name, value in known.items() if name in ("first", "index")
                    )
                    content = (
                        (b'{"a":1}', JSON if path == "/entries" else NDJSON) if route.method == "POST" else (None, {})
                    )
                    answer = http.request(
                        route.method, f"{prefix}{path}?{query}{required}", content=content[0], headers=content[1]
                    )
                    expect_problem(answer, 400, "bad_parameter")
    expect_problem(http.post("/verify?x=1", content=b"{}", headers=JSON), 400, "bad_parameter")
    for path in ("/", "/docs", "/openapi.json", "/logs", "/version", "/healthz", "/readyz"):
        expect_problem(http.get(f"{path}?x=1"), 400, "bad_parameter")
    for path in ("/checkpoint", "/tile/0/000.p/1"):
        assert (http.get(f"{path}?x=1").status_code, http.get(path).status_code) == (404, 200), path


@pytest.mark.parametrize("value", ["", "1", "0", "True", "TRUE", "yes", " true", "true ", "null"])
def test_flags_are_true_or_false(http: httpx.Client, value: str) -> None:
    with nothing_written(http):
        answer = http.post("/entries/batch", params={"receipts": value}, content=b'{"a":1}\n', headers=NDJSON)
        expect_problem(answer, 400, "bad_parameter")


# --- POST /verify -------------------------------------------------------------------------------------------------------


def test_receipts_that_are_none(http: httpx.Client) -> None:
    good = http.post("/entries", content=b'{"a":1}', headers=JSON).json()
    bad: list[bytes] = [body for body, _, _ in EVENTS]
    for name in good:
        bad.append(json.dumps({k: v for k, v in good.items() if k != name}).encode()) if name not in (
            "commitment",
            "disclosures",
        ) else None
        for value in (None, 1, -1, 1.5, "", "x", [], {}, [[]], True):
            if (
                good[name] != value
                and not (name == "index" and value == 1)
                and not (name == "disclosures" and value == [])
            ):
                bad.append(json.dumps(good | {name: value}).encode())
    refused = 0
    for body in bad:
        answer = http.post("/verify", content=body, headers=JSON)
        if answer.status_code == 200:
            assert answer.json()["verified"] is False, body
        else:
            expect_problem(answer, 422, "invalid_receipt")
            refused += 1
    assert refused > 100
    expect_problem(http.post("/verify", content=b" " * 1_048_577), 413, "body_too_large")


# --- framing ------------------------------------------------------------------------------------------------------------

EVENT = b'{"a":1}'


def post(
    extra: str = "",
    body: bytes = EVENT,
    length: str | None = None,
    path: str = "/entries",
    host: str = "Host: localhost\r\n",
) -> bytes:
    """A POST with these header lines."""
    size = f"Content-Length: {len(body) if length is None else length}\r\n" if length != "none" else ""
    head = f"POST {path} HTTP/1.1\r\n{host}Content-Type: application/json\r\n{extra}{size}Connection: close\r\n\r\n"
    return head.encode("latin-1") + body


BAD_FRAMING = {
    "transfer-encoding and content-length": post("Transfer-Encoding: chunked\r\n", b"7\r\n" + EVENT + b"\r\n0\r\n\r\n"),
    "two content-lengths": post("Content-Length: 7\r\n"),
    "two different content-lengths": post("Content-Length: 3\r\n"),
    "content-length list": post(length="7, 7"),
    "content-length negative": post(length="-1"),
    "content-length with a sign": post(length="+7"),
    "content-length hex": post(length="0x7"),
    "content-length float": post(length="7.0"),
    "content-length superscript": post(length="\xb2"),
    "content-length underscore": post(length="0_7"),
    "content-length huge": post(length="9" * 30),
    "content-length empty": post(length=""),
    "chunk size not hex": post("Transfer-Encoding: chunked\r\n", b"zz\r\n" + EVENT + b"\r\n0\r\n\r\n", "none"),
    "chunk size negative": post("Transfer-Encoding: chunked\r\n", b"-7\r\n" + EVENT + b"\r\n0\r\n\r\n", "none"),
    "chunk size huge": post("Transfer-Encoding: chunked\r\n", b"f" * 30 + b"\r\n" + EVENT + b"\r\n0\r\n\r\n", "none"),
    "chunk without its end": post("Transfer-Encoding: chunked\r\n", b"7\r\n" + EVENT + b"XX0\r\n\r\n", "none"),
    "chunked not last": post("Transfer-Encoding: chunked, gzip\r\n", b"7\r\n" + EVENT + b"\r\n0\r\n\r\n", "none"),
    "space before the colon": post("X : y\r\n"),
    "folded header": post("X: a\r\n b\r\n").replace(b"Host", b" Host", 1),
    "header without a colon": post("nonsense\r\n"),
    "nul in a header": post("X: a\x00b\r\n"),
    "carriage return in a header": post("X: a\rb\r\n"),
    "empty header name": post(": x\r\n"),
    "control character in a header name": post("X\x01Y: x\r\n"),
    "nul in the path": post(path="/entries\x00"),
    "space in the path": post(path="/entries x"),
    "path not ascii": post(path="/entr\xefes"),
    "query not ascii": post(path="/entries?\xff"),
    "path without a slash": post(path="entries"),
    "empty path": post(path=""),
    "version 9.9": post().replace(b"HTTP/1.1", b"HTTP/9.9"),
    "version not http": post().replace(b"HTTP/1.1", b"ICY/1.1"),
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 64,
    "tls": bytes.fromhex("16030100c8010000c40303") + b"\x42" * 190,
    "zeros": b"\x00" * 1000,
    "bytes": bytes(range(256)) * 4,
    "method unknown": post().replace(b"POST", b"PoST"),
    "method long": post().replace(b"POST", b"P" * 1000),
    "fragment": b"GET /checkpoint#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bare line feeds": post().replace(b"\r\n", b"\n"),
    "host missing": post(host=""),
    "host nonsense": post(host="Host: [\r\n"),
    "host with a path": post(host="Host: a/b?c#d@e\r\n"),
    "two hosts": post(host="Host: a\r\nHost: b\r\n"),
    "one host twice": post(host="Host: localhost\r\nHost: localhost\r\n"),
    "two hosts in one field": post(host="Host: a, b\r\n"),
    "host with a name and password": post(host="Host: u:p@x\r\n"),
    "host with two ports": post(host="Host: x:80:81\r\n"),
    "host not ascii": post(host="Host: \xe2\x84\x80\r\n"),
    "host with ansi": post(host="Host: \x9b[31m\r\n"),
    "two hosts in http/1.0": post(host="Host: a\r\nHost: b\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "absolute url with a password": post(path="http://u:p@other.example/entries"),
    "chunks in http/1.0": post("Transfer-Encoding: chunked\r\n", b"7\r\n" + EVENT + b"\r\n0\r\n\r\n", "none").replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
}


@pytest.mark.parametrize("case", BAD_FRAMING)
def test_bytes_that_are_not_http(server: LiveServer, http: httpx.Client, case: str) -> None:
    """The HTTP parser refuses these before any route is known, and the connection is closed."""
    with nothing_written(http):
        received = exchange(server.url, BAD_FRAMING[case])
        assert statuses(received) == [400], received
        assert b"connection: close" in received.lower()
        assert refusal(received) == ("invalid_request", 400)


def refusal(received: bytes) -> tuple[str, int]:
    """Code and status of a problem document that comes before any route is known. It has a hint like all others."""
    found = json.loads(received.partition(b"\r\n\r\n")[2])
    assert found["hint"]
    assert found["title"] == CODES[found["code"]].title
    return found["code"], found["status"]


@pytest.mark.parametrize("size", [16_385, 100_000, 5_000_000])
def test_urls_that_are_too_long(server: LiveServer, http: httpx.Client, size: int) -> None:
    with nothing_written(http):
        path = "/entries?" + "a" * (size - len("/entries?"))
        received = exchange(server.url, post(path=path))
        assert statuses(received) == [414], received[:500]
        assert refusal(received) == ("url_too_long", 414)


ODD_FRAMING = {
    "chunked": post("Transfer-Encoding: chunked\r\n", b"3\r\n" + EVENT[:3] + b"\r\n4;x=y\r\n" + EVENT[3:] + b"\r\n0\r\nT: x\r\n\r\n", "none"),
    "chunked in capitals": post("Transfer-Encoding: Chunked\r\n", b"00007\r\n" + EVENT + b"\r\n0\r\n\r\n", "none"),
    "absolute url": post(path="http://localhost/entries", host="Host: other.example\r\n"),
    "header values in latin-1": post("X: \xff\xfe\r\nUser-Agent: \xe9\r\n"),
    "forwarded headers": post("X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: javascript\r\nX-Forwarded-Host: evil\r\n"),
    "method override": post("X-HTTP-Method-Override: DELETE\r\n"),
    "escaped path": post(path="/%65ntries"),
    "one hundred headers": post("".join(f"X-{n}: {n}\r\n" for n in range(100))),
    "16 KB header": post(f"X: {'a' * 16_000}\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_FRAMING)
def test_odd_but_good_http(server: LiveServer, http: httpx.Client, case: str) -> None:
    size = head_size(http)
    received = exchange(server.url, ODD_FRAMING[case])
    assert statuses(received) == [201], received
    assert f"\r\nlocation: /entries/{size}\r\n".encode() in received.lower(), "taken from nothing a client may forge"
    assert head_size(http) == size + 1


@pytest.mark.parametrize("case", ["one header of 64 KB", "one header of 8 MB", "ten thousand headers"])
def test_headers_that_are_too_large(server: LiveServer, http: httpx.Client, case: str) -> None:
    lines = {
        "one header of 64 KB": f"X: {'a' * 65_536}\r\n",
        "one header of 8 MB": f"X: {'a' * 8_000_000}\r\n",
        "ten thousand headers": "X: yz\r\n" * 10_000,
    }
    with nothing_written(http):
        received = exchange(server.url, post(lines[case]))
        assert statuses(received) == [431], received[:500]
        assert refusal(received) == ("headers_too_large", 431)


@pytest.mark.parametrize("path", ["/entries", "/entries/batch", "/logs/raw/add", "/logs/raw/entries", "/verify"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_cut_off(server: LiveServer, http: httpx.Client, path: str, chunked: bool) -> None:
    """The client goes away in the middle of its body: nothing of it may be logged, least of all its beginning."""
    with nothing_written(http), nothing_written(http, "/logs/raw"):
        kind = "application/x-ndjson" if "batch" in path else "application/json"
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100"
        body = b'8\r\n{"a":1}\n\r\n' if chunked else b'{"a":1}\n'
        data = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode() + body
        for reset in (False, True):
            with socket.create_connection(address(server.url)) as connection:
                connection.sendall(data)
                time.sleep(0.02)
                if reset:  # RST instead of FIN
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        time.sleep(0.05)


def test_an_answer_before_the_body_is_there(server: LiveServer, http: httpx.Client) -> None:
    """A body announced as too large is refused at once, without `100 Continue`, and without waiting for it."""
    with nothing_written(http):
        data = post("Expect: 100-continue\r\n", b"", "9999999999")
        received = exchange(server.url, data)
        assert statuses(received) == [413], received


def test_expect_continue(server: LiveServer, http: httpx.Client) -> None:
    size = head_size(http)
    with socket.create_connection(address(server.url), timeout=PATIENCE) as connection:
        connection.sendall(post("Expect: 100-continue\r\n", b"", str(len(EVENT))))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(EVENT)
        assert b"201 Created" in connection.recv(65536)
    assert head_size(http) == size + 1


def test_a_request_byte_by_byte(server: LiveServer, http: httpx.Client) -> None:
    size = head_size(http)
    with socket.create_connection(address(server.url), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post():
            connection.sendall(bytes([byte]))
        assert b"201 Created" in connection.recv(65536)
    assert head_size(http) == size + 1


def test_pipelined_requests_are_answered_in_order(server: LiveServer, http: httpx.Client) -> None:
    size = head_size(http)
    one = request_bytes("POST", "/entries", EVENT, JSON)
    bad = request_bytes("POST", "/entries", b"{", JSON)
    get = request_bytes("GET", "/healthz")
    received = exchange(server.url, one + bad + get + one + get, answers=5)
    assert statuses(received) == [201, 422, 200, 201, 200], received
    found = re.findall(rb"location: /entries/(\d+)", received)
    assert [int(index) for index in found] == [size, size + 1]


def test_a_get_with_a_body_does_not_shift_the_next_request(server: LiveServer) -> None:
    smuggled = b"GET /log HTTP/1.1\r\nHost: localhost\r\n\r\n"
    first = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(smuggled)}\r\n\r\n".encode() + smuggled
    received = exchange(server.url, first + request_bytes("GET", "/nope"), answers=2)
    assert statuses(received) == [200, 404], received


def test_garbage_after_a_request(server: LiveServer, http: httpx.Client) -> None:
    """Bytes beyond the Content-Length are another request, and a bad one. Its refusal never overtakes the first one's answer."""
    size = head_size(http)
    received = exchange(server.url, request_bytes("POST", "/entries", EVENT, JSON) + b"\x00\x01garbage\r\n\r\n")
    assert statuses(received) == [201, 400]
    assert head_size(http) == size + 1
    assert http.get(f"/entries/{size}").json()["event"] == {"a": 1}


HALF = b"POST /entries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"


def test_an_idle_connection_costs_nothing(server: LiveServer, http: httpx.Client) -> None:
    """Two hundred clients that send half a request and wait do not keep others from being served."""
    idle = [socket.create_connection(address(server.url)) for _ in range(200)]
    try:
        for connection in idle:
            connection.sendall(HALF)
        with nothing_written(http):
            assert http.get("/healthz").status_code == 200
            assert not select.select(idle, [], [], 0)[0], "none of them was ended before"
    finally:
        for connection in idle:
            connection.close()


# --- no answer is ever a 5xx --------------------------------------------------------------------------------------------

NASTY = [
    "%00",
    "%0a",
    "%0d%0aX:%20y",
    "%ff",
    "%e2%80%a8",
    "%1b%5b31m",
    "..%2f..",
    "%2e%2e",
    "%25",
    "a" * 3000,
    "'",
    "{",
    "%F0%9F%98%80",
]


def test_nasty_paths_and_queries_everywhere(server: LiveServer) -> None:
    for path, operations in document()["paths"].items():
        for method in operations:
            for nasty in NASTY:
                for target in (
                    re.sub(r"\{[a-z]+\}", nasty, path),
                    f"{path.format(log='default', index=0, size=1, path='0/000')}?{nasty}={nasty}",
                    f"{path.format(log='default', index=0, size=1, path='0/000')}/{nasty}",
                ):
                    if target == path:
                        continue  # nothing in it is nasty, and the answer may have no end
                    head = f"{method.upper()} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                    received = exchange(server.url, head.encode())
                    assert re.match(rb"HTTP/1.1 [24]\d\d ", received), f"{method} {target}: {received[:300]!r}"
                    answer_head = received.partition(b"\r\n\r\n")[0].lower()
                    assert b"\nx: y" not in answer_head, "a header was injected"
