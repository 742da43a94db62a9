"""Rows of a file as entries, with the byte offset after each: where a later run can go on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from muniment.cli.output import EXIT_USAGE, CliError
from muniment.errors import EventRefused, FormatError
from muniment.event import canonical_text

if TYPE_CHECKING:
    from muniment.client import PreparedEntry

FORMATS = ("jsonl", "csv", "lines")
"""One JSON event a line; one event a row, named by the header; one raw leaf a line."""
MAX_LINE = 16 * 1024 * 1024


class Row(NamedTuple):
    """A row: its entry, the offset after it, and the SHA-256 (hex) of all bytes before that offset."""

    entry: PreparedEntry
    end: int
    digest: str


class Source:
    """The rows of a file from an offset on. Blank lines are skipped. Every error names the line."""

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._file = file
        self._form = form
        self._hash = sha256()
        self._end = 0
        self._line = 0

    def skip(self, offset: int) -> str:
        """Read up to `offset` and return the SHA-256 (hex) of what is before it; shorter files give another digest."""
        while self._end < offset and (data := self._file.readline(min(MAX_LINE, offset - self._end))):
            self._count(data)
        return self._hash.hexdigest()

    def _count(self, data: bytes) -> bytes:
        self._hash.update(data)
        self._end += len(data)
        self._line += data.endswith(b"\n")
        return data

    def _lines(self) -> Iterator[bytes]:
        while data := self._file.readline(MAX_LINE):
            if len(data) == MAX_LINE:
                raise self._error("line_too_long", f"the line is longer than {MAX_LINE} bytes")
            yield self._count(data)

    def _error(self, code: str, problem: str) -> CliError:
        return CliError(EXIT_USAGE, code, f"line {max(1, self._line)}: {problem}", line=max(1, self._line))

    def rows(self, header: list[str] | None = None) -> Iterator[Row]:
        """Yield the rows from here on.

        `header` are the column names of a CSV file that was read past its first line.
        """
        for entry in self._csv(header) if self._form == "csv" else self._plain():
            yield Row(entry, self._end, self._hash.hexdigest())

    def _plain(self) -> Iterator[PreparedEntry]:
        for line in self._lines():
            content = line.removesuffix(b"\n")
            if content.strip():
                yield self._prepare(content)

    def _prepare(self, entry: bytes | dict[str, Any]) -> PreparedEntry:
        """Return the entry of a line, or of a row of CSV."""
        from muniment.client import PreparedEntry

        try:
            if self._form == "jsonl" and isinstance(entry, bytes):
                return PreparedEntry(canonical_text(entry), is_event=True)
            return PreparedEntry.of(entry)
        except FormatError as error:
            raise self._error(error.code if isinstance(error, EventRefused) else "bad_row", str(error)) from error

    def _csv(self, header: list[str] | None) -> Iterator[PreparedEntry]:
        rows = csv.reader((self._text(line) for line in self._lines()), strict=True)
        try:
            for row in rows:
                if not row:
                    continue
                if header is None:
                    header = self._checked_header(row)
                elif len(row) != len(header):
                    raise self._error("bad_row", f"{len(row)} values for {len(header)} columns")
                else:
                    yield self._prepare(dict(zip(header, row, strict=True)))
        except csv.Error as error:
            raise self._error("bad_row", str(error)) from error

    def _text(self, line: bytes) -> str:
        try:
            return line.decode("utf-8-sig" if self._end == len(line) else "utf-8")
        except UnicodeDecodeError as error:
            raise self._error("invalid_utf8", f"not UTF-8 at byte {error.start} of the line") from error

    def _checked_header(self, row: list[str]) -> list[str]:
        if len(set(row)) != len(row) or not all(row):
            raise self._error("bad_header", "the columns of the header need names, each another one")
        return row


def read_header(file: IO[bytes]) -> list[str] | None:
    """Return the column names of a CSV file, read from its start, or None when it has none."""
    source = Source(file, "csv")
    for row in csv.reader((source._text(line) for line in source._lines()), strict=True):  # noqa: SLF001 - same module
        if row:
            return row
    return None
