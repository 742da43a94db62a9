"""GET /search on both stores, asked by those who mean it ill: texts that look like SQL, forged cursors, queries for everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.encoding import b64url, parse_b64url
from tests.databases import databases
from tests.live import LiveServer, free_of_tracebacks, init, run, until
from tests.service.http_check import client, expect_problem, ndjson

NDJSON = {"Content-Type": "application/x-ndjson"}
TEXTS = (
    *("' OR 1=1 --", "x'); DROP TABLE search_terms;--", "%", "_", "al%", "$1", "?1", ":name", "NULL", "\\", "\\x00", 'a"b', "{}", "*", ">5"),
    *("a\0b", "\0", "", " ", "\u202ebob\u2066", "e\u0301", "é", "ß", "İ", "\u017f", "\U0010fffd", "x" * 30_000, "' UNION SELECT 'x"),
)  # fmt: skip
NAMES = (
    "from",
    "to",
    "limit",
    "order",
    "cursor",
    "q",
    "__proto__",
    "a.b",
    'q"uote',
    "co:lon",
    "",
    "index",
    "'; --",
    "x" * 500,
)
EVENTS: list[dict[str, Any]] = [*({"v": text} for text in TEXTS), *({name: "named"} for name in NAMES)]


@dataclass
class Searched:
    http: httpx.Client
    data: Path
    database: str | None

    def found(self, query: str, **parameters: str) -> list[int]:
        """The indices of one page."""
        answer = self.http.get("/search", params={"q": query, "limit": "1000"} | parameters)
        assert answer.status_code == 200, answer.text
        return [hit["index"] for hit in answer.json()["hits"]]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """A server with two logs of the same events."""
    data = tmp_path_factory.mktemp("search") / "data"
    if request.param == "sqlite":
        yield from _serve(data, None)
        return
    with databases(request.getfixturevalue("postgres_server")) as made:
        yield from _serve(data, made.empty())


def _serve(data: Path, database: str | None) -> Iterator[Searched]:
    init(data, database)
    run("log", "create", "twin", "--data", data, "--origin", "example.com/twin", database=database)
    with LiveServer(data, database=database) as server, client(server.url) as http:
        for path in ("", "/logs/twin"):
            assert http.post(f"{path}/entries/batch", content=ndjson(*EVENTS), headers=NDJSON).status_code == 201
            until(lambda path=path: http.get(f"{path}/search").status_code == 200)
        yield Searched(http, data, database)
        assert free_of_tracebacks(server.stderr())


def test_a_text_is_only_a_text(searched: Searched) -> None:
    for at, text in enumerate(TEXTS, 1):
        if len(text) < 1000:
            assert searched.found(f"v:{json.dumps(text)}") == [at], text
    assert searched.found(f"v:{'x' * 999}*") == [TEXTS.index("x" * 30_000) + 1]
    assert searched.found("v:al*") == [TEXTS.index("al%") + 1]
    assert searched.found("v:NULL v:*") == [TEXTS.index("NULL") + 1]
    for text in ("' OR 1=1 --", "'; DELETE FROM entries; --", "1) OR (1=1"):
        assert searched.found(f"actor:{json.dumps(text)}") == []
        assert len(searched.found(f"-actor:{json.dumps(text)}")) == len(EVENTS)


def test_a_name_is_only_a_name(searched: Searched) -> None:
    for at, name in enumerate(NAMES, len(TEXTS) + 1):
        assert searched.found(f"{json.dumps(name)}:named") == [at], name
    assert searched.found("from:named") != searched.found("to:named")
    assert searched.found("constructor:*") == searched.found("__proto__.x:*") == []


@pytest.mark.parametrize("query", ["", " \t", "-nothing:*", "-zzz", "-v:named -named.x:*"])
def test_a_query_for_everything(searched: Searched, query: str) -> None:
    everything = list(range(1, len(EVENTS) + 1))
    assert searched.found(query, order="oldest") == searched.found(query)[::-1] == everything
    hits: list[int] = []
    page: dict[str, Any] = {"next": None}
    while page["next"] is not None or not hits:
        cursor = {} if page["next"] is None else {"cursor": page["next"]}
        page = searched.http.get("/search", params={"q": query, "limit": "7"} | cursor).json()
        hits += [hit["index"] for hit in page["hits"]]
    assert hits == everything[::-1]


def test_the_longest_queries(searched: Searched) -> None:
    for query in (
        "a " * 64,
        "x" * 4096,
        "é" * 1000,
        f'v:"{"x" * 4000}"',
        "-" * 4096,
        '"' * 4096,
        "a:" * 2048,
        "v:>" + "9" * 4000,
    ):
        assert searched.http.get("/search", params={"q": query}).status_code in (200, 400), query
    expect_problem(searched.http.get("/search", params={"q": "a " * 65}), 400, "bad_query")


def test_forged_cursors(searched: Searched) -> None:
    asked = {"q": "v:*", "limit": "3"}
    cursor = searched.http.get("/search", params=asked).json()["next"]
    data = parse_b64url(cursor)
    forged = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    forged += [data[:-1], data + b"\0", data[8:], bytes(len(data)), b"\xff" * len(data), data * 2]
    for one in (*map(b64url, forged), f"{cursor}=", cursor.swapcase(), "' OR 1=1 --", "\0", "é", "A" * 4000):
        expect_problem(searched.http.get("/search", params=asked | {"cursor": one}), 400, "bad_cursor")
    twin = searched.http.get("/logs/twin/search", params=asked).json()["next"]
    for path, other in (("/search", twin), ("/logs/twin/search", cursor)):
        expect_problem(searched.http.get(path, params=asked | {"cursor": other}), 400, "bad_cursor")
    for change in ({"q": "v:* "}, {"order": "oldest"}, {"from": "2020-01-01"}, {"to": "2120-01-01"}):
        expect_problem(searched.http.get("/search", params=asked | change | {"cursor": cursor}), 400, "bad_cursor")
    assert searched.http.get("/search", params=asked | {"cursor": cursor, "limit": "5"}).status_code == 200


def test_a_cursor_from_before_the_index_was_made_anew(searched: Searched) -> None:
    asked = {"q": "v:*", "limit": "3"}
    cursor = searched.http.get("/logs/twin/search", params=asked).json()["next"]
    here = searched.http.get("/search", params=asked).json()["next"]
    run("index", "rebuild", "--log", "twin", "--data", searched.data, database=searched.database)
    expect_problem(searched.http.get("/logs/twin/search", params=asked | {"cursor": cursor}), 400, "bad_cursor")
    assert searched.http.get("/search", params=asked | {"cursor": here}).status_code == 200, "of another log"
    until(lambda: searched.http.get("/logs/twin/search", params=asked).json().get("complete_to") == len(EVENTS) + 1)
