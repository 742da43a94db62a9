"""One deadline for an exchange, one for a call, and bounds in bytes: over real sockets, in both colours.

What fails here is a hang, so the one limit of time is generous. What a machine is slow at must end well all the same.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from muniment import AsyncClient, Client
from muniment._flows.steps import Exclusive, Flow, Request, Retries
from muniment._flows.writes import PreparedEntry
from muniment.client._http import CONNECTIONS
from muniment.errors import MunimentError, Unavailable, Unreachable
from tests.client.cli_runner import Cli
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog
from tests.client.hostile import PATIENCE, TICK, Peer, Script, certificates, hostile
from tests.client.scripts import HANDSHAKES, HINT, NEVER_DONE, TOO_MUCH, slowly

SHORT = 0.3
"""The timeout of clients whose server never ends: a moment, and many ticks of the server."""
ONCE = Retries(tries=1)
POLICY = FakeLog().policy


@contextmanager
def soon() -> Iterator[None]:
    """What is in here ends: a server that goes on for ever is not waited for."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENCE


def tls_transport(colours: Colours, **options: Any) -> Any:
    made = httpx.HTTPTransport if colours.colour == "sync" else httpx.AsyncHTTPTransport
    return made(verify=certificates().client, **options)


# --- a server that takes for ever -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEVER_DONE)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_answer_that_is_never_done(colours: Colours, name: str, tls: bool) -> None:
    with hostile(NEVER_DONE[name], tls=tls) as server, soon():
        transport = tls_transport(colours) if tls else None
        client = colours.client(policy=POLICY, url=server.url, timeout=SHORT, retries=ONCE, transport=transport)
        with pytest.raises(Unreachable, match="no whole answer within"):
            client.checkpoint()
        assert server.connections <= 1


@pytest.mark.parametrize("at_a_time", [0, 65_536])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_large_request_that_is_not_read_or_slowly(colours: Colours, at_a_time: int, tls: bool) -> None:
    given_up, read = threading.Event(), list[int]()

    def script(peer: Peer) -> None:
        while not given_up.wait(TICK):
            if at_a_time:
                read.append(len(peer.socket.recv(at_a_time)))
        while part := peer.socket.recv(65_536):  # the client hung up behind all that it sent
            read.append(len(part))

    drafts = [PreparedEntry(bytes([n]) * 60_000, is_event=False) for n in range(240)]
    little = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 262_144)]  # so that there is room for more of it again and again
    with hostile(script, tls=tls, window=262_144) as server, soon():
        transport = tls_transport(colours, socket_options=little)
        client = colours.client(policy=POLICY, url=server.url, timeout=SHORT, retries=ONCE, transport=transport)
        with pytest.raises(Unreachable, match="no whole answer within"):
            client.append_batch(drafts)
        given_up.set()
    assert sum(read) < 240 * 60_000, "it went on for as long as the server read on"


@pytest.mark.parametrize("script", HANDSHAKES)
def test_a_handshake_that_is_never_done(colours: Colours, script: Script) -> None:
    with hostile(script, scheme="https") as server, soon():
        client = colours.client(policy=POLICY, url=server.url, timeout=SHORT, retries=ONCE)
        with pytest.raises(Unreachable, match="no whole answer within"):
            client.checkpoint()


def test_no_thread_is_left_of_a_batch_that_is_not_answered(colours: Colours) -> None:
    before = set(threading.enumerate())
    with hostile(NEVER_DONE["early hints without end"]) as server, soon():
        client = colours.client(policy=POLICY, url=server.url, timeout=SHORT, retries=ONCE)
        with pytest.raises(Unreachable, match="no whole answer within"):
            list(client.append_many([{"n": n} for n in range(30)], batch_entries=10))
    colours.shut()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "muniment-send"]


# --- through a proxy --------------------------------------------------------------------------------------------------


def test_a_proxy_that_drips(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with hostile(NEVER_DONE["a header field that drips"]) as proxy, soon():
        monkeypatch.setenv("http_proxy", proxy.url)
        client = colours.client(policy=POLICY, url="http://log.test", timeout=SHORT, retries=ONCE)
        with pytest.raises(Unreachable, match="no whole answer within"):
            client.checkpoint()


def tunnel(to: Callable[[], int]) -> Script:
    """A proxy that connects where it wants to."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                hang_up(end)

    def script(peer: Peer) -> None:
        peer.request()
        with socket.create_connection(("127.0.0.1", to())) as beyond:
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=copy, args=(beyond, peer.socket))
            back.start()
            copy(peer.socket, beyond)
            back.join()

    return script


def hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("proxy_tls", [False, True], ids=["plain proxy", "tls proxy"])
def test_beyond_a_proxy(colours: Colours, proxy_tls: bool) -> None:
    log = FakeLog()
    good = hostile(slowly(log, piece=1000), tls=True)
    bad = hostile(NEVER_DONE["a body that drips"], tls=True)
    with good as server, bad as dripping, soon():
        for end, fine in ((server, True), (dripping, False)):
            with hostile(tunnel(lambda end=end: end.port), tls=proxy_tls) as proxy:
                through = httpx.Proxy(proxy.url, ssl_context=certificates().client if proxy_tls else None)
                transport = tls_transport(colours, proxy=through)
                options = {"retries": ONCE, "transport": transport, "timeout": PATIENCE if fine else SHORT}
                client = colours.client(policy=log.policy, url=end.url, **options)
                if fine:
                    assert client.append({"n": 1}).index == 1
                else:
                    with pytest.raises(Unreachable, match="no whole answer within"):
                        client.checkpoint()
                colours.shut()


# --- a server that sends too much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOO_MUCH)
def test_an_answer_without_bounds(colours: Colours, name: str) -> None:
    script, why = TOO_MUCH[name]
    with hostile(script) as server, soon():
        client = colours.client(policy=POLICY, url=server.url, timeout=PATIENCE, retries=ONCE)
        with pytest.raises(Unreachable, match=why):
            client.checkpoint()


# --- a call as a whole ------------------------------------------------------------------------------------------------


def busy(retry_after: str = "") -> Script:
    """Always answer 503."""
    body = b'{"code": "overloaded"}'
    asks = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 503 X\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n{asks}\r\n"

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(head.encode() + body)

    return script


@pytest.mark.parametrize("asked", [3600, 301])
def test_a_wait_that_the_call_has_no_time_for(colours: Colours, asked: int) -> None:
    """Of the two, one is beyond all patience, and one beyond the 300 seconds that a call with a timeout of 30 has."""
    with hostile(busy(str(asked))) as server, soon():
        retries = Retries(tries=10**6, patience=1000.0)
        client = colours.client(policy=POLICY, url=server.url, timeout=30.0, retries=retries)
        with pytest.raises(Unavailable) as caught:
            client.append({"n": 1})
        assert caught.value.retry_after == asked
        colours.shut()


@pytest.mark.parametrize(
    "script", [busy(), NEVER_DONE["a header field that drips"], NEVER_DONE["early hints without end"]]
)
def test_a_call_that_may_try_for_ever_ends(colours: Colours, script: Script) -> None:
    with hostile(script) as server, soon():
        retries = Retries(tries=10**9, first_delay=0.01, longest_delay=0.05)
        client = colours.client(policy=POLICY, url=server.url, timeout=SHORT / 3, retries=retries)
        with pytest.raises((Unavailable, Unreachable)):
            client.append({"n": 1})
        colours.shut()


class Clock:
    """What the clients take for the time; each request of a log takes some of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("muniment.wire.exchange.monotonic", lambda: self.now)

    def takes(self, log: FakeLog, seconds: float) -> None:
        def tamper(_: httpx.Request, response: httpx.Response) -> httpx.Response:
            self.now += seconds
            return response

        log.tamper = tamper


def test_each_try_has_a_deadline_of_its_own(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = FakeLog(), Clock(monkeypatch)
    client = colours.client(log, timeout=10.0, retries=Retries(tries=3, first_delay=0.0))
    clock.takes(log, 11.0)
    with pytest.raises(Unreachable, match="no whole answer within 10 seconds"):
        client.checkpoint()
    assert (len(log.requests), clock.now) == (3, 33.0)


def test_a_call_of_many_requests_has_one_deadline(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request of it is within its own."""
    log, clock = FakeLog(listed_disclosures=False), Clock(monkeypatch)  # an entry takes a request of its own
    log.add_events([{"n": n} for n in range(20)])
    log.publish()
    client = colours.client(log, timeout=10.0)
    clock.takes(log, 9.5)
    with pytest.raises(Unreachable, match="no whole answer within 5 seconds"):
        list(client.entries())
    assert len(log.requests) == 11
    clock.takes(log, 2.0)
    assert len(list(client.entries())) == 21


def test_every_page_has_a_deadline_of_its_own(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = FakeLog("raw"), Clock(monkeypatch)
    log.add_raw([b"%d" % n for n in range(4000)])
    log.publish()
    clock.takes(log, 9.5)
    assert len(list(colours.client(log, timeout=10.0).entries())) == 4001
    assert clock.now > 100.0


def test_waiting_for_other_threads_counts() -> None:
    with hostile(NEVER_DONE["nothing"]) as server, soon():
        with Client(server.url, policy=POLICY, timeout=SHORT / 10, retries=ONCE) as client:
            for held in (*[client._turns] * CONNECTIONS, client._lock):
                held.acquire()
            with pytest.raises(Unreachable, match="took all the time"):
                client.checkpoint()
            for _ in range(CONNECTIONS):
                client._turns.release()
            with pytest.raises(Unreachable, match="took all the time"):
                client._run(alone_at_a_time())
        assert server.connections == 0


async def test_waiting_for_other_tasks_counts() -> None:
    with hostile(NEVER_DONE["nothing"]) as server, soon():
        async with AsyncClient(server.url, policy=POLICY, timeout=SHORT / 10, retries=ONCE) as client:
            for held in (*[client._turns] * CONNECTIONS, client._lock):
                await held.acquire()
            with pytest.raises(Unreachable, match="took all the time"):
                await client.checkpoint()
            for _ in range(CONNECTIONS):
                client._turns.release()
            with pytest.raises(Unreachable, match="took all the time"):
                await client._run(alone_at_a_time())
        assert server.connections == 0


def alone_at_a_time() -> Flow[None]:
    """A flow that wants to be the only one of its kind."""

    def alone() -> Flow[None]:
        yield Request("GET", "/checkpoint")

    yield Exclusive(alone())


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 10**7])
def test_a_timeout_is_a_number_of_seconds(colours: Colours, timeout: float) -> None:
    with pytest.raises(MunimentError, match="timeout"):
        colours.client(policy=POLICY, timeout=timeout)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a header field that drips", "early hints without end", "a body that drips"])
def test_a_command_gives_up(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("muniment.client._http.TIMEOUT", SHORT)
    policy = tmp_path / "policy"
    policy.write_text(str(POLICY))
    with hostile(NEVER_DONE[name]) as server, soon():
        done = cli("get", 1, "--url", server.url, "--policy", policy, "--json")
    assert done.code == 4
    assert done.error["code"] == "unreachable"
    assert "no whole answer within" in done.error["message"]
    assert done.error["hint"]


# --- slow, but getting there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_slow_answers_arrive(colours: Colours, tls: bool) -> None:
    log = FakeLog()
    with hostile(slowly(log, before=HINT * 5), tls=tls) as server:
        transport = tls_transport(colours) if tls else None
        client = colours.client(policy=log.policy, url=server.url, timeout=PATIENCE, transport=transport)
        assert [receipt.index for receipt in client.append_many([{"n": n} for n in range(5)])] == [1, 2, 3, 4, 5]
        assert client.entry(3).event == {"n": 2}
        assert client.checkpoint().checkpoint.size == 6
        assert len(list(client.entries())) == 6
        colours.shut()
    assert server.connections == 1, "one connection serves all of them"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_large_request_that_is_read_slowly_arrives(colours: Colours, tls: bool) -> None:
    log = FakeLog("raw")
    whole = slowly(log, piece=65_536)

    class Slow(Peer):
        def request(self) -> bytes:
            self.pause(0.1)
            return super().request()

    def script(peer: Peer) -> None:
        whole(Slow(peer.socket, peer._over))

    drafts = [PreparedEntry(bytes([n]) * 60_000, is_event=False) for n in range(100)]
    with hostile(script, tls=tls, window=65_536) as server:
        transport = tls_transport(colours) if tls else None
        client = colours.client(policy=log.policy, url=server.url, timeout=PATIENCE, transport=transport)
        assert [receipt.index for receipt in client.append_batch(drafts)] == list(range(1, 101))
        colours.shut()


def test_a_certificate_that_nobody_vouches_for(colours: Colours) -> None:
    with hostile(slowly(FakeLog()), tls=True) as server, soon():
        client = colours.client(policy=POLICY, url=server.url, timeout=PATIENCE, retries=ONCE)
        with pytest.raises(Unreachable, match="certificate verify failed"):
            client.checkpoint()
