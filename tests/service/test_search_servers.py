"""Two real servers on one log whose settings `search` differ: the index is of one of them, and is not made for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.live import LiveServer, free_of_tracebacks, run, until
from tests.service.http_check import client, expect_problem, ndjson

QUERY = {"q": "actor:alice", "limit": "5"}


def append(http: httpx.Client, count: int) -> None:
    events = [{"actor": "alice", "n": n} for n in range(count)]
    answer = http.post("/entries/batch", content=ndjson(*events), headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 201


def finds(http: httpx.Client) -> bool:
    return http.get("/search", params=QUERY).status_code == 200


def told(server: LiveServer) -> int:
    return server.stderr().count("the search index was made anew for other members")


def test_the_one_started_last_searches_and_the_other_leaves_the_index(
    serve: Callable[..., LiveServer], database: str | None, tmp_path: Path
) -> None:
    def state() -> str:
        done = run("index", "status", "--data", tmp_path / "data", "--json", database=database)
        return str(json.loads(done.stdout)[0]["state"])

    first = serve()
    with client(first.url) as one:
        append(one, 300)
        until(lambda: finds(one))
        second = serve(env={"MUNIMENT_SERVER_SEARCH": "default/actor"})
        with client(second.url) as other:
            until(lambda: finds(other) and told(first))
            cursor = other.get("/search", params=QUERY).json()["next"]
            append(one, 300)
            append(other, 300)
            expect_problem(one.get("/search", params=QUERY), 503, "index_missing")
            assert state() == "other", "the command has the setting of the first"
            # Where the index was made anew, the cursor would be refused.
            assert len(other.get("/search", params=QUERY | {"cursor": cursor}).json()["hits"]) == 5
            done = run("index", "rebuild", "--data", tmp_path / "data", database=database)
            assert "all of its 901 entries" in done.stdout
            until(lambda: told(second))
            assert finds(one)
            expect_problem(other.get("/search", params=QUERY), 503, "index_missing")
            assert state() == "complete"
    assert (told(first), told(second)) == (1, 1)
    assert free_of_tracebacks(first.stderr() + second.stderr())
