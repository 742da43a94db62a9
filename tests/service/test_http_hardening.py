"""Clients that are slow, silent or too many: each is cut off in time, is told why where HTTP allows, and nobody else notices.

The server of this module gives its clients 0.6 seconds where others give 10.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httptools
import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.protocols.http import httptools_impl

from muniment_server import settings as settings_module
from muniment_server.cli import serve
from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics
from muniment_server.web.http import protocol
from muniment_server.web.http.connections import Connections, Rank
from muniment_server.web.problems import CODES
from muniment_server.web.room import peer_of
from tests.live import PATIENCE, LiveServer, free_of_tracebacks, free_port, until
from tests.service.http_check import JSON, bundle, client, head_size, refused
from tests.service.http_raw import address, exchange, request_bytes, statuses, whole
from tests.service.http_world import DEFAULT, RAW, Instance, instance_on

SECONDS = 0.6
IDLE = 0.9
CUT = PATIENCE  # by then it is cut off, however busy the machine
MOST = 60
EVENT = b'{"a":1}'
LARGE = 255 * 60_000


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("hard"), (DEFAULT, RAW)) as made:
        yield made


@pytest.fixture(scope="module")
def server(instance: Instance, metrics_port: int) -> Iterator[LiveServer]:
    environment = {
        "CLIENT_SECONDS": str(SECONDS),
        "KEEP_ALIVE_SECONDS": str(IDLE),
        "MAX_CONNECTIONS": str(MOST),
        "METRICS_PORT": str(metrics_port),
    }
    with instance.server(env={f"MUNIMENT_SERVER_{name}": value for name, value in environment.items()}) as running:
        with client(running.url) as http:
            leaves = (bytes([n]) * 60_000 for n in range(256))
            assert http.post("/logs/raw/entries/batch", content=bundle(*leaves)).status_code == 201
        yield running
        running.stop()
        assert free_of_tracebacks(running.stderr())


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with client(server.url) as made:
        yield made


@contextmanager
def counted(port: int, reason: str, times: int = 1) -> Iterator[None]:
    """Check that the block is counted as this reason and no other."""
    before = refused(port)
    yield
    after = refused(port)
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)} == {
        reason: times
    }


def trickle(url: str, first: bytes, drop: bytes, every: float = 0.05) -> tuple[bytes, float]:
    """Send `first`, then `drop` again and again until the server closes. Return what it said, and after how many seconds it closed."""
    received, started = b"", time.monotonic()
    with socket.create_connection(address(url), timeout=every) as connection:
        connection.sendall(first)
        while time.monotonic() - started < CUT:
            try:
                part = connection.recv(65536)
                received += part
                if not part:
                    break
            except TimeoutError:
                connection.sendall(drop) if drop else None
            except ConnectionError:
                break
    return received, time.monotonic() - started


def problem(received: bytes) -> dict[str, Any]:
    """The last answer in what was received."""
    found: dict[str, Any] = json.loads(received.rpartition(b"\r\n\r\n")[2])
    assert found["title"] == CODES[found["code"]].title
    assert found["hint"]
    return found


HEAD = b"POST /entries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = request_bytes("POST", "/entries", EVENT, JSON)


# --- what does not come -------------------------------------------------------------------------------------------------


def test_a_connection_that_says_nothing(server: LiveServer, metrics_port: int) -> None:
    with counted(metrics_port, "silent"):
        received, seconds = trickle(server.url, b"", b"")
    assert not received
    assert SECONDS / 2 < seconds < CUT


@pytest.mark.parametrize("before", [b"", GOOD, GOOD + GOOD], ids=["at first", "after a request", "after two"])
def test_a_header_that_trickles(server: LiveServer, metrics_port: int, http: httpx.Client, before: bytes) -> None:
    """However much comes in however small parts: the header has one deadline. Answers before it are not lost."""
    size, answers = head_size(http), before.count(b"POST")
    with counted(metrics_port, "header_timeout"):
        received, seconds = trickle(server.url, before + HEAD + b"X: ", b"y")
    assert statuses(received) == [201] * answers + [408]
    assert problem(received)["code"] == "request_timeout"
    assert SECONDS / 2 < seconds < CUT
    assert head_size(http) == size + answers


def test_empty_lines_are_no_request(server: LiveServer) -> None:
    """The parser skips them without a word, and uvicorn's own timer would start again with each."""
    for before in (b"", request_bytes("GET", "/healthz")):
        received, seconds = trickle(server.url, before, b"\r\n")
        assert statuses(received) == [200] * bool(before)
        assert seconds < CUT


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"{"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (HEAD + b"Content-Length: 60000\r\n\r\n" + b" " * 50_000, b" "),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
        (HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n", b""),
    ],
    ids=["length", "chunked", "a chunk size that never ends", "most of it at once", "none of it", "expect"],
)
def test_a_body_that_trickles(
    server: LiveServer, metrics_port: int, http: httpx.Client, head: bytes, drop: bytes
) -> None:
    size = head_size(http)
    with counted(metrics_port, "body_timeout"):
        received, seconds = trickle(server.url, head, drop)
    assert statuses(received)[-1] == 408
    assert problem(received)["code"] == "request_timeout"
    assert seconds < CUT
    assert head_size(http) == size


class Pace:
    """Rests of a client. `kept` says whether none took so long, on a busy machine, that the server may cut it off."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.kept = True

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)
        now = time.monotonic()
        self.kept = self.kept and now - self._last < SECONDS / 2
        self._last = now


def served_to_the_honest(play: Callable[[Pace], bool]) -> None:
    """Check that a client is served to the end if it keeps its pace; one that could not plays again."""
    for _ in range(20):
        pace, served = Pace(), False
        with suppress(ConnectionError):
            served = play(pace)
        if served:
            return
        assert not pace.kept, "it was cut off"
    pytest.skip("this machine is too busy to be slow on purpose")


def test_a_slow_but_honest_client(server: LiveServer, http: httpx.Client) -> None:
    """32 KiB a second for three times the deadline, with pauses: taken."""
    body = b'{"a":"%b"}' % (b"x" * 60_000)
    parts = [body[at : at + 8192] for at in range(0, len(body), 8192)]

    def send(pace: Pace) -> bool:
        with socket.create_connection(address(server.url), timeout=PATIENCE) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
            for part in parts:
                pace.rest(3 * SECONDS / len(parts))
                connection.sendall(part)
            return statuses(connection.recv(65536)) == [201]

    served_to_the_honest(send)


def test_an_idle_connection_is_closed_without_a_word(server: LiveServer, metrics_port: int) -> None:
    before = refused(metrics_port)
    received, seconds = trickle(server.url, request_bytes("GET", "/healthz"), b"")
    assert statuses(received) == [200]
    assert IDLE / 2 < seconds < CUT
    assert refused(metrics_port) == before, "the usual end of a connection is no refusal"


def test_a_body_that_goes_on_after_its_refusal(server: LiveServer, metrics_port: int, http: httpx.Client) -> None:
    """The answer is there at once; then the rest is dropped, but not for ever."""
    size = head_size(http)
    with counted(metrics_port, "body_timeout"):
        received, seconds = trickle(server.url, HEAD + b"Content-Length: 1000000000\r\n\r\n", b" " * 16_384, 0.01)
    assert statuses(received) == [413]
    assert seconds < CUT
    assert head_size(http) == size


# --- what is not read ---------------------------------------------------------------------------------------------------


@contextmanager
def asking(url: str, receive_buffer: int = 4096) -> Iterator[socket.socket]:
    """A connection that asked for 15 MB, with a buffer that does not hold them."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(PATIENCE)
        connection.connect(address(url))
        connection.sendall(request_bytes("GET", "/logs/raw/tile/entries/000"))
        yield connection


def test_an_answer_that_is_not_read(server: LiveServer, metrics_port: int) -> None:
    before = refused(metrics_port).get("slow_reader", 0)

    def both_are_cut() -> bool:
        with suppress(ConnectionError):
            connection.recv(64)  # a little, again and again: less than the least rate
        time.sleep(0.1)
        return refused(metrics_port).get("slow_reader", 0) >= before + 2

    with counted(metrics_port, "slow_reader", 2), asking(server.url), asking(server.url) as connection:
        until(both_are_cut)


def test_a_slow_but_honest_reader(server: LiveServer) -> None:
    """One that takes longer than the deadlines, the one of idle connections too, gets all of it."""

    def read(pace: Pace) -> bool:
        size, started = 0, time.monotonic()
        with asking(server.url, 1 << 18) as connection:
            while size < LARGE and (part := connection.recv(1 << 18)):
                size += len(part)
                pace.rest((IDLE + SECONDS + 1) * len(part) / LARGE)
        return size > LARGE and time.monotonic() - started > IDLE + SECONDS

    served_to_the_honest(read)


# --- what is too much ---------------------------------------------------------------------------------------------------


PARTLY = HEAD + b"Content-Length: 60000\r\n\r\n"


def crowd(stack: ExitStack, url: str, data: bytes, count: int = MOST) -> list[socket.socket]:
    """Connections on which this was sent, and nothing is read."""
    found = []
    for _ in range(count):
        found.append(stack.enter_context(socket.create_connection(address(url), timeout=PATIENCE)))
        found[-1].sendall(data)
    return found


def closed(connection: socket.socket) -> bool:
    """Tell whether the server has closed a connection."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


HEALTH = request_bytes("GET", "/healthz")


@pytest.fixture(scope="module")
def patient(instance: Instance) -> Iterator[LiveServer]:
    """A server that has place for as many, and closes nothing because of time."""
    settings = {"MAX_CONNECTIONS": MOST, "CLIENT_SECONDS": 600, "KEEP_ALIVE_SECONDS": 600}
    with instance.server(env={f"MUNIMENT_SERVER_{name}": str(value) for name, value in settings.items()}) as running:
        yield running


def test_too_many_connections(instance: Instance) -> None:
    """When all of them wait for the server, a new one is told so, and closed."""
    metrics_port = free_port()
    settings = {"MAX_CONNECTIONS": "20", "MAX_QUEUE_SECONDS": "60", "METRICS_PORT": str(metrics_port)}
    environment = {f"MUNIMENT_SERVER_{name}": value for name, value in settings.items()}
    server = instance.server(env=environment | {"MUNIMENT_FAILPOINTS": "store.append=hang-before"}).wait()
    try:
        with ExitStack() as stack:
            waiting = crowd(stack, server.url, GOOD, 20)
            with counted(metrics_port, "too_many", 3):
                for _ in range(3):
                    received = exchange(server.url, b"")
                    assert statuses(received) == [503]
                    assert problem(received)["code"] == "too_many_connections"
                    assert b"\r\nretry-after: 1\r\n" in received.lower()
            assert not any(closed(connection) for connection in waiting)
            waiting[0].close()
            until(lambda: statuses(exchange(server.url, HEALTH, answers=1)) == [200])
    finally:
        server.process.kill()
        server.process.wait()


CROWDS = {"silent": b"", "with half a head": HEAD, "idle": HEALTH}


@pytest.mark.parametrize("case", CROWDS)
def test_a_full_server_serves_a_new_client(patient: LiveServer, case: str) -> None:
    """A client that asked nothing, or was answered, gives way: the one of longest ago."""
    with ExitStack() as stack:
        crowded = crowd(stack, patient.url, CROWDS[case])
        if case == "idle":
            for connection in crowded:
                assert connection.recv(65536)
        for count in range(1, 4):
            new = stack.enter_context(socket.create_connection(address(patient.url), timeout=PATIENCE))
            new.sendall(HEALTH)
            assert statuses(new.recv(65536)) == [200]
            until(lambda count=count: all(closed(connection) for connection in crowded[:count]))  # type: ignore[misc]
        assert not any(closed(connection) for connection in crowded[3:])


def test_a_connection_in_use_does_not_give_way(patient: LiveServer) -> None:
    """A proxy keeps a few open, and uses them: however many others come and say nothing, or ask once, it does not notice."""
    with ExitStack() as stack:
        (used,) = crowd(stack, patient.url, b"", 1)
        for number in range(4 * MOST):
            used.sendall(HEALTH)
            received = b""
            while whole(received) < 1:
                part = used.recv(65536)
                assert part, "closed"
                received += part
            crowd(stack, patient.url, b"" if number % 2 else HEALTH, 1)


@pytest.mark.parametrize("case", ["bodies", "answers"])
def test_who_makes_no_progress_gives_way(patient: LiveServer, http: httpx.Client, case: str) -> None:
    """No client keeps others out with bodies that do not come, or answers that are not read."""
    assert http.get("/logs/raw/tile/entries/000").status_code == 200, "it is there"
    data = {"bodies": PARTLY, "answers": request_bytes("GET", "/logs/raw/tile/entries/000")}[case]
    with ExitStack() as stack:
        crowd(stack, patient.url, data)
        until(lambda: statuses(exchange(patient.url, HEALTH, answers=1)) == [200])


def test_too_many_requests_at_once(server: LiveServer, metrics_port: int, http: httpx.Client) -> None:
    one = request_bytes("GET", "/healthz")
    for count in (101, 102, 3000):
        received = exchange(server.url, one * count, answers=101 if count == 101 else 0)
        assert statuses(received) == [200] * 101 + [503] * (count > 101)
    assert problem(received)["code"] == "overloaded"
    size = head_size(http)
    received = exchange(server.url, GOOD * 150)
    assert statuses(received) == [201] * 101 + [503], "what was taken was answered, in order, before the refusal"
    assert head_size(http) == size + 101


def test_a_bad_request_never_overtakes_the_answers_before_it(server: LiveServer, http: httpx.Client) -> None:
    bad = {
        b"\x00\r\n\r\n": 400,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n": 400,
        HEAD + b"X: %b\r\n" % (b"y" * 400_000): 431,
        b"GET /%b HTTP/1.1\r\n" % (b"y" * 20_000) + b"Host: localhost\r\n\r\n": 414,
    }
    for data, status in bad.items():
        size = head_size(http)
        assert statuses(exchange(server.url, GOOD + GOOD + data)) == [201, 201, status], data[:100]
        assert head_size(http) == size + 2


def test_refusals_fill_neither_log_nor_memory(server: LiveServer, metrics_port: int) -> None:
    lines, started = server.stderr().count("\n"), time.monotonic()
    with counted(metrics_port, "bad_request", 300):
        for _ in range(300):
            assert statuses(exchange(server.url, b"\x00\r\n\r\n")) == [400]
    reports = (time.monotonic() - started) / 10  # one line in ten seconds
    assert server.stderr().count("\n") - lines <= 5 + reports
    families = text_string_to_metric_families(
        httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
    )
    assert next(f for f in families if f.name == "muniment_connections").samples[0].value < MOST


def test_slow_clients_do_not_hold_up_the_end(instance: Instance) -> None:
    limits = {"MUNIMENT_SERVER_CLIENT_SECONDS": "1", "MUNIMENT_SERVER_SHUTDOWN_SECONDS": "600"}
    server = instance.server(env=limits).wait()
    with ExitStack() as stack:
        for data in (b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{"):
            connection = stack.enter_context(socket.create_connection(address(server.url)))
            connection.sendall(data)
        stack.enter_context(asking(server.url))
        time.sleep(0.1)
        assert server.stop() == 0
    assert free_of_tracebacks(server.stderr())


# --- counting -----------------------------------------------------------------------------------------------------------


class Fake:
    """A connection that does nothing, and gives way as it is told to."""

    def __init__(self, place: Rank | None = None) -> None:
        self.place = place
        self.gone = False

    def check(self, now: float) -> None:
        """Take note of nothing."""

    def rank(self, now: float) -> Rank | None:
        return self.place

    def give_way(self) -> None:
        self.gone = True


def limited(**changes: Any) -> tuple[Connections, Metrics]:
    metrics = Metrics()
    return Connections(Settings(data=Path("/nonexistent"), **changes), metrics), metrics


async def test_connections_are_counted_by_address() -> None:
    connections, metrics = limited(max_connections=10, max_connections_per_address=2)
    made = [Fake() for _ in range(9)]
    assert [connections.admit(one, "192.0.2.1") for one in made[:3]] == [None, None, "too_many_from_address"]
    connections.closed(made[2])  # it was never admitted, and must not make room
    assert connections.admit(made[2], "192.0.2.1") == "too_many_from_address"
    connections.closed(made[0])
    assert connections.admit(made[2], "192.0.2.1") is None
    for one in made[3:]:
        assert connections.admit(one, "127.0.0.1") is None, "a proxy on this host has as many as it likes"
    assert metrics.connections._value.get() == 8
    assert [connections.admit(Fake(), "::1") for _ in range(3)] == [None, None, "too_many"]


async def test_who_gives_way_to_a_new_connection() -> None:
    """The lowest rank first; none that is at something; and none whose turn was noted before it went on."""
    connections, metrics = limited(max_connections=6)
    made = [Fake((1, 5.0)), Fake((0, 9.0)), Fake(None), Fake((0, 3.0)), Fake((2, 1.0)), Fake((1, 4.0))]
    assert [connections.admit(one, None) for one in made] == [None] * 6
    busy = [Fake(None) for _ in range(6)]
    assert connections.admit(busy[0], None) is None
    assert [one.gone for one in made] == [False, False, False, True, False, False]
    assert connections.admit(busy[1], None) is None
    assert made[1].gone
    made[5].place = (1, 8.0)  # it was asked something meanwhile, and answered
    assert connections.admit(busy[2], None) is None
    assert made[0].gone
    assert connections.admit(busy[3], None) is None
    assert made[4].gone, "all who were looked at before come first"
    assert connections.admit(busy[4], None) is None
    assert made[5].gone
    assert connections.admit(busy[5], None) == "too_many"
    assert not made[2].gone
    assert metrics.connections_refused.labels("crowded_out")._value.get() == 5
    assert metrics.connections._value.get() == 6


async def test_who_gives_way_to_a_new_connection_from_an_address() -> None:
    """Another one from there: those of others are no concern of theirs."""
    connections, _ = limited(max_connections=10, max_connections_per_address=2)
    other, own, busy = Fake((0, 1.0)), Fake((1, 2.0)), Fake(None)
    assert [connections.admit(other, "192.0.2.9"), connections.admit(own, "192.0.2.1")] == [None, None]
    assert connections.admit(busy, "192.0.2.1") is None
    assert connections.admit(Fake(None), "192.0.2.1") is None
    assert own.gone
    assert not other.gone
    assert connections.admit(Fake(None), "192.0.2.1") == "too_many_from_address"


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        (None, None),
        ("", None),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_an_address_counts_as(host: str | None, peer: str | None) -> None:
    assert peer_of(host) == peer


async def test_connections_leave_files_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (100, 100))
    connections, _ = limited()
    assert connections.start() == 12
    taken = [connections.admit(Fake(), None) for _ in range(40)]
    connections.stop()
    assert taken == [None] * 24 + ["too_many"] * 16, (
        "64 files for others, and 12 for connections that come while as many go"
    )


class Clock:
    """The event loop that the sweep sees: time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.next: tuple[float, Callable[[], None]] = (0.0, lambda: None)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> SimpleNamespace:
        self.next = (when, call)
        return SimpleNamespace(cancel=lambda: None)

    def sweep(self, late: float = 0.0) -> None:
        """Let the time of the next sweep come, and so many seconds more."""
        self.now = self.next[0] + late
        self.next[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock in place of the event loop's."""
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def test_a_server_that_stood_still_does_not_blame_its_clients(clock: Clock) -> None:
    """What they sent meanwhile is still to be read."""
    connections, _ = limited(client_seconds=0.2)
    seen: list[float] = []

    class Noting(Fake):
        def check(self, now: float) -> None:
            seen.append(now)

    connections.admit(Noting(), None)
    connections.start()
    clock.sweep(late=0.3)
    assert seen == [100.0], "of the first sweep"
    clock.sweep()
    assert seen == [100.0, clock.now]


def test_a_sweep_that_fails_is_not_the_last(clock: Clock) -> None:
    connections, _ = limited(client_seconds=0.04)
    seen: list[float] = []

    class Broken(Fake):
        def check(self, now: float) -> None:
            seen.append(now)
            raise RuntimeError("a bug")

    connections.admit(Broken(), None)
    for go_on in (connections.start, clock.sweep, clock.sweep):
        with pytest.raises(RuntimeError):
            go_on()
    assert len(seen) == 3


# --- uvicorn's insides --------------------------------------------------------------------------------------------------

OF_THE_PROTOCOL = {
    "_start_asgi_task", "client", "connection_lost", "connection_made", "cycle", "data_received", "expect_100_continue", "flow",
    "headers", "loop", "on_body", "on_header", "on_headers_complete", "on_message_begin", "on_message_complete", "on_response_complete",
    "parser", "pipeline", "resume_writing", "scope", "server_state", "shutdown", "transport", "url",
}  # fmt: skip
OF_A_REQUEST = {
    "disconnected", "keep_alive", "message_event", "on_response", "response_complete", "response_started",
    "waiting_for_100_continue",
}  # fmt: skip
OF_THE_FLOW = {"drain", "pause_reading", "read_paused", "resume_reading", "write_paused"}
OF_THE_SERVER = {"capture_signals", "handle_exit", "serve", "servers", "started", "startup"}


def _attributes(tree: ast.AST, of: str) -> set[str]:
    """Names that are read or set on an expression which is spelled `of`."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == of}


def test_every_attribute_of_uvicorn_that_is_used() -> None:
    """uvicorn is pinned to a minor version, because these are its insides. Whoever moves the pin reads this list again."""
    module = ast.parse(Path(protocol.__file__).read_text("utf-8"))
    (tree,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Protocol")
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    overridden = methods & set(dir(httptools_impl.HttpToolsProtocol))
    used = _attributes(tree, "self") | _attributes(tree, "super()") | overridden
    own = {name for name in used if name.startswith("_") and name not in OF_THE_PROTOCOL} | {
        "check",
        "reset",
        "__init__",
    }
    assert used - own == OF_THE_PROTOCOL
    assert _attributes(tree, "cycle") | _attributes(tree, "self.cycle") == OF_A_REQUEST
    assert _attributes(tree, "self.flow") == OF_THE_FLOW
    assert _attributes(tree, "self.server_state") == {"default_headers", "total_requests"}
    state = uvicorn.server.ServerState()
    config = uvicorn.Config(lambda: None, log_config=None)
    made = httptools_impl.HttpToolsProtocol(config, state, {}, asyncio.new_event_loop())
    try:
        made.on_message_begin()
        assert [name for name in sorted(OF_THE_PROTOCOL) if not hasattr(made, name)] == []
        assert not any(hasattr(made, name) for name in own - {"__init__"}), "a name of ours is one of uvicorn's too"
    finally:
        made.loop.close()
    assert set(inspect.signature(httptools_impl.RequestResponseCycle).parameters) >= {"keep_alive", "message_event"}
    source = inspect.getsource(httptools_impl.RequestResponseCycle)
    assert all(re.search(rf"self\.{name}\b", source) for name in OF_A_REQUEST)
    assert all(hasattr(httptools_impl.FlowControl(None), name) for name in OF_THE_FLOW)  # type: ignore[arg-type]
    assert set(httptools_impl.STATUS_LINE) >= {400, 408, 414, 431, 503}
    assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)


def test_every_attribute_of_uvicorns_server_that_is_used() -> None:
    tree = ast.parse(Path(serve.__file__).read_text("utf-8"))  # type: ignore[attr-defined]
    used = _attributes(tree, "self") | _attributes(tree, "super()") | _attributes(tree, "server")
    assert used - {"sockets"} <= OF_THE_SERVER  # `sockets` is asyncio's
    server = uvicorn.Server(uvicorn.Config(lambda: None, log_config=None))
    assert all(hasattr(server, name) for name in OF_THE_SERVER - {"servers"})
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)


def test_uvicorn_is_pinned_to_a_minor_version() -> None:
    project = Path(settings_module.__file__).parents[1] / "pyproject.toml"
    assert re.search(r'"uvicorn>=0\.(\d+),<0\.(\d+)"', project.read_text("utf-8"))
