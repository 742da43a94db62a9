"""Where the server listens, and what it says when it cannot."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from muniment import Client
from muniment_server.cli.listen import bind, url_of
from muniment_server.errors import SetupError
from tests.live import run
from tests.service.http_raw import address
from tests.service.http_world import DEFAULT, Instance, KeySpec, instance_on

KEYS = (KeySpec("append", frozenset({"append", "read"})),)


@pytest.fixture(scope="module")
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance_on("sqlite", request, tmp_path_factory.mktemp("listening"), (DEFAULT,), KEYS) as made:
        yield made


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that another process listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
def test_an_ipv6_address_is_a_url_that_clients_take(instance: Instance) -> None:
    with instance.server("--host", "::1") as server:
        assert server.url.startswith("http://[::1]:")
        with Client(server.url, policy=instance.policy, api_key=instance.keys["append"]) as client:
            assert client.append({"a": 1}).index == 1


@needs_ipv6
def test_both_families_at_once(instance: Instance) -> None:
    with instance.server("--host", "::", "--read-only") as server:
        assert server.url.startswith("http://[::]:")
        port = address(server.url)[1]
        for host in ("127.0.0.1", "[::1]", "[::]"):
            assert httpx.get(f"http://{host}:{port}/healthz").status_code == 200, host


def test_a_port_of_metrics_that_is_taken(instance: Instance, taken: int) -> None:
    file = instance.data / "muniment.toml"
    file.write_text(f"metrics_port = {taken}\n")
    try:
        done = run("serve", "--data", instance.data, "--port", "0", check=False)
    finally:
        file.unlink()
    assert done.returncode == 2, done.stderr
    assert "set MUNIMENT_SERVER_METRICS_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("host", "says"), [("192.0.2.1", "use --host"), ("no.such.host.invalid", "use --host")])
def test_addresses_of_others(host: str, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        bind(host, 0)


def test_all_addresses_of_a_name_have_one_port() -> None:
    bound = bind("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in bound}) == 1
        assert all(url_of(one).startswith(("http://127.0.0.1:", "http://[::1]:")) for one in bound)
    finally:
        for one in bound:
            one.close()
