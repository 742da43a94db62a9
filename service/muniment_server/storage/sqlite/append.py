"""The embedded store: SQLite through apsw, WAL, ``synchronous=FULL``, one writer thread and read connections apart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import apsw

from muniment.hashing import HASH_SIZE
from muniment.tiles import Tile
from muniment.tree import TileGrowth
from muniment_server.errors import (
    Corrupt,
    DuplicateLeaf,
    HeadMoved,
    OtherTree,
    OutcomeUnknown,
    Replaced,
    SchemaError,
    StoreUnavailable,
)
from muniment_server.failpoints import step
from muniment_server.storage import EdgeTile, Grown, Head, Published, Reread
from muniment_server.storage.migrate import migrate_sqlite
from muniment_server.storage.row_ids import row_id, row_ids
from muniment_server.storage.sqlite import leaf_keys
from muniment_server.storage.sqlite.anchors import SqliteAnchors
from muniment_server.storage.sqlite.catalog import SqliteCatalog
from muniment_server.storage.sqlite.inspect import SqliteInspect
from muniment_server.storage.sqlite.reads import LEAVES, SqliteReads, read_tiles
from muniment_server.storage.sqlite.recent_leaf_keys import Recent

T = TypeVar("T")

OLDEST_SAFE = (3, 51, 3)
"""Before this version a WAL reset could lose a committed transaction."""
_BUSY_MILLISECONDS = 10_000
_READERS = 4
_READER_KIBIBYTES = 256
"""Of each reader. Every commit empties their page caches: they are good for little more than one query."""
_CHECKPOINT_PAGES = 4000
"""Pages of WAL (16 MB) after which a commit carries them over into the database: some milliseconds for those who wait for it. With the
usual 1,000 pages that is more than one commit in a hundred, and most of the pages are the same few again and again."""
_WRITTEN = 16
"""Logs whose last leaf keys stay in memory, up to 1.5 MB for each. Those of other logs are read again with the next append: 50 ms."""
_NICE = 5
"""Of the thread that writes."""
_AT_ONCE = 512
"""Entries that are read back without a thread: a fraction of a millisecond."""

_SWAP = (
    "UPDATE heads SET size = ?, root = ?, logged_at = ?, epoch = ?, guard_id = ? "
    "WHERE log_id = ? AND size = ? AND root = ? AND logged_at = ? AND epoch = ? AND guard_id = ?"
)


def _step_back() -> None:
    """Let the event loop go before this thread, where they share a processor: a read takes microseconds, a commit milliseconds."""
    if sys.platform == "linux":  # elsewhere this would name another process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def connect(path: Path) -> apsw.Connection:
    """Open a connection with the settings that durability and append-only triggers need. Raises SchemaError on an old SQLite."""
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SAFE:
        raise SchemaError(f"SQLite {apsw.sqlite_lib_version()} can lose committed data; install apsw >= 3.51.3")
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # see SqliteStore._open
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged entries at a power cut
    _check_durable(connection)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _check_durable(connection: apsw.Connection) -> None:
    """Raise SchemaError unless the settings took: SQLite answers a mode that it cannot have with the one it keeps."""
    mode, level = connection.pragma("journal_mode"), connection.pragma("synchronous")
    if (mode, level) != ("wal", 2):
        raise SchemaError(
            f"SQLite runs with journal_mode={mode}, synchronous={level} instead of wal, 2 (FULL): acknowledged entries could be "
            "lost. The file system may not allow shared memory: move the data folder to a local disk"
        )


class SqliteStore(SqliteReads, SqliteInspect, SqliteCatalog, SqliteAnchors):
    """A Store in one file. Make it with :meth:`open`."""

    has_clock = False

    def __init__(self, path: Path, writer: apsw.Connection) -> None:
        self._path = path
        self._writer = writer  # used by the writer thread alone
        self._write_thread = ThreadPoolExecutor(1, "sqlite-writer", _step_back)
        self._read_threads = ThreadPoolExecutor(_READERS, "sqlite-reader")
        self._local = threading.local()  # one connection for each reader thread
        self._readers: list[apsw.Connection] = []
        self._at_once: apsw.Connection | None = None  # used by the event loop's thread alone
        self._recent: dict[int, Recent] = {}  # by log, last written last; changed by the writer thread alone
        self._closed = False
        self._files = {file: _identity(file) for file in (f"{path}{end}" for end in ("", "-wal", "-shm"))}
        self._replaced = ""  # once set, why nothing that is read or written here counts

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open, and create or migrate, the database at `path`. Raises SchemaError, Corrupt, or StoreUnavailable.

        With its last connection SQLite carries the WAL over and removes it. Not before all is well: where a copy was
        put in place of the database, the WAL that is left holds entries that were answered, and nothing else does.
        """
        return await asyncio.to_thread(cls._open, path)

    @classmethod
    def _open(cls, path: Path) -> SqliteStore:
        try:
            path.touch(mode=0o600)  # it holds payloads and seeds; SQLite gives its other files the same mode
            writer = connect(path)
            writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            migrate_sqlite(writer)
            writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise Corrupt(
                f"database_damaged: {path} is damaged, or {path.name}-wal beside it is of another database ({error}). "
                "Nothing was changed: move the three files away together, then put a whole copy in place"
            ) from error
        except (apsw.Error, OSError) as error:
            raise StoreUnavailable(f"cannot open {path}: {error}") from error
        return cls(path, writer)

    async def close(self) -> None:
        """Wait for the write in flight and release every connection."""
        self._closed = True
        await asyncio.to_thread(self._write_thread.shutdown)
        await asyncio.to_thread(self._read_threads.shutdown)
        for connection in (*self._readers, self._writer):
            connection.close()

    # --- threads --------------------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        def run() -> T:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._reader()
            return work(connection)

        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_threads, run)
        except (apsw.Error, UnicodeDecodeError) as error:  # a damaged page may hold text that is none
            raise StoreUnavailable(f"SQLite: {error}") from error

    def _reader(self) -> apsw.Connection:
        connection = connect(self._path)
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_READER_KIBIBYTES}")
        self._readers.append(connection)
        self.check_premises()  # otherwise this one reads other files than the writer writes
        return connection

    async def _write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in one transaction of the writer thread. Raises HeadMoved, StoreUnavailable or OutcomeUnknown."""
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._write_thread, self._transact, work)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._replaced:
            raise Replaced(self._replaced)

    async def reconnect(self, log_id: int) -> None:
        """See storage.Append. The files are those that they were when the store was opened, or check_premises() says so."""

    def check_premises(self, head: Head | None = None) -> None:  # noqa: ARG002 - there are no sessions
        """See storage.Append. A connection goes on with files that have no name any more, and what it commits there is lost."""
        if not self._replaced and (wrong := [file for file, was in self._files.items() if _identity(file) != was]):
            self._replaced = (
                f"{', '.join(wrong)}: removed or replaced under this process, which would commit into files that are lost. "
                "Put the right database there, and restart"
            )
        if self._replaced:
            raise Replaced(self._replaced)

    def _transact(self, work: Callable[[apsw.Connection], T]) -> T:
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

    # --- append ---------------------------------------------------------------------------------------------------------

    async def head_to_extend(self, log_id: int) -> Head:
        """See storage.Append. All connections of this store are to the files that check_premises() watches."""
        self.check_premises()
        return await self.head(log_id)

    @step("store.append")
    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """See storage.Append."""
        self._check_open()
        await asyncio.get_running_loop().run_in_executor(self._write_thread, self._append, grown, expected, absent)
        self.check_premises()  # before anything is guarded: what the next process finds there is another tree
        if not tiles:
            return [], {}
        try:
            return await self.reread(grown.log_id, expected.size, grown.head.size, tiles)
        except StoreUnavailable as error:
            raise OutcomeUnknown(f"stored, but not read back: {error}") from error

    def _append(self, grown: Grown, expected: Head, absent: Sequence[int]) -> None:
        """Append in one transaction of the writer thread. What it left behind in memory changes when it is committed, and only then."""

        def work(connection: apsw.Connection) -> Recent:
            _swap(connection, grown.log_id, expected, grown.head)
            recent = leaf_keys.load(connection, grown.log_id, expected.size, self._recent.get(grown.log_id))
            self._keep(grown.log_id, recent)
            try:
                _store(connection, grown, expected.size, absent, recent)
            except apsw.ConstraintError:
                # Perhaps somebody made the table of leaf keys again: then what is known of it is out of date.
                del self._recent[grown.log_id]
                raise
            return recent

        recent = self._transact(work)
        recent.carried()
        recent.add(grown.leaf_keys)

    def _keep(self, log_id: int, recent: Recent) -> None:
        self._recent.pop(log_id, None)
        self._recent[log_id] = recent
        if len(self._recent) > _WRITTEN:
            del self._recent[next(iter(self._recent))]

    @step("store.fence")
    async def fence(self, log_id: int, expected: Head) -> Head:
        """See storage.Append."""
        fenced = replace(expected, epoch=expected.epoch + 1)
        await self._write(lambda connection: _swap(connection, log_id, expected, fenced))
        self.check_premises()
        return fenced

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """See storage.Append."""
        adopted = replace(expected, epoch=expected.epoch + 1, guard_id=guard_id)
        await self._write(lambda connection: _swap(connection, log_id, expected, adopted))
        self.check_premises()
        return adopted

    @step("store.publish")
    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """See storage.Append."""
        return await self._publish(log_id, (checkpoint,), edge)

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """See storage.Append."""
        return await self._publish(log_id, checkpoints, ())

    async def _publish(self, log_id: int, checkpoints: Sequence[Published], edge: Sequence[EdgeTile]) -> bool:
        def work(connection: apsw.Connection) -> bool:
            if not _begins_with(connection, log_id, edge):
                raise OtherTree(f"the database does not hold the tree of size {checkpoints[-1].size} that was signed")
            sql = "UPDATE heads SET published_size = ? WHERE log_id = ? AND published_size < ?"
            connection.execute(sql, (checkpoints[-1].size, log_id, checkpoints[0].size))
            if not connection.changes():
                return False
            rows = [(log_id, one.size, one.note, one.published_at) for one in checkpoints]
            connection.executemany("INSERT INTO checkpoints VALUES (?, ?, ?, ?)", rows)
            return True

        larger = await self._write(work)
        self.check_premises()
        return larger

    # --- read -----------------------------------------------------------------------------------------------------------

    async def reread(self, log_id: int, start: int, stop: int, tiles: Sequence[Tile]) -> Reread:
        """See storage.Read."""

        def work(connection: apsw.Connection) -> Reread:
            leaves = [leaf for (leaf,) in connection.execute(LEAVES, row_ids(log_id, start, stop))]
            return leaves, read_tiles(connection, log_id, tiles)

        if stop - start <= _AT_ONCE:
            return self._read_now(work)
        return await self._read(work)

    def _read_now(self, work: Callable[[apsw.Connection], T]) -> T:
        """Read on the event loop itself: for what was just written, and so is in memory. A thread costs more than such a read."""
        self._check_open()
        try:
            if self._at_once is None:
                self._at_once = self._reader()
            return work(self._at_once)
        except (apsw.Error, UnicodeDecodeError) as error:
            raise StoreUnavailable(f"SQLite: {error}") from error

    async def find_leaves(
        self,
        log_id: int,
        keys: Sequence[int],
        session: int | None = None,  # noqa: ARG002 - there are no sessions
    ) -> list[tuple[int, bytes]]:
        """See storage.Read."""
        look_up = leaf_keys.find(log_id, keys, self._recent.get(log_id))
        return await self._read(look_up)


def _begins_with(connection: apsw.Connection, log_id: int, edge: Sequence[EdgeTile]) -> bool:
    """Tell whether the stored tiles begin with these hashes."""
    stored = read_tiles(connection, log_id, [Tile(level, index, len(data) // HASH_SIZE) for level, index, data in edge])
    return all(stored.get((level, index), b"")[: len(data)] == data for level, index, data in edge)


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


@step("sqlite.swap")
def _swap(connection: apsw.Connection, log_id: int, expected: Head, new: Head) -> None:
    old = (log_id, expected.size, expected.root, expected.logged_at, expected.epoch, expected.guard_id)
    connection.execute(_SWAP, (new.size, new.root, new.logged_at, new.epoch, new.guard_id, *old))
    if not connection.changes():
        raise HeadMoved(f"the head of log {log_id} is no longer at size {expected.size}, epoch {expected.epoch}")


def _store(connection: apsw.Connection, grown: Grown, first: int, absent: Sequence[int], recent: Recent) -> None:
    if absent and leaf_keys.is_any_known(connection, grown.log_id, absent, recent):
        raise DuplicateLeaf("an entry with one of these leaf keys is stored")
    _store_entries(connection, grown, first)
    for tile in grown.tiles:
        _store_tile(connection, grown.log_id, tile)
    _store_keys(connection, grown)
    leaf_keys.carry_over(connection, grown.log_id, recent)


@step("sqlite.entries")
def _store_entries(connection: apsw.Connection, grown: Grown, first: int) -> None:
    log_id = grown.log_id
    start = row_id(log_id, first)
    ids = range(start, start + len(grown.leaves))
    rows = zip(ids, grown.leaf_keys, grown.leaves, strict=True)
    connection.executemany("INSERT INTO entries (id, leaf_key, leaf) VALUES (?, ?, ?)", rows)
    payloads = [(log_id, *payload) for payload in grown.payloads]
    connection.executemany("INSERT INTO payloads VALUES (?, ?, ?, ?)", payloads)


@step("sqlite.keys")
def _store_keys(connection: apsw.Connection, grown: Grown) -> None:
    log_id = grown.log_id
    for key in grown.idempotency:
        connection.execute(
            "DELETE FROM idempotency WHERE log_id = ? AND caller = ? AND key = ? AND expires_at <= ?",
            (log_id, key.caller, key.key, grown.head.logged_at),
        )
        values = (log_id, key.caller, key.key, key.fingerprint, key.first_index, key.count, key.expires_at)
        connection.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?)", values)


@step("sqlite.tile")
def _store_tile(connection: apsw.Connection, log_id: int, tile: TileGrowth) -> None:
    # Not an upsert: the trigger that refuses INSERT OR REPLACE cannot tell it from one.
    if tile.old_width:
        sql = 'UPDATE tiles SET data = ? WHERE log_id = ? AND level = ? AND "index" = ?'
        connection.execute(sql, (tile.data, log_id, tile.level, tile.index))
    else:
        connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?)", (log_id, tile.level, tile.index, tile.data))
