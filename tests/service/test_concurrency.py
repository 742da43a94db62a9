"""Many clients at once, and two servers on one log (issue "The log works", point 6): one history, whoever wins a race.

Every test ends with an audit from public bytes: all leaves and tiles are downloaded, the root is recomputed, every head that any
client was ever shown must be the root over those leaves at its size, and `fsck` must agree.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.live import PATIENCE, LiveServer, free_of_tracebacks, until
from tests.service.http_audit import Roots, audit, fsck, split_bundle, tile_name
from tests.service.http_check import JSON, NDJSON, Verifier, bundle, client, head_size, ndjson, published, spread
from tests.service.http_raw import Answer, Connection
from tests.service.http_world import DEFAULT, Instance, LogSpec, instance_on

RAW = LogSpec("raw", "raw")
PROOFS = 12_500
APPENDERS, READERS = 64, 8
SINGLES, BATCH = 40, 140  # of each appender: POST /entries 40 times, then a batch with its 140 receipts


@pytest.fixture
def instance(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    with instance_on(engine, request, tmp_path, (DEFAULT, RAW)) as made:
        yield made


def audit_all(instance: Instance, server: LiveServer, verifier: Verifier, prefix: str, spec: LogSpec) -> list[bytes]:
    """Audit a log from public bytes, with every head of it that was ever seen; return its leaves."""
    with client(server.url) as http:
        seen = {size: root for (origin, size), root in verifier.roots.items() if origin == spec.origin}
        published(http, prefix, max(seen, default=1))
        found = audit(http, instance.policy, prefix)
        for one in http.get(f"{prefix}/checkpoints?limit=1000").json()["checkpoints"]:
            head = verifier.checkpoint(one["checkpoint"])
            seen[head.size] = head.root
    roots = Roots(found.leaves)
    for size, root in seen.items():
        assert roots.at(size) == root, f"FORK: the head of size {size} is not a prefix of the log"
    return found.leaves


# --- one leaf, two hundred clients --------------------------------------------------------------------------------------


async def _at_once(url: str, requests: list[tuple[str, str, bytes, dict[str, str]]]) -> list[Answer]:
    """Send every request on a connection of its own, all opened before."""
    connections = [await Connection.open(url) for _ in requests]
    try:
        return await asyncio.gather(
            *(connection.request(*request) for connection, request in zip(connections, requests, strict=True))
        )
    finally:
        for connection in connections:
            await connection.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Instance, LiveServer]]:
    """One server for the tests that need none of their own."""
    folder = tmp_path_factory.mktemp("shared")
    with instance_on(request.param, request, folder, (DEFAULT, RAW)) as made, made.server() as server:
        yield made, server
        assert free_of_tracebacks(server.stderr())
        fsck(made)


def test_200_identical_raw_appends_are_one_entry(shared: tuple[Instance, LiveServer]) -> None:
    instance, server = shared
    verifier = Verifier(instance.policy)
    for round_ in range(3):
        leaf = b"the same leaf %d" % round_
        plain = [("POST", "/logs/raw/add", leaf, {})] * 120
        full = [("POST", "/logs/raw/entries", leaf, {})] * 70
        batch = [("POST", "/logs/raw/entries/batch?receipts=true", bundle(leaf, leaf), {})] * 10
        requests = plain + full + batch
        answers = asyncio.run(_at_once(server.url, requests))
        indices: set[int] = set()
        created = 0
        for (_, path, _, _), answer in zip(requests, answers, strict=True):
            assert answer.status in (200, 201), answer
            created += answer.status == 201
            if path.endswith("/add"):
                indices.add(int(answer.body))
            elif path.endswith("/entries"):
                indices.add(verifier.receipt(answer.body).index)
            else:
                value = orjson.loads(answer.body)
                indices |= set(spread(value["indices"]))
                indices |= {verifier.receipt(receipt).index for receipt in value["receipts"]}
        assert indices == {round_ + 1}
        assert created <= 1
    assert len(audit_all(instance, server, verifier, "/logs/raw", RAW)) == 4


def test_200_identical_keys_are_one_entry(shared: tuple[Instance, LiveServer]) -> None:
    """The same Idempotency-Key and body: one 201, the others its replay, or 409 while it is being stored."""
    instance, server = shared
    verifier = Verifier(instance.policy)
    request = ("POST", "/entries", b'{"pay":"once"}', JSON | {"Idempotency-Key": "two-hundred"})
    answers = asyncio.run(_at_once(server.url, [request] * 200))
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) <= {201, 200, 409}
    assert statuses[201] == 1
    assert {verifier.receipt(answer.body).index for answer in answers if answer.status != 409} == {1}
    for answer in answers:
        if answer.status == 409:
            assert orjson.loads(answer.body)["code"] == "idempotency_running"
            assert int(answer.headers["retry-after"]) > 0
    again = asyncio.run(_at_once(server.url, [request] * 5))
    assert 200 in [answer.status for answer in again]
    assert len(audit_all(instance, server, verifier, "", DEFAULT)) == 2
    print(f"200 equal keys at once: {dict(statuses)}")


# --- appenders and readers ----------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """What 64 appenders and 8 readers saw together."""

    verifier: Verifier
    leaves: dict[int, bytes] = field(default_factory=dict)
    known: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    published: int = 1
    done: bool = False

    def took(self, kind: str, receipt: Any, event: dict[str, Any]) -> None:
        """Note a verified receipt: its index must be new, and it must open to exactly what was sent."""
        self.kinds[kind] += 1
        assert receipt.index not in self.leaves, f"index {receipt.index} was given twice"
        self.leaves[receipt.index] = receipt.leaf
        self.known.append(receipt.index)
        assert receipt.commitment.open(list(receipt.disclosures)) == event


async def _append(crowd: Crowd, url: str, who: int) -> None:
    async with await Connection.open(url) as connection:
        for number in range(SINGLES):
            event = {"client": who, "number": number, "action": "invoice.approve"}
            answer = await connection.request("POST", "/entries", orjson.dumps(event), JSON)
            assert answer.status == 201, answer
            crowd.took("single receipts", crowd.verifier.quick_receipt(orjson.loads(answer.body)), event)
        events = [{"client": who, "batch": number} for number in range(BATCH)]
        answer = await connection.request("POST", "/entries/batch?receipts=true", ndjson(*events), NDJSON)
        assert answer.status == 201, answer
        receipts = orjson.loads(answer.body)["receipts"]
        for event, receipt in zip(events, receipts, strict=True):
            crowd.took("batch receipts", crowd.verifier.quick_receipt(receipt), event)


async def _read(crowd: Crowd, url: str, who: int) -> None:
    """Ask for proofs, receipts, tiles and checkpoints at random until the appenders are done and there are enough."""
    rng = random.Random(who)
    async with await Connection.open(url) as connection:

        async def get(path: str) -> bytes:
            answer = await connection.request("GET", path)
            assert answer.status == 200, (path, answer)
            return answer.body

        while not crowd.done or crowd.verifier.proofs < PROOFS:
            if not crowd.known:
                await asyncio.sleep(0.01)
                continue
            index = rng.choice(crowd.known)
            await _read_one(crowd, rng, get, index)


async def _read_one(crowd: Crowd, rng: random.Random, get: Any, index: int) -> None:
    verifier = crowd.verifier
    match rng.randrange(5):
        case 0:
            verifier.inclusion(orjson.loads(await get(f"/proof/inclusion?index={index}")), crowd.leaves[index])
            crowd.kinds["inclusion proofs"] += 1
        case 1:
            size = index + 1 + rng.randrange(max(crowd.known) - index + 1)
            value = orjson.loads(await get(f"/proof/inclusion?index={index}&tree_size={size}"))
            verifier.inclusion(value, crowd.leaves[index])
            crowd.kinds["inclusion proofs"] += 1
        case 2:
            head = rng.choice(list(verifier.roots))
            value = orjson.loads(await get(f"/proof/consistency?first={head[1]}"))
            verifier.consistency(value, verifier.roots[head])
            crowd.kinds["consistency proofs"] += 1
        case 3:
            before = crowd.published
            size = verifier.checkpoint((await get("/checkpoint")).decode()).size
            assert size >= before, "a checkpoint went back"
            crowd.published = max(crowd.published, size)
            receipt = verifier.quick_receipt(orjson.loads(await get(f"/entries/{rng.randrange(size)}/receipt")))
            assert crowd.leaves.get(receipt.index, receipt.leaf) == receipt.leaf
            crowd.kinds["stored receipts"] += 1
        case _:
            number, width = index // 256, index % 256 + 1
            path = tile_name(number) + ("" if width == 256 else f".p/{width}")
            hashes, entries = await get(f"/tile/0/{path}"), split_bundle(await get(f"/tile/entries/{path}"))
            assert entries[-1] == crowd.leaves[index]
            assert b"".join(sha256(b"\x00" + leaf).digest() for leaf in entries) == hashes
            crowd.kinds["tiles"] += 1


async def _crowd(crowd: Crowd, url: str) -> None:
    readers = [asyncio.create_task(_read(crowd, url, who)) for who in range(READERS)]
    try:
        await asyncio.gather(*(_append(crowd, url, who) for who in range(APPENDERS)))
        crowd.done = True
        await asyncio.gather(*readers)
    finally:
        for reader in readers:
            reader.cancel()


def test_64_clients_append_while_8_read(instance: Instance) -> None:
    """Each of 12,500 proofs verifies against the checkpoint served with it, and all of them belong to one log."""
    crowd = Crowd(Verifier(instance.policy))
    with instance.server() as server:
        started = time.monotonic()
        asyncio.run(_crowd(crowd, server.url))
        took = time.monotonic() - started
        leaves = audit_all(instance, server, crowd.verifier, "", DEFAULT)
        assert free_of_tracebacks(server.stderr())
    appended = APPENDERS * (SINGLES + BATCH)
    assert sorted(crowd.leaves) == list(range(1, appended + 1)), "a gap"
    assert [crowd.leaves[index] for index in range(1, appended + 1)] == leaves[1:]
    assert crowd.verifier.proofs >= PROOFS
    assert crowd.kinds["single receipts"] >= 2_500
    heads = len(crowd.verifier.roots)
    print(f"{crowd.verifier.proofs} proofs in {took:.1f} s under {heads} heads: {dict(crowd.kinds)}")
    fsck(instance, command=True)


# --- two servers, one log -----------------------------------------------------------------------------------------------

LEAVES = 250
KEYS = 120
CLIENTS = 4  # of each server


@dataclass
class Contest:
    """What the clients of two servers were told about the same leaves and keys."""

    verifier: Verifier
    leaves: dict[bytes, set[int]] = field(default_factory=dict)
    keys: dict[str, set[int]] = field(default_factory=dict)
    created: Counter[str] = field(default_factory=Counter)
    own: dict[int, Any] = field(default_factory=dict)
    contradicted: Counter[str] = field(default_factory=Counter)
    running: int = 0


async def _race_leaves(contest: Contest, url: str, who: int) -> None:
    async with await Connection.open(url) as connection:
        for number in range(LEAVES):
            leaf = b"contested %d" % number
            path = "/logs/raw/add" if (who + number) % 3 else "/logs/raw/entries"
            answer = await connection.request("POST", path, leaf)
            assert answer.status in (200, 201), answer
            if path.endswith("/add"):
                index = int(answer.body)
            else:
                index = contest.verifier.quick_receipt(orjson.loads(answer.body)).index
                contest.created["leaves"] += answer.status == 201
            contest.leaves.setdefault(leaf, set()).add(index)


async def _race_keys(contest: Contest, url: str, who: int) -> None:
    """The same keys from everywhere with the same body; every tenth with a body of one's own."""
    async with await Connection.open(url) as connection:
        for number in range(KEYS):
            key = f"key-{number}"
            event = {"key": number} if number % 10 else {"key": number, "from": f"{url} {who}"}
            for _ in range(6000):
                answer = await connection.request(
                    "POST", "/entries", orjson.dumps(event), JSON | {"Idempotency-Key": key}
                )
                if answer.status != 409:
                    break
                contest.running += 1
                await asyncio.sleep(0.01)
            if answer.status == 422:
                assert not number % 10, "equal bodies do not contradict each other"
                assert orjson.loads(answer.body)["code"] == "idempotency_mismatch"
                contest.contradicted[key] += 1
                continue
            assert answer.status in (200, 201), answer
            receipt = contest.verifier.quick_receipt(orjson.loads(answer.body))
            assert receipt.commitment
            assert receipt.commitment.open(list(receipt.disclosures or ())) == event
            contest.created[key] += answer.status == 201
            contest.keys.setdefault(key, set()).add(receipt.index)


async def _own_events(contest: Contest, url: str, who: int) -> None:
    async with await Connection.open(url) as connection:
        for number in range(60):
            event = {"server": url, "client": who, "number": number}
            answer = await connection.request("POST", "/entries", orjson.dumps(event), JSON)
            assert answer.status == 201, answer
            receipt = contest.verifier.quick_receipt(orjson.loads(answer.body))
            assert receipt.index not in contest.own
            contest.own[receipt.index] = event


async def _race(contest: Contest, urls: list[str]) -> None:
    work = [
        play(contest, url, who)
        for url in urls
        for who in range(CLIENTS)
        for play in (_race_leaves, _race_keys, _own_events)
    ]
    await asyncio.gather(*work)


def test_two_servers_write_one_log(instance: Instance) -> None:
    """Two processes share database and guard: equal leaves and equal keys race between them, and no race has two winners."""
    contest = Contest(Verifier(instance.policy))
    with instance.server() as one, instance.server() as two:
        started = time.monotonic()
        asyncio.run(_race(contest, [one.url, two.url]))
        took = time.monotonic() - started
        events = audit_all(instance, two, contest.verifier, "", DEFAULT)
        leaves = audit_all(instance, one, contest.verifier, "/logs/raw", RAW)
        with client(one.url) as first, client(two.url) as second:
            for prefix in ("", "/logs/raw"):
                assert first.get(f"{prefix}/checkpoint").text == second.get(f"{prefix}/checkpoint").text
            opened = [entry["event"] for entry in _all_entries(first, len(events)) if "event" in entry]
        assert free_of_tracebacks(one.stderr() + two.stderr())
    assert all(len(indices) == 1 for indices in contest.leaves.values()), "one leaf has two indices"
    assert sorted(leaves[1:]) == sorted(contest.leaves), "a gap or a duplicate"
    assert all(leaves[index] == leaf for leaf, indices in contest.leaves.items() for index in indices)
    assert all(len(indices) == 1 for indices in contest.keys.values()), "one key has two entries"
    assert set(contest.keys) == {f"key-{number}" for number in range(KEYS)}
    for number in range(KEYS):
        key = f"key-{number}"
        assert contest.created[key] == 1, "one creates, the others find"
        assert contest.contradicted[key] == (0 if number % 10 else 2 * CLIENTS - 1)
    assert len(events) == 1 + KEYS + len(contest.own) == 1 + len(opened)
    assert Counter(event["key"] for event in opened if "key" in event) == dict.fromkeys(range(KEYS), 1)
    print(
        f"{LEAVES} leaves and {KEYS} keys contested by 2 servers x {CLIENTS} clients in {took:.1f} s; "
        f"{contest.running} times 409; {contest.verifier.proofs} receipts under {len(contest.verifier.roots)} heads"
    )
    fsck(instance, command=True)


def _all_entries(http: Any, size: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < size:
        found += http.get("/entries", params={"start": len(found), "limit": 1000}).json()["entries"]
    return found


def test_a_server_shows_what_its_sibling_published(instance: Instance) -> None:
    """Behind a load balancer nobody knows which of two servers answers: a list must not end where one of them last wrote."""
    with instance.server() as one, instance.server() as two, client(one.url) as first, client(two.url) as second:
        assert second.post("/entries/batch", content=ndjson({"n": 1}, {"n": 2}), headers=NDJSON).status_code == 201
        until(lambda: first.get("/log").json()["tree_size"] >= 3)
        until(lambda: head_size(first) == 3)
        page = first.get("/entries").json()
        assert (len(page["entries"]), page["tree_size"]) == (3, 3)


def test_one_of_two_servers_is_killed(instance: Instance) -> None:
    """kill -9 of one writer under load: the other goes on, nothing acknowledged by either is gone, and there is one history."""
    verifier = Verifier(instance.policy)
    acknowledged: dict[bytes, int] = {}

    async def add(url: str, who: int, seconds: float) -> None:
        ends, number = time.monotonic() + seconds, 0
        async with await Connection.open(url) as connection:
            while time.monotonic() < ends:
                leaf, number = b"%s client %d number %d" % (url.encode(), who, number), number + 1
                answer = await connection.request("POST", "/logs/raw/entries", leaf)
                assert answer.status == 201, answer
                acknowledged[leaf] = verifier.quick_receipt(json.loads(answer.body)).index

    async def play(one: LiveServer, two: LiveServer) -> list[BaseException | None]:
        async def kill() -> None:
            await asyncio.sleep(0.6)
            one.process.kill()

        survivors = [add(two.url, who, 1.5) for who in range(8)]
        victims = [add(one.url, who, 30) for who in range(8)]
        return await asyncio.gather(kill(), *survivors, *victims, return_exceptions=True)

    one, two = instance.server().wait(), instance.server().wait()
    with one, two:
        ended = asyncio.run(play(one, two))
        assert ended[:9] == [None] * 9, ended[:9]
        assert all(isinstance(error, OSError | asyncio.IncompleteReadError) for error in ended[9:]), ended[9:]
        assert one.process.wait(PATIENCE) == -signal.SIGKILL
        leaves = audit_all(instance, two, verifier, "/logs/raw", RAW)
        assert free_of_tracebacks(two.stderr())
    assert all(leaves[index] == leaf for leaf, index in acknowledged.items())
    assert len(set(leaves)) == len(leaves)
    unanswered = len(leaves) - 1 - len(acknowledged)
    assert 0 <= unanswered <= 8, "at most one entry of each client of the killed server"
    print(f"{len(acknowledged)} acknowledged, {unanswered} stored without an answer")
    fsck(instance, command=True)
