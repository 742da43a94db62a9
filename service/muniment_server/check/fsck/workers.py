"""Checks chunks in processes, one for each core.

Hashing and JSON hold the interpreter's lock, so threads would not help.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from muniment_server.check.fsck.chunk import Chunk, Task, check_chunk_or_say
from muniment_server.errors import StoreUnavailable
from muniment_server.storage import Store
from muniment_server.storage.open import open_database

_AHEAD = 3  # tasks given out for each worker


@dataclass(frozen=True, slots=True)
class Database:
    """Where a worker finds the database.

    It is handed over through a pipe, never on a command line: a URL may hold a password.
    """

    sqlite: Path
    url: str | None

    async def open(self) -> Store:
        """Open the store."""
        return await open_database(self.sqlite, self.url)


async def check_here(store: Store, tasks: Iterable[Task]) -> AsyncIterator[Chunk]:
    """Check chunks in this process, one after the other."""
    for task in tasks:
        yield await check_chunk_or_say(store, task)


class Workers:
    """Processes that check chunks. Close it when done."""

    def __init__(self, database: Database, count: int | None = None) -> None:
        self._count = count or len(os.sched_getaffinity(0))
        # Not fork: a copy of a process with threads and open databases is not a working one.
        self._pool = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), _open, (database,))

    async def check(self, _store: Store, tasks: Iterable[Task]) -> AsyncIterator[Chunk]:
        """Yield the chunks of `tasks`, in their order. Raises StoreUnavailable."""
        waiting: deque[Future[Chunk]] = deque()
        tasks = iter(tasks)
        try:
            while True:
                while len(waiting) < _AHEAD * self._count and (task := next(tasks, None)) is not None:
                    waiting.append(self._pool.submit(_check, task))
                if not waiting:
                    return
                yield await asyncio.wrap_future(waiting[0])
                waiting.popleft()
        except BrokenProcessPool as error:
            raise StoreUnavailable(f"a worker of fsck ended: {error}") from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


_runner: asyncio.Runner  # of a worker process, as are the next two
_database: Database
_store: Store | None = None


def _open(database: Database) -> None:
    global _runner, _database
    _runner, _database = asyncio.Runner(), database


def _check(task: Task) -> Chunk:
    return _runner.run(_check_task(task))


async def _check_task(task: Task) -> Chunk:
    global _store  # noqa: PLW0603 - the state of a worker process has no other place
    if _store is None:
        _store = await _database.open()
    return await check_chunk_or_say(_store, task)
