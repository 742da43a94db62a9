"""A small HTTP/1.1 client over raw asyncio streams: one keep-alive connection, one request at a time, no retries of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 60.0
"""Within this a server answers, or the connection counts as lost."""


class Lost(Exception):
    """There is no answer. `sent` tells whether the server may have seen the request."""

    def __init__(self, sent: bool, why: str) -> None:
        super().__init__(why)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `headers` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection to whatever URL it is told at each request; it connects again when that changes or the old one broke."""

    def __init__(self) -> None:
        self._url = ""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        url: str,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> Answer:
        """Send one request and return its answer. Raises Lost."""
        sent = False
        try:
            async with asyncio.timeout(seconds):
                await self._connect(url)
                lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
                sent = True
                self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                return await self._answer()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.close()
            raise Lost(sent, f"{type(error).__name__}: {error}") from None
        except BaseException:  # cancelled in the middle of an answer: the next one would be mistaken for it
            self.close()
            raise

    async def _connect(self, url: str) -> None:
        if self._writer and url == self._url and not self._reader.at_eof() and not self._writer.is_closing():
            return
        self.close()
        parts = urlsplit(url)
        self._reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
        self._url = url

    async def _answer(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(head[0].split(" ")[1]), headers, body)

    def close(self) -> None:
        """Drop the connection."""
        if self._writer:
            with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the loop is gone already
                self._writer.close()
        self._reader = self._writer = None
