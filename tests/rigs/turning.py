"""A TCP proxy before Postgres that can be turned to another database, or to another server, while clients are connected."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

_LENGTH = 4
_STARTUP = (196608).to_bytes(4, "big")
"""Protocol 3.0: other first messages ask for TLS, or cancel a query."""


class Turning:
    """Leads every new connection to database `name` of the server whose socket is in `folder`, whatever database it asks for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True

    async def start(self) -> Turning:
        """Listen on a loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{port}/turning?sslmode=disable"
        return self

    async def turn(self, folder: Path, name: str) -> None:
        """Lead to another database from now on, and cut the connections there are."""
        self.folder, self.name = folder, name
        await self.cut()
        self._open = True

    async def shut(self) -> None:
        """Let nobody through, and cut the connections there are."""
        self._open = False
        await self.cut()

    async def cut(self) -> None:
        """Cut every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop listening, and cut every connection."""
        if self._server:
            self._server.close()
        await self.shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a connection is served by a task")
        self._tasks.add(task)
        back: asyncio.StreamWriter | None = None
        try:
            if self._open:
                first = await _first_message(reader, self.name)
                answers, back = await asyncio.open_unix_connection(str(self.folder / ".s.PGSQL.5432"))
                back.write(first)
                await _both_ways(reader, back, answers, writer)
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass  # cut
        finally:
            self._tasks.discard(task)
            for end in filter(None, (writer, back)):
                end.transport.abort()


async def _first_message(reader: asyncio.StreamReader, name: str) -> bytes:
    """Return the client's first message, with the name of the database changed."""
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    body = await reader.readexactly(length - _LENGTH)
    if body.startswith(_STARTUP):
        words = body[len(_STARTUP) :].rstrip(b"\0").split(b"\0")
        pairs = dict(zip(words[::2], words[1::2], strict=True)) | {b"database": name.encode()}
        body = _STARTUP + b"".join(key + b"\0" + value + b"\0" for key, value in pairs.items()) + b"\0"
    return (len(body) + _LENGTH).to_bytes(4, "big") + body


async def _both_ways(
    reader: asyncio.StreamReader,
    back: asyncio.StreamWriter,
    answers: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    pumps = [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(answers, writer))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
