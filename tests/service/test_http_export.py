"""GET /export: what comes is what `muniment export` writes and what verifies, and any download can be gone on with."""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment.client import Client
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.receipts import Header, ReceiptsReader, ReceiptsWriter
from muniment_server.storage.row_ids import row_id
from tests.client.cli_runner import Cli
from tests.client.conftest import cli
from tests.live import PATIENCE, free_of_tracebacks, until
from tests.service.http_check import NDJSON, bundle, client, expect_problem, ndjson
from tests.service.http_world import DEFAULT, RAW, Instance, KeySpec, LogSpec, instance_on

__all__ = ["cli"]
LOGS = [DEFAULT, RAW, LogSpec("private", public=False), LogSpec("hidden")]
KEYS = [KeySpec("both", frozenset({"append", "read"})), KeySpec("append", frozenset({"append"}))]
ODD: list[dict[str, Any]] = [
    {"formula": '=cmd|"/C calc"!A0', "\u202ename": "\x00\x1b[31m\u2028\ufeff", "n": 1e-7, "": None},
    {"deep": {"a": [1.5, True, {"b": "ü\r\n"}]}, "+x": "-1+1", "big": 2**53 - 1, "__proto__": ""},
    {"event": "x" * 60_000, "index": "-5", "logged_at": "@", "😀": "\U0001f600", "é": 0.1},
]
EVENTS = [
    *ODD,
    *({"id": f"e-{n}", "actor": "alice" if n % 3 else "bob", "n": n, "odd": bool(n % 2)} for n in range(597)),
]
LEAVES = [b"\xfb\xef\xbe" + b"%d" % n for n in range(5)]  # whose base64 begins with ++
FORMS = ("jsonl", "csv", "receipts")


class Served:
    """A server whose logs have entries, and how to ask it."""

    def __init__(self, instance: Instance, url: str, http: httpx.Client) -> None:
        self.instance, self.url, self.http = instance, url, http
        self.policy = Policy.read(instance.data / "policy")

    def get(self, query: str = "", log: str = "", **headers: str) -> httpx.Response:
        return self.http.get(f"{log}/export{query}", headers=headers)

    def all(self, query: str = "", log: str = "") -> bytes:
        answer = self.get(query, log)
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("export")
    with instance_on(request.param, request, folder, LOGS, KEYS) as instance:
        (instance.data / "muniment.toml").write_text('search = ["default", "private"]\n')
        with (
            instance.server(env={"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.1"}) as server,
            client(server.url, instance.keys["both"]) as http,
        ):
            found = Served(instance, server.url, http)
            for at in range(0, len(EVENTS), 200):
                body = ndjson(*EVENTS[at : at + 200])
                assert http.post("/entries/batch", content=body, headers=NDJSON).status_code == 201
            assert http.post("/logs/raw/entries/batch", content=bundle(*LEAVES)).status_code == 201
            for prefix, count in (("", len(EVENTS)), ("/logs/raw", len(LEAVES))):
                until(lambda prefix=prefix, count=count: _size(http, prefix) == count + 1)
            until(lambda: http.get("/search").status_code == 200)
            yield found
            assert free_of_tracebacks(server.stderr())


def _size(http: httpx.Client, prefix: str) -> int:
    return int(http.get(f"{prefix}/checkpoint").text.split("\n")[1])


def verified(world: Served, data: bytes) -> list[dict[str, Any]]:
    """What the events of a bundle say, once all of it is verified."""
    return [found.opened for _, found in ReceiptsReader(data.splitlines(keepends=True), world.policy)]


# --- what comes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", ["default", "raw"])
def test_rows_are_those_of_the_command(
    world: Served, cli: Cli, log: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MUNIMENT_API_KEY", world.instance.keys["both"])
    common = ("--url", world.url, "--log", log, "--policy", world.instance.data / "policy", "--no-state")
    for more, query in (
        ([], ""),
        (["--start", "2", "--stop", "5"], "?start=2&stop=5"),
        (["--leaves-only"], "?leaves_only=true"),
    ):
        done = cli("export", *common, *more, "-o", tmp_path / "rows.jsonl", "--overwrite")
        assert done.code == 0, done.err
        assert world.all(query, f"/logs/{log}") == (tmp_path / "rows.jsonl").read_bytes()


def test_the_command_finds_the_same_times(
    world: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the signed tree, where the server looks into its database."""
    monkeypatch.setenv("MUNIMENT_API_KEY", world.instance.keys["both"])
    common = ("--url", world.url, "--policy", world.instance.data / "policy", "--no-state", "--overwrite")
    times = sorted({json.loads(row)["logged_at"] for row in world.all("?start=1").splitlines()})
    for low, high in ((times[0], "2100-01-01"), (times[-1], "2100-01-01"), (times[0], times[-1])):
        done = cli("export", *common, "--from", low, "--to", high, "-o", tmp_path / "rows.jsonl")
        assert (done.code, "more may follow" in done.err) == (0, high == "2100-01-01"), done.err
        assert world.all(f"?from={low}&to={high}") == (tmp_path / "rows.jsonl").read_bytes() != b""


def test_the_receipts_of_a_search(world: Served) -> None:
    """A page of hits has its receipts in one answer, whatever is asked for."""
    with Client(world.url, policy=world.policy, api_key=world.instance.keys["both"]) as log:
        for query in ("", " ", "actor:alice", "-actor:alice", "n:>=590", "n:1e-7", "nothing"):
            for newest in (True, False):
                hits = list(log.search(query, newest=newest, receipts=True))
                assert all(hit.receipt for hit in hits)
                plain = list(log.search(query, newest=newest))
                assert [replace(hit, receipt=None) for hit in hits] == plain


def test_an_empty_query_is_a_query(world: Served) -> None:
    """It finds every event, as in GET /search, and not the entries of the log itself."""
    assert [json.loads(row)["index"] for row in world.all("?q=").splitlines()] == list(range(1, len(EVENTS) + 1))
    reader = ReceiptsReader(world.all("?q=&format=receipts&stop=5").splitlines(keepends=True), world.policy)
    assert (reader.header.range, [receipt.index for receipt, _ in reader]) == (None, [1, 2, 3, 4])


def test_a_table_is_inert_and_has_all_values(world: Served) -> None:
    for log, values in (("", EVENTS), ("/logs/raw", LEAVES)):
        text = world.all("?format=csv", log).decode()
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        assert rows[0] == ["index", "leaf_hash", "logged_at", "event", "own", "leaf"]
        assert len(rows) == len(values) + 2 == text.count("\n"), "a line each"
        assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
        assert [json.loads(row[3]) for row in rows[2:]] == values if not log else rows[2][5].startswith("'++")
        assert json.loads(rows[1][4])["typ"] == "muniment/genesis@v1"
        assert [int(row[0]) for row in rows[1:]] == list(range(len(values) + 1))


def test_a_bundle_is_what_the_writer_writes(world: Served) -> None:
    for log, query, low, high in (("", "", 0, 601), ("", "&start=3&stop=280", 3, 280), ("/logs/raw", "", 0, 6)):
        data = world.all(f"?format=receipts{query}", log)
        reader = ReceiptsReader(data.splitlines(keepends=True), world.policy)
        receipts = [receipt for receipt, _ in reader]
        assert reader.header.range == (low, high)
        assert [receipt.index for receipt in receipts] == list(range(low, high))
        lines: list[bytes] = []
        writer = ReceiptsWriter(lines.append, reader.header)
        for receipt in receipts:
            writer.add(receipt)
        writer.end()
        assert b"".join(lines) == data
    assert verified(world, world.all("?format=receipts")) == [{}, *EVENTS]


def test_at_every_published_size(world: Served) -> None:
    sizes = [one["size"] for one in world.http.get("/checkpoints").json()["checkpoints"]]
    assert (sizes[0], sizes[-1]) == (1, 601)
    for size in sizes:
        answer = world.get(f"?format=receipts&tree_size={size}")
        assert answer.headers["muniment-tree-size"] == str(size)
        assert verified(world, answer.content) == [{}, *EVENTS][:size]
    assert world.all("?stop=9999").count(b"\n") == 601, "the tree ends before"


def test_leaves_alone(world: Served) -> None:
    data = world.all("?format=receipts&leaves_only=true")
    assert verified(world, data) == [{}] * 601
    assert b"disclosures" not in data
    rows = list(map(json.loads, world.all("?leaves_only=true&start=1&stop=3").splitlines()))
    assert all(row.keys() == {"index", "leaf_hash", "logged_at", "leaf"} for row in rows)


def test_the_hits_of_a_search(world: Served) -> None:
    wanted = [event for event in EVENTS if event.get("actor") == "bob" and event["n"] >= 30]
    query = "q=actor:bob+n:>%3D30"
    rows = list(map(json.loads, world.all(f"?{query}").splitlines()))
    assert [row["event"] for row in rows] == wanted
    data = world.all(f"?{query}&format=receipts")
    reader = ReceiptsReader(data.splitlines(keepends=True), world.policy)
    assert [found.opened for _, found in reader] == wanted
    assert reader.header.range is None, "a search says nothing of what it does not find"
    assert verified(world, world.all(f"?{query}&format=receipts&stop=100")) == [e for e in wanted if e["n"] < 96]
    assert world.all("?q=nobody:here") == b""
    assert verified(world, world.all("?q=nobody:here&format=receipts")) == []
    assert verified(world, world.all(f"?{query}&format=receipts&leaves_only=true")) == [{}] * len(wanted)


def test_by_time(world: Served) -> None:
    moment = json.loads(world.all("?start=300&stop=301"))["logged_at"]
    rows = list(map(json.loads, world.all(f"?from={moment}&start=1").splitlines()))
    others = list(map(json.loads, world.all(f"?to={moment}&start=1").splitlines()))
    assert [row["event"] for row in others + rows] == EVENTS
    assert all(row["logged_at"] >= moment for row in rows)
    assert world.all("?from=2999-01-01") == world.all("?to=2000-01-01") == b""
    empty = ReceiptsReader(world.all("?format=receipts&to=2000-01-01").splitlines(keepends=True), world.policy)
    assert (list(empty), empty.header.range) == ([], None)


# --- going on ---------------------------------------------------------------------------------------------------------


def rest_of(world: Served, log: str, query: str, form: str, size: str, got: bytes) -> bytes:
    """What a reader has in the end who got so many bytes: whole lines are kept, and the rest is asked for."""
    whole = got[: got.rfind(b"\n") + 1]
    lines = whole.splitlines()
    have = lines if form == "jsonl" else lines[1:]
    if form == "receipts" and have and have[-1].startswith(b'{"count"'):
        return whole
    if not have:
        return world.all(f"?format={form}&tree_size={size}{query}", log)
    last = int(have[-1].split(b",")[0]) if form == "csv" else json.loads(have[-1])["index"]
    count = f"&count={len(have)}" if form == "receipts" else ""
    return whole + world.all(f"?format={form}&tree_size={size}&after={last}{count}{query}", log)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("log", "query"), [("", "&start=250&stop=262"), ("", "&q=n:<40+-actor:alice"), ("/logs/raw", "")]
)
def test_a_download_goes_on_wherever_it_was_cut(world: Served, form: str, log: str, query: str) -> None:
    answer = world.get(f"?format={form}{query}", log)
    whole, size = answer.content, answer.headers["muniment-tree-size"]
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    cuts = {*ends, *(end - 1 for end in ends), *(random.Random(7).randrange(len(whole)) for _ in range(8))}
    for cut in sorted(cuts):
        assert rest_of(world, log, query, form, size, whole[:cut]) == whole, f"cut at byte {cut}"


@pytest.mark.parametrize("form", FORMS)
def test_a_long_download_goes_on_at_every_border(world: Served, form: str) -> None:
    whole = world.all(f"?format={form}&tree_size=601")
    lines = whole.splitlines(keepends=True)
    for count in (1, 2, 3, 15, 16, 17, 80, 255, 256, 257, 258, 511, 512, 513, 599, 600, 601):
        assert rest_of(world, "", "", form, "601", b"".join(lines[:count])) == whole, count


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?format=xml", 400, "bad_parameter"),
        ("?format=", 400, "bad_parameter"),
        ("?start=5&stop=5", 400, "bad_parameter"),
        ("?start=x", 400, "bad_parameter"),
        ("?start=01", 400, "bad_parameter"),
        ("?start=601", 404, "not_published_yet"),
        ("?start=9223372036854775807", 404, "not_published_yet"),
        ("?tree_size=600", 404, "no_checkpoint"),
        ("?tree_size=0", 404, "no_checkpoint"),
        ("?after=3", 400, "bad_parameter"),
        ("?tree_size=601&after=601", 400, "bad_parameter"),
        ("?tree_size=601&after=2&start=3", 400, "bad_parameter"),
        ("?tree_size=601&after=2&count=3", 400, "bad_parameter"),
        ("?tree_size=601&after=2&format=receipts", 400, "bad_parameter"),
        ("?tree_size=601&after=2&format=receipts&count=2", 400, "bad_parameter"),
        ("?tree_size=601&after=2&format=receipts&count=4", 400, "bad_parameter"),
        ("?format=receipts&count=0", 400, "bad_parameter"),
        ("?leaves_only=yes", 400, "bad_parameter"),
        ("?q=a:", 400, "bad_query"),
        ("?q=a&q=b", 400, "bad_parameter"),
        ("?from=yesterday", 400, "bad_parameter"),
        ("?from=2026-02-02&to=2026-02-01", 400, "bad_parameter"),
        ("?limit=5", 400, "bad_parameter"),
        ("?q=" + "a" * 4097, 400, "bad_query"),
    ],
)
def test_refused(world: Served, query: str, status: int, code: str) -> None:
    expect_problem(world.get(query), status, code)


def test_what_cannot_be_searched(world: Served) -> None:
    expect_problem(world.get("?q=a", "/logs/raw"), 422, "wrong_kind")
    expect_problem(world.get("?from=2026-01-01", "/logs/raw"), 422, "wrong_kind")
    expect_problem(world.get("?q=a", "/logs/hidden"), 404, "not_searchable")
    assert world.all("?from=2026-01-01", "/logs/hidden").count(b"\n") == 1, "times need no index"
    expect_problem(world.get("", "/logs/nothing"), 404, "unknown_log")


def test_who_may_not_read_what_events_say(world: Served) -> None:
    with client(world.url) as none, client(world.url, world.instance.keys["append"]) as writer:
        for http in (none, writer):
            for query in (
                "",
                "?format=receipts",
                "?q=actor:bob",
                "?q=actor:bob&leaves_only=true",
                "?leaves_only=false",
            ):
                expect_problem(http.get(f"/export{query}"), 403, "payloads_closed")
            assert http.get("/export?leaves_only=true").content == world.all("?leaves_only=true")
            assert http.get("/logs/raw/export").content == world.all("", "/logs/raw")
        for query in ("", "?leaves_only=true", "?format=xml"):
            hidden, missing = (none.get(f"/logs/{log}/export{query}") for log in ("private", "nothing"))
            assert hidden.status_code == missing.status_code == 401
            assert hidden.json() == missing.json()


def test_the_head_alone(world: Served) -> None:
    answer = world.http.head("/export?format=csv")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/csv")
    answer = world.get(Origin="https://example.com")
    assert "Muniment-Tree-Size" in answer.headers["access-control-expose-headers"]


def test_a_bundle_that_goes_on_is_a_bundle(world: Served) -> None:
    """Also for those who go on with what they wrote themselves."""
    lines: list[bytes] = []
    data = world.all("?format=receipts&stop=4&tree_size=601").splitlines(keepends=True)
    header = Header.parse(data[0])
    writer = ReceiptsWriter(lines.append, replace(header))
    first = next(iter(ReceiptsReader(data, world.policy)))[0]
    assert isinstance(first, Receipt)
    writer.add(first)
    more = world.all("?format=receipts&stop=4&tree_size=601&after=0&count=1")
    assert b"".join(lines) + more == b"".join(data)


def test_what_cannot_be_had_any_more_shows(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The head of the answer is sent by then: it says 200, and the body has no end."""
    with instance_on("sqlite", request, tmp_path) as instance, instance.server() as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
            for _ in range(3):
                body = ndjson(*({"n": n} for n in range(200)))
                assert http.post("/entries/batch", content=body, headers=NDJSON).status_code == 201
            until(lambda: _size(http, "") == 601)
            spoil(instance.data, 400)
            for form in ("jsonl", "receipts"):
                pieces: list[bytes] = []
                with pytest.raises(httpx.RemoteProtocolError):
                    take(http, form, pieces)
                got = b"".join(pieces)
                assert got.endswith(b"\n")
                assert got.count(b"\n") <= 402
                assert b"receipts-end" not in got
        assert free_of_tracebacks(server.stderr())
        assert "an answer was cut off" in server.stderr()


def take(http: httpx.Client, form: str, pieces: list[bytes]) -> None:
    """Read an export, and keep what came before an error."""
    with http.stream("GET", f"/export?format={form}") as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            pieces.append(piece)


def spoil(data: Path, index: int) -> None:
    """Remove an entry under a running server."""
    with closing(sqlite3.connect(data / "muniment.sqlite")) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("DELETE FROM entries WHERE id = ?", (row_id(1, index),))
