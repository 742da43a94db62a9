"""Defects of durability, planted into a forked process to show that a rig notices them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from muniment_server.storage.postgres import sessions as postgres_module
from muniment_server.storage.sqlite import database as sqlite_module
from muniment_server.write import guard as guard_module


def normal() -> None:
    """SQLite answers a commit before it is on disk."""
    connect = sqlite_module.connect

    def connect_normal(path: Path) -> object:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    sqlite_module.connect = connect_normal  # type: ignore[assignment]


def no_guard_folder_sync() -> None:
    """A new guard file has no durable name."""
    guard_module.sync_directory = lambda _path: None


def no_guard_data_sync() -> None:
    """What the guard remembers is not durable."""
    os.fdatasync = lambda _descriptor: None  # the guard's alone: SQLite has its own


def no_folder_sync() -> None:
    """A renamed file has its old content again."""
    fsync = os.fsync
    os.fsync = lambda fd: None if stat.S_ISDIR(os.fstat(fd).st_mode) else fsync(fd)


def answer_before_wal() -> None:
    """Postgres answers a commit before it is on disk."""
    postgres_module._WRITER_SETTINGS = "SELECT set_config('synchronous_commit', 'off', false)"
