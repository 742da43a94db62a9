"""A folder of files that are written once and survive a power cut."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from muniment.errors import FormatError
from muniment.tiles import Tile, parse_tile_path, width_at
from muniment_server.errors import Corrupt, SetupError
from muniment_server.write.guard import sync_directory

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_THREADS = 8
"""Files that wait for the disk at the same time."""


class File(NamedTuple):
    """A file to write: its path in the folder, its bytes, its mode, and whether it may replace one with other bytes."""

    path: str
    data: bytes
    mode: int = 0o644
    replace: bool = False


class Folder:
    """A backup while it is being written. `written` and `kept` count files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        self.kept = 0
        self._touched: set[Path] = set()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other backups out of it. Raises SetupError."""
        try:
            self._make(self.path)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise SetupError(f"the folder {self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SetupError(f"another backup is writing to {self.path}: wait for it") from None
        try:
            yield
        finally:
            os.close(descriptor)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of a file, or None when there is none."""
        try:
            return (self.path / path).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, files: Iterable[File]) -> None:
        """Write those files that are not there yet.

        Their bytes are durable when it returns, their names after :meth:`sync`.
        Raises Corrupt when a file is there with other bytes and may not be replaced.
        """
        with ThreadPoolExecutor(_THREADS) as threads:
            done = list(threads.map(self._put, files))
        self.written += sum(done)
        self.kept += len(done) - sum(done)

    def _put(self, file: File) -> bool:
        path = self.path / file.path
        old = self.read(file.path)
        if old == file.data:
            return False
        if old is not None and not file.replace:
            raise Corrupt(
                f"{path} is not what the log holds. If `muniment-server fsck` finds the log clean, "
                "this file is damaged: delete it and run the backup again"
            )
        self._make(path.parent)
        write_over(path, file.data, file.mode)
        self._touched.add(path.parent)
        return True

    def _make(self, path: Path) -> None:
        """Make a folder, and remember every folder whose content that changed."""
        while not path.is_dir():
            self._touched.add(path.parent)
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path = path.parent

    def sync(self) -> None:
        """Make the names of everything that was written durable."""
        for path in sorted(self._touched):
            sync_directory(path)
        self._touched.clear()

    def leftovers(self, size: int) -> list[Path]:
        """Return the files that are no part of the tree of `size`: partial ones of smaller trees, and temporary ones.

        Raises SetupError when the folder holds files of a larger tree, which are not ours to delete.
        """
        found: list[Path] = []
        for top in ("tile", "payloads", "checkpoints"):
            for folder, _, names in os.walk(self.path / top):
                found += [Path(folder, name) for name in names if self._is_left_over(Path(folder, name), size)]
        return found + [path for path in self.path.glob(".*") if _TEMPORARY.fullmatch(path.name)]

    def _is_left_over(self, path: Path, size: int) -> bool:
        if _TEMPORARY.fullmatch(path.name):
            return True
        relative = path.relative_to(self.path).as_posix()
        top, _, rest = relative.partition("/")
        try:
            place = parse_tile_path(rest if top == "tile" else f"entries/{rest}")
        except FormatError:
            return False  # not one of ours
        width = width_at(place.level if isinstance(place, Tile) else 0, place.index, size)
        if place.width > width and ".p/" not in relative:
            raise SetupError(
                f"{path} belongs to a larger tree than size {size}: finish that backup, or take another folder"
            )
        return place.width != width

    def delete(self, paths: Iterable[Path]) -> None:
        """Delete files, and the folders of partial ones that are empty then."""
        for path in paths:
            path.unlink(missing_ok=True)
            if path.parent.name.endswith(".p"):
                with contextlib.suppress(OSError):  # not empty
                    path.parent.rmdir()


def write_over(path: Path, data: bytes, mode: int) -> None:
    """Put a file in place whole or not at all; its bytes are on the disk before its name is."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
