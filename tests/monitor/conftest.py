"""Logs that a monitor follows, over HTTP on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_log import FakeLog
from tests.client.served import served
from tests.monitor.desk import Desk


class Shown:
    """What is behind a URL: another log at any moment."""

    def __init__(self, log: FakeLog) -> None:
        self.log = log

    def handle(self, request):
        return self.log.handle(request)


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


@pytest.fixture
def shown(log: FakeLog) -> Shown:
    return Shown(log)


@pytest.fixture
def desk(log: FakeLog, shown: Shown, tmp_path: Path) -> Iterator[Desk]:
    with served(shown) as url:  # type: ignore[arg-type]
        yield Desk(tmp_path / "monitor", log.policy, url)
