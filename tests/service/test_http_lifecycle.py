"""Start, stop, restart, read-only, refused by the guard: what a server does at the edges of its life."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from muniment.hashing import EMPTY_ROOT
from muniment.note import SigningKey
from muniment.policy import Policy
from muniment_server.instance.files import write_new
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.write.guard import Guard
from tests.live import PATIENCE, LiveServer, command, environment, free_of_tracebacks, free_port, run, until
from tests.service.http_audit import audit, fsck
from tests.service.http_check import (
    JSON,
    NDJSON,
    Verifier,
    bundle,
    client,
    expect_problem,
    head_size,
    ndjson,
    published,
)
from tests.service.http_raw import Connection, exchange, request_bytes, statuses
from tests.service.http_world import DEFAULT, Instance, LogSpec, in_store, instance_on

LOGS = (DEFAULT, LogSpec("raw", "raw"))


@pytest.fixture
def instance(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """A fresh instance with an event log and a raw log."""
    with instance_on(engine, request, tmp_path, LOGS) as made:
        yield made


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """The same, on SQLite only."""
    with instance_on("sqlite", request, tmp_path, LOGS) as made:
        yield made


# --- stopping -----------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What clients sent to a server until it went away, and what it answered."""

    acknowledged: dict[bytes, int] = field(default_factory=dict)
    refused: int = 0  # 503
    cut: int = 0  # no answer
    receipts: list[bytes] = field(default_factory=list)
    events: int = 0


async def _load_until_gone(server: LiveServer, load: Load, entries: int) -> None:
    """Load a server until it is told to stop, which is when it has acknowledged so many entries of either log."""

    async def add(who: int) -> None:
        number = 0
        async with await Connection.open(server.url) as connection:
            while True:
                leaf, number = b"client %d number %d" % (who, number), number + 1
                answer = await connection.request("POST", "/logs/raw/add", leaf)
                if answer.status != 200:
                    assert answer.status == 503
                    load.refused += 1
                    return
                load.acknowledged[leaf] = int(answer.body)

    async def append(who: int) -> None:
        async with await Connection.open(server.url) as connection:
            while True:
                answer = await connection.request("POST", "/entries", b'{"who":%d}' % who, JSON)
                if answer.status != 201:
                    assert answer.status == 503
                    return
                load.events += 1
                load.receipts = [*load.receipts[-20:], answer.body]

    async def stop() -> None:
        deadline = time.monotonic() + PATIENCE
        while min(len(load.acknowledged), load.events) < entries and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)

    ended = await asyncio.gather(stop(), *map(add, range(24)), *map(append, range(8)), return_exceptions=True)
    unexpected = [e for e in ended if e is not None and not isinstance(e, OSError | asyncio.IncompleteReadError)]
    assert not unexpected, unexpected
    load.cut = sum(isinstance(error, Exception) for error in ended)


def test_a_stopped_server_has_answered_what_it_accepted(instance: Instance) -> None:
    """SIGTERM under load: every entry in the log was answered, every answer is in the log, and the exit code is 0."""
    load = Load()
    server = instance.server().wait()
    asyncio.run(_load_until_gone(server, load, 50))
    assert server.process.wait(PATIENCE) == 0
    assert free_of_tracebacks(server.stderr())
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))), "still listening"
    verifier = Verifier(instance.policy)
    with instance.server() as again, client(again.url) as http:
        found = audit(http, instance.policy, "/logs/raw")
        for leaf, index in load.acknowledged.items():
            assert found.leaves[index] == leaf
        unanswered = set(found.leaves[1:]) - set(load.acknowledged)
        assert not unanswered, "accepted, but nobody was told"
        assert audit(http, instance.policy).checkpoint.size == 1 + load.events, "the last checkpoint was published"
        for receipt in load.receipts:
            verifier.receipt(receipt)
        verifier.checkpoint(http.get("/checkpoint").text)
        verifier.consistent(http)
    print(f"{len(load.acknowledged) + load.events} answered, {load.refused} refused, {load.cut} connections cut")
    assert min(len(load.acknowledged), load.events) >= 50
    fsck(instance)


def test_stopping_waits_neither_for_idle_nor_for_stuck_clients(embedded: Instance) -> None:
    patient = {"MUNIMENT_SERVER_CLIENT_SECONDS": "600", "MUNIMENT_SERVER_KEEP_ALIVE_SECONDS": "600"}
    server = embedded.server(env=patient | {"MUNIMENT_SERVER_SHUTDOWN_SECONDS": "1"}).wait()
    host, port = "127.0.0.1", int(server.url.rsplit(":", 1)[1])
    with (
        client(server.url) as http,
        socket.create_connection((host, port)),
        socket.create_connection((host, port)) as stuck,
    ):
        http.get("/healthz")
        stuck.sendall(
            b"POST /logs/raw/add HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nbeginning of a leaf"
        )
        time.sleep(0.1)  # the beginning arrives
        assert server.stop() == 0, "long before the clients' time is over"
    with embedded.server() as again, client(again.url) as http:
        assert head_size(http, "/logs/raw") == 1


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_that_is_told_to_stop_exits_with_zero(embedded: Instance, sig: int) -> None:
    with embedded.server() as server:
        assert server.stop(sig) == 0
        assert free_of_tracebacks(server.stderr())


def test_a_port_in_use_is_said_and_fatal(embedded: Instance) -> None:
    with embedded.server() as server:
        port = server.url.rsplit(":", 1)[1]
        done = run("serve", "--data", embedded.data, "--port", port, check=False)
        assert done.returncode == 2
        said = f"cannot listen on port {port} of 127.0.0.1: another process listens there: end it, or use --port"
        assert done.stderr == f"muniment-server: {said}\n"
        with client(server.url) as http:
            assert http.post("/entries", content=b'{"a":1}', headers=JSON).status_code == 201


def test_a_restart_keeps_head_checkpoint_and_receipts(instance: Instance) -> None:
    verifier = Verifier(instance.policy)
    with instance.server() as server, client(server.url) as http:
        first = [http.post("/entries", content=json.dumps({"n": n}), headers=JSON) for n in range(5)]
        http.post("/logs/raw/entries/batch", content=bundle(*(b"%d" % n for n in range(300))))
        leaf = http.post("/logs/raw/entries", content=b"7").json()["index"]
        once = JSON | {"Idempotency-Key": "once"}
        paid = http.post("/entries", content=b'{"pay":1}', headers=once)
        notes = {prefix: published(http, prefix, size) for prefix, size in (("", 7), ("/logs/raw", 301))}
        sizes = {prefix: head_size(http, prefix) for prefix in notes}
    with instance.server() as server, client(server.url) as http:
        for prefix, note in notes.items():
            assert http.get(f"{prefix}/checkpoint").text == note
            assert head_size(http, prefix) == sizes[prefix]
            assert verifier.checkpoint(note).size == sizes[prefix]
        for n, receipt in enumerate(first):
            assert verifier.receipt(receipt).opened == {"n": n}
        verifier.consistent(http, "", DEFAULT.origin)
        assert http.post("/logs/raw/entries", content=b"7").json()["index"] == leaf
        again = http.post("/entries", content=b'{"pay":1}', headers=once)
        assert (again.status_code, again.headers["location"]) == (200, paid.headers["location"])
        assert verifier.receipt(again).opened == {"pay": 1}
        expect_problem(http.post("/entries", content=b'{"pay":2}', headers=once), 422, "idempotency_mismatch")
    fsck(instance)


# --- read-only ----------------------------------------------------------------------------------------------------------


def test_a_reader_beside_the_writer(instance: Instance) -> None:
    """It follows what is published, refuses to write, serves every read, and goes on when the writer is gone."""
    verifier = Verifier(instance.policy)
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05"}
    with instance.server("--read-only") as reader, client(reader.url) as read:
        with instance.server(env=env) as writer, client(writer.url) as write:
            last = 0
            for number in range(12):
                receipt = write.post("/entries", content=json.dumps({"n": number}), headers=JSON)
                size = verifier.receipt(receipt).checkpoint.size
                published(read, "", size)
                for http in (read, write):
                    seen = verifier.checkpoint(http.get("/checkpoint").text).size
                    assert seen >= last
                    last = seen
                index = receipt.json()["index"]
                assert verifier.receipt(read.get(f"/entries/{index}/receipt")).opened == {"n": number}
                verifier.inclusion(read.get(f"/proof/inclusion?index={index}").json())
            refused = read.post("/entries", content=b'{"a":1}', headers=JSON)
            assert "writer" in expect_problem(refused, 503, "read_only")["hint"]
            assert int(refused.headers["retry-after"]) > 0
            expect_problem(read.post("/entries/batch", content=ndjson({"a": 1}), headers=NDJSON), 503, "read_only")
            plain = read.post("/logs/raw/add", content=b"x")
            assert (plain.status_code, plain.headers["content-type"]) == (503, "text/plain; charset=utf-8")
            assert int(plain.headers["retry-after"]) > 0
            verdict = read.post("/verify", content=receipt.content, headers=JSON).json()
            assert verdict["verified"] is True, verdict
            ready = read.get("/readyz")
            assert (ready.status_code, ready.json()["writes"]) == (200, {"default": False, "raw": False})
        verifier.consistent(read)
        assert audit(read, instance.policy).checkpoint.size == 13
        assert free_of_tracebacks(reader.stderr() + writer.stderr())


READS = [
    "/checkpoint",
    "/checkpoints",
    "/log",
    "/entries?start=200&limit=100",
    "/entries/299",
    "/entries/299/receipt",
    "/proof/inclusion?index=0",
    "/proof/inclusion?index=299",
    "/proof/inclusion?index=300",
    "/proof/inclusion?index=301",
    "/proof/inclusion?index=7&tree_size=256",
    "/proof/consistency?first=255",
    "/tile/0/000",
    "/tile/0/001.p/45",
    "/tile/0/001.p/46",
    "/tile/1/000.p/1",
    "/tile/entries/000",
    "/tile/entries/001.p/45",
]


def test_readers_and_the_writer_give_the_same_answers(instance: Instance) -> None:
    """Byte for byte, from the database and then from memory; and after the log grew, no later than a reader may follow."""
    env = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05"}
    batches = {"": (ndjson(*({"n": n} for n in range(300))), NDJSON), "/logs/raw": (bundle(*LEAVES), {})}
    with ExitStack() as stack:
        servers = [stack.enter_context(instance.server(*flags, env=env)) for flags in ((), READER, READER)]
        https = [stack.enter_context(client(server.url)) for server in servers]
        for prefix, (body, headers) in batches.items():
            assert https[0].post(f"{prefix}/entries/batch", content=body, headers=headers).status_code == 201
            same_answers(https, prefix, 301)
            assert https[0].post(f"{prefix}/entries", content=b'{"last":1}', headers=JSON).status_code == 201
            same_answers(https, prefix, 302)


def same_answers(https: list[httpx.Client], prefix: str, size: int) -> None:
    for http in https:
        published(http, prefix, size)
    for url in READS:  # a reader follows a little later
        until(lambda url=url: len(answers_to(https, prefix + url)) == 1, prefix + url)
    for url in READS:
        answers = answers_to(https, prefix + url)
        assert len(answers) == 1, (prefix + url, answers)


def answers_to(https: list[httpx.Client], url: str) -> set[tuple[int, bytes]]:
    """Ask each of them twice."""
    return {(found.status_code, found.content) for http in https for found in (http.get(url), http.get(url))}


READER = ("--read-only",)
LEAVES = [b"leaf %d" % number for number in range(300)]


def test_a_reader_holds_no_key_and_no_guard(embedded: Instance, tmp_path: Path) -> None:
    """What a reader on another host has: the database and the policy."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(embedded.data / "policy", elsewhere)
    for file in embedded.data.glob("muniment.sqlite*"):
        shutil.copy(file, elsewhere)
    other = Instance(elsewhere, None, Policy.read(elsewhere / "policy"))
    with other.server("--read-only") as reader, client(reader.url) as http:
        assert audit(http, embedded.policy).checkpoint.size == 1


def test_reads_work_without_the_signing_key(embedded: Instance) -> None:
    """No route signs: a missing key stops appends, not proofs."""
    with embedded.server() as server, client(server.url) as http:
        before = http.get("/checkpoint").text
    (embedded.data / "keys" / "default.key").unlink()
    with embedded.server() as server, client(server.url) as http:
        assert http.get("/checkpoint").text == before
        assert http.get("/proof/inclusion?index=0").status_code == 200
        assert http.get("/readyz").json()["problems"] == {"default": "key_unreadable"}
        refused = http.post("/entries", content=b'{"a":1}', headers=JSON)
        expect_problem(refused, 503, "key_unreadable")
        assert "default.key" not in refused.text, "names of files are for the operator"
        assert "default.key" in server.stderr()


# --- logs made while serving --------------------------------------------------------------------------------------------


def test_a_log_created_while_serving(instance: Instance) -> None:
    with (
        instance.server() as server,
        instance.server("--read-only") as reader,
        client(server.url) as http,
        client(reader.url) as read,
    ):
        expect_problem(http.post("/logs/late/entries", content=b"x"), 404, "unknown_log")
        origin = f"{DEFAULT.origin}/late"
        words = ("log", "create", "late", "--data", instance.data, "--origin", origin, "--kind", "raw")
        run(*words, database=instance.database)
        policy = Policy.read(instance.data / "policy")
        assert len(policy.logs) == 3
        until(lambda: http.get("/logs/late/log").status_code != 404)
        answer = http.post("/logs/late/entries", content=b"first")
        assert answer.status_code == 201
        found = Verifier(policy).receipt(answer)
        assert (found.checkpoint.origin, found.index) == (origin, 1)
        published(http, "/logs/late", 2)
        until(lambda: read.get("/logs/late/log").status_code != 404)
        assert audit(read, policy, "/logs/late").leaves[1] == b"first"
        run(*words, database=instance.database)  # a repetition changes nothing
        assert http.post("/logs/late/add", content=b"second").text == "2"
        assert http.get("/readyz").json()["writes"] == {"default": True, "raw": True, "late": True}
    fsck(instance)


def test_a_log_whose_creation_crashed_takes_no_entries_before_its_genesis(embedded: Instance) -> None:
    """The row is there, the genesis is not: index 0 belongs to the genesis, whoever finds the log first."""
    origin = f"{DEFAULT.origin}/half"
    with embedded.server() as server, client(server.url) as http:
        words = ("log", "create", "half", "--data", embedded.data, "--origin", origin, "--kind", "raw")
        _half_a_log(embedded, origin)
        time.sleep(1.1)
        before = http.post("/logs/half/entries", content=b"too early")
        assert before.status_code in (404, 503), before.text
        assert http.get("/readyz").status_code == 200, "the other logs are fine"
        run(*words)
        until(lambda: http.post("/logs/half/entries", content=b"in time").status_code in (200, 201))
        assert http.post("/logs/half/entries", content=b"in time").json()["index"] == 1
        genesis = http.get("/logs/half/entries/0").json()
        assert genesis["typ"] == "muniment/genesis@v1"


def _half_a_log(instance: Instance, origin: str) -> None:
    """What `log create` leaves when it is killed right after its row: key, guard and row, but no genesis."""

    async def work(settings: Any, store: Any) -> None:
        key = SigningKey.generate(origin)
        guarded = Guard(settings.guard_file("half")).create(origin, key.vkey.key_id)
        write_new(settings.key_file("half"), key.reveal() + "\n", 0o600)
        row = LogRow(0, "half", origin, "raw", public=True, open=False, created_at=time.time_ns() // 1_000_000)
        await store.catalog.create_log(row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))

    in_store(instance, work)


# --- refused by the guard -----------------------------------------------------------------------------------------------


def refuses_to_write(server: LiveServer, instance: Instance, code: str, size: int) -> None:
    """The reads of a log that the guard refuses are served; its writes say why not."""
    with client(server.url) as http:
        found = http.post("/entries", content=b'{"a":1}', headers=JSON)
        value = expect_problem(found, 503, code)
        assert int(found.headers["retry-after"]) > 0
        assert len(value["hint"]) > 20
        assert audit(http, instance.policy).checkpoint.size == size
        Verifier(instance.policy).receipt(http.get("/entries/0/receipt"))
        ready = http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["writes"] == {"default": False, "raw": True}
        assert ready.json()["problems"] == {"default": code}
        assert http.post("/logs/raw/add", content=b"the other log").text == "1"
        assert head_size(http) == size
    errors = [json.loads(line) for line in server.stderr().splitlines()]
    assert any(line.get("code") == code and line["level"] == "error" for line in errors)


def test_an_old_copy_of_the_database_is_read_but_not_written(embedded: Instance) -> None:
    """A restored backup: one signature would fork the log."""
    with embedded.server() as server, client(server.url) as http:
        http.post("/entries", content=b'{"n":1}', headers=JSON)
        published(http, "", 2)
    backup = embedded.data.with_name("backup")
    shutil.copytree(embedded.data, backup)
    with embedded.server() as server, client(server.url) as http:
        later = http.post("/entries", content=b'{"n":2}', headers=JSON)
    for file in embedded.data.glob("muniment.sqlite*"):
        file.unlink()
    for file in backup.glob("muniment.sqlite*"):
        shutil.copy(file, embedded.data)
    with embedded.server() as server:
        refuses_to_write(server, embedded, "database_behind", 2)
    assert Verifier(embedded.policy).receipt(later).checkpoint.size == 3


def test_without_its_guard_a_log_is_read_but_not_written(embedded: Instance) -> None:
    guard = embedded.data / "guard" / "default.guard"
    kept = guard.read_bytes()
    guard.unlink()
    with embedded.server() as server:
        refuses_to_write(server, embedded, "guard_missing", 1)
    guard.write_bytes(kept)
    with embedded.server() as server, client(server.url) as http:
        assert http.post("/entries", content=b'{"a":1}', headers=JSON).status_code == 201


def test_the_guard_of_another_log_is_refused(embedded: Instance) -> None:
    shutil.copy(embedded.data / "guard" / "raw.guard", embedded.data / "guard" / "default.guard")
    with embedded.server() as server:
        refuses_to_write(server, embedded, "guard_foreign", 1)


# --- metrics ------------------------------------------------------------------------------------------------------------


def samples(url: str) -> dict[tuple[str, ...], float]:
    """(name, label values...) -> value, of a metrics page."""
    page = httpx.get(url, trust_env=False, verify=False)
    assert page.status_code == 200
    found = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "le"]
            assert not sample.name.endswith("_created")
            if not sample.name.endswith("_bucket"):
                found[sample.name, *labels] = sample.value
    return found


def test_metrics_count_what_happened(embedded: Instance) -> None:
    port = free_port()
    with embedded.server(env={"MUNIMENT_SERVER_METRICS_PORT": str(port)}) as server, client(server.url) as http:
        http.post("/logs/raw/add", content=b"a")
        http.post("/logs/raw/add", content=b"a")
        http.post("/logs/raw/entries/batch", content=bundle(b"b", b"c", b"a"))
        for _ in range(2):
            http.post("/entries", content=b'{"n":1}', headers=JSON | {"Idempotency-Key": "k"})
        http.post("/entries", content=b"{}", headers=JSON)
        http.get("/tile/0/009")
        http.get("/logs/nope/log")
        published(http, "/logs/raw", 4)
        found = samples(f"http://127.0.0.1:{port}/metrics")
        assert http.get("/metrics").status_code == 404, "metrics have a port of their own"
    assert found["muniment_appends_total", "raw", "new"] == 3
    assert found["muniment_appends_total", "raw", "known"] == 2
    assert found["muniment_appends_total", "default", "new"] == 1
    assert found["muniment_appends_total", "default", "replayed"] == 1
    assert found["muniment_head_size", "raw"] == found["muniment_published_size", "raw"] == 4
    assert found["muniment_queue_depth", "raw"] == 0
    assert found["muniment_writable", "default"] == found["muniment_writable", "raw"] == 1
    assert found["muniment_refused_total", "default", "empty_event"] == 1
    assert found["muniment_refused_total", "", "unknown_log"] == 1
    assert found["muniment_batch_entries_sum", "raw"] == 3
    assert found["muniment_commit_seconds_count", "raw"] >= 2
    assert found["muniment_request_seconds_count", "raw", "POST /add", "200"] == 2
    assert found["muniment_request_seconds_count", "default", "POST /entries", "201"] == 1
    assert found["muniment_request_seconds_count", "default", "POST /entries", "200"] == 1
    assert found["muniment_request_seconds_count", "default", "POST /entries", "422"] == 1
    assert found["muniment_request_seconds_count", "default", "GET /tile/{path:path}", "404"] == 1
    assert found["muniment_guard_refusals_total", "raw"] == 0
    assert 1 <= found["muniment_database_seconds_count", "raw"] <= found["muniment_commit_seconds_count", "raw"]


def test_labels_come_from_the_server_and_never_from_a_client(embedded: Instance) -> None:
    """Otherwise a client that invents paths, logs and methods would fill the memory of server and Prometheus."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    # Scrubbing is off: its first pass adds metrics of its own, some time after the start.
    env = {"MUNIMENT_SERVER_METRICS_PORT": str(port), "MUNIMENT_SERVER_SCRUB_RATE": "0"}
    with embedded.server(env=env) as server, client(server.url) as http:
        http.get("/logs/nope-0/log")
        http.get("/entries/1000000")
        before = set(samples(url))
        for number in range(50):
            http.get(f"/logs/nope-{number}/log")
            http.get(f"/entries/{10**6 + number}")
            http.get(f"/nope/{number}")
            http.request("PROPFIND", f"/log?{number}")
        assert {name for name in set(samples(url)) - before if "405" not in name} == set()


# --- log lines ----------------------------------------------------------------------------------------------------------

INJECTIONS = [
    "a\r\nb",
    '\n{"event":"forged","level":"error"}\n',
    "\x1b[31mred\x1b[0m",
    "\u2028\u2029",
    "\x85\x0b\x0c",
    "\x00",
    "\x9b31m",
]


def test_every_event_is_one_json_line(embedded: Instance) -> None:
    """Whatever clients put into headers, paths, parameters and bodies: no line is forged, none is without structure."""
    every = {"MUNIMENT_SERVER_LOG_LEVEL": "debug", "MUNIMENT_SERVER_ACCESS_LOG": "true"}
    with embedded.server(env=every) as server:
        for text in INJECTIONS:
            value = text.encode()
            escaped = "".join(f"%{byte:02x}" for byte in value)
            for target in (
                f"/entries/{escaped}",
                f"/logs/{escaped}/log",
                f"/tile/{escaped}",
                f"/{escaped}",
                f"/entries?{escaped}={escaped}",
            ):
                assert statuses(exchange(server.url, _request(f"GET {target}")))[0] in (400, 404)
            for header in (
                "Idempotency-Key",
                "Authorization",
                "User-Agent",
                "Content-Type",
                "Host",
                "X-Request-Id",
                "Accept",
            ):
                for encoded in (value, escaped.encode(), text.encode("latin-1", "replace")):
                    received = exchange(server.url, _request("POST /entries", (header.encode(), encoded)))
                    assert statuses(received)[0] < 500
            body = json.dumps({"a": text, "b": text[::-1]}).encode()
            exchange(server.url, request_bytes("POST", "/entries", body, JSON | {"Connection": "close"}))
        exchange(server.url, b'\x1b[31mgarbage\n{"event":"forged"}\r\n\r\n')
        exchange(
            server.url, _request("GET /healthz", (b"Upgrade", b"websocket"), (b"Connection", b"upgrade")), answers=1
        )
        server.stop()
        output = server.stderr()
    assert "\x1b" not in output
    assert "\u2028" not in output
    lines = output.split("\n")
    assert lines.pop() == ""
    for line in lines:
        value = json.loads(line)
        assert {"event", "level", "timestamp"} <= set(value), line
        assert value["event"] != "forged"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", value["timestamp"])


def _request(line: str, *headers: tuple[bytes, bytes]) -> bytes:
    fields = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return (
        f"{line} HTTP/1.1\r\n".encode()
        + b"Host: localhost\r\nConnection: close\r\nContent-Length: 0\r\n"
        + fields
        + b"\r\n"
    )


def test_secrets_are_not_in_the_log_lines(embedded: Instance) -> None:
    made = run("key", "create", "--scope", "append", "--data", embedded.data, "--json")
    token = json.loads(made.stdout)["key"]
    secret = (embedded.data / "keys" / "default.key").read_text().strip()
    every = {"MUNIMENT_SERVER_LOG_LEVEL": "debug", "MUNIMENT_SERVER_ACCESS_LOG": "true"}
    with embedded.server(env=every) as server, client(server.url, token) as http:
        answer = http.post(
            "/entries", content=b'{"password":"hunter2"}', headers=JSON | {"Idempotency-Key": "k-secret"}
        )
        assert answer.status_code == 201
        http.post("/entries", content=b'{"password":"hunter2"', headers=JSON)
        http.get("/entries/x")
        server.stop()
        for text in (token, secret, "hunter2", "k-secret"):
            assert text not in server.stderr()


def test_console_lines_for_people(embedded: Instance) -> None:
    words = command("serve", "--data", embedded.data, "--port", "0")
    with subprocess.Popen(
        words, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as people:
        assert people.stderr
        line = next(line for line in people.stderr if "serving" in line)
        assert "http://127.0.0.1:" in line
        assert "\x1b" not in line, "colours only on a terminal"
        people.terminate()
        assert people.wait(PATIENCE) == 0


# --- many at once -------------------------------------------------------------------------------------------------------


def test_two_servers_may_start_at_the_same_time(instance: Instance) -> None:
    """Both fence the same head; one of them is second, and both write."""
    servers = [instance.server() for _ in range(2)]
    threads = [threading.Thread(target=server.wait) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        found = []
        for round_ in range(6):
            server = servers[round_ % 2]
            with client(server.url) as http:
                found.append(http.post("/entries", content=json.dumps({"n": round_}), headers=JSON).json()["index"])
        assert found == list(range(1, 7))
        assert random.choice(servers).process.poll() is None
    finally:
        for server in servers:
            assert server.stop() == 0
    fsck(instance)
