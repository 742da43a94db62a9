"""Both clients behind one face, so that every test is written once and runs on each."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

from muniment import AsyncClient, Client, Policy
from muniment.client import AsyncHits, Retries
from tests.client.fake_log import URL, FakeLog

QUICK = Retries(tries=4, first_delay=0.0)
COLOURS = ("sync", "async")


class BlockingHits:
    """AsyncHits that are iterated like Hits."""

    def __init__(self, hits: AsyncHits, drained: Iterator[Any]) -> None:
        self._hits = hits
        self._drained = drained

    def __iter__(self) -> Iterator[Any]:
        return self._drained

    def __next__(self) -> Any:
        return next(self._drained)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hits, name)


class Blocking:
    """An AsyncClient that is called like a Client."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.isroutine(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            if isinstance(result, AsyncHits):
                return BlockingHits(result, self._drain(result))
            if inspect.isasyncgen(result):
                return self._drain(result)
            return self._runner.run(result)

        return call

    def _drain(self, source: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(anext(source))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(source.aclose())


class Colours:
    """Makes clients of one colour, and closes them."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self._runner = asyncio.Runner()
        self._open: list[Any] = []

    def client(self, fake: FakeLog | None = None, policy: Policy | None = None, url: str = URL, **options: Any) -> Any:
        options = {"policy": policy or (fake.policy if fake else None), "retries": QUICK} | options
        if fake is not None:
            options.setdefault("transport", fake.transport())
        made: Any = Client(url, **options) if self.colour == "sync" else self._blocking(url, options)
        self._open.append(made)
        return made

    def _blocking(self, url: str, options: dict[str, Any]) -> Blocking:
        return Blocking(AsyncClient(url, **options), self._runner)

    def trust_on_first_use(self, log: FakeLog, **options: Any) -> Policy:
        options |= {"transport": log.transport(), "retries": QUICK}
        if self.colour == "sync":
            return Client.trust_on_first_use(URL, **options)
        return self._runner.run(AsyncClient.trust_on_first_use(URL, **options))

    def shut(self) -> None:
        """Close the clients made so far."""
        for made in self._open:
            made.close() if self.colour == "sync" else made.aclose()
        self._open.clear()

    def close(self) -> None:
        self.shut()
        self._runner.close()
