"""Files beside an import with one line for each row that is in the log: its index, or its whole receipt."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from muniment.cli.import_state import state_path
from muniment.cli.output import EXIT_USAGE, CliError
from muniment.receipt import Receipt


def _identity(path: Path) -> object:
    """Return what tells a file from others, also where one has two names."""
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return path.resolve()


def _input() -> object:
    """Return the same of standard input: a shell may have opened one of the files for it."""
    with suppress(OSError, ValueError):
        found = os.fstat(sys.stdin.fileno())
        return found.st_dev, found.st_ino
    return None


class RowFiles:
    """The files that an import was asked for, at most two. `receipts` tells whether it takes receipts to write them."""

    def __init__(self, source: Path | None, index_map: Path | None, receipts: Path | None) -> None:
        progress = None if source is None else state_path(source)
        named = [_identity(path) for path in (progress, index_map, receipts) if path is not None]
        named.append(_input() if source is None else _identity(source))
        if len(set(named)) < len(named):
            message = "the input, the file of its progress, --map and --receipts are different files"
            raise CliError(EXIT_USAGE, "usage", message)
        self.receipts = receipts is not None
        self._map = _File(index_map) if index_map is not None else None
        self._receipts = _File(receipts) if receipts is not None else None

    def keep(self, rows: int) -> None:
        """Keep the lines of the first `rows` rows: what a crash left of later ones is written again."""
        for file in filter(None, (self._map, self._receipts)):
            file.keep(rows)

    def write(self, lines: Sequence[int], indices: Sequence[int], receipts: Sequence[Receipt] = ()) -> None:
        """Write the lines of rows, durable when it returns. `lines` are those of the input."""
        if self._map is not None:
            pairs = zip(lines, indices, strict=True)
            self._map.write(f'{{"line":{line},"index":{index}}}\n' for line, index in pairs)
        if self._receipts is not None:
            values = (receipt.to_json() for receipt in receipts)
            self._receipts.write(json.dumps(value, separators=(",", ":")) + "\n" for value in values)

    def close(self) -> None:
        """Close the files."""
        for file in filter(None, (self._map, self._receipts)):
            file.close()


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: BinaryIO | None = None

    def keep(self, rows: int) -> None:
        try:
            self._begin(rows)
        except OSError as error:
            raise self._unwritable(error) from error

    def _begin(self, rows: int) -> None:
        if self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode):  # a pipe: nothing can be kept
            self._check(0, rows)
            self._open = self._path.open("wb")
            return
        file = self._open = self._path.open("a+b")
        file.seek(0)
        kept = 0
        while kept < rows and file.readline().endswith(b"\n"):
            kept += 1
        self._check(kept, rows)
        file.truncate(file.tell())

    def _check(self, kept: int, rows: int) -> None:
        if kept < rows:
            message = f"{self._path} has lines for {kept} of the {rows} rows that are in the log already"
            hint = "Give it from the first run on. Where the rows are, `muniment export` shows as well."
            raise CliError(EXIT_USAGE, "rows_missing", message, hint)

    def write(self, lines: Iterable[str]) -> None:
        if self._open is None:
            raise AssertionError("keep() comes first")
        try:
            self._open.write("".join(lines).encode())
            self._open.flush()
            if self._open.seekable():
                os.fsync(self._open.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        if self._open is not None:
            self._open.close()

    def _unwritable(self, error: OSError) -> CliError:
        return CliError(EXIT_USAGE, "unwritable", f"cannot write {self._path}: {error.strerror}")
