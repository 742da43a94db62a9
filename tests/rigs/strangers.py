"""What strangers do to take a server's memory and time, with one key, so that none of it ends where that is missing: ``python -m tests.rigs.strangers URL KEY ATTACK SECONDS``.

It runs in a process of its own, so that what it costs is not counted with the server, nor with the clients beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Iterable

from tests.rigs.rig import Missing
from tests.service.http_raw import address, request_bytes

FILES = 6000  # connections at a time, and some
AGAIN_SECONDS = 0.2  # until a stranger who was sent away is there again
_LOOK_SECONDS = 0.5
_UNFINISHED = 15 << 20


class Target:
    """A server, and what was done to it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self.opened = 0  # connections
        self.sent = 0  # bytes

    async def open(self) -> socket.socket:
        """Return a connection whose receive buffer is small: what is not read stays with the server."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(connection, address(self.url))
        self.opened += 1
        return connection

    async def hold(self, data: bytes, *, reads: bool = True, again: float = AGAIN_SECONDS) -> None:
        """Send something, and keep the connection until the server ends it. Again and again."""

        async def once(connection: socket.socket) -> None:
            await self._send(connection, data)
            await (_end(connection) if reads else _reset(connection))

        await self._repeat(once, again)

    async def leave(self, data: bytes) -> None:
        """Send something, and drop the connection. Again and again."""

        async def once(connection: socket.socket) -> None:
            await self._send(connection, data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await self._repeat(once, AGAIN_SECONDS)

    async def pour(self, first: bytes, more: bytes) -> None:
        """Send something that has no end, until the server ends it. Again and again."""

        async def once(connection: socket.socket) -> None:
            await self._send(connection, first)
            while True:
                await self._send(connection, more)

        await self._repeat(once, AGAIN_SECONDS)

    async def _send(self, connection: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(connection, data)
        self.sent += len(data)

    async def _repeat(self, once: Callable[[socket.socket], Awaitable[None]], again: float) -> None:
        while True:
            with contextlib.suppress(OSError), await self.open() as connection:
                await once(connection)
            await asyncio.sleep(again)


async def _end(connection: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(connection, 65536):
        pass


async def _reset(connection: socket.socket) -> None:
    # Without reading, nothing else shows it.
    while not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)


def _chunked(target: Target) -> bytes:
    head = request_bytes("GET", "/logs/raw/add", headers={"Authorization": f"Bearer {target.key}"})
    return head.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"


def _unfinished(target: Target) -> bytes:
    head = request_bytes("POST", "/logs/raw/entries/batch", headers={"Authorization": f"Bearer {target.key}"})
    head = head.replace(b"Content-Length: 0", b"Content-Length: %d" % _UNFINISHED)
    return head + bytes(_UNFINISHED - 1)


def _page() -> bytes:
    return request_bytes("GET", "/logs/raw/entries?limit=1000")


def _half_a_head() -> bytes:
    return request_bytes("GET", "/healthz")[:-2] + (b"X: " + b"y" * 1000 + b"\r\n") * 30


def _each(count: int, work: Callable[[], Awaitable[None]]) -> Iterable[Awaitable[None]]:
    return [work() for _ in range(count)]


Attack = Callable[[Target], Iterable[Awaitable[None]]]
ATTACKS: dict[str, Attack] = {
    "trailers without end": lambda it: _each(
        8, lambda: it.pour(_chunked(it) + b"5\r\nabcde\r\n0\r\n", b"".join(b"X%d: y\r\n" % n for n in range(5000)))
    ),
    "a trailer without end": lambda it: _each(
        8, lambda: it.pour(_chunked(it) + b"5\r\nabcde\r\n0\r\nX: ", b"y" * 65536)
    ),
    "a chunk extension without end": lambda it: _each(8, lambda: it.pour(_chunked(it) + b"5;", b"a" * 65536)),
    "blank lines without end": lambda it: _each(8, lambda: it.pour(b"", b"\r\n" * 32768)),
    "heads that are not finished": lambda it: _each(1200, lambda: it.hold(_half_a_head(), again=1.0)),
    "bodies that are not finished": lambda it: _each(120, _holding(it, _unfinished(it))),
    "pages that are not read": lambda it: _each(100, lambda: it.hold(_page(), reads=False)),
    "bundles that are not read": lambda it: _each(
        100, lambda: it.hold(request_bytes("GET", "/logs/raw/tile/entries/000"), reads=False)
    ),
    "idle connections": lambda it: _each(4500, lambda: it.hold(b"", again=1.0)),
    "pages asked ahead and not read": lambda it: _each(4000, lambda: it.hold(_page() * 70, reads=False, again=1.0)),
    "pages asked by clients who leave": lambda it: _each(500, lambda: it.leave(_page() * 5)),
}


def _holding(target: Target, data: bytes) -> Callable[[], Awaitable[None]]:
    return lambda: target.hold(data)  # one copy of it for all


async def attack(target: Target, name: str, seconds: float) -> None:
    """Attack for some time."""
    tasks = [asyncio.ensure_future(one) for one in ATTACKS[name](target)]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()  # none ends by itself
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def raise_limit() -> None:
    """Let this process open FILES files. Raises Missing where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        raise Missing(f"the limit of open files is {hard}: {FILES} are needed")
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def main() -> None:
    """Attack, and print how many connections were opened and bytes sent."""
    url, key, name, seconds = sys.argv[1:]
    raise_limit()
    target = Target(url, key)
    asyncio.run(attack(target, name, float(seconds)))
    print(target.opened, target.sent)


if __name__ == "__main__":
    main()
