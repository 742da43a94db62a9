"""Memory that clients make this server hold, for bodies that come and answers that go.

It is bounded for all of them together, and shared. No client can take all of it. What one holds may at most be as much
as is then left: one alone gets half, two get a third each, and so on. So there is always some left for the next one,
however little.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from muniment_server.errors import Refused
from muniment_server.settings import Settings

CLIENT = "muniment.client"
"""The extension of ASGI in which a connection says what goes on with its client:"""
DRAINED = "drained"
"""what waits until its answers are read, and"""
GONE = "gone"
"""what tells whether it has left, and"""
ENDLESS = "endless"
"""what takes note that an answer has no end, and of what ends it."""
LARGE = 16_384
"""Bytes of an answer from which on it counts for as long as it is not read.

Also the bytes that each connection may have unread besides.
"""
Endless = Callable[[Callable[[], None]], Callable[[bytes], bool] | None]
"""Gets what ends an answer that would have no end. Returns what sends a piece of it at once, or None."""
_MEBIBYTE = 2**20
_TURNS = 2
"""Large things that are read at a time: one by the database, while an answer is made of the other."""
_NETWORK = 64  # a client that has one IPv6 address mostly has 2**64 of them


class Room:
    """A number of bytes, and who holds how many of them. Owned by the event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._of: Counter[Hashable] = Counter()

    def share(self, owner: Hashable) -> int:
        """Return how many more bytes `owner` may take."""
        return max(0, self.most - self.taken - self._of[owner]) // 2

    def take(self, owner: Hashable, size: int) -> bool:
        """Count `size` bytes as held by `owner`, if that is no more than its share."""
        if size > self.share(owner):
            return False
        self.add(owner, size)
        return True

    def add(self, owner: Hashable, size: int) -> None:
        """Count bytes that are there already; fewer where `size` is negative."""
        self.taken += size
        self._of[owner] += size
        if not self._of[owner]:
            del self._of[owner]  # otherwise every client ever seen would stay in memory


class Turns:
    """How many things may be done at a time; others wait, first come, first served. Owned by the event loop.

    A client that has left while it waited gets no turn: all of those in front of the next one are sent away at once.
    With a semaphore each would have to be woken before the next, and clients who come and go would fill the memory with
    tasks.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[tuple[asyncio.Future[bool], Callable[[], bool]]] = deque()

    def of(self, gone: Callable[[], bool]) -> AbstractAsyncContextManager[None]:
        """Return what has one turn for as long as its block runs, again each time.

        Entering it raises ClientDisconnect.
        """
        return _Turn(self, gone)

    async def begin(self, gone: Callable[[], bool]) -> None:
        """Wait for a turn. Raises ClientDisconnect when the client has left by then."""
        if gone():
            raise ClientDisconnect
        if self._free:
            self._free -= 1
            return
        # Whether it is to be had. An exception would keep the frame that waits for it, which keeps the exception.
        mine: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((mine, gone))
        try:
            had = await mine
        except asyncio.CancelledError:
            if not mine.cancelled() and mine.result():
                self.end()
            raise
        if not had:
            raise ClientDisconnect

    def end(self) -> None:
        """Give the turn to the next who still waits."""
        while self._waiting:
            following, gone = self._waiting.popleft()
            if following.done():
                continue
            left = gone()
            following.set_result(not left)
            if not left:
                return
        self._free += 1


class _Turn:
    def __init__(self, turns: Turns, gone: Callable[[], bool]) -> None:
        self._turns = turns
        self._gone = gone

    async def __aenter__(self) -> None:
        await self._turns.begin(self._gone)

    async def __aexit__(self, *_: object) -> None:
        self._turns.end()


class Rooms(NamedTuple):
    """The rooms of one server. They are apart, so that those who have no key take nothing from those who have."""

    strangers: Room  # heads that are not complete, requests that wait behind others, receipts to check
    entries: Room  # bodies of single entries
    batches: Room
    answers: Room  # that wait to be read
    turns: Turns  # to read what may be large

    @classmethod
    def of(cls, settings: Settings) -> Rooms:
        """Return the rooms of a server with these settings. Each has place for several of the largest it is for."""
        entries = max(32 * _MEBIBYTE, 64 * settings.max_event_bytes)
        batches = max(64 * _MEBIBYTE, 4 * settings.max_batch_bytes)
        turns = Turns(_TURNS)
        return cls(Room(16 * _MEBIBYTE), Room(entries), Room(batches), Room(batches), turns)

    def by_name(self) -> list[tuple[str, Room]]:
        """Return each room with its name."""
        return [(name, room) for name, room in self._asdict().items() if isinstance(room, Room)]


class Hold:
    """Bytes of one room that one owner holds, more or fewer as time goes on."""

    __slots__ = ("owner", "room", "size")

    def __init__(self, room: Room, owner: Hashable) -> None:
        self.room = room
        self.owner = owner
        self.size = 0

    def grow(self, size: int) -> bool:
        """Hold `size` bytes, if there is room for what is more than now."""
        if size > self.size + self.room.share(self.owner):
            return False
        self.be(size)
        return True

    def be(self, size: int) -> None:
        """Hold `size` bytes, whatever room there is."""
        if size != self.size:
            self.room.add(self.owner, size - self.size)
            self.size = size


class Budget:
    """What one request holds, until its answer is read. `client` is the address it came from, as ASGI has it.

    `drained` waits until there is hardly anything left of the answer; `gone` tells whether the client has left, and
    `endless` gets what ends an answer that would have no end.
    """

    __slots__ = ("_client", "_drained", "_gone", "_held", "endless", "rooms")

    def __init__(
        self,
        rooms: Rooms,
        client: tuple[str, int] | None,
        drained: Callable[[], Awaitable[None]] | None = None,
        gone: Callable[[], bool] = lambda: False,
        endless: Endless = lambda _end: None,
    ) -> None:
        self.rooms = rooms
        self.endless = endless
        self._client = client
        self._drained = drained
        self._gone = gone
        self._held: dict[tuple[Room, Hashable], int] = {}

    @property
    def peer(self) -> Hashable:
        """Whose answers these are: see :func:`peer_or_connection`."""
        return peer_or_connection(self._client)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return what reads what may be large: see :class:`Turns`."""
        return self.rooms.turns.of(self._gone)

    def check_client(self) -> None:
        """Raise ClientDisconnect when the client has left: what it asked for need not be made any more."""
        if self._gone():
            raise ClientDisconnect

    async def drained(self) -> None:
        """Wait until there is hardly anything left of what was sent."""
        if self._drained:
            await self._drained()

    def take(self, room: Room, owner: Hashable, size: int) -> None:
        """Hold bytes of a room. Raises Refused."""
        if not room.take(owner, size):
            raise busy()
        self._held[room, owner] = self._held.get((room, owner), 0) + size

    def cover(self, size: int, *, must: bool = False) -> bool:
        """Hold as many bytes as an answer of `size` takes, if there is room, or it must be sent."""
        room, owner = self.rooms.answers, self.peer
        held = self._held.get((room, owner), 0)
        if size <= held:
            return True
        if not must and size - held > room.share(owner):
            return False
        room.add(owner, size - held)
        self._held[room, owner] = size
        return True

    def until_read(self, response: Response) -> Response:
        """Return `response`, after which all of it is given back, once it is read."""
        if self._held:
            response.background = BackgroundTask(self._end)
        return response

    async def _end(self) -> None:
        try:
            await self.drained()
        finally:
            self.give_back()

    def give_back(self) -> None:
        """Hold nothing any more."""
        for (room, owner), size in self._held.items():
            room.add(owner, -size)
        self._held.clear()


def budget_for(rooms: Rooms, scope: Mapping[str, Any]) -> Budget:
    """Return a budget for a request, as ASGI has it."""
    return Budget(rooms, scope.get("client"), **scope.get("extensions", {}).get(CLIENT, {}))


def peer_or_connection(client: tuple[str, int] | None) -> Hashable:
    """Return whose memory it is: that of an address, or that of one connection.

    It is that of one connection where all come from this machine, where proxies are.
    """
    return peer_of(client[0] if client else None) or client


def busy() -> Refused:
    """Return the refusal of what there is no room for."""
    detail = "the server holds as much for its clients as it can"
    hint = "Nothing was written. Retry after the time given, and with fewer requests at a time."
    return Refused("busy", detail, hint, retry_after=1)


def peer_of(host: str | None) -> str | None:
    """Return what connections are counted by: an IPv4 address or an IPv6 network.

    None for this machine, where proxies are.
    """
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            address = address.ipv4_mapped
        else:
            return None if address.is_loopback else str(ipaddress.ip_network((address, _NETWORK), strict=False))
    return None if address.is_loopback else str(address)
