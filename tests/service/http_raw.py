"""HTTP/1.1 by hand: quick enough for load, and rude enough for bad framing."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.live import PATIENCE

_QUIET = 0.3


@dataclass(frozen=True)
class Answer:
    """One answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def address(url: str) -> tuple[str, int]:
    """Host and port of a server's URL."""
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 80)


def request_bytes(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """A keep-alive connection of asyncio streams: one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Connection:
        return cls(*await asyncio.open_connection(*address(url), limit=2**26))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self._writer.write(request_bytes(method, path, body, headers))

    async def answer(self) -> Answer:
        """Read one answer. Raises OSError or asyncio.IncompleteReadError when the connection ends before it."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(first.split(" ")[1]), headers, body)

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        self.send(method, path, body, headers)
        return await self.answer()


def exchange(url: str, data: bytes, *, answers: int = 0) -> bytes:
    """Send bytes and return what comes back until the server closes, or nothing has come for PATIENCE.

    A connection that the server keeps open needs `answers`: after so many, a short silence means that no more come.
    """
    with socket.create_connection(address(url), timeout=PATIENCE) as connection:
        received = b""
        with contextlib.suppress(OSError):  # closed in the middle of what we send, or silent
            connection.sendall(data)
            while True:
                connection.settimeout(_QUIET if answers and whole(received) >= answers else PATIENCE)
                if not (part := connection.recv(65536)):
                    break
                received += part
    return received


def whole(received: bytes) -> int:
    """How many answers have come, each with all of its body."""
    count, at = 0, 0
    while (end := received.find(b"\r\n\r\n", at)) >= 0:
        found = re.search(rb"\r\ncontent-length: (\d+)", received[at : end + 2].lower())
        at = end + 4 + (int(found[1]) if found else 0)
        if at > len(received):
            break
        count += 1
    return count


def statuses(received: bytes) -> list[int]:
    """The status of every answer in what was received."""
    return [int(part.split(b" ", 2)[1]) for part in received.split(b"HTTP/1.1")[1:] for part in (b"HTTP/1.1" + part,)]
