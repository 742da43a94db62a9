"""A TCP proxy before Postgres that a test can cut: what was asked still arrives, what is answered is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit


class Proxy:
    """`url` leads through the proxy. While `deaf` is set, answers are dropped and their connections cut."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self._folder = query.get("host", [""])[0]
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or int(query.get("port", ["5432"])[0])
        self._login, self._database = parts.username or "postgres", parts.path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.deaf = False
        self.answered = bytearray()  # everything Postgres said since a test emptied it
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._login}@127.0.0.1:{port}{self._database}?sslmode=disable"

    async def stop(self) -> None:
        """Refuse new connections and cut those there are."""
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            if self._folder:
                back = await asyncio.open_unix_connection(f"{self._folder}/.s.PGSQL.{self._port}")
            else:
                back = await asyncio.open_connection(self._host, self._port)
            pumps = [
                asyncio.create_task(self._pump(reader, back[1])),
                asyncio.create_task(self._pump(back[0], writer, True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                for end in (writer, back[1]):
                    end.close()
                    with contextlib.suppress(OSError, asyncio.CancelledError):
                        await end.wait_closed()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool = False) -> None:
        while data := await source.read(65_536):
            if answers and self.deaf:
                return
            if answers:
                self.answered += data
            sink.write(data)
            await sink.drain()


@contextlib.asynccontextmanager
async def proxy_before(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
