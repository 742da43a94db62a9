from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import cache

import httpx
import pytest

from tests.client.cli_runner import Cli
from tests.client.colours import COLOURS, Colours


@pytest.fixture(params=COLOURS)
def colours(request: pytest.FixtureRequest) -> Iterator[Colours]:
    """Clients of one colour; the test runs once for each."""
    made = Colours(request.param)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes what the user's own commands remember."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    for name in ("MUNIMENT_URL", "MUNIMENT_LOG", "MUNIMENT_POLICY", "MUNIMENT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def one_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the system's certificates for each of a thousand clients would take most of the time of these tests."""
    monkeypatch.setattr(httpx._transports.default, "create_ssl_context", _tls_context)


def _tls_context(verify: object = True, **_: object) -> ssl.SSLContext:
    return verify if isinstance(verify, ssl.SSLContext) else _default_context()


@cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line."""
    return Cli(capsys, monkeypatch)
