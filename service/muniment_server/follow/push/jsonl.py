"""A sink that is a file: rows are appended, one JSON object a line, and synced before the cursor moves.

The file is where a crash may have left it: it holds all rows that were taken, and behind them perhaps a part of those
of the batch under way, the last of them torn. What stands there of this batch stays, and the rest is added: so no line
is torn or there twice, and a program that reads the file as it grows sees it shrink only after the disk has failed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from muniment_server.errors import NotTaken
from muniment_server.failpoints import step
from muniment_server.follow.push.batch import Batch
from muniment_server.sinks import Sink

_BEGIN = rb'\{"index": ([0-9]{1,13}),'
_ROW = re.compile(_BEGIN + rb"[^\n]*\}\n")
_WINDOW = 64 * 1024
_MOST_BEHIND = 16 * 2**20
"""Bytes in which the last row that was taken has to be found, besides those of a batch."""


class Place(NamedTuple):
    """Where the rows that were taken end in a file, which index the last one has (-1: none), and what is behind."""

    end: int
    last: int
    tail: bytes


class JsonlFile:
    """Appends batches to the file of a sink."""

    def __init__(self, sink: Sink, path: Path) -> None:
        self._sink = sink
        self._path = path

    @step("push.take")
    async def take(self, batch: Batch) -> None:
        """See Target."""
        try:
            await asyncio.to_thread(self._append, batch)
        except OSError as error:
            raise NotTaken(f"{self._path}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Close nothing: the file is open only while rows are added."""

    def _append(self, batch: Batch) -> None:
        data = b"".join(batch.lines)
        with self._opened() as file:
            place = self._look(file, batch, len(data))
            if not place.tail and self._is_due(file, len(data)):
                self._rotate(file, place.last)
            else:
                _add(file, place, data)
                return
        with self._opened() as file:
            _add(file, Place(0, -1, b""), data)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give the file, locked. Another process that works on it, however late, is waited for in this way."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotTaken(f"{self._path}: another process writes it") from None
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or not os.path.samestat(found, self._path.stat()):
                raise NotTaken(f"{self._path}: it is no file, or was moved away at this moment")
            if not found.st_size:
                _sync_folder(self._path.parent)  # the name of a new file has to last too
            yield file
        finally:
            os.close(file)

    def _look(self, file: int, batch: Batch, size: int) -> Place:
        """Return where the batch begins in the file. Raises NotTaken when its rows are not those that come before."""
        place = find(file, batch.start, size)
        if place is None:
            raise NotTaken(f"{self._path}: it holds more than this sink wrote: move it away")
        if batch.whole and place.end and place.last != batch.start - 1:
            raise NotTaken(f"{self._path}: its last row is of entry {place.last}, not {batch.start - 1}: move it away")
        return place

    def _is_due(self, file: int, more: int) -> bool:
        found = os.fstat(file)
        if not found.st_size:
            return False
        today, day = time.gmtime()[:3], time.gmtime(found.st_mtime)[:3]
        return found.st_size + more > self._sink.rotate_bytes or (self._sink.rotate_daily and day != today)

    def _rotate(self, file: int, last: int) -> None:
        """Give the file the name that says its indices. Raises NotTaken rather than replacing another one."""
        first = re.match(_BEGIN, os.pread(file, 64, 0))
        if not first:
            raise NotTaken(f"{self._path}: its first line is no row")
        name = f"{self._path.stem}.{int(first[1]):013}-{last:013}{self._path.suffix}"
        new = self._path.with_name(name)
        if new.exists():
            raise NotTaken(f"{new}: it is there already")
        self._path.rename(new)
        _sync_folder(self._path.parent)


def find(file: int, start: int, size: int) -> Place | None:
    """Return where the rows below `start` end in a file, behind which `size` bytes are expected.

    None when there is so much more that this is not to be seen.
    """
    length = os.fstat(file).st_size
    window = size + _WINDOW
    while True:
        begin = max(length - window, 0)
        data = os.pread(file, length - begin, begin)
        if len(data) < length - begin:
            raise OSError("it became shorter while it was read")
        found = _last_below(data, start, whole=begin == 0)
        if found is not None:
            end, last = found
            return Place(begin + end, last, data[end:])
        if begin == 0 or window > size + _MOST_BEHIND:
            return None
        window *= 4


def _last_below(data: bytes, start: int, *, whole: bool) -> tuple[int, int] | None:
    """Return where the last line of a row below `start` ends, and its index; None where that is not to be seen here."""
    end = data.rfind(b"\n") + 1  # what is behind it is torn
    while end:
        begin = data.rfind(b"\n", 0, end - 1) + 1
        if begin == 0 and not whole:
            return None
        row = _ROW.fullmatch(data, begin, end)
        if row and int(row[1]) < start:
            return end, int(row[1])
        end = begin
    return (0, -1) if whole else None


def _add(file: int, place: Place, data: bytes) -> None:
    """Add what is missing of `data` behind the rows that were taken, and sync. Raises NotTaken or OSError."""
    same = _in_common(place.tail, data)
    if same < len(place.tail):
        if b"\n" in place.tail[same:]:
            raise NotTaken("the file holds lines that this sink did not write: move it away")
        os.ftruncate(file, place.end + same)  # what a power cut left of a line
    try:
        rest = memoryview(data)[same:]
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        # After a failed sync pages count as written that are not: without this they would be found to be there.
        os.ftruncate(file, place.end)
        raise


def _in_common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts have in common from their beginning."""
    if other.startswith(one):
        return len(one)
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
