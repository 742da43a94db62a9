"""A connection to SQLite, with the settings that durability and append-only triggers need."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import quote

import apsw

from muniment_server.errors import SchemaError

OLDEST_SAFE = (3, 51, 3)
"""Before this version a WAL reset could lose a committed transaction."""
_BUSY_MILLISECONDS = 10_000


def is_writable(path: Path) -> bool:
    """Tell whether the database at `path` can be written: not where its folder or file may only be read."""
    return os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))


def connect(path: Path) -> apsw.Connection:
    """Open a connection that writes. Raises SchemaError on an old SQLite, or where the settings do not take."""
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SAFE:
        raise SchemaError(f"SQLite {apsw.sqlite_lib_version()} can lose committed data; install apsw >= 3.51.3")
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # see Database.open
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL loses acknowledged entries at a power cut
    _check_durable(connection)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _use_wal(connection: apsw.Connection) -> None:
    """Turn the write-ahead log on, also while other processes do the same to a new database.

    SQLite does not wait here for every lock: of two connections that read the new file and both want to turn it, it
    tells one `busy` at once, whatever its busy timeout is. Without another try a server that starts beside another
    one on a new database would end.
    """
    until = time.monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except apsw.BusyError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)
        else:
            return


def connect_read_only(path: Path) -> apsw.Connection:
    """Open a connection to a database whose folder can't be written, such as one on a medium mounted read-only.

    Reading takes locks and the index of the WAL, which are files. Without a WAL, and on such a medium alone, the
    database is opened as one that nothing changes, which needs neither: under a process that may only read, another
    one may write. Otherwise WAL and index have to be there.
    """
    wal = path.with_name(f"{path.name}-wal")
    empty = not wal.exists() or not wal.stat().st_size
    unchanging = empty and bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    name = f"file:{quote(str(path.absolute()))}?mode=ro" + ("&immutable=1" if unchanging else "")
    connection = apsw.Connection(name, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _check_durable(connection: apsw.Connection) -> None:
    """Raise SchemaError unless the settings took: SQLite answers a mode that it cannot have with the one it keeps."""
    mode, level = connection.pragma("journal_mode"), connection.pragma("synchronous")
    if (mode, level) != ("wal", 2):
        raise SchemaError(
            f"SQLite runs with journal_mode={mode}, synchronous={level} instead of wal, 2 (FULL): acknowledged entries "
            "could be lost. The file system may not allow shared memory: move the data folder to a local disk"
        )
