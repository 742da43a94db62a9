"""The feed of a log: its published checkpoints, each told to all who follow it, in order and once.

What is told is what the store has, whichever process published it. While there are subscribers, one task reads what is
new, once for all of them, and wakes them. A subscriber keeps no events: it knows the size it was sent last, and takes
what comes next from the few that are kept for all, or from the store. So nothing waits for one that is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from muniment.sse import HEARTBEAT, CheckpointEvent, format_event
from muniment_server.errors import StoreError
from muniment_server.storage.checkpoints import Checkpoints, Published
from muniment_server.telemetry import get_logger

HEARTBEAT_SECONDS = 15.0
_KEPT = 64
"""Events that are kept for all, and read from the store at a time."""
_PAGE = 32
"""Events that a subscriber which is behind all of those reads from the store at a time: less than LARGE."""
_BREATH = 64
"""Subscribers that are told without letting others have a turn."""


class _Told(NamedTuple):
    """An event as it is sent: made once, and shared."""

    size: int
    text: bytes

    @classmethod
    def of(cls, one: Published) -> _Told:
        return cls(one.size, format_event(CheckpointEvent(one.size, one.note)))


Write = Callable[[bytes], bool]
"""Sends a piece of an answer at once. Returns False, and sends nothing, where one before it still waits to be read."""


class _Subscriber:
    """One who follows: the size it was sent last, and how to send it more while it `waits` for that.

    `woken` says that there is something to send, if only a heartbeat, or that it has ended.
    """

    __slots__ = ("ended", "size", "waits", "woken", "write")

    def __init__(self, size: int) -> None:
        self.size = size
        self.ended = self.waits = False
        self.woken = asyncio.Event()
        self.write: Write = lambda _piece: False

    def tell(self, before: int, events: list[_Told], piece: bytes) -> None:
        """Send what was published beyond the size `before`, or a heartbeat: here and now where that is all it lacks.

        Otherwise its task sends it. To wake a thousand tasks would cost more than all the rest.
        """
        if self.waits and self.size == before and not self.woken.is_set() and self.write(piece):
            self.size = events[-1].size if events else before
        else:
            self.woken.set()

    def end(self) -> None:
        self.ended = True
        self.woken.set()


class Feed:
    """The feed of one log. Owned by the event loop.

    `look_seconds` is how often the store is asked for what other processes published; what this one did wakes it.
    """

    def __init__(self, checkpoints: Checkpoints, log_id: int, log: str, look_seconds: float) -> None:
        self._checkpoints = checkpoints
        self._log_id = log_id
        self._log = log
        self._look_seconds = look_seconds
        self._subscribers: dict[_Subscriber, None] = {}  # a set that keeps the order in which they came
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._kept: deque[_Told] = deque()  # everything published beyond `_floor` that this process knows of
        self._floor: int | None = None  # None: nothing is known, as before the first subscriber
        self._told_at = 0.0

    @property
    def subscribers(self) -> int:
        """How many follow."""
        return len(self._subscribers)

    def wake(self) -> None:
        """Look for what is new: this process has published a checkpoint, or seen one."""
        self._news.set()

    async def stream(self, after: int, begin: Callable[[Callable[[], None]], Write | None]) -> AsyncGenerator[bytes]:
        """Yield every checkpoint published beyond a size, in order and once, then each that comes, and heartbeats.

        `begin` gets what ends this, to be called when the client has left or is to go; it may return what sends a piece
        past this generator, while that waits. Raises StoreError.
        """
        me, waited = _Subscriber(after), False
        me.write = begin(me.end) or me.write
        self._enter(me)
        try:
            while not me.ended:
                me.woken.clear()  # first: what is kept from now on wakes it again
                if events := await self._beyond(me.size):
                    me.size, waited = events[-1].size, False
                    yield b"".join([event.text for event in events])
                elif waited:
                    waited = False
                    yield HEARTBEAT
                else:
                    me.waits = True
                    waited = await me.woken.wait()
                    me.waits = False
        finally:
            self._leave(me)

    async def _beyond(self, size: int) -> list[_Told]:
        """Return what was published beyond a size, smallest first: all that is kept of it, or else a page."""
        if self._floor is None or size < self._floor:
            return [_Told.of(one) for one in await self._checkpoints.checkpoints(self._log_id, size + 1, _PAGE)]
        found = []
        for event in reversed(self._kept):
            if event.size <= size:
                break
            found.append(event)
        return found[::-1]

    # --- the task -----------------------------------------------------------------------------------------------------

    def _enter(self, one: _Subscriber) -> None:
        self._subscribers[one] = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"feed of {self._log}")

    def _leave(self, one: _Subscriber) -> None:
        self._subscribers.pop(one, None)
        if not self._subscribers:
            self._news.set()  # let the task end

    async def _run(self) -> None:
        """Look, for as long as there are subscribers. What is kept is forgotten then: nothing would add to it."""
        self._told_at = asyncio.get_running_loop().time()
        while self._subscribers:
            self._news.clear()
            try:
                await self.look()
            except StoreError:
                pass  # a reader is told by its own request; here the store is only asked again
            except Exception as error:  # noqa: BLE001 - whatever it was: a feed that stands still would look idle
                get_logger().error("the feed failed", log=self._log, exc_info=error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._look_seconds)
        self._kept.clear()
        self._floor = self._task = None

    async def look(self) -> None:
        """Keep what was published since the last time, and wake the subscribers, or all of them for a heartbeat."""
        while found := await self._read():
            before = None if self._floor is None else self._largest(self._floor)
            self._keep(found)
            await self._tell_all(before, found)
            if before is None or len(found) < _KEPT:
                break  # otherwise there may be more
        if asyncio.get_running_loop().time() - self._told_at >= HEARTBEAT_SECONDS:
            await self._tell_all(None if self._floor is None else self._largest(self._floor), [])

    async def _read(self) -> list[_Told]:
        if self._floor is None:
            found = await self._checkpoints.checkpoints(self._log_id, 2**63 - 1, _KEPT, newest=True)
            return [_Told.of(one) for one in reversed(found)]
        found = await self._checkpoints.checkpoints(self._log_id, self._largest(self._floor) + 1, _KEPT)
        return [_Told.of(one) for one in found]

    def _largest(self, floor: int) -> int:
        return self._kept[-1].size if self._kept else floor

    def _keep(self, found: list[_Told]) -> None:
        if self._floor is None:
            self._floor, found = found[0].size, found[1:]  # what was before it is not known here
        self._kept.extend(found)
        while len(self._kept) > _KEPT:
            self._floor = self._kept.popleft().size

    async def _tell_all(self, before: int | None, events: list[_Told]) -> None:
        """Tell all what was published beyond the size `before`, None where that is not known; or that nothing was."""
        self._told_at = asyncio.get_running_loop().time()
        piece = b"".join([event.text for event in events]) or HEARTBEAT
        for count, one in enumerate(list(self._subscribers), 1):
            one.tell(-1 if before is None else before, events, piece)
            if not count % _BREATH:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """End all that is left, and look no more."""
        for one in list(self._subscribers):
            one.end()
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
