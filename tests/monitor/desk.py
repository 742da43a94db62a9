"""A follower at work in a test: one log, one folder, and a clock that the test moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from muniment.monitor.book import Book
from muniment.monitor.follower import Follower, Settings, Status
from muniment.monitor.record import Record
from muniment.monitor.reporter import Reporter
from muniment.monitor.source import Source
from muniment.policy import Policy
from tests.client.fake_log import NOON

LATER = NOON + 3_600_000
"""An hour after the first entry of a FakeLog."""


@dataclass
class Desk:
    """A monitor's folder with what a test needs to look into it. `now` is the monitor's time."""

    folder: Path
    policy: Policy
    url: str
    settings: Settings = field(default_factory=Settings)
    now: int = LATER
    patrol_every: int = 2**60
    """Never, but for tests of it: what is asked for is then what was not read yet."""
    said: list[dict[str, Any]] = field(default_factory=list)

    @asynccontextmanager
    async def follower(self, **changes: Any) -> AsyncIterator[Follower]:
        """Yield a follower on what the folder holds, as one that starts now would be."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        settings = replace(self.settings, **changes)
        async with Source(self.url) as source:
            reporter = Reporter(Record(self.folder), self.folder, self.policy, settings.grace, self.said.append)
            book = Book.open(self.folder / "logs", source.url)
            found = Follower(source, self.policy, book, reporter, settings, self.said.append)
            found.clock = lambda: self.now
            found.patrol_every = self.patrol_every
            yield found

    async def look(self, times: int = 1, step: int = 0, **changes: Any) -> Status:
        """Start, look so many times, the clock moved on in between, and end."""
        async with self.follower(**changes) as found:
            for _ in range(times):
                await found.look()
                self.now += step
            assert found.status is not None
            return found.status

    def findings(self) -> list[dict[str, Any]]:
        """Every finding that is recorded."""
        path = self.folder / "findings.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def codes(self) -> list[str]:
        """Their codes."""
        return [found["code"] for found in self.findings()]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What was said of one kind."""
        return [value for value in self.said if value["event"] == kind]
