"""Asks one log: over HTTP, or a folder of its files by a file: URL. Performs the steps of flows for asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import time_ns
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from muniment._flows.steps import Call, Exclusive, Flow, Lost, Request, Response, Retries, Step
from muniment.client._http import log_url, lost, made, options_of
from muniment.errors import FormatError, MunimentError
from muniment.wire import NoAnswer, ask_async, bounded

T = TypeVar("T")
RETRIES = Retries(tries=3, first_delay=0.2, longest_delay=2.0, patience=10.0)
"""Few: a monitor looks again anyway."""
TIMEOUT = 30.0


def now_ms() -> int:
    """Return the time in milliseconds since 1970 UTC."""
    return time_ns() // 1_000_000


class Source:
    """One log as it is served at one URL. Use as an asynchronous context manager."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Raise FormatError when it is not the URL of a log."""
        self.url = url.rstrip("/")
        self._folder = folder_of(self.url)
        if self._folder is None:
            log_url(self.url, None)
        options = options_of(api_key)
        self._http = bounded(made(lambda: httpx.AsyncClient(**options)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def run(self, flow: Flow[T]) -> T:
        """Perform a flow and return its result. Raises what it raises."""
        outcome, failure = None, None
        while True:
            try:
                step = flow.throw(failure) if failure else flow.send(outcome)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                outcome, failure = await self._perform(step), None
            except MunimentError as error:
                outcome, failure = None, error

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Request):
            return await self.ask(step)
        if isinstance(step, Exclusive):
            return await self.run(step.flow)
        if isinstance(step, Call):
            return await asyncio.to_thread(step.function)
        await asyncio.sleep(step.seconds)
        return True

    async def ask(self, request: Request) -> Response | Lost:
        """Send one request, once."""
        if self._folder is not None:
            return await asyncio.to_thread(_file, self._folder / request.path.lstrip("/"), request.limit)
        arguments = {
            "method": request.method,
            "url": self.url + request.path,
            "params": dict(request.query),
            "headers": dict(request.headers),
        }
        try:
            return Response(*await ask_async(self._http, request.limit, TIMEOUT, **arguments))
        except NoAnswer as error:
            return lost(error, self.url)


def folder_of(url: str) -> Path | None:
    """Return the folder that a file: URL names, None for other URLs. Raises FormatError."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.query or parts.fragment:
        raise FormatError(f"not the URL of a folder (file:///path): {url[:200]!r}")
    return Path(unquote(parts.path))


def _file(path: Path, limit: int) -> Response | Lost:
    """Return a file as a server of files would."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return Response(404, {"content-type": "text/plain"}, b"no such file")
    except OSError as error:
        return Lost(f"cannot read {path}: {error.strerror}")
    if len(data) > limit:
        return Lost(f"{path} is larger than {limit} bytes", again=False)
    return Response(200, {"content-type": "application/octet-stream"}, data)
