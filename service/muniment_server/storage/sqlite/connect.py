"""A connection to SQLite, with the settings that durability and append-only triggers need."""

from __future__ import annotations

from pathlib import Path

import apsw

from muniment_server.errors import SchemaError

OLDEST_SAFE = (3, 51, 3)
"""Before this version a WAL reset could lose a committed transaction."""
_BUSY_MILLISECONDS = 10_000


def connect(path: Path) -> apsw.Connection:
    """Open a connection. Raises SchemaError on an old SQLite, or where the settings do not take."""
    if tuple(map(int, apsw.sqlite_lib_version().split("."))) < OLDEST_SAFE:
        raise SchemaError(f"SQLite {apsw.sqlite_lib_version()} can lose committed data; install apsw >= 3.51.3")
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # see Database.open
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
            f"SQLite runs with journal_mode={mode}, synchronous={level} instead of wal, 2 (FULL): acknowledged entries "
            "could be lost. The file system may not allow shared memory: move the data folder to a local disk"
        )
