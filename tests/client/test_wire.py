"""What a client within the bounds of an exchange does beside waiting no longer: addresses, transports, cookies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from muniment.wire import NoAnswer, ask, bounded
from muniment.wire.exchange import taking
from muniment.wire.streams import Backend, Stream
from tests.client.colours import Colours
from tests.client.fake_log import FakeLog
from tests.client.hostile import hostile
from tests.client.scripts import answered


class Network(httpcore.NetworkBackend):
    """Addresses, of which only some answer. The others take all the time they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str, good: str = "") -> None:
        self.now, self.asked, self._good = 0.0, list[tuple[str, float]](), good
        found = [
            (0, 0, 0, "", (address, 80)) for address in addresses for _ in range(2)
        ]  # each twice: resolvers do that
        monkeypatch.setattr("muniment.wire.streams.socket.getaddrinfo", lambda *_, **__: found)
        monkeypatch.setattr("muniment.wire.exchange.monotonic", lambda: self.now)

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any) -> httpcore.NetworkStream:
        assert timeout is not None
        self.asked.append((host, timeout))
        if host != self._good:
            self.now += timeout
            raise httpcore.ConnectTimeout(f"{host} timed out")
        return httpcore.MockStream([])


def connect(network: Network, seconds: float) -> httpcore.NetworkStream:
    with taking(0, seconds):
        return Backend(network).connect_tcp("log.test", 80, timeout=99.0)


def test_each_address_of_a_host_has_a_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, "::1", "192.0.2.1", "192.0.2.2", good="192.0.2.2")
    connect(network, 9.0)
    assert network.asked == [("::1", 3.0), ("192.0.2.1", 3.0), ("192.0.2.2", 3.0)]


def test_a_host_with_no_address_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, "::1", "192.0.2.1")
    with pytest.raises(httpcore.ConnectTimeout, match=r"192\.0\.2\.1 timed out"):
        connect(network, 9.0)
    assert network.now == 9.0


def test_an_address_that_names_its_interface_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, "fe80::1", good="fe80::1%lo")
    with taking(0, 4.0):
        Backend(network).connect_tcp("fe80::1%lo", 80)
    assert network.asked == [("fe80::1%lo", 4.0)]


class Sip:
    """A socket that takes a byte a second."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.limits: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.limits.append(seconds)

    def send(self, _: memoryview) -> int:
        self._network.now += 1.0
        return 1


class Below(httpcore.MockStream):
    """A stream over such a socket."""

    def __init__(self, sip: Sip) -> None:
        super().__init__([])
        self._sip = sip

    def get_extra_info(self, info: str) -> Any:
        assert info == "socket"
        return self._sip


def test_what_is_taken_byte_by_byte_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    sip = Sip(Network(monkeypatch))
    with taking(0, 3.5):
        Stream(Below(sip)).write(b"abc", timeout=99.0)
        with pytest.raises(httpcore.WriteTimeout):
            Stream(Below(sip)).write(b"defg", timeout=99.0)
    assert sip.limits == [3.5, 2.5, 1.5, 0.5]


@pytest.mark.parametrize(
    ("error", "again"), [(socket.gaierror(-3, "try again"), True), (UnicodeError("label too long"), False)]
)
def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("muniment.wire.streams.socket.getaddrinfo", unknown)
    with bounded(httpx.Client(trust_env=False)) as client, pytest.raises(NoAnswer, match=r"again\Z|too long") as caught:
        ask(client, 1000, 60.0, method="GET", url="http://log.test")
    assert caught.value.again is again


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A socket of this machine on which nobody answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        yield tmp_path / "s"


def test_a_socket_of_this_machine(silent: Path) -> None:
    client = bounded(httpx.Client(transport=httpx.HTTPTransport(uds=str(silent))))
    with client, pytest.raises(NoAnswer, match=r"no whole answer within 0\.05 seconds"):
        ask(client, 1000, 0.05, method="GET", url="http://log.test")


def test_a_transport_of_several_clients() -> None:
    with httpx.HTTPTransport() as transport:
        one, two = bounded(httpx.Client(transport=transport)), bounded(httpx.Client(transport=transport))
        assert not isinstance(transport._pool._network_backend._inner, Backend)
        with (
            hostile(answered()) as server,
            pytest.raises(httpx.TimeoutException),
        ):  # and one that is used by itself as well
            two.get(server.url, timeout=0.05)
        one.close()


def test_cookies_are_not_kept(colours: Colours) -> None:
    log = FakeLog()

    def tamper(_: httpx.Request, response: httpx.Response) -> httpx.Response:
        response.headers["set-cookie"] = "a=b"
        return response

    log.tamper = tamper
    client = colours.client(log)
    client.checkpoint()
    client.checkpoint()
    assert [request.headers.get("cookie") for request in log.requests] == [None, None]
