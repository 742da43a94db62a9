"""GET /search over HTTP: what it answers, what it refuses, and that a refusal names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.live import LiveServer, free_of_tracebacks, init, run, until
from tests.service.http_check import client, expect_problem, ndjson

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search") / "data"


@pytest.fixture(scope="module")
def http(data: Path) -> Iterator[httpx.Client]:
    init(data)
    run("log", "create", "raw", "--data", data, "--origin", "example.com/raw", "--kind", "raw")
    run("log", "create", "hidden", "--data", data, "--origin", "example.com/hidden")
    (data / "muniment.toml").write_text('search = ["default"]\n')
    with LiveServer(data) as server, client(server.url) as found:
        events = [{"actor": "alice" if n % 3 else "bob", "n": n, "note": f"order {n}"} for n in range(30)]
        assert found.post("/entries/batch", content=ndjson(*events), headers=NDJSON).status_code == 201
        until(lambda: found.get("/search").status_code == 200)
        yield found
        assert free_of_tracebacks(server.stderr())


def test_pages_lead_through_all_hits(http: httpx.Client) -> None:
    hits, asked = [], {"q": "actor:alice n:>=10", "limit": "4"}
    while True:
        page = http.get("/search", params=asked).json()
        hits += page["hits"]
        if page["next"] is None:
            break
        asked["cursor"] = page["next"]
    assert [hit["event"]["n"] for hit in hits] == [n for n in range(29, 9, -1) if n % 3]
    assert page["complete_to"] == page["tree_size"] == 31
    entry = http.get(f"/entries/{hits[0]['index']}").json()
    assert {name: entry[name] for name in hits[0]} == hits[0]
    oldest = http.get("/v1/search", params={"q": "order", "order": "oldest", "limit": "1"}).json()
    assert [hit["index"] for hit in oldest["hits"]] == [1]
    assert len(http.get("/search", params={"q": "order", "from": "2000-01-01"}).json()["hits"]) == 30
    assert http.get("/search", params={"q": "order", "to": "2000-01-01T00:00:00.000Z"}).json()["hits"] == []


def test_the_index_can_be_made_anew(http: httpx.Client, data: Path) -> None:
    first = http.get("/search", params={"q": "order", "limit": "2"}).json()["next"]
    done = run("index", "rebuild", "--data", data)
    assert (done.stdout, done.stderr) == ("The index of log default has all of its 31 entries.\n", "")
    expect_problem(http.get("/search", params={"q": "order", "limit": "2", "cursor": first}), 400, "bad_cursor")
    row = {"name": "default", "state": "complete", "indexed": 31, "tree_size": 31}
    assert json.loads(run("index", "status", "--data", data, "--json").stdout)[0] == row
    assert json.loads(run("index", "rebuild", "--data", data, "--json", "--resume").stdout) == row
    assert len(http.get("/search", params={"q": "order"}).json()["hits"]) == 30
    assert [line.split()[:2] for line in run("index", "status", "--data", data).stdout.splitlines()] == [
        ["default", "complete"],
        ["hidden", "off"],
    ]
    for log in ("hidden", "raw", "nothing"):
        refused = run("index", "rebuild", "--log", log, "--data", data, check=False)
        assert (refused.returncode, "index status" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/search?q=a:", 400, "bad_query"),
        ("/search?q=%22", 400, "bad_query"),
        ("/search?q=" + "a" * 4097, 400, "bad_query"),
        ("/search?q=a&q=b", 400, "bad_parameter"),
        ("/search?query=a", 400, "bad_parameter"),
        ("/search?limit=0", 400, "bad_parameter"),
        ("/search?limit=1001", 400, "bad_parameter"),
        ("/search?limit=x", 400, "bad_parameter"),
        ("/search?order=up", 400, "bad_parameter"),
        ("/search?order=", 400, "bad_parameter"),
        ("/search?q=%ff", 400, "bad_parameter"),
        ("/search?q=%ed%a0%80", 400, "bad_parameter"),  # half of a pair: no code point
        ("/search?q=a%2", 400, "bad_parameter"),
        ("/search?q=50%", 400, "bad_parameter"),
        ("/search?q=a%zz", 400, "bad_parameter"),
        ("/search?from=yesterday", 400, "bad_parameter"),
        ("/search?from=2026-02-30", 400, "bad_parameter"),
        ("/search?from=2026-02-01&to=2026-02-01T00:00:00Z", 400, "bad_parameter"),
        ("/search?from=2026-02-01T00:00:00+01:00", 400, "bad_parameter"),  # a plus is a space
        ("/search?to=2026-01-01T00:00:00", 400, "bad_parameter"),
        ("/search?to=", 400, "bad_parameter"),
        ("/search?cursor=", 400, "bad_cursor"),
        ("/search?cursor=AAAA", 400, "bad_cursor"),
        ("/search?cursor=" + "A" * 54, 400, "bad_cursor"),
        ("/search?start=0", 400, "bad_parameter"),
        ("/logs/raw/search", 422, "wrong_kind"),
        ("/logs/hidden/search", 404, "not_searchable"),
        ("/logs/nothing/search", 404, "unknown_log"),
    ],
)
def test_refused(http: httpx.Client, path: str, status: int, code: str) -> None:
    expect_problem(http.get(path), status, code)


def test_a_refused_query_says_where(http: httpx.Client) -> None:
    assert http.get("/search", params={"q": "actor:alice é:"}).json()["position"] == 14
    first = http.get("/search", params={"q": "order", "limit": "2"}).json()["next"]
    expect_problem(http.get("/search", params={"q": "actor:bob", "cursor": first}), 400, "bad_cursor")
    expect_problem(http.get("/search", params={"q": "order", "order": "oldest", "cursor": first}), 400, "bad_cursor")


def test_bytes_that_are_no_text(http: httpx.Client) -> None:
    """Whatever stands in the URL is looked for or refused."""
    for query in ("%00", "a:%00", "a:%EF%BF%BF", "%2B", "+", "%E2%80%AE"):
        assert http.get(f"/search?q={query}").status_code in (200, 400), query
