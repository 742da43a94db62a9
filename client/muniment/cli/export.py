"""`muniment export`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from muniment.checkpoint import Checkpoint
from muniment.cli import files
from muniment.cli.export_receipts import Wanted, write_bundle
from muniment.cli.options import Number, Target, log_options
from muniment.cli.output import EXIT_NOT_YET, CliError, explain, note
from muniment.cli.progress import progress
from muniment.csvtext import write_csv
from muniment.encoding import parse_decimal
from muniment.errors import FormatError, PayloadsClosed
from muniment.event import EventLeaf, OwnLeaf, parse_leaf
from muniment.receipt import Receipt
from muniment.receipts_report import entries_text, range_text
from muniment.rowtext import closed_row, json_line

if TYPE_CHECKING:
    from muniment.client import Entry

T = TypeVar("T")
_DASHED = re.compile("([0-9]+)-([0-9]+)")


class Span(click.ParamType[tuple[int, int]]):
    """A range of indices, A..B without B."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return its two ends. Fails on any other spelling, and when it is empty."""
        low, dots, high = str(value).partition("..")
        if dashed := _DASHED.fullmatch(str(value)):
            self.fail(f"a range is A..B, from index A to before index B: write {dashed[1]}..{dashed[2]}", param, ctx)
        try:
            ends = parse_decimal(low), parse_decimal(high)
        except FormatError as error:
            self.fail(f"a range is A..B, two indices: {error}", param, ctx)
        if not dots or ends[0] >= ends[1]:
            self.fail("a range is A..B, from index A to before index B, so A is below B", param, ctx)
        return ends


@click.command("export", short_help="Write entries as JSONL, CSV or a bundle of receipts.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "receipts"]),
    help="[default: csv when FILE ends in .csv, else jsonl]",
)
@click.option("--start", type=Number(), help="First index.  [default: 0]")
@click.option("--stop", type=Number(), help="Index after the last. [default: all that is published]")
@click.option("--range", "span", type=Span(), metavar="A..B", help="Exactly the entries from A to before B.")
@click.option("--leaves-only", is_flag=True, help="Without what events say: their leaves, and no members.")
@log_options
def command(
    target: Target,
    output: Path | None,
    form: str | None,
    start: int | None,
    stop: int | None,
    span: tuple[int, int] | None,
    *,
    leaves_only: bool,
) -> None:
    """Write entries as rows, every one compared with the signed tree before it is written.

    JSONL rows are {"index", "leaf_hash", "logged_at", "event"}; the log's own entries have "own", raw leaves "leaf"
    (base64). CSV has a column for each member of the events; values that are not strings are JSON. A cell that a
    spreadsheet would compute gets an apostrophe before it; a member named like a column of ours, such as index or
    event.index, gets the prefix "event.".

    A bundle of receipts is evidence: `muniment verify FILE` checks it offline, and says that no entry of its range is
    missing. Written to a file it goes on where it was cut off: run the same command again. Until it is whole it is
    FILE.muniment-export.

    What events say needs an API key with scope read. Without one nothing is written (exit code 6), unless --leaves-only
    says that leaves are enough.

    \b
    Examples:
      muniment export -o log.jsonl
      muniment export --start 1000 --stop 2000 --format csv > rows.csv
      muniment export --format receipts --range 0..1000 -o evidence.ndjson
    """
    if span is not None and (start is not None or stop is not None):
        raise click.UsageError("--range says both ends: give it alone, or --start and --stop")
    form = form or ("csv" if output and output.suffix.lower() == ".csv" else "jsonl")
    first, last = span or (start or 0, stop)
    with target.open(long=True) as client:
        signed = client.checkpoint()
        size = signed.checkpoint.size
        if (last is not None and span is not None and last > size) or (form == "receipts" and first >= size):
            raise _not_yet(size)
        if form == "receipts":
            wanted = Wanted(first, last, _leaves if leaves_only else _readable_receipts, target.as_json)
            header = write_bundle(client, target.policy(), signed, wanted, output)
            low, high = header.range or (0, 0)
            _say(target, output, target.policy().verify(header.checkpoint).checkpoint, low, high - low)
            if output is not None and not target.as_json:
                note(f"Next: muniment verify {output}")
        else:
            write = write_csv if form == "csv" else _write_jsonl
            stop = size if last is None else min(last, size)
            with (
                _opened(output) as file,
                progress("Exporting", max(0, stop - first), quiet=target.as_json) as advance,
            ):
                entries = _readable(client.entries(first, stop), leaves_only=leaves_only)
                count = write(file, _values(entries, advance, leaves_only=leaves_only))
            _say(target, output, signed.checkpoint, first, count)


def _say(target: Target, output: Path | None, head: Checkpoint, start: int, count: int) -> None:
    """Say on stderr what was written."""
    summary = {"entries": count, "start": start, "stop": start + count, "tree_size": head.size, "root": head.root.hex()}
    if target.as_json:
        note(json.dumps(summary | {"file": str(output) if output else None}))
        return
    which = f"{entries_text(count)} {range_text(start, start + count)}" if count else "no entries"
    where = f": {output}" if output else ""
    note(f"Exported {which} of {head.origin}, each proved to be in the tree of size {head.size}{where}")


def _not_yet(size: int) -> CliError:
    message = f"the published checkpoint covers {size} entries, and the range goes beyond that"
    hint = "An entry is published about a second after it was logged; `muniment checkpoint` shows how far the log is."
    return CliError(EXIT_NOT_YET, "not_published_yet", message, hint)


# --- what this caller may read ----------------------------------------------------------------------------------------


def _closed(index: int) -> CliError:
    found = explain(PayloadsClosed(index))
    found.hint += " --leaves-only exports without it."
    return found


def _readable(entries: Iterable[Entry], *, leaves_only: bool) -> Iterator[Entry]:
    """Yield entries. Raises CliError at an event that the log keeps closed, with --leaves-only never."""
    checked = entries if leaves_only else map(_opened_entry, entries)
    return _own_later(checked, lambda entry: isinstance(entry.content, OwnLeaf))


def _opened_entry(entry: Entry) -> Entry:
    if entry.hidden == ("*",):
        raise _closed(entry.index)
    return entry


def _readable_receipts(receipts: Iterable[Receipt]) -> Iterator[Receipt]:
    """Yield receipts. Raises CliError as :func:`_readable`."""
    return _own_later(map(_opened_receipt, receipts), lambda one: isinstance(parse_leaf(one.leaf), OwnLeaf))


def _opened_receipt(receipt: Receipt) -> Receipt:
    if receipt.commitment is None and isinstance(parse_leaf(receipt.leaf), EventLeaf):
        raise _closed(receipt.index)
    return receipt


def _leaves(receipts: Iterable[Receipt]) -> Iterator[Receipt]:
    """Yield receipts without what opens their events."""
    return (replace(receipt, commitment=None, disclosures=None) for receipt in receipts)


def _own_later(found: Iterable[T], is_own: Callable[[T], bool]) -> Iterator[T]:
    """Yield what is found; the log's own entries, which anybody may read, only with the next that is not one.

    So where nothing may be read, nothing is written.
    """
    own: list[T] = []
    for one in found:
        own.append(one)
        if not is_own(one):
            yield from own
            own.clear()
    yield from own


def _values(entries: Iterable[Entry], advance: Callable[[int], None], *, leaves_only: bool) -> Iterator[dict[str, Any]]:
    for entry in entries:
        advance(1)
        row = entry.to_json()
        yield closed_row(row, entry.leaf) if leaves_only else row


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    """Open the output; a file gets its content only when it is complete."""
    if path is None:
        yield sys.stdout
        return
    with files.output(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()  # the file is closed by what opened it


def _write_jsonl(file: IO[str], rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - counts the rows
        file.write(json_line(row))
    return count
