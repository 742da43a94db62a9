"""Sends findings to a webhook: in order, at least once, behind a cursor that is durable.

The outbox is the record of findings itself, so a receiver that is down costs nothing but a byte offset. A finding is
sent again until it is taken (2xx); its id tells a receiver that it has it already.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Self

import httpx

from muniment import strictjson
from muniment.client._http import made, options_of
from muniment.errors import EventRefused, FormatError, StateError, StateUnavailable
from muniment.monitor.findings import Finding
from muniment.monitor.record import FILE, Record, line_of, read
from muniment.monitor.source import now_ms
from muniment.state import replace_file
from muniment.webhook import signed_headers
from muniment.wire import NoAnswer, ask_async, bounded

CURSOR_TYPE = "muniment/monitor-webhook@v1"
TIMEOUT = 10.0
_FIRST, _LONGEST = 1.0, 300.0


class Outbox:
    """The findings that a receiver has not taken yet. Belongs to one task."""

    def __init__(self, folder: Path, record: Record) -> None:
        """Raise StateError when the cursor is damaged. A new one begins behind what is recorded already."""
        self._path = folder / "webhook.json"
        self._findings = folder / FILE
        self._record = record
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            self.offset = record.size
            self._save()
            return
        except OSError as error:
            raise StateUnavailable(f"cannot read {self._path}: {error.strerror}") from error
        self.offset = _parse(self._path, data, record.size)

    @property
    def waiting(self) -> int:
        """Bytes of findings that wait."""
        return self._record.size - self.offset

    def next(self) -> tuple[int, Finding] | None:
        """Return the next finding with the cursor behind it, None when all were taken."""
        if not self.waiting:
            return None
        return next(read(self._findings, self.offset), None)

    def taken(self, offset: int) -> None:
        """Move the cursor, durably."""
        self.offset = offset
        self._save()

    def _save(self) -> None:
        try:
            replace_file(self._path, strictjson.canonical({"typ": CURSOR_TYPE, "offset": self.offset}) + b"\n")
        except OSError as error:
            raise StateUnavailable(f"cannot write {self._path}: {error.strerror}") from error


def _parse(path: Path, data: bytes, size: int) -> int:
    try:
        value = strictjson.parse(data)
        offset = value["offset"]
        good = value == {"typ": CURSOR_TYPE, "offset": offset} and type(offset) is int and 0 <= offset <= size
    except (EventRefused, FormatError, TypeError, KeyError):
        good = False
    if not good:
        hint = "Move it away to send what is found from now on"
        raise StateError(f"{path} is damaged; this says nothing about any log. {hint}")
    return int(offset)


class Webhook:
    """Delivers what is in an outbox. Use as an asynchronous context manager."""

    def __init__(self, url: str, secret: bytes, outbox: Outbox) -> None:
        self.url = url
        self.failures = 0
        self.outbox = outbox
        self._secret = secret
        options = options_of(None)
        self._http = bounded(made(lambda: httpx.AsyncClient(**options)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def deliver(self) -> bool:
        """Send what waits until all is taken, or a delivery fails; tell whether all is. Raises StateError."""
        while (found := self.outbox.next()) is not None:
            offset, finding = found
            if not await self._send(finding):
                self.failures += 1
                return False
            self.failures = 0
            self.outbox.taken(offset)
        return True

    async def deliver_all(self) -> None:
        """Send what waits now, as often as it takes. Raises StateError."""
        done = False
        while not done:
            done = await self.deliver()
            await asyncio.sleep(0 if done else self.pause())

    async def run(self) -> None:
        """Deliver what is found, until cancelled."""
        while True:
            try:
                done = await self.deliver()
            except StateUnavailable:  # a full disk: what was taken is sent again, under the same id
                done = False
            await asyncio.sleep(0.2 if done else self.pause())

    def pause(self) -> float:
        """Return the seconds to wait after a failure."""
        longest = min(_LONGEST, _FIRST * 2.0 ** min(self.failures, 20))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing

    async def _send(self, finding: Finding) -> bool:
        body = line_of(finding.to_json())
        headers = signed_headers(self._secret, finding.id, now_ms() // 1000, body)
        try:
            request = {"method": "POST", "url": self.url, "content": body, "headers": headers}
            answer = await ask_async(self._http, 65_536, TIMEOUT, **request)
        except NoAnswer:
            return False
        return 200 <= answer.status < 300
