"""Rows of a file as entries, with the byte offset after each: where a later run can go on."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from muniment.cli.output import EXIT_USAGE, CliError
from muniment.csvtext import is_exported, records, restored
from muniment.errors import EventRefused, FormatError
from muniment.event import canonical_text

if TYPE_CHECKING:
    from muniment.client import PreparedEntry

FORMATS = ("jsonl", "csv", "lines")
"""One JSON event a line; one event a row, named by the header; one raw leaf a line."""
MAX_LINE = 16 * 1024 * 1024
_OTHERS = ";\t|"
"""What separates columns where commas do not."""


class Form(NamedTuple):
    """How the input is read: one of FORMATS, its delimiter when it was named, and the most bytes of an entry."""

    name: str
    delimiter: str | None = None
    most: int = MAX_LINE

    @property
    def text(self) -> str:
        """What the state of an import says of it: another delimiter would make other rows of the same bytes."""
        return self.name if self.delimiter in (None, ",") else f"{self.name} {self.delimiter!r}"


class Row(NamedTuple):
    """A row: its entry, the offset after it, the SHA-256 (hex) of all bytes before that, and the line it begins at."""

    entry: PreparedEntry
    end: int
    digest: str
    line: int


class Source:
    """The rows of a file from an offset on. Blank lines are skipped. Every error names the line."""

    def __init__(self, file: IO[bytes], form: Form) -> None:
        self._file = file
        self._form = form
        self._hash = sha256()
        self._end = 0
        self._line = 0  # the number of the line read last
        self._whole = True  # whether it was read to its end

    def skip(self, offset: int) -> str:
        """Read up to `offset` and return the SHA-256 (hex) of what is before it; shorter files give another digest."""
        while self._end < offset and (data := self._file.readline(min(MAX_LINE, offset - self._end))):
            self._count(data)
        return self._hash.hexdigest()

    def _count(self, data: bytes) -> bytes:
        self._hash.update(data)
        self._end += len(data)
        self._line += self._whole
        self._whole = data.endswith(b"\n")
        return data

    def _lines(self) -> Iterator[bytes]:
        while data := self._file.readline(MAX_LINE):
            if len(data) == MAX_LINE:
                self._count(data)
                raise self._error("line_too_long", f"the line is longer than {MAX_LINE} bytes")
            yield self._count(data)

    def _error(self, code: str, problem: str) -> CliError:
        return CliError(EXIT_USAGE, code, f"line {max(1, self._line)}: {problem}", line=max(1, self._line))

    def rows(self, header: list[str] | None = None) -> Iterator[Row]:
        """Yield the rows from here on.

        `header` are the column names of a CSV file that was read past its first line.
        """
        for line, entry in self._csv(header) if self._form.name == "csv" else self._plain():
            yield Row(entry, self._end, self._hash.hexdigest(), line)

    def _plain(self) -> Iterator[tuple[int, PreparedEntry]]:
        for line in self._lines():
            content = line.removesuffix(b"\n")
            if content.strip():
                yield self._line, self._prepare(content)

    def _prepare(self, entry: bytes | dict[str, Any]) -> PreparedEntry:
        """Return the entry of a line, or of a row of CSV."""
        from muniment.client import PreparedEntry

        try:
            if self._form.name == "jsonl" and isinstance(entry, bytes):
                found = PreparedEntry(canonical_text(entry), is_event=True)
            else:
                found = PreparedEntry.of(entry)
        except FormatError as error:
            raise self._error(error.code if isinstance(error, EventRefused) else "bad_row", str(error)) from error
        if len(found.body) > self._form.most:
            problem = f"the entry has {len(found.body)} bytes, and this log takes at most {self._form.most}"
            raise self._error("entry_too_large", f"{problem}: log a digest of the document instead")
        return found

    def _csv(self, header: list[str] | None) -> Iterator[tuple[int, PreparedEntry]]:
        begin = self._line + 1
        for row in self._records():
            if row and header is None:
                header = self._checked_header(row)
            elif row and header is not None:
                if len(row) != len(header):
                    raise self._error("bad_row", f"{len(row)} values for {len(header)} columns")
                yield begin, self._prepare(_event(header, row))
            begin = self._line + 1

    def _records(self) -> Iterator[list[str]]:
        texts = (self._text(line) for line in self._lines())
        try:
            yield from records(texts, self._form.delimiter or ",")
        except FormatError as error:
            raise self._error("bad_row", str(error)) from error

    def header(self) -> list[str] | None:
        """Return the column names of a CSV file, read from its start, or None when it has none."""
        return next(filter(None, self._records()), None)

    def _text(self, line: bytes) -> str:
        try:
            return line.decode("utf-8-sig" if self._end == len(line) else "utf-8")
        except UnicodeDecodeError as error:
            raise self._error("invalid_utf8", f"not UTF-8 at byte {error.start} of the line") from error

    def _checked_header(self, row: list[str]) -> list[str]:
        exported = is_exported(row)  # by us: a member may have any name, the empty one too
        if len(_event(row, row)) != len(row) or not (exported or all(row)):
            raise self._error("bad_header", "the columns of the header need names, each another one")
        if (
            not exported
            and self._form.delimiter is None
            and (found := [other for other in _OTHERS if other in "".join(row)])
        ):
            raise self._ask_for_delimiter(row, found[0])
        return row

    def _ask_for_delimiter(self, row: list[str], found: str) -> CliError:
        """Return what asks for the delimiter: a wrong one would log rows of one member without a word."""
        error = self._error("delimiter", f"columns end at commas, and the header has {found!r} in {row[0]!r}")
        word = "tab" if found == "\t" else f"'{found}'"
        error.hint = f"Add --delimiter {word} when that separates the columns; --delimiter ',' when it does not."
        return error


def _event(header: list[str], row: list[str]) -> dict[str, str]:
    """Return the members that a row says. In an export of ours, what keeps cells from being formulas is taken out."""
    meant = restored if is_exported(header) else str
    return {meant(name): meant(value) for name, value in zip(header, row, strict=True)}
