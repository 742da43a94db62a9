"""Every route, on both stores, under every prefix: status, headers, and bodies checked against the policy.

One server for each store serves all tests of this module. Tests only append, so none depends on another.
"""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import httpx
import pytest

from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.receipt import Receipt
from muniment_server.web.routes import ROUTES
from tests.live import LiveServer, free_of_tracebacks, until
from tests.oracle import Tree
from tests.service.http_audit import audit, fsck, split_bundle, tile_name
from tests.service.http_check import (
    JSON,
    NDJSON,
    Verifier,
    bundle,
    client,
    document,
    expect_problem,
    head_size,
    ndjson,
    published,
    spread,
)
from tests.service.http_world import DEFAULT, RAW, Instance, anchored, instance_on

LOG_ROUTES = [route for route in ROUTES if route.on == "log"]

EVENT_PREFIXES = ["", "/v1", "/logs/default", "/v1/logs/default"]
RAW_PREFIXES = ["/logs/raw", "/v1/logs/raw"]
OF = {"event": "", "raw": "/logs/raw"}
PUBLISH = 0.2  # seconds between checkpoints here; test_http_c2sp measures the default


@dataclass
class FilledServer:
    """A running server, and what its logs held when the tests began."""

    instance: Instance
    server: LiveServer
    http: httpx.Client
    events: list[dict[str, Any]]
    leaves: list[bytes]

    def verifier(self) -> Verifier:
        return Verifier(self.instance.policy)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilledServer]:
    """A server with an event log and a raw log of three tiles each."""
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": str(PUBLISH)}
    with (
        instance_on(request.param, request, tmp_path_factory.mktemp("routes"), (DEFAULT, RAW)) as instance,
        anchored(instance),
        instance.server(env=env) as server,
        client(server.url) as http,
    ):
        events = [{"actor": f"user-{i}", "action": "invoice.approve", "number": i} for i in range(600)]
        leaves = [b"leaf %d" % i for i in range(600)]
        for at in range(0, 600, 200):
            http.post("/entries/batch", content=ndjson(*events[at : at + 200]), headers=NDJSON)
            http.post("/logs/raw/entries/batch", content=bundle(*leaves[at : at + 200]))
            for prefix in OF.values():  # so that there are several published sizes
                published(http, prefix, head_size(http, prefix))
        yield FilledServer(instance, server, http, events, leaves)
        for prefix in OF.values():
            published(http, prefix, head_size(http, prefix))
            audit(http, instance.policy, prefix)
        assert free_of_tracebacks(server.stderr())
        fsck(instance)


def post_event(http: httpx.Client, event: dict[str, Any], prefix: str = "", **headers: str) -> httpx.Response:
    return http.post(f"{prefix}/entries", content=json.dumps(event), headers=JSON | headers)


_serial = iter(range(10**9))


def unique(**more: Any) -> dict[str, Any]:
    """An event nobody else posts."""
    return {"test": next(_serial), "salt": random.getrandbits(48), **more}


def unique_leaf() -> bytes:
    return b"unique %d %d" % (next(_serial), random.getrandbits(48))


# --- POST /entries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", EVENT_PREFIXES)
def test_append_event_answers_with_a_complete_receipt(world: FilledServer, prefix: str) -> None:
    event = unique(actor="ålice", nested={"b": [1, 2.5, None, True]}, text="\u2028 \U0001f600")
    before = time.time()
    answer = post_event(world.http, event, prefix)
    assert answer.status_code == 201
    found = world.verifier().receipt(answer)
    assert found.complete
    assert found.opened == event
    assert isinstance(found.entry, EventLeaf)
    assert before - 5 < found.entry.logged_at / 1000 < time.time() + 5
    assert answer.headers["location"] == f"{prefix}/entries/{found.index}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert "idempotency-replayed" not in answer.headers
    assert "server" not in answer.headers
    entry = world.http.get(answer.headers["location"]).json()
    assert entry["event"] == event
    assert base64.b64decode(entry["leaf"]) == found.leaf
    assert entry["logged_at"] == format_time(found.entry.logged_at)


@pytest.mark.parametrize("prefix", RAW_PREFIXES)
@pytest.mark.parametrize("kind", [None, "application/json", "text/plain", "application/octet-stream", "nonsense"])
def test_append_raw_takes_bytes_of_any_type(world: FilledServer, prefix: str, kind: str | None) -> None:
    leaf = unique_leaf()
    headers = {"Content-Type": kind} if kind else {}
    first = world.http.post(f"{prefix}/entries", content=leaf, headers=headers)
    again = world.http.post(f"{prefix}/entries", content=leaf, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    found, repeated = (world.verifier().receipt(answer) for answer in (first, again))
    assert found.leaf == repeated.leaf == leaf
    assert found.index == repeated.index
    assert first.headers["location"] == again.headers["location"] == f"{prefix}/entries/{found.index}"
    assert found.entry is None


@pytest.mark.parametrize("leaf", [b"\x00", b"\n", b"\xff" * 65_535, b"null", b'{"typ":"muniment"}', "é".encode()])
def test_raw_leaves_are_kept_byte_for_byte(world: FilledServer, leaf: bytes) -> None:
    answer = world.http.post("/logs/raw/entries", content=leaf)
    found = world.verifier().receipt(answer)
    assert found.leaf == leaf
    entry = world.http.get(f"/logs/raw/entries/{found.index}").json()
    assert base64.b64decode(entry["leaf"]) == leaf
    assert entry["leaf_hash"] == sha256(b"\x00" + leaf).hexdigest()
    assert set(entry) == {"index", "leaf", "leaf_hash"}


def test_a_raw_leaf_from_the_beginning_is_still_found(world: FilledServer) -> None:
    for number in (0, 255, 256, 599):
        answer = world.http.post("/logs/raw/entries", content=world.leaves[number])
        assert answer.status_code == 200
        found = world.verifier().receipt(answer)
        assert (found.index, found.leaf) == (number + 1, world.leaves[number])


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("text/plain", True),
        ("text/plain; q=0.9, */*; q=0.1", True),
        ("application/json, text/plain", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_receipts_come_as_tlog_proof_for_who_asks(world: FilledServer, accept: str, text: bool) -> None:
    answers = [
        post_event(world.http, unique(), Accept=accept),
        world.http.post("/logs/raw/entries", content=unique_leaf(), headers={"Accept": accept}),
        world.http.get("/entries/7/receipt", headers={"Accept": accept}),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == ("text/plain; charset=utf-8" if text else "application/json")
        assert answer.text.startswith("c2sp.org/tlog-proof@v1\n") == text
        world.verifier().receipt(answer)
    assert answers[2].headers["vary"] == "Accept"


def test_a_tlog_proof_of_a_long_leaf_comes_without_it(world: FilledServer) -> None:
    """A line of more than 64 KiB would end stock readers; and /verify, which takes one file, says what is missing."""
    leaf = unique_leaf().ljust(49_147, b".")
    appended = world.http.post("/logs/raw/entries", content=leaf, headers={"Accept": "text/plain"})
    found = Receipt.parse(appended.text, leaf)
    assert appended.text.startswith(f"c2sp.org/tlog-proof@v1\nindex {found.index}\n")
    assert found.verify(world.instance.policy).leaf == leaf
    expect_problem(world.http.post("/verify", content=appended.content), 422, "invalid_receipt")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", 'application/json;charset="UTF-8"', "text/json"])
def test_json_may_be_called_by_its_other_names(world: FilledServer, kind: str) -> None:
    answer = world.http.post("/entries", content=b'{"a":1}', headers={"Content-Type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize("kind", ["application/cloudevents+json", "APPLICATION/JSON"])
def test_json_dialects_are_json(world: FilledServer, kind: str) -> None:
    assert world.http.post("/entries", content=b'{"a":1}', headers={"Content-Type": kind}).status_code == 201


# --- Idempotency-Key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/v1/logs/default"])
def test_an_idempotency_key_leads_to_the_same_entry(world: FilledServer, prefix: str) -> None:
    key, event = f"key-{random.getrandbits(48)}", unique(actor="bob")
    first = post_event(world.http, event, prefix, **{"Idempotency-Key": key})
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    post_event(world.http, unique())  # the log moves on
    for spelling in (key, f'"{key}"'):
        again = post_event(world.http, event, prefix, **{"Idempotency-Key": spelling})
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
        assert again.headers["location"] == first.headers["location"]
        found = world.verifier().receipt(again)
        assert found.opened == event
        assert found.complete
        assert found.checkpoint.size > first.json()["inclusion"]["tree_size"], "a fresh receipt, at a newer head"
    reordered = json.dumps(dict(reversed(event.items())), indent=3)  # the same event in other bytes
    same = world.http.post("/entries", content=reordered, headers=JSON | {"Idempotency-Key": key})
    assert same.headers["location"].rsplit("/", 1)[1] == first.headers["location"].rsplit("/", 1)[1]
    other = post_event(world.http, unique(), **{"Idempotency-Key": key})
    expect_problem(other, 422, "idempotency_mismatch")


def test_an_idempotency_key_covers_a_batch(world: FilledServer) -> None:
    key, events = f"batch-{random.getrandbits(48)}", [unique() for _ in range(20)]
    headers = NDJSON | {"Idempotency-Key": key}
    first = world.http.post("/entries/batch", content=ndjson(*events), headers=headers)
    size = head_size(world.http)
    again = world.http.post("/entries/batch?receipts=true", content=ndjson(*events), headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["indices"] == first.json()["indices"]
    assert head_size(world.http) == size
    for event, receipt in zip(events, again.json()["receipts"], strict=True):
        assert world.verifier().receipt(receipt).opened == event
    shorter = world.http.post("/entries/batch", content=ndjson(*events[:-1]), headers=headers)
    expect_problem(shorter, 422, "idempotency_mismatch")
    alone = post_event(world.http, events[0], **{"Idempotency-Key": key})
    expect_problem(alone, 422, "idempotency_mismatch")


def test_without_a_key_equal_events_are_two_entries(world: FilledServer) -> None:
    event = unique()
    first, second = (world.verifier().receipt(post_event(world.http, event)) for _ in range(2))
    assert first.index != second.index
    assert first.leaf != second.leaf, "equal events must not be recognisable in the tree"


# --- POST /entries/batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", EVENT_PREFIXES)
@pytest.mark.parametrize("receipts", ["", "?receipts=false", "?receipts=true"])
def test_batch_of_events(world: FilledServer, prefix: str, receipts: str) -> None:
    events = [unique(n=n) for n in range(130)]
    answer = world.http.post(f"{prefix}/entries/batch{receipts}", content=ndjson(*events), headers=NDJSON)
    assert answer.status_code == 201
    value = answer.json()
    (low, high) = value["indices"][0]
    assert value["indices"] == [[low, low + 130]]
    assert value["count"] == 130
    verifier = world.verifier()
    assert verifier.checkpoint(value["checkpoint"]).size >= high
    assert answer.headers["cache-control"] == "no-store"
    assert ("receipts" in value) == (receipts == "?receipts=true")
    for at, receipt in enumerate(value.get("receipts", [])):
        found = verifier.receipt(receipt)
        assert (found.index, found.opened, found.complete) == (low + at, events[at], True)
        assert receipt["checkpoint"] == value["checkpoint"]
    page = world.http.get(f"{prefix}/entries", params={"start": low, "limit": 130}).json()
    assert [entry["event"] for entry in page["entries"]] == events


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_line_of_a_batch_may_lack_its_newline(world: FilledServer, end: str) -> None:
    body = ndjson(unique(), unique()).decode().rstrip("\n") + end
    answer = world.http.post("/entries/batch", content=body, headers=NDJSON)
    assert answer.json()["count"] == 2


@pytest.mark.parametrize("kind", ["application/jsonl", "application/ndjson", "application/x-jsonlines; charset=utf-8"])
def test_ndjson_may_be_called_by_its_other_names(world: FilledServer, kind: str) -> None:
    answer = world.http.post("/entries/batch", content=ndjson(unique()), headers={"Content-Type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize("bad", [1, 500, 1000])
def test_one_bad_line_of_a_thousand_writes_nothing(world: FilledServer, bad: int) -> None:
    lines = ndjson(*(unique() for _ in range(1000))).splitlines()
    lines[bad - 1] = b'{"a":{"b":[1,NaN]}}'
    size = head_size(world.http)
    answer = world.http.post("/entries/batch", content=b"\n".join(lines), headers=NDJSON)
    found = expect_problem(answer, 422, "invalid_number")
    assert found["line"] == bad
    assert f"entry {bad} " in found["detail"]
    assert found["pointer"] == "/a/b/1"
    assert head_size(world.http) == size


def test_one_bad_leaf_of_a_raw_batch_writes_nothing(world: FilledServer) -> None:
    leaves = [unique_leaf() for _ in range(1000)]
    leaves[776] = b'{"typ":"muniment/genesis@v1"}'
    size = head_size(world.http, "/logs/raw")
    found = expect_problem(world.http.post("/logs/raw/entries/batch", content=bundle(*leaves)), 422, "reserved_leaf")
    assert found["line"] == 777
    leaves[776] = b""
    found = expect_problem(world.http.post("/logs/raw/entries/batch", content=bundle(*leaves)), 422, "empty_entry")
    assert found["line"] == 777
    assert head_size(world.http, "/logs/raw") == size


@pytest.mark.parametrize("prefix", RAW_PREFIXES)
def test_raw_batch_finds_duplicates_and_known_entries(world: FilledServer, prefix: str) -> None:
    a, b, c = (unique_leaf() for _ in range(3))
    posted = [a, b, a, world.leaves[5], world.leaves[6], b, c, c, world.leaves[4]]
    answer = world.http.post(f"{prefix}/entries/batch?receipts=true", content=bundle(*posted))
    assert answer.status_code == 201
    value = answer.json()
    first = value["indices"][0][0]
    assert spread(value["indices"]) == [first, first + 1, first, 6, 7, first + 1, first + 2, first + 2, 5]
    assert value["count"] == len(posted)
    for index, leaf, receipt in zip(spread(value["indices"]), posted, value["receipts"], strict=True):
        found = world.verifier().receipt(receipt)
        assert (found.index, found.leaf) == (index, leaf)
    again = world.http.post(f"{prefix}/entries/batch", content=bundle(*posted))
    assert (again.status_code, again.json()["indices"]) == (200, value["indices"])


def test_a_batch_may_have_ten_thousand_entries(world: FilledServer) -> None:
    leaves = [b"%d of %d" % (n, random.getrandbits(48)) for n in range(10_000)]
    answer = world.http.post("/logs/raw/entries/batch", content=bundle(*leaves))
    value = answer.json()
    assert (answer.status_code, value["count"], len(value["indices"])) == (201, 10_000, 1)
    low = value["indices"][0][0]
    for at in (0, 4_999, 5_000, 9_999):
        found = world.http.get("/logs/raw/proof/inclusion", params={"index": low + at}).json()
        world.verifier().inclusion(found, leaves[at])


# --- POST /add ----------------------------------------------------------------------------------------------------------


def test_add_answers_the_index_and_nothing_else(world: FilledServer) -> None:
    leaf = unique_leaf()
    for _ in range(2):  # known entries are 200 too
        answer = world.http.post("/logs/raw/add", content=leaf)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert re.fullmatch(rb"0|[1-9][0-9]*", answer.content)
    entry = world.http.get(f"/logs/raw/entries/{answer.text}").json()
    assert base64.b64decode(entry["leaf"]) == leaf


def test_add_is_for_raw_logs_and_has_one_url(world: FilledServer) -> None:
    refused = world.http.post("/add", content=b'{"a":1}')
    assert (refused.status_code, refused.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    assert world.http.post("/v1/logs/raw/add", content=b"x").status_code == 404


# --- entries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", EVENT_PREFIXES)
def test_entries_of_an_event_log(world: FilledServer, prefix: str) -> None:
    genesis = world.http.get(f"{prefix}/entries/0").json()
    assert genesis["typ"] == "muniment/genesis@v1"
    assert json.loads(base64.b64decode(genesis["leaf"]))["origin"] == DEFAULT.origin
    for number in (0, 254, 255, 256, 599):
        answer = world.http.get(f"{prefix}/entries/{number + 1}")
        entry = answer.json()
        assert (entry["index"], entry["event"]) == (number + 1, world.events[number])
        leaf = base64.b64decode(entry["leaf"])
        assert entry["leaf_hash"] == sha256(b"\x00" + leaf).hexdigest()
        assert json.loads(leaf)["logged_at"] == entry["logged_at"]
        assert "access-control-allow-origin" not in answer.headers, "payloads of this log are not for every page"
        assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("prefix", RAW_PREFIXES)
def test_entries_of_a_raw_log(world: FilledServer, prefix: str) -> None:
    for number in (0, 254, 255, 256, 599):
        entry = world.http.get(f"{prefix}/entries/{number + 1}").json()
        assert base64.b64decode(entry["leaf"]) == world.leaves[number]
        assert "event" not in entry
        assert "logged_at" not in entry


@pytest.mark.parametrize("limit", [1, 7, 100, 256, 1000])
def test_paging_walks_over_every_entry_once(world: FilledServer, limit: int) -> None:
    start: int | None = 580 if limit == 1 else 0
    seen: list[int] = []
    while start is not None and len(seen) < 700:
        page = world.http.get("/logs/raw/entries", params={"start": start, "limit": limit}).json()
        seen += [entry["index"] for entry in page["entries"]]
        assert len(page["entries"]) == min(limit, page["tree_size"] - start, 1000)
        assert page["next"] in (None, start + limit)
        start = page["next"]
    assert seen == list(range(seen[0], seen[0] + len(seen)))
    assert len(seen) >= (20 if limit == 1 else 601)


def test_paging_has_its_default_and_its_end(world: FilledServer) -> None:
    assert len(world.http.get("/entries").json()["entries"]) == 100
    size = head_size(world.http)
    last = world.http.get("/entries", params={"start": size - 1}).json()
    assert ([entry["index"] for entry in last["entries"]], last["next"]) == ([size - 1], None)
    for start in (size, size + 1, 2**63 - 1):
        beyond = world.http.get("/entries", params={"start": start}).json()
        assert (beyond["entries"], beyond["next"], beyond["tree_size"]) == ([], None, size)


# --- receipts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", EVENT_PREFIXES + RAW_PREFIXES)
def test_receipts_at_every_published_size(world: FilledServer, prefix: str) -> None:
    verifier = world.verifier()
    raw = "raw" in prefix
    sizes = [one["size"] for one in world.http.get(f"{prefix}/checkpoints").json()["checkpoints"]]
    assert len(sizes) >= 3
    for size in (sizes[0], sizes[1], sizes[-1]):
        for index in {0, 1, size // 2, size - 1} - {size, -1}:
            answer = world.http.get(f"{prefix}/entries/{index}/receipt", params={"tree_size": size})
            found = verifier.receipt(answer)
            assert (found.index, found.checkpoint.size) == (index, size)
            assert answer.headers.get("access-control-allow-origin") == ("*" if raw else None)
            assert answer.headers["cache-control"] == "no-cache"
            if 1 <= index <= 600:
                wanted = world.leaves[index - 1] if raw else world.events[index - 1]
                assert (found.leaf if raw else found.opened) == wanted
            assert found.complete
            assert isinstance(found.entry, OwnLeaf) == (index == 0)
    latest = verifier.receipt(world.http.get(f"{prefix}/entries/3/receipt"))
    assert latest.checkpoint.size >= sizes[-1]


def test_a_receipt_of_some_members(world: FilledServer) -> None:
    event = unique(
        actor="alice-7f3a", action="pay", **{"a,b": "comma-91c2", "x.y": 1, '"': "quote-0d55", "__proto__": [2], "": 3}
    )
    index = world.verifier().receipt(post_event(world.http, event)).index
    published(world.http, "", index + 1)
    whole = Receipt.parse(world.http.get(f"/entries/{index}/receipt").content)
    for query, shown in (
        ("members=actor", {"actor"}),
        ("members=action,actor", {"action", "actor"}),
        ("members=action&members=actor,action", {"action", "actor"}),
        ("members=%22a%2Cb%22,x.y", {"a,b", "x.y"}),
        ("members=%22%5C%22%22,__proto__&members=%22%22", {'"', "__proto__", ""}),
        ("members=", set()),
    ):
        for prefix in EVENT_PREFIXES:
            answer = world.http.get(f"{prefix}/entries/{index}/receipt?{query}")
            found = world.verifier().receipt(answer)
            assert found.opened == {name: event[name] for name in shown}
            assert found.hidden == tuple(sorted(event.keys() - shown))
            for name, opening in whole.opening().items():
                assert (opening in answer.text) == (name in shown)
    size = (
        world.verifier().receipt(world.http.get(f"/entries/3/receipt?members=number&tree_size={index + 1}")).checkpoint
    )
    assert size.size == index + 1


def test_a_receipt_of_members_that_are_not_there(world: FilledServer) -> None:
    for path, says in (
        ("/entries/3/receipt?members=numbers", "opens no member numbers: it opens action, actor, number"),
        ("/entries/3/receipt?members=a%2520b,%00", 'no member "\\u0000", "a%20b": '),
        ("/entries/0/receipt?members=typ", "entry 0 is no event"),
        ("/entries/0/receipt?members=", "entry 0 is no event"),
        ("/logs/raw/entries/3/receipt?members=number", "entry 3 is no event"),
    ):
        answer = world.http.get(path)
        expect_problem(answer, 404, "unknown_member")
        assert says in answer.json()["detail"]
    for query in (
        "members=,",
        "members=a,,b",
        "members=%22a",
        "members=%22a%22b",
        "members=a&members=b,",
        "members=%FF",
    ):
        expect_problem(world.http.get(f"/entries/3/receipt?{query}"), 400, "bad_parameter")
    text = world.http.get("/entries/3/receipt?members=number", headers={"Accept": "text/plain"})
    expect_problem(text, 400, "bad_parameter")
    expect_problem(world.http.get("/entries/999999/receipt?members=number"), 404, "no_entry")


def test_a_receipt_needs_a_published_size(world: FilledServer) -> None:
    sizes = [one["size"] for one in world.http.get("/checkpoints").json()["checkpoints"]]
    between = next(size for size in range(1, sizes[-1]) if size not in sizes)
    following = min(size for size in sizes if size > between)
    found = expect_problem(world.http.get("/entries/0/receipt", params={"tree_size": between}), 404, "no_checkpoint")
    assert found["next_size"] == following
    assert str(following) in found["hint"]
    beyond = world.http.get("/entries/0/receipt", params={"tree_size": 2**63 - 1})
    assert "next_size" not in expect_problem(beyond, 404, "no_checkpoint")
    expect_problem(world.http.get("/entries/0/receipt?tree_size=0"), 404, "no_checkpoint")
    expect_problem(world.http.get(f"/entries/{sizes[1]}/receipt?tree_size={sizes[1]}"), 404, "no_entry")
    expect_problem(world.http.get(f"/entries/{2**63 - 1}/receipt"), 404, "no_entry")


# --- proofs -------------------------------------------------------------------------------------------------------------


def oracle(http: httpx.Client, prefix: str, size: int) -> Tree:
    """The tree by the oracle's recursion, over leaves fetched one page after the other."""
    leaves: list[bytes] = []
    while len(leaves) < size:
        page = http.get(f"{prefix}/entries", params={"start": len(leaves), "limit": 1000}).json()["entries"]
        leaves += [base64.b64decode(entry["leaf"]) for entry in page]
    return Tree(leaves[:size])


@pytest.mark.parametrize("prefix", ["", "/v1/logs/default", "/logs/raw"])
def test_inclusion_proofs_at_random_sizes(world: FilledServer, prefix: str) -> None:
    tree, verifier, rng = oracle(world.http, prefix, 601), world.verifier(), random.Random(prefix)
    pairs = [(index, size) for size in (1, 2, 255, 256, 257, 512, 601) for index in (0, size // 2, size - 1)]
    for _ in range(40):
        size = rng.randint(1, 601)
        pairs.append((rng.randrange(size), size))
    for index, size in pairs:
        answer = world.http.get(f"{prefix}/proof/inclusion", params={"index": index, "tree_size": size})
        value = answer.json()
        verifier.inclusion(value, tree.leaves[index])
        assert (value["index"], value["tree_size"]) == (index, size)
        assert bytes.fromhex(value["root"]) == tree.root(size)
        assert [bytes.fromhex(part) for part in value["hashes"]] == tree.path(index, size)
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("prefix", ["", "/v1/logs/raw"])
def test_inclusion_proofs_by_leaf_hash(world: FilledServer, prefix: str) -> None:
    tree, verifier = oracle(world.http, prefix, 601), world.verifier()
    for index in (0, 1, 255, 256, 600):
        wanted = sha256(b"\x00" + tree.leaves[index]).hexdigest()
        value = world.http.get(f"{prefix}/proof/inclusion", params={"leaf_hash": wanted}).json()
        verifier.inclusion(value, tree.leaves[index])
        assert value["index"] == index
        old = world.http.get(f"{prefix}/proof/inclusion", params={"leaf_hash": wanted, "tree_size": 601}).json()
        verifier.inclusion(old, tree.leaves[index])
    unknown = world.http.get(f"{prefix}/proof/inclusion", params={"leaf_hash": "00" * 32})
    expect_problem(unknown, 404, "no_entry")
    late = world.http.get(
        f"{prefix}/proof/inclusion", params={"leaf_hash": sha256(b"\x00" + tree.leaves[9]).hexdigest(), "tree_size": 9}
    )
    expect_problem(late, 404, "no_entry")


def test_proofs_reach_up_to_the_last_signed_size(world: FilledServer) -> None:
    found = world.verifier().receipt(post_event(world.http, unique()))
    size = found.checkpoint.size
    value = world.http.get("/proof/inclusion", params={"index": found.index, "tree_size": size}).json()
    world.verifier().inclusion(value, found.leaf)  # before any checkpoint of this size is published
    beyond = expect_problem(world.http.get("/proof/inclusion?index=0&tree_size=9999999"), 404, "no_such_size")
    assert beyond["tree_size"] >= size
    expect_problem(world.http.get("/proof/inclusion?index=5&tree_size=5"), 404, "no_entry")
    expect_problem(world.http.get("/proof/inclusion?index=5&tree_size=0"), 404, "no_entry")
    expect_problem(world.http.get(f"/proof/inclusion?index={2**63 - 1}"), 404, "no_entry")


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/logs/raw"])
def test_consistency_proofs_between_random_sizes(world: FilledServer, prefix: str) -> None:
    tree, verifier, rng = oracle(world.http, prefix, 601), world.verifier(), random.Random(prefix)
    pairs = [(1, 1), (1, 2), (1, 601), (255, 256), (256, 257), (256, 512), (511, 601), (601, 601)]
    pairs += [tuple(sorted((rng.randint(1, 601), rng.randint(1, 601)))) for _ in range(40)]  # type: ignore[misc]
    for first, second in pairs:
        value = world.http.get(f"{prefix}/proof/consistency", params={"first": first, "second": second}).json()
        verifier.consistency(value, tree.root(first))
        assert (value["first"], value["second"]) == (first, second)
        assert bytes.fromhex(value["root"]) == tree.root(second)
        assert [bytes.fromhex(part) for part in value["hashes"]] == tree.proof(first, second)
    latest = world.http.get(f"{prefix}/proof/consistency?first=300").json()
    verifier.consistency(latest, tree.root(300))
    assert latest["second"] == verifier.checkpoint(latest["checkpoint"]).size >= 601


def test_consistency_wants_its_sizes_in_order(world: FilledServer) -> None:
    expect_problem(world.http.get("/proof/consistency?first=3&second=2"), 400, "sizes_reversed")
    expect_problem(world.http.get("/proof/consistency?first=1&second=0"), 400, "sizes_reversed")
    expect_problem(world.http.get("/proof/consistency?first=1&second=9999999"), 404, "no_such_size")
    expect_problem(world.http.get("/proof/consistency?first=9999999"), 404, "no_such_size")


# --- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/v1", "/logs/raw"])
def test_the_checkpoint_feed_is_one_history(world: FilledServer, prefix: str) -> None:
    verifier, sizes, start = world.verifier(), [], 0
    while start is not None:
        page = world.http.get(f"{prefix}/checkpoints", params={"start": start, "limit": 2}).json()
        for one in page["checkpoints"]:
            assert verifier.checkpoint(one["checkpoint"]).size == one["size"]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["published_at"])
            sizes.append(one["size"])
        assert len(page["checkpoints"]) <= 2
        start = page["next"]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1, "the genesis checkpoint is the first"
    assert verifier.consistent(world.http, prefix) == len(sizes)
    beyond = world.http.get(f"{prefix}/checkpoints", params={"start": 2**63 - 1}).json()
    assert beyond == {"checkpoints": [], "next": None}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_checkpoints_of_a_time_in_both_orders(world: FilledServer, order: str) -> None:
    known = world.http.get("/checkpoints", params={"limit": 1000}).json()["checkpoints"]
    times = sorted({one["published_at"] for one in known})
    spans = [(since, before) for since in (None, times[0], times[-1], "2001-01-01") for before in (None, times[-1])]
    for since, before in [*spans, (None, times[0]), (None, "2001-01-01"), ("2101-01-01", None)]:
        wanted = [
            one["size"]
            for one in known
            if (since or "") <= one["published_at"] and (before is None or one["published_at"] < before)
        ]
        given = {name: value for name, value in (("from", since), ("to", before)) if value}
        if since and since == before:
            expect_problem(world.http.get("/checkpoints", params=given), 400, "bad_parameter")
            continue
        found, following = [], None
        while True:
            start = {} if following is None else {"start": following}
            page = world.http.get("/checkpoints", params={"limit": 2, "order": order} | given | start).json()
            found += [one["size"] for one in page["checkpoints"]]
            following = page["next"]
            if following is None:
                break
        assert sorted(found)[: len(wanted)] == wanted, (since, before)
        assert before is None or len(found) == len(wanted), "more is published meanwhile only at the end"
        assert found == sorted(found, reverse=order == "desc")
    first = world.http.get("/checkpoints", params={"start": known[1]["size"], "order": "desc"}).json()
    assert [one["size"] for one in first["checkpoints"]] == [one["size"] for one in known[1::-1]]


@pytest.mark.parametrize(
    "query", ["order=newest", "order=", "order=DESC", "from=x", "to=", "from=2026-01-02&to=2026-01-01"]
)
def test_bad_parameters_of_checkpoints(world: FilledServer, query: str) -> None:
    expect_problem(world.http.get(f"/checkpoints?{query}"), 400, "bad_parameter")


@pytest.mark.parametrize("prefix", ["", "/v1", "/logs/raw"])
def test_what_is_not_covered_yet(world: FilledServer, prefix: str) -> None:
    size = int(world.http.get(f"{prefix.removeprefix('/v1')}/checkpoint").text.split("\n")[1])
    found = world.http.get(f"{prefix}/log/coverage").json()
    assert found["tree_size"] >= found["checkpoint"]["tree_size"] >= size
    for by in ("checkpoint", "anchor"):
        one = found[by]
        assert one["uncovered"] == found["tree_size"] - one["tree_size"]
        assert (one["since"] is None) == (one["uncovered"] == 0)
        assert one["age_seconds"] >= 0
        assert one["exact"] or prefix == "/logs/raw"
    assert found["anchor"]["tree_size"] == 0, "it is not anchored"


def test_the_list_of_logs_has_their_keys(world: FilledServer) -> None:
    for line in world.http.get("/logs").json()["logs"]:
        told = world.http.get(f"/logs/{line['name']}/log").json()
        assert {name: line[name] for name in ("origin", "vkeys")} == {name: told[name] for name in ("origin", "vkeys")}


def test_checkpoint_has_an_etag(world: FilledServer) -> None:
    size = world.verifier().receipt(post_event(world.http, unique())).checkpoint.size
    published(world.http, "", size)
    first = world.http.get("/checkpoint")
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for value in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = world.http.get("/checkpoint", headers={"If-None-Match": value})
        if again.status_code == 200:  # another test's entry was published in between
            assert again.headers["etag"] != tag
            return
        assert again.status_code == 304
        for name in ("etag", "cache-control", "access-control-allow-origin"):
            assert again.headers[name] == first.headers[name]
    assert world.http.get("/checkpoint", headers={"If-None-Match": '"00"'}).status_code == 200
    published(world.http, "", world.verifier().receipt(post_event(world.http, unique())).checkpoint.size)
    changed = world.http.get("/checkpoint", headers={"If-None-Match": tag})
    assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


# --- about --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "kind"), [*((p, "event") for p in EVENT_PREFIXES), *((p, "raw") for p in RAW_PREFIXES)]
)
def test_log_says_what_it_is(world: FilledServer, prefix: str, kind: str) -> None:
    value = world.http.get(f"{prefix}/log").json()
    spec = DEFAULT if kind == "event" else RAW
    assert (value["origin"], value["name"], value["kind"]) == (spec.origin, spec.name, kind)
    assert value["vkeys"] == [str(log.vkey) for log in world.instance.policy.logs if log.vkey.name == spec.origin]
    assert value["public"]
    assert value["open"] == (kind == "raw")
    assert 601 <= value["tree_size"] <= head_size(world.http, prefix)
    assert value["limits"] == {
        "max_entry_bytes": 65_536 if kind == "event" else 65_535,
        "max_batch_entries": 10_000,
        "max_batch_bytes": 16 * 2**20,
        "max_members": 256,
    }
    assert value["publish_interval_seconds"] == PUBLISH
    assert value["idempotency_ttl_seconds"] == 86_400


def test_health_and_readiness(world: FilledServer) -> None:
    assert world.http.get("/healthz").json() == {"status": "ok"}
    ready = world.http.get("/readyz")
    assert ready.json() == {"reads": True, "writes": {"default": True, "raw": True}, "problems": {}}
    assert ready.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_verify_says_what_a_receipt_proves(world: FilledServer, prefix: str) -> None:
    receipt = post_event(world.http, unique(actor="carol"))
    verdict = world.http.post(f"{prefix}/verify", content=receipt.content, headers=JSON).json()
    assert verdict["verified"] is True
    assert verdict["index"] == receipt.json()["index"]
    assert "convenience" in verdict["note"]
    proof = world.http.post("/logs/raw/entries", content=unique_leaf(), headers={"Accept": "text/plain"})
    assert world.http.post(f"{prefix}/verify", content=proof.content).json()["verified"] is True
    value = receipt.json()
    value["inclusion"]["hashes"][0] = "00" * 32
    verdict = world.http.post(f"{prefix}/verify", json=value).json()
    assert (verdict["verified"], verdict["code"]) == (False, "bad_proof")
    value = receipt.json()
    value["disclosures"] = value["disclosures"][1:] + value["disclosures"][1:]
    verdict = world.http.post(f"{prefix}/verify", json=value).json()
    assert (verdict["verified"], verdict["code"]) == (False, "bad_disclosure")
    foreign = Receipt.parse(receipt.content)
    verdict = world.http.post(
        f"{prefix}/verify",
        json=foreign.to_json() | {"checkpoint": foreign.checkpoint.replace("example.com", "evil.com")},
    ).json()
    assert (verdict["verified"], verdict["code"]) == (False, "policy_not_met")
    for nonsense in (b"", b"{}", b"[]", b"c2sp.org/tlog-proof@v1\n", b'{"typ":"muniment/receipt@v2"}', b"\xff"):
        expect_problem(world.http.post(f"{prefix}/verify", content=nonsense), 422, "invalid_receipt")


@pytest.mark.parametrize("prefix", ["/logs/nope", "/v1/logs/nope", "/logs/DEFAULT", "/logs/%00", "/logs/raw%20"])
def test_an_unknown_log_is_404_for_every_route(world: FilledServer, prefix: str) -> None:
    for route in LOG_ROUTES:
        if route.c2sp and prefix.startswith("/v1"):
            continue
        path = prefix + route.path.replace("{index}", "0").replace("{path:path}", "0/000")
        answer = world.http.request(route.method, path, content=b"{}" if route.method == "POST" else None)
        if route.c2sp:
            assert (answer.status_code, answer.text) == (404, "not found\n"), path
        else:
            assert expect_problem(answer, 404, answer.json()["code"])["code"] in ("unknown_log", "not_found")


def test_what_is_not_there_is_404(world: FilledServer) -> None:
    for path in ("/nope", "/entries/", "/v1", "/logs/", "/log/", "/v1/healthz", "/tile", "/log%0a"):
        expect_problem(world.http.get(path), 404, "not_found")
    for path in ("/v1/checkpoint", "/v1/tile/0/000", "/logs/raw/tile/", "/nope/tile/0/000", "/logs/a%0ab/tile/0/000"):
        assert (world.http.get(path).status_code, world.http.get(path).text) == (404, "not found\n")
    for path, operations in document()["paths"].items():
        for method in operations:  # one resource, one URL: a pattern that ends in `$` also takes a line feed more
            assert world.http.request(method, f"{concrete(path).partition('?')[0]}%0a").status_code == 404, path


# --- methods ------------------------------------------------------------------------------------------------------------


def concrete(path: str) -> str:
    """A URL path for a path of the document."""
    log = "default" if path.endswith("/search") else "raw"  # which cannot be searched
    values = {"{log}": log, "{index}": "3", "{size}": "1", "{path}": f"entries/{tile_name(0)}"}
    for name, value in values.items():
        path = path.replace(name, value)
    query = {"/proof/inclusion": "?index=2", "/proof/consistency": "?first=2"}
    return path + next((value for end, value in query.items() if path.endswith(end)), "")


def test_head_answers_like_get_without_the_body(world: FilledServer) -> None:
    paths = [path for path, operations in document()["paths"].items() if "get" in operations]
    assert len(paths) > 15
    until(lambda: world.http.get("/search").status_code == 200)  # the index is begun a second after the start
    varying = ("date", "etag", "transfer-encoding")  # without a body nothing is in chunks (RFC 9112 section 6.1)
    for path in paths:
        for _ in range(5):  # a checkpoint may be published in between
            get, head = world.http.get(concrete(path)), world.http.head(concrete(path))
            assert get.status_code == head.status_code == 200, path
            assert head.content == b""
            mine, theirs = ({k: v for k, v in answer.headers.items() if k not in varying} for answer in (get, head))
            if mine == theirs:
                break
        assert mine == theirs, path
    assert world.http.head("/nope").status_code == 404
    assert world.http.head("/add").status_code == 405


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "QUERY"])
def test_other_methods_are_405_and_allow_names_all_that_work(world: FilledServer, method: str) -> None:
    for path, operations in document()["paths"].items():
        for prefix in ("", "/v1") if f"/v1{path}" in _v1_paths() else ("",):
            answer = world.http.request(method, prefix + concrete(path))
            known = {name.upper() for name in operations}
            known |= {"HEAD", "OPTIONS"} if "GET" in known else {"OPTIONS"}
            assert set(answer.headers["allow"].split(", ")) == known, path
            if path in C2SP:
                assert (answer.status_code, answer.headers["content-type"]) == (405, "text/plain; charset=utf-8"), path
                assert answer.headers["allow"] in answer.text
            else:
                assert answer.headers["allow"] in expect_problem(answer, 405, "method_not_allowed")["detail"]


def test_a_path_that_is_spelled_out_is_no_index(world: FilledServer) -> None:
    """For no method: /entries/batch is one resource, and takes POST."""
    for prefix in ("", "/v1", "/logs/raw"):
        answer = world.http.get(f"{prefix}/entries/batch")
        expect_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "OPTIONS, POST"
    expect_problem(world.http.get("/entries/batch/receipt"), 400, "bad_parameter")


def test_unknown_query_parameters_are_refused_on_every_route(world: FilledServer) -> None:
    for path, operations in document()["paths"].items():
        for method in operations:
            answer = world.http.request(method, f"{concrete(path).partition('?')[0]}?surprise=1", content=b"")
            if path in C2SP:
                assert (answer.status_code, answer.text) == (404, "not found\n"), path
            elif answer.status_code != 415:  # what the body is said to be is looked at first
                expect_problem(answer, 400, "bad_parameter")


C2SP = {
    prefix + route.path.replace(":path", "") for route in LOG_ROUTES for prefix in ("", "/logs/{log}") if route.c2sp
}


def _v1_paths() -> set[str]:
    return {f"/v1{route.path.replace(':path', '')}" for route in LOG_ROUTES if not route.c2sp}


def test_post_where_there_is_only_get(world: FilledServer) -> None:
    for path in ("/checkpoint", "/tile/0/000", "/log", "/proof/inclusion", "/entries/3", "/checkpoints", "/healthz"):
        assert world.http.post(path, content=b"x").headers["allow"] == "GET, HEAD, OPTIONS"
    for path in ("/add", "/verify"):
        assert world.http.get(path).headers["allow"] == "OPTIONS, POST"


def test_public_reads_may_be_made_from_any_web_page(world: FilledServer) -> None:
    for path, operations in document()["paths"].items():
        if "get" in operations and path not in ("/healthz", "/readyz"):
            answer = world.http.get(concrete(path), headers={"Origin": "https://monitor.example"})
            assert answer.headers["access-control-allow-origin"] == "*", path
    missing = world.http.get("/tile/0/999", headers={"Origin": "https://monitor.example"})
    assert (missing.status_code, missing.headers["access-control-allow-origin"]) == (404, "*")


def test_bundles_hold_what_was_posted(world: FilledServer) -> None:
    leaves = split_bundle(world.http.get("/logs/raw/tile/entries/000").content)
    assert leaves[1:] == world.leaves[:255]


def test_the_docs_page_names_every_route(world: FilledServer) -> None:
    page = world.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script" not in page.text
    for path, operations in document()["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in page.text


# --- a log that publishes rarely ----------------------------------------------------------------------------------------


def test_a_receipt_before_its_checkpoint_says_when_to_come_back(
    request: pytest.FixtureRequest, tmp_path: Any, engine: str
) -> None:
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "60"}
    with instance_on(engine, request, tmp_path) as instance, instance.server(env=env) as server:
        with client(server.url) as http:
            first = post_event(http, {"n": 1}).json()
            note = published(http, "", 2)  # the publisher begins its pause
            second = post_event(http, {"n": 2})
            assert http.get("/checkpoint").text == note
            answer = http.get("/entries/2/receipt")
            expect_problem(answer, 404, "not_published_yet")
            assert answer.headers["retry-after"] == "1"
            verifier = Verifier(instance.policy)
            assert verifier.receipt(second).checkpoint.size == 3, "its own receipt is at a signed head"
            verifier.inclusion(http.get("/proof/inclusion?index=2").json())
            verifier.receipt(http.get("/entries/1/receipt"))
            assert http.get("/entries/2").json()["event"] == {"n": 2}
            expect_problem(http.get("/entries/3/receipt"), 404, "no_entry")
            assert first["index"] == 1
        server.stop()
        with instance.server("--read-only") as reader, client(reader.url) as http:
            note = http.get("/checkpoint").text
            assert verifier.checkpoint(note).size == 3, (
                "what was signed is published at the latest when the server stops"
            )
