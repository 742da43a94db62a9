"""The connections to one SQLite file, and the threads that use them: one writes, some read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import apsw

from muniment_server.errors import Corrupt, HeadMoved, OutcomeUnknown, Replaced, StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage.migrate import check_sqlite, migrate_sqlite
from muniment_server.storage.sqlite.connect import connect, connect_read_only, is_writable

T = TypeVar("T")
Values = TypeVarTuple("Values")

_READERS = 4
_READER_KIBIBYTES = 256
"""Of each reader. Every commit empties their page caches: they are good for little more than one query."""
_CHECKPOINT_PAGES = 4000
"""Pages of WAL (16 MB) after which a commit carries them over into the database: some milliseconds for those who wait
for it. With the usual 1,000 pages that is more than one commit in a hundred, and most of the pages are the same few
again and again."""
_NICE = 5
"""Of the thread that writes."""


def _step_back() -> None:
    """Let the event loop go before this thread, where they share a processor.

    A read takes microseconds, a commit milliseconds.
    """
    if sys.platform == "linux":  # elsewhere this would name another process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Database:
    """One file that is open. Make it with :meth:`open`. The parts of a store share it."""

    def __init__(self, path: Path, writer: apsw.Connection, connect: Callable[[Path], apsw.Connection]) -> None:
        self._path = path
        self._writer = writer  # used by the writer thread alone
        self._connect = connect
        self._write_thread = ThreadPoolExecutor(1, "sqlite-writer", _step_back)
        self._read_threads = ThreadPoolExecutor(_READERS, "sqlite-reader")
        self._local = threading.local()  # one connection for each reader thread
        self._readers: list[apsw.Connection] = []
        self._at_once: apsw.Connection | None = None  # used by the event loop's thread alone
        self._closed = False
        self._files = {file: _identity(file) for file in (f"{path}{end}" for end in ("", "-wal", "-shm"))}
        self._replaced = ""  # once set, why nothing that is read or written here counts

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open, and create or migrate, the database at `path`. Raises SchemaError, Corrupt, or StoreUnavailable.

        Where its folder can only be read, the database is opened as it is, and writes raise StoreUnavailable.

        With its last connection SQLite carries the WAL over and removes it. Not before all is well: where a copy was
        put in place of the database, the WAL that is left holds entries that were answered, and nothing else does.
        """
        try:
            return cls._open(path) if is_writable(path) else cls._open_read_only(path)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise Corrupt(
                f"database_damaged: {path} is damaged, or {path.name}-wal beside it is of another database ({error}). "
                "Nothing was changed: move the three files away together, then put a whole copy in place"
            ) from error
        except (apsw.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open {path}: {error}") from error

    @classmethod
    def _open(cls, path: Path) -> Database:
        path.touch(mode=0o600)  # it holds payloads and seeds; SQLite gives its other files the same mode
        writer = connect(path)
        writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        migrate_sqlite(writer)
        writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        return cls(path, writer, connect)

    @classmethod
    def _open_read_only(cls, path: Path) -> Database:
        try:
            connection = connect_read_only(path)
            check_sqlite(connection)
        except apsw.CantOpenError as error:
            raise StoreUnavailable(
                f"cannot open {path} where it can only be read: {error}. Copy the folder to where it can be written"
            ) from error
        return cls(path, connection, connect_read_only)

    async def close(self) -> None:
        """Wait for the write in flight and release every connection."""
        self._closed = True
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        for connection in (*self._readers, self._writer):
            connection.close()

    def check_open(self) -> None:
        """Raise StoreUnavailable when it was closed, Replaced when check_premises() found that its files are others."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._replaced:
            raise Replaced(self._replaced)

    def check_premises(self) -> None:
        """Raise Replaced when the files are not those that were opened.

        A connection goes on with files that have no name any more, and what it commits there is lost.
        """
        if not self._replaced and (wrong := [file for file, was in self._files.items() if _identity(file) != was]):
            self._replaced = (
                f"{', '.join(wrong)}: removed or replaced under this process, which would commit into files that are "
                "lost. Do not stop it yet: docs/incidents.md says how what it holds is saved"
            )
        if self._replaced:
            raise Replaced(self._replaced)

    # --- reads ---

    async def read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` on a connection that only reads, in a thread. Raises StoreUnavailable."""

        def run() -> T:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._reader()
            return work(connection)

        self.check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_threads, run)
        except (apsw.Error, UnicodeDecodeError) as error:  # a damaged page may hold text that is none
            raise StoreUnavailable(f"SQLite: {error}") from error

    def read_now(self, work: Callable[[apsw.Connection], T]) -> T:
        """Read on the event loop itself: for what was just written, and so is in memory.

        A thread costs more than such a read. Raises StoreUnavailable.
        """
        self.check_open()
        try:
            if self._at_once is None:
                self._at_once = self._reader()
            return work(self._at_once)
        except (apsw.Error, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def all(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return the rows of a query. Raises StoreUnavailable."""
        return await self.read(lambda connection: connection.execute(sql, values).fetchall())

    async def one(self, sql: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the first row of a query. Raises StoreUnavailable."""
        return await self.read(lambda connection: connection.execute(sql, values).fetchone())

    def _reader(self) -> apsw.Connection:
        connection = self._connect(self._path)
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_READER_KIBIBYTES}")
        self._readers.append(connection)
        self.check_premises()  # otherwise this one reads other files than the writer writes
        return connection

    # --- writes ---

    async def write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in one transaction of the writer thread. Raises HeadMoved, StoreUnavailable or OutcomeUnknown."""
        return await self.on_writer(self.transact, work)

    async def carry_over(self) -> None:
        """Write what the WAL has into the database, in a turn of the writer thread of its own.

        As with that of a commit, an error is none: the next one tries again.
        """
        with contextlib.suppress(apsw.Error):
            await self.on_writer(self._writer.wal_checkpoint)

    def on_writer(self, work: Callable[[*Values], T], *values: *Values) -> asyncio.Future[T]:
        """Begin `work` in the writer thread: what calls transact() there may do more, before and after it."""
        self.check_open()
        return asyncio.get_running_loop().run_in_executor(self._write_thread, work, *values)

    def transact(self, work: Callable[[apsw.Connection], T]) -> T:
        """In the writer thread: run `work` in one transaction. Raises as write()."""
        connection = self._writer
        try:
            _begin(connection)
        except apsw.Error as error:
            raise StoreUnavailable(f"SQLite: {error}") from error
        try:
            result = work(connection)
        except BaseException as error:
            self._roll_back()
            if isinstance(error, apsw.ConstraintError):
                raise HeadMoved(f"SQLite: {error}") from error
            if isinstance(error, apsw.ReadOnlyError):
                raise StoreUnavailable(f"{self._path} or its folder can only be read by this process") from error
            if isinstance(error, apsw.Error):
                raise StoreUnavailable(f"SQLite: {error}") from error
            raise
        try:
            _end(connection)
        except apsw.Error as error:
            self._roll_back()
            # The WAL frame may have reached the disk although its fsync failed.
            raise OutcomeUnknown(f"SQLite could not tell whether it committed: {error}") from error
        return result

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")


def _identity(file: str) -> tuple[int, int] | None:
    """Return which file a path names: device and inode; None when there is none."""
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path takes longer, and this runs three times for each append
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@step("sqlite.begin")
def _begin(connection: apsw.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")


@step("sqlite.commit")
def _end(connection: apsw.Connection) -> None:
    connection.execute("COMMIT")
