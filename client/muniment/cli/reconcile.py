"""`muniment reconcile`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from gzip import BadGzipFile, GzipFile
from typing import IO, TYPE_CHECKING, Any, Self, cast

import click

from muniment.checkpoint import Checkpoint
from muniment.cli import files
from muniment.cli.options import Names, Number, Target, log_options
from muniment.cli.output import EXIT_FAILED, EXIT_NOT_YET, CliError, explain
from muniment.cli.progress import progress
from muniment.errors import PayloadsClosed, QueryError
from muniment.query import Query, parse_query
from muniment.receipts import MAX_LINE
from muniment.reconcile import FINDINGS, MOST_RANGES, Copy, Found
from muniment.rowtext import closed_row

if TYPE_CHECKING:
    from muniment.client import Entry

_SHOWN = 8
_GZIP = b"\x1f\x8b"


@click.command("reconcile", short_help="Prove that a copy of a log in JSONL equals the log.")
@click.argument("names", metavar="FILE...", nargs=-1, required=True)
@click.option("--start", type=Number(), default=0, help="First index that the copy is to have.  [default: 0]")
@click.option("--stop", type=Number(), help="Index after the last. [default: all that is published]")
@click.option("--query", "text", metavar="QUERY", help="The copy has the events that this finds, and nothing else.")
@click.option("--ignore", type=Names(), default="", metavar="NAMES", help="Members of rows that others have added.")
@click.option("--leaves-only", is_flag=True, help="Compare hashes alone, and not what events say.")
@log_options
def command(
    target: Target,
    names: tuple[str, ...],
    start: int,
    stop: int | None,
    text: str | None,
    ignore: list[str],
    *,
    leaves_only: bool,
) -> int:
    """Compare a copy with the log it is of, every entry of which is read and proved by its signed tree.

    A copy is rows as `muniment export` and sinks write them, in any order, in one or several files, gzip too. It says
    which entries are missing from the copy, and which rows were altered, are there twice, or are not the log's. Exit
    code 0: the copy says what the log says. 1: it differs.

    What events say is compared too, and needs an API key with scope read. With --leaves-only it is not looked at: that
    rows have the hashes of their entries does not show that their events are what was logged.

    \b
    Examples:
      muniment reconcile audit.jsonl audit.*.jsonl
      muniment reconcile logins.jsonl.gz --query action:login --stop 5000
    """
    query = _query(text)
    with target.open(long=True) as client, Opened(names) as copies:
        head = client.checkpoint().checkpoint  # after the files were opened: what they have by then is published
        last = head.size if stop is None else stop
        if last > head.size or start >= last:
            raise _no_range(start, last, head.size)
        with Copy(start, last, head.size, ignored=ignore, leaves_only=leaves_only) as copy:
            with progress("Reading", copies.size, quiet=target.as_json) as advance:
                for number, line in enumerate(copies.lines(), 1):
                    copy.add(line, number)
                    advance(len(line))
            with progress("Comparing", last - start, quiet=target.as_json) as advance:
                for entry in client.entries(start, last):
                    _compare(copy, entry, query, leaves_only=leaves_only)
                    advance(1)
            value = _report(copy, head, text, leaves_only=leaves_only)
            target.show(value, _text(copy, value))
            return 0 if copy.good else EXIT_FAILED


def _query(text: str | None) -> Query | None:
    try:
        return None if text is None else parse_query(text)
    except QueryError as error:
        raise click.UsageError(f"--query: {error}") from error


def _no_range(start: int, stop: int, size: int) -> CliError:
    if start >= stop:
        raise click.UsageError(f"there is nothing to compare from {start} to before {stop}")
    hint = "An entry is published about a second after it was logged; `muniment checkpoint` shows how far the log is."
    return CliError(EXIT_NOT_YET, "not_published_yet", f"the published checkpoint covers {size} entries", hint)


def _compare(copy: Copy, entry: Entry, query: Query | None, *, leaves_only: bool) -> None:
    if entry.hidden == ("*",) and not leaves_only:
        found = explain(PayloadsClosed(entry.index))
        found.hint += " --leaves-only compares hashes alone."
        raise found

    def row(opened: bool) -> dict[str, Any]:
        whole = entry.to_json()
        whole.pop("hidden", None)  # with --leaves-only: a row has all that an event says, or nothing
        return whole if opened else closed_row(whole, entry.leaf)

    copy.compare(entry.index, entry.leaf_hash, row, wanted=_wanted(entry, query, leaves_only=leaves_only))


def _wanted(entry: Entry, query: Query | None, *, leaves_only: bool) -> bool | None:
    """Tell whether a copy is to have this entry; None where that cannot be told without reading what it says."""
    if query is None:
        return True
    if entry.event is None:
        return False
    return None if leaves_only else query.matches(entry.event)


# --- files ------------------------------------------------------------------------------------------------------------


class Opened:
    """The files of a copy, each read no further than it was when it was opened. Use it as a context manager."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._stack = ExitStack()
        self._files: list[tuple[IO[bytes], int | None]] = []
        self.size = 0

    def __enter__(self) -> Self:
        for name in self._names:
            file = self._stack.enter_context(files.opened(name))
            length = None if name == "-" else os.fstat(file.fileno()).st_size
            self._files.append((file, length))
            self.size += length or 0
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, with their ends. One that is longer than any row comes in pieces, which are none."""
        for file, length in self._files:
            begin = file.readline(MAX_LINE)
            if begin.startswith(_GZIP) and file.seekable():
                file.seek(0)
                yield from _unpacked(file)
            else:
                yield from _plain(begin, file, length)


def _plain(line: bytes, file: IO[bytes], length: int | None) -> Iterator[bytes]:
    left = length
    while line and left != 0:
        if left is not None:
            line = line[:left]
            left -= len(line)
        yield line
        line = file.readline(MAX_LINE)


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a packed file; one more, which is no row, where it is damaged or was cut off."""
    with GzipFile(fileobj=file) as unpacked:
        try:
            while line := cast("IO[bytes]", unpacked).readline(MAX_LINE):
                yield line
        except (BadGzipFile, EOFError, zlib.error):
            yield b""


# --- what is said -----------------------------------------------------------------------------------------------------


def _report(copy: Copy, head: Checkpoint, query: str | None, *, leaves_only: bool) -> dict[str, Any]:
    value: dict[str, Any] = {
        "equal": copy.good,
        "origin": head.origin,
        "tree_size": head.size,
        "root": head.root.hex(),
        "start": copy.start,
        "stop": copy.stop,
        "rows": copy.rows,
        "outside": copy.outside,
        "compared": "leaves" if leaves_only else "events",
    }
    value |= {"query": query} if query is not None else {}
    found = {name: {"count": one.count, "ranges": one.ranges} for name, one in copy.found.items() if one.count}
    return value | {"found": found, "not_concluded": _unsaid(query, copy, leaves_only=leaves_only)}


def _unsaid(query: str | None, copy: Copy, *, leaves_only: bool) -> list[str]:
    """Return what this comparison does not show."""
    unsaid = []
    if leaves_only:
        unsaid.append("that events are what was logged: only their hashes were compared")
    if leaves_only and query is not None:
        unsaid.append("that no event is missing or unwanted: which ones the query finds is in what they say")
    if copy.outside:
        unsaid.append(f"anything of {copy.outside} rows of entries that are not in [{copy.start}, {copy.stop})")
    return unsaid


def _text(copy: Copy, value: dict[str, Any]) -> str:
    where = f"[{copy.start}, {copy.stop}) of {value['origin']}, of the signed tree of size {value['tree_size']}"
    what = "" if value.get("query") is None else " that the query finds"
    good = f"Equal: {copy.rows - copy.outside} rows are the entries{what} of {where}."
    lines = [good if copy.good else f"Different: {copy.rows} rows were compared with the entries of {where}."]
    lines += [
        f"  {found.count} {FINDINGS[name]}: {_ranges(found)}" for name, found in copy.found.items() if found.count
    ]
    return "\n".join(lines + [f"Not concluded: {each}." for each in value["not_concluded"]])


def _ranges(found: Found) -> str:
    shown = [str(low) if high == low + 1 else f"{low}..{high}" for low, high in found.ranges[:_SHOWN]]
    more = " ..." if len(found.ranges) > _SHOWN or len(found.ranges) == MOST_RANGES else ""
    return ", ".join(shown) + more
