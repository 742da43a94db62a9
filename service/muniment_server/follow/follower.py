"""A follower: background work of one log that is done again and again, beside the write path and never in its way.

How far it has come, its cursor, is in what it stored (a published checkpoint, an anchor): after a crash, or in another
process, it goes on from there. Where one process is to do the work for all, a lease says which.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from muniment_server.errors import StoreError
from muniment_server.follow.lease import Lease
from muniment_server.telemetry import get_logger

Work = Callable[[], Awaitable[float]]
"""Does what is due, and returns how many seconds to rest. May raise: see Retry."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How a follower goes on after an error: a warning `event`, and the next try `seconds` later.

    `expected` errors, those of a database that is away, tell the operator nothing new: they are logged for debugging
    alone. With `bug_seconds` all others are errors of our own: they are logged with their traceback, and the next try
    is so much later.
    """

    event: str
    seconds: float
    expected: tuple[type[Exception], ...] = ()
    bug_seconds: float | None = None

    def rest_after(self, error: Exception) -> float:
        """Return how many seconds to rest after an error."""
        return self.seconds if self.bug_seconds is None or isinstance(error, self.expected) else self.bug_seconds

    def tell(self, error: Exception, follower: str, log: str) -> None:
        """Log an error."""
        if isinstance(error, self.expected):
            get_logger().debug("a follower waits", follower=follower, log=log, error=str(error))
        elif self.bug_seconds is None:
            get_logger().warning(self.event, log=log, error=f"{type(error).__name__}: {error}")
        else:
            get_logger().error(self.event, follower=follower, log=log, exc_info=error)


class Follower:
    """Does one piece of work of the log named `log`, from :meth:`start` to :meth:`close`, in a task of its own."""

    def __init__(
        self,
        name: str,
        log: str,
        work: Work,
        retry: Retry,
        *,
        lease: Lease | None = None,
        first: float = 0.0,
        on_wake: bool = False,
    ) -> None:
        """Make it.

        It begins after `first` seconds; with `on_wake` it works only after a call of :meth:`wake`, or an error. With a
        `lease`, it works only while this process has that.
        """
        self._name = name
        self._log = log
        self._work = work
        self._retry = retry
        self._lease = lease
        self._first = first
        self._on_wake = on_wake
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=f"{self._name} of {self._log}")

    def wake(self) -> None:
        """Let it work once more, when it has rested."""
        self._woken.set()

    async def close(self) -> None:
        """Stop, in the middle of its work if need be, and let another process go on."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._lease:
            with contextlib.suppress(StoreError):
                await self._lease.release()

    async def _run(self) -> None:
        await asyncio.sleep(self._first)
        while True:
            if self._on_wake:
                await self._woken.wait()
                self._woken.clear()
            await asyncio.sleep(await self._work_once())

    async def _work_once(self) -> float:
        """Work, and return how many seconds to rest.

        Whatever goes wrong is tried again: work that is not done any more is worse.
        """
        try:
            if self._lease and not await self._lease.take():
                return self._retry.seconds
            return await self._work()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is logged and tried again
            self._woken.set()
            self._retry.tell(error, self._name, self._log)
            return self._retry.rest_after(error)
