"""All others in this project who ask over HTTP: header sources, calendars, copies of a log, checkpoints by URL.

None of them waits longer than it says, or takes more than it asked for, whatever the peer does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from muniment.anchor import _web, explorers, node
from muniment.errors import SourceUnavailable
from muniment_server.check.fsck import against
from muniment_server.cli import guard
from muniment_server.errors import CalendarFailed
from muniment_server.follow.anchors.calendar import Calendar, new_client
from tests.client.hostile import PATIENCE, Script, hostile
from tests.client.scripts import HANDSHAKES, NEVER_DONE, OK, TOO_MUCH, answered

SHORT = 0.3


@dataclass(frozen=True)
class Patience:
    """How long those wait who are told by the code; a test cannot wait so long."""

    monkeypatch: pytest.MonkeyPatch

    def set(self, seconds: float) -> None:
        def ask(question: Any, **more: Any) -> Any:
            return _web.ask(question, **more | {"deadline": seconds})

        self.monkeypatch.setattr(node, "ask", ask)
        self.monkeypatch.setattr(explorers, "ask", ask)
        self.monkeypatch.setattr(explorers, "PATIENCE", seconds)
        self.monkeypatch.setattr(against, "_TIMEOUT", seconds)
        self.monkeypatch.setattr(guard, "_SECONDS", seconds)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    return Patience(monkeypatch)


@contextmanager
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENCE


def ask_calendar(url: str, seconds: float) -> None:
    async def run() -> None:
        async with new_client() as client:
            await Calendar(url, client, seconds).submit(bytes(32))

    asyncio.run(run())


def ask_copy(url: str, _: float) -> None:
    async def run() -> None:
        async with against.open_copy(url) as copy:
            await copy.fetch("checkpoint", 10_000)

    asyncio.run(run())


Request = Callable[[str, float], object]
ASKERS: dict[str, tuple[Request, type[BaseException]]] = {
    "rpc": (lambda url, _: node.RpcNode(url).tip(), SourceUnavailable),
    "rest": (lambda url, _: node.RestNode(url).at(7), SourceUnavailable),
    "explorer": (lambda url, _: explorers.ExplorerSource([url], quorum=1).at(7), SourceUnavailable),
    "calendar": (ask_calendar, CalendarFailed),
    "copy": (ask_copy, against.CopyUnreachable),
    "guard": (lambda url, _: guard._read(url), SystemExit),
}
asker = pytest.mark.parametrize("name", ASKERS)


def ask(name: str, url: str, seconds: float) -> str:
    """Ask, and return why it failed."""
    call, error = ASKERS[name]
    with soon(), pytest.raises(error) as caught:
        call(url, seconds)
    if caught.type is SystemExit:
        assert caught.value.code == 4  # type: ignore[attr-defined]
    return str(caught.value)


@asker
@pytest.mark.parametrize("script", NEVER_DONE)
def test_an_answer_that_is_never_done(patience: Patience, name: str, script: str) -> None:
    patience.set(SHORT)
    with hostile(NEVER_DONE[script]) as server:
        ask(name, server.url, SHORT)


@asker
@pytest.mark.parametrize("script", HANDSHAKES)
def test_a_handshake_that_is_never_done(patience: Patience, name: str, script: Script) -> None:
    patience.set(SHORT)
    with hostile(script, scheme="https") as server:
        ask(name, server.url, SHORT)


@asker
@pytest.mark.parametrize("script", TOO_MUCH)
def test_an_answer_without_bounds(patience: Patience, name: str, script: str) -> None:
    patience.set(PATIENCE)
    with hostile(TOO_MUCH[script][0]) as server:
        assert "within" not in ask(name, server.url, PATIENCE), "only its deadline ended it"


@asker
def test_an_answer_that_is_compressed(patience: Patience, name: str) -> None:
    patience.set(PATIENCE)
    body = OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"
    with hostile(answered(body)) as server:
        why = ask(name, server.url, PATIENCE)
    assert name == "guard" or "compresses" in why


@asker
@pytest.mark.parametrize("status", [301, 404, 500])
def test_an_answer_that_is_none(patience: Patience, name: str, status: int) -> None:
    if (name, status) == ("copy", 404):
        return  # a copy may lack something
    patience.set(PATIENCE)
    head = f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 2\r\n\r\nhi"
    with hostile(answered(head.encode())) as server:
        ask(name, server.url, PATIENCE)
