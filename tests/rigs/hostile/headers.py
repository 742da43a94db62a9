"""Methods, content types, charsets, Accept, authorization, idempotency keys, Range and ETag; duplicate, absent and odd fields."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.rigs.hostile.case import BYTES, JSON, NDJSON, Case, Referred, request

EVENT = b'{"a":1}'
READS = [
    "/checkpoint", "/checkpoints", "/checkpoints?limit=2", "/entries", "/entries/0", "/entries/1", "/entries/1/receipt", "/log",
    "/proof/inclusion?index=0", "/proof/consistency?first=1", "/tile/0/000.p/1", "/tile/entries/000.p/1", "/healthz", "/readyz",
    "/openapi.json", "/docs", "/logs/still/checkpoint", "/logs/still/tile/0/000", "/logs/raw/entries/1", "/v1/entries/1", "/v1/log",
]  # fmt: skip
WRITES: list[tuple[str, bytes, tuple[str, str]]] = [
    ("/entries", EVENT, JSON),
    ("/v1/entries", EVENT, JSON),
    ("/entries/batch", EVENT + b"\n" + EVENT, NDJSON),
    ("/logs/raw/entries", b"a leaf", BYTES),
    ("/logs/raw/add", b"another", BYTES),
    ("/logs/raw/entries/batch", b"\x00\x01a\x00\x02bc", BYTES),
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "PROPFIND",
    "PURGE",
    "LINK",
    "MKCOL",
    "REPORT",
    "QUERY",
]
TYPES = [
    "", "application/json", "application/JSON", "application/json;charset=utf-8", "application/json; charset=UTF-8",
    'application/json; charset="utf-8"', "application/json; charset=utf-16", "application/json; charset=latin-1", "application/json; charset=utf-7",
    "application/json; charset=", "application/json; charset", "application/json;;;", "application/json, text/plain", "application/*", "*/*",
    "text/plain", "text/html", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "multipart/form-data", "application/cbor", "application/x-ndjson", "application/octet-stream", "application/vnd.x+json", "json", "/", ";",
    "application/json\t", "application/json; a=" + "b" * 5000, "\xe9", "application/json; charset=utf-8; charset=utf-16",
]  # fmt: skip
ACCEPTS = [
    "", "*/*", "text/plain", "TEXT/PLAIN", "application/json", "text/plain, application/json", "text/plain;q=0", "text/*", "image/png",
    "text/plain;q=9", "q", ",,,,", "text/plain" * 500, "\xff", "application/problem+json", "a/b;q=" + "9" * 1000,
]  # fmt: skip
KEYS = [
    "", " ", "a", '"a"', '"a', 'a"', '"', '""', '"a" "b"', "a b", "a,b", "a\tb", "é", "\x7f", "a" * 255, "a" * 256, '"' + "a" * 255 + '"',
    '"' + "a" * 256 + '"', "a\\b", '"a\\"b"', "😀", "a" * 5000, "\u2028", "null", "0", ":", ";", "=",
]  # fmt: skip
RANGES = [
    "bytes=0-0",
    "bytes=-1",
    "bytes=5-",
    "bytes=9-1",
    "bytes=0-0,2-2",
    "bytes=" + ",".join(f"{n}-{n}" for n in range(500)),
    "x=1-2",
    "bytes",
    "",
    "bytes=\xb2-",
]
TAGS = ["*", '"x"', "x", 'W/"x"', '""', '"' + "a" * 5000 + '"', ",,,", '"a", "b", "c"', "\xff", " * ", '"' * 1000]


def _methods() -> Iterator[Case]:
    paths = [
        *READS,
        *(path for path, _, _ in WRITES),
        "/verify",
        "/nowhere",
        "/",
        "//",
        "/logs/none/log",
        "/logs/",
        "/metrics",
        "/v2/log",
    ]
    for path in paths:
        for method in METHODS:
            if method == "POST" and any(path == other for other, _, _ in WRITES):
                continue
            body = None if method in ("GET", "HEAD") else b""
            yield Case(f"{method} {path}", request(method, path, body), head=method == "HEAD")
        yield Case(f"GET {path} with a body", request("GET", path, EVENT, [JSON]))


def _types() -> Iterator[Case]:
    for path, body, _ in [*WRITES, ("/verify", b"{}", JSON)]:
        for kind in TYPES:
            yield Case(f"{path} as {kind[:40]!r}", request("POST", path, body, [("Content-Type", kind)]))
        yield Case(f"{path} as nothing", request("POST", path, body))
        yield Case(f"{path} as two things", request("POST", path, body, [("Content-Type", "text/plain"), JSON]))


def _accepts() -> Iterator[Case]:
    for accept in ACCEPTS:
        for path in READS:
            yield Case(f"GET {path} accepts {accept[:30]!r}", request("GET", path, None, [("Accept", accept)]))
        for path, body, kind in WRITES:
            yield Case(f"POST {path} accepts {accept[:30]!r}", request("POST", path, body, [kind, ("Accept", accept)]))


def _keys(world: Referred) -> Iterator[Case]:
    """Idempotency keys of every spelling, and one key for several bodies."""
    for key in KEYS:
        for path, body, kind in WRITES:
            yield Case(f"{path} with key {key[:20]!r}", request("POST", path, body, [kind, ("Idempotency-Key", key)]))
    for path, body, kind in WRITES:
        twice = [kind, ("Idempotency-Key", "a1"), ("Idempotency-Key", "a1")]
        yield Case(f"{path} with two keys", request("POST", path, body, twice))
        for number in range(5):
            other = body.replace(b"a", b"%d" % number) if number else body
            yield Case(
                f"{path} once more with other bytes {number}",
                request("POST", path, other, [kind, ("Idempotency-Key", "one key")]),
            )


def _conditions() -> Iterator[Case]:
    for path in READS:
        for value in RANGES:
            yield Case(
                f"{path} range {value[:20]!r}", request("GET", path, None, [("Range", value), ("If-Range", '"x"')])
            )
        for value in TAGS:
            for name in ("If-None-Match", "If-Match"):
                yield Case(f"{path} {name} {value[:20]!r}", request("GET", path, None, [(name, value)]))
        for value in ("Thu, 01 Jan 1970 00:00:00 GMT", "x", "Thu, 99 Jan 9999 99:99:99 GMT"):
            yield Case(f"{path} since {value}", request("GET", path, None, [("If-Modified-Since", value)]))


def _authorizations(world: Referred) -> Iterator[tuple[str, list[tuple[str, str]], bool]]:
    """Yield (name, fields, whether the key is one)."""
    good = world.keys.get("append", "mk_" + "A" * 43)
    bad = [
        "", "Bearer", "Bearer ", "Bearer  " + good, good, f"Basic {good}", "Basic dXNlcjpwYXNz", "Digest x", f"bearer\t{good}", f"Bearer {good} ",
        f"Bearer {good}x", f"Bearer {good[:-1]}", f"Bearer {good.swapcase()}", f"Bearer {good},{good}", f"Bearer {good}\u00a0", "Bearer mk_",
        "Bearer mk_" + "A" * 43, "Bearer mk_" + "é" * 43, "Bearer " + "A" * 20_000, "Bearer null", "Bearer undefined", "Bearer 0", "Negotiate",
        "Bearer " + "../" * 10, "Bearer mk_" + "٣" * 43, "Token " + good, f"Bearer {world.keys.get('revoked', good[:-1])}",
    ]  # fmt: skip
    for value in bad:
        fine = value.rstrip() == f"Bearer {good}"  # white space around a value is no part of it
        yield f"authorization {value[:14]!r}", [("Authorization", value)], fine
    yield "two authorizations", [("Authorization", f"Bearer {good}")] * 2, False
    yield "append", [("Authorization", f"Bearer {good}")], True
    yield "lower case", [("authorization", f"bearer {good}")], True


def _auth(world: Referred) -> Iterator[Case]:
    routes = [
        ("GET", path, None, None) for path in READS if path not in ("/healthz", "/readyz", "/openapi.json", "/docs")
    ]
    routes += [("POST", path, body, kind) for path, body, kind in WRITES]  # type: ignore[misc]
    for name, headers, good in _authorizations(world):
        for method, path, body, kind in routes:
            expect = frozenset() if good else frozenset({401})
            yield Case(
                f"{method} {path}: {name}", request(method, path, body, [*([kind] if kind else []), *headers]), expect
            )
    # A key without the scope, and one for another log. Who may append without a key may do so with any key that is valid.
    for label in ("read", "other"):
        token = [("Authorization", f"Bearer {world.keys.get(label, '')}")]
        for method, path, body, kind in routes:
            headers = [*([kind] if kind else []), *token]
            yield Case(f"{method} {path}: key {label}", request(method, path, body, headers))
    for path in READS[:12]:  # the log only its key may read
        expect = frozenset({401})
        yield Case(f"private {path}", request("GET", f"/logs/private{path}"), expect)


def table(world: Referred) -> Iterator[Case]:
    """Yield every case of this class."""
    yield from _methods()
    yield from _types()
    yield from _accepts()
    yield from _keys(world)
    yield from _conditions()
    yield from _auth(world)


def random_case(rng: random.Random, _world: Referred) -> Case:
    """A good request with fields that mean something elsewhere."""
    names = [
        "X-Forwarded-For",
        "X-HTTP-Method-Override",
        "Forwarded",
        "Host",
        "Cookie",
        "Origin",
        "Referer",
        "Upgrade-Insecure-Requests",
        "Via",
        "TE",
        "Trailer",
        "Accept-Encoding",
        "Accept-Charset",
        "Max-Forwards",
        "Prefer",
        "Date",
        "X-Original-URL",
        "X-Rewrite-URL",
        "Content-MD5",
        "Digest",
        "Content-Range",
        "Content-Location",
        "Sec-Fetch-Site",
        "Access-Control-Request-Method",
    ]
    values = [
        "",
        "x",
        "1",
        "-1",
        "*",
        "\x80\xff",
        "gzip",
        "a" * rng.randint(1, 4000),
        "http://127.0.0.1:1/",
        "null",
        "DELETE",
        "/entries",
        "a=b; c=d",
        "bytes 0-1/2",
        "\t",
        "%0d%0a",
        "${x}",
    ]
    headers = [(rng.choice(names), rng.choice(values)) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.5:
        return Case("random fields on a read", request("GET", rng.choice(READS), None, headers))
    path, body, kind = rng.choice(WRITES)
    return Case("random fields on a write", request("POST", path, body, [kind, *headers]))
