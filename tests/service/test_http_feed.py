"""GET /checkpoints/stream on real servers: order, going on, who may, slow readers, and how it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from muniment.sse import MEDIA_TYPE, CheckpointEvent, EventReader
from tests.live import PATIENCE, LiveServer, free_of_tracebacks, free_port, until
from tests.service.http_check import JSON, Verifier, client, expect_problem, published_size, refused
from tests.service.http_raw import address, request_bytes
from tests.service.http_world import DEFAULT, Instance, KeySpec, LogSpec, instance_on

LOGS = [DEFAULT, LogSpec("raw", "raw"), LogSpec("private", public=False)]
KEYS = [
    KeySpec("both", frozenset({"append", "read"})),
    KeySpec("append", frozenset({"append"})),
    KeySpec("other", frozenset({"read"}), log="raw"),
]
PATH = "/checkpoints/stream"
QUICK = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.005"}


class Reader:
    """One who follows a log."""

    def __init__(self, url: str, path: str = PATH, after: object = None, key: str | None = None) -> None:
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, headers=headers)
        self._answer = self._http.send(self._http.build_request("GET", path), stream=True)
        assert self._answer.status_code == 200, self._answer.read()
        self.headers = self._answer.headers
        self._parts = self._answer.iter_raw()
        self._reader = EventReader()
        self._ready: list[CheckpointEvent] = []

    def take(self, count: int) -> list[CheckpointEvent]:
        """The next events."""
        while len(self._ready) < count:
            self._ready += self._reader.read(next(self._parts))
        found, self._ready = self._ready[:count], self._ready[count:]
        return found

    def sizes(self, count: int) -> list[int]:
        return [event.size for event in self.take(count)]

    def to_the_end(self) -> list[int]:
        """The sizes of all that comes until the server ends the answer, as an answer ends."""
        return [event.size for part in self._parts for event in self._reader.read(part)]

    def close(self) -> None:
        self._answer.close()
        self._http.close()


@contextmanager
def following(*args: object, **kwargs: object) -> Iterator[Reader]:
    with closing(Reader(*args, **kwargs)) as reader:  # type: ignore[arg-type]
        yield reader


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on(request.param, request, tmp_path_factory.mktemp("feed"), LOGS, KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def server(instance: Instance) -> Iterator[LiveServer]:
    with instance.server(env=QUICK) as running:
        yield running
        running.stop()
        assert free_of_tracebacks(running.stderr())


@pytest.fixture
def http(instance: Instance, server: LiveServer) -> Iterator[httpx.Client]:
    with client(server.url, instance.keys["both"]) as made:
        yield made


def grow(http: httpx.Client, prefix: str = "", times: int = 1) -> None:
    """Append and wait until it is published, so often."""
    for _ in range(times):
        raw = prefix.endswith("/raw")
        body = b"%d" % time.monotonic_ns()
        answer = http.post(
            f"{prefix}/entries", content=body if raw else b'{"n":%b}' % body, headers={} if raw else JSON
        )
        assert answer.status_code == 201
        size = answer.json()["index"] + 1
        until(lambda size=size: published_size(http, prefix) >= size)


def sizes_after(http: httpx.Client, size: int, prefix: str = "") -> list[int]:
    """What was published of a log beyond a size."""
    found: list[int] = []
    start: int | None = size + 1
    while start is not None:
        page = http.get(f"{prefix}/checkpoints", params={"start": start, "limit": 1000}).json()
        found, start = found + [one["size"] for one in page["checkpoints"]], page["next"]
    return found


# --- what comes -------------------------------------------------------------------------------------------------------


def test_the_latest_at_once_and_then_each_that_is_published(
    instance: Instance, server: LiveServer, http: httpx.Client
) -> None:
    grow(http, times=2)
    latest = http.get("/checkpoint").text
    with following(server.url) as reader:
        assert reader.headers["content-type"] == MEDIA_TYPE
        assert reader.headers["cache-control"] == "no-cache"
        assert reader.headers["x-accel-buffering"] == "no"
        assert reader.headers["access-control-allow-origin"] == "*"
        first = reader.take(1)[0]
        assert first.note == latest
        grow(http, times=5)
        wanted = sizes_after(http, first.size)
        assert len(wanted) >= 5
        for event, size in zip(reader.take(len(wanted)), wanted, strict=True):
            signed = Verifier(instance.policy).checkpoint(event.note)
            assert (event.size, signed.size) == (size, size)


@pytest.mark.parametrize("prefix", ["", "/v1/logs/default", "/logs/raw", "/logs/private"])
def test_it_goes_on_where_it_was_cut(instance: Instance, server: LiveServer, http: httpx.Client, prefix: str) -> None:
    plain = prefix.removeprefix("/v1")
    key = instance.keys["both"]
    last, found = 0, []
    grow(http, plain, times=3)
    for _ in range(3):
        with following(server.url, prefix + PATH, last, key) as reader:
            found += reader.sizes(2)
            grow(http, plain)
            found += reader.sizes(1)
        last = found[-1]
        grow(http, plain)
    assert found == sizes_after(http, 0, plain)[: len(found)]


def test_behind_sizes_that_were_never_published(server: LiveServer, http: httpx.Client) -> None:
    grow(http, times=2)
    answer = http.post("/entries/batch", content=b'{"a":1}\n' * 9, headers={"Content-Type": "application/x-ndjson"})
    until(lambda: published_size(http) >= answer.json()["indices"][-1][1])
    grow(http)
    known = sizes_after(http, 0)
    missing = next(size for size in range(1, known[-1]) if size not in known)
    with following(server.url, after=missing) as reader:
        wanted = [size for size in known if size > missing]
        assert reader.sizes(len(wanted)) == wanted


@pytest.mark.parametrize("ahead", [0, 3, 2**63 - 1])
def test_above_the_head_nothing_comes_until_the_log_is_there(
    server: LiveServer, http: httpx.Client, ahead: int
) -> None:
    """A server that is behind another one has less than a reader has seen there. That is no error."""
    size = published_size(http)
    after = min(size + ahead, 2**63 - 1)
    with following(server.url, after=after) as reader:
        grow(http, times=5)
        if ahead < 5:
            wanted = sizes_after(http, after)
            assert reader.sizes(len(wanted)) == wanted


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "-1",
        "+1",
        "1 1",
        "1.0",
        "01",
        "0x1",
        "1e3",
        "9223372036854775808",
        "9" * 5000,
        "1, 2",
        "\xb2",
        '"1"',
        "1\t2",
    ],
)
def test_an_id_that_is_no_size_is_refused(http: httpx.Client, value: str) -> None:
    answer = http.get(PATH, headers=[("Last-Event-ID", value.encode("latin-1"))])  # type: ignore[list-item]
    expect_problem(answer, 400, "bad_parameter")


def test_two_ids_are_refused(http: httpx.Client) -> None:
    expect_problem(http.get(PATH, headers=[("Last-Event-ID", "1"), ("Last-Event-ID", "1")]), 400, "bad_parameter")


def test_of_the_head_there_is_no_body(http: httpx.Client) -> None:
    for after in ({}, {"Last-Event-ID": "0"}):
        answer = http.head(PATH, headers=after)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", MEDIA_TYPE)
        assert "content-length" not in answer.headers
    assert http.head(PATH, headers={"Last-Event-ID": "x"}).status_code == 400
    assert http.get("/healthz").status_code == 200, "on the same connection"


# --- who may ----------------------------------------------------------------------------------------------------------


def test_who_may_not_see_the_log_does_not_follow_it(instance: Instance, server: LiveServer) -> None:
    with client(server.url) as http:
        expect_problem(http.get(f"/logs/private{PATH}"), 401, "unauthorized")
        expect_problem(http.get(f"/logs/nowhere{PATH}"), 401, "unauthorized")
    with client(server.url, instance.keys["other"]) as http:
        expect_problem(http.get(f"/logs/private{PATH}"), 404, "unknown_log")
    with client(server.url, instance.keys["append"]) as http:
        expect_problem(http.get(f"/logs/private{PATH}"), 403, "forbidden")
    with following(server.url, f"/logs/private{PATH}", key=instance.keys["both"]) as reader:
        assert "access-control-allow-origin" not in reader.headers
        assert len(reader.take(1)) == 1


def test_two_logs_are_two_feeds(instance: Instance, server: LiveServer, http: httpx.Client) -> None:
    with following(server.url) as one, following(server.url, f"/logs/raw{PATH}") as other:
        for reader, prefix, log in ((one, "", "default"), (other, "/logs/raw", "raw")):
            last = reader.take(1)[0]
            for _ in range(3):
                grow(http, prefix)
                last = reader.take(1)[0]
                assert last.note.startswith(next(spec.origin for spec in LOGS if spec.name == log) + "\n")
            assert last.size == published_size(http, prefix)


# --- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_that_only_reads(instance: Instance, server: LiveServer, http: httpx.Client) -> None:
    grow(http, times=3)
    with instance.server("--read-only") as second, following(second.url, after=0) as old, following(second.url) as new:
        known = sizes_after(http, 0)
        assert old.sizes(len(known)) == known
        first = new.sizes(1)[0]
        grow(http, times=4)
        for reader, after in ((old, known[-1]), (new, first)):
            wanted = sizes_after(http, after)
            assert reader.sizes(len(wanted)) == wanted


@pytest.fixture
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instance]:
    """An instance on SQLite whose log has published enough to fill every buffer on the way to a client."""
    with instance_on("sqlite", request, tmp_path) as made:
        yield made


def fill(url: str) -> None:
    """Publish so much that what a stream sends of it does not fit into the buffers of a connection."""
    with client(url) as http:
        for size in range(2, 350):
            assert http.post("/entries", content=b'{"a":1}', headers=JSON).status_code == 201
            deadline = time.monotonic() + PATIENCE
            while published_size(http) < size:
                assert time.monotonic() < deadline


@contextmanager
def deaf(url: str) -> Iterator[socket.socket]:
    """A client that asks for all checkpoints, and reads nothing."""
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(PATIENCE)
        connection.connect(address(url))
        connection.sendall(request_bytes("GET", PATH, headers={"Last-Event-ID": "0"}))
        yield connection


def test_a_subscriber_that_hardly_reads_harms_none_and_is_cut(own: Instance) -> None:
    port = free_port()
    env = {"MUNIMENT_SERVER_CLIENT_SECONDS": "1", "MUNIMENT_SERVER_METRICS_PORT": str(port)}
    with own.server(env=QUICK | env) as server, client(server.url) as http:
        fill(server.url)
        with deaf(server.url) as connection, following(server.url) as reader:
            seen = reader.sizes(1)

            def cut() -> bool:
                connection.recv(1)
                grow(http)
                seen.extend(reader.sizes(1))
                return refused(port).get("slow_reader", 0) == 1

            until(cut)
            assert seen == sizes_after(http, seen[0] - 1)[: len(seen)]
            assert ended(connection)


def ended(connection: socket.socket) -> bool:
    """Tell whether the server ends a connection, in whatever way."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


def test_when_the_server_stops_every_stream_ends(own: Instance) -> None:
    """As an answer ends, for all who read; one that does not read is not waited for."""
    env = {"MUNIMENT_SERVER_CLIENT_SECONDS": "600", "MUNIMENT_SERVER_SHUTDOWN_SECONDS": "8"}
    with own.server(env=QUICK | env) as server:
        fill(server.url)
        with following(server.url) as live, following(server.url, after=2**63 - 1) as idle, deaf(server.url) as slow:
            assert live.sizes(1)
            time.sleep(0.3)  # until the buffers of the one that does not read are full
            server.stop()
            assert live.to_the_end() == idle.to_the_end() == []
            assert ended(slow)
        assert free_of_tracebacks(server.stderr())
        assert "exceeded" not in server.stderr(), "it waited for as long as shutdown_seconds"
        assert "without completing" not in server.stderr()


def test_a_client_that_leaves_is_forgotten_at_once(own: Instance) -> None:
    port = free_port()
    with own.server(env={"MUNIMENT_SERVER_METRICS_PORT": str(port)}) as server:
        with following(server.url) as stays:
            stays.sizes(1)
            for _ in range(3):
                with following(server.url) as reader:
                    reader.sizes(1)
                    until(lambda: subscribers(port) == 2)
                until(lambda: subscribers(port) == 1)
        until(lambda: subscribers(port) == 0)
        assert free_of_tracebacks(server.stderr())
        assert "without completing" not in server.stderr()


def subscribers(port: int) -> float:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    return float(next(line for line in text.split("\n") if line.startswith("muniment_subscribers{")).split(" ")[1])


def test_those_who_follow_keep_no_others_out(own: Instance) -> None:
    """They give way to new connections, the first who came first: they can go on later."""
    with own.server(env={"MUNIMENT_SERVER_MAX_CONNECTIONS": "4"}) as server:
        readers = [Reader(server.url) for _ in range(4)]
        for reader in readers:
            reader.sizes(1)
        with client(server.url) as http:
            assert http.get("/healthz").status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):
                readers[0].to_the_end()
            grow(http)
        for reader in readers[1:]:
            assert reader.sizes(1) == [2]
        for reader in readers:
            reader.close()
        assert "without completing" not in server.stderr()
