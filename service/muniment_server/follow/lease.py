"""The lease of a follower: which process does its work.

It saves work, and guards nothing: two that work are only wasteful.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from muniment_server.storage import Store

LEASE = 90_000
"""Milliseconds for which a process that died keeps others from its work, unless a follower says less."""


def now() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Lease:
    """The lease of the follower `name` of one log, as this process may have it.

    `clock` gives milliseconds, and it `lasts` so many: a process that has it renews it three times as often.
    """

    def __init__(
        self, store: Store, log_id: int, name: str, clock: Callable[[], int] = now, *, lasts: int = LEASE
    ) -> None:
        self._followers = store.followers
        self._log_id = log_id
        self._name = name
        self._clock = clock
        self._lasts = lasts
        self._holder = secrets.token_hex(8)
        self._until = 0

    @property
    def held(self) -> bool:
        """Tell whether this process is the one that works."""
        return self._clock() < self._until

    async def take(self) -> bool:
        """Take or keep the lease; tell whether this process has it. Raises StoreError."""
        now = self._clock()
        if now < self._until - self._lasts + self._lasts // 3:
            return True
        until = now + self._lasts
        got = await self._followers.take_lease(self._log_id, self._name, self._holder, now, until)
        self._until = until if got else 0
        return got

    async def release(self) -> None:
        """Let another process go on at once. Raises StoreError."""
        if self.held:
            now = self._clock()
            self._until = 0
            await self._followers.take_lease(self._log_id, self._name, self._holder, now, now)
