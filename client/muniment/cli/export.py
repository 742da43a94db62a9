"""`muniment export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from muniment.checkpoint import Checkpoint
from muniment.cli import files
from muniment.cli.export_range import Asked, range_options
from muniment.cli.export_receipts import Wanted, write_bundle
from muniment.cli.options import Target, log_options, overwrite_option
from muniment.cli.output import CliError, explain, note
from muniment.cli.progress import progress
from muniment.csvtext import write_csv
from muniment.errors import PayloadsClosed
from muniment.event import EventLeaf, OwnLeaf, parse_leaf
from muniment.receipt import Receipt
from muniment.rowtext import closed_row, json_line
from muniment.words import entries_text, range_text

if TYPE_CHECKING:
    from muniment.client import Client, Entry

T = TypeVar("T")


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
@range_options
@click.option("--leaves-only", is_flag=True, help="Without what events say: their leaves, and no members.")
@overwrite_option
@log_options
def command(
    target: Target,
    output: Path | None,
    form: str | None,
    *,
    leaves_only: bool,
    overwrite: bool,
    **entries: Any,
) -> None:
    """Write entries as rows, every one compared with the signed tree before it is written.

    JSONL rows are {"index", "leaf_hash", "logged_at", "event"}; the log's own entries have "own", raw leaves "leaf"
    (base64). CSV has a column for each member of the events; values that are not strings are JSON. A sign that a
    spreadsheet would take for the beginning of a formula gets an apostrophe before it, which import takes out again; a
    member named like a column of ours, such as index or event.index, gets the prefix "event.".

    A bundle of receipts is evidence: `muniment verify FILE` checks it offline, and says that no entry of its range is
    missing. Written to a file it goes on where it was cut off: run the same command again. Until it is whole it is
    FILE.muniment-export.

    --from and --to are times of logging, as in muniment search, --to itself not included. Which entries these are is
    found in the signed tree, where times never go back: none of them is left out.

    What events say needs an API key with scope read. Without one nothing is written (exit code 6), unless --leaves-only
    says that leaves are enough.

    \b
    Examples:
      muniment export -o log.jsonl
      muniment export --start 1000 --stop 2000 --format csv > rows.csv
      muniment export --format receipts --range 0..1000 -o evidence.ndjson
      muniment export --format receipts --from 2026-11-01 --to 2026-12-01 -o november.ndjson
    """
    asked = Asked(**entries)
    form = form or ("csv" if output and output.suffix.lower() == ".csv" else "jsonl")
    if not overwrite:
        files.check_unused(output)
    with target.open(long=True) as client:
        signed = client.checkpoint()
        size = signed.checkpoint.size
        first, last = asked.ends(client, size)
        if form == "receipts":
            if first >= min(size, size if last is None else last):
                raise asked.none(size, first)
            wanted = Wanted(first, last, _leaves if leaves_only else _readable_receipts, target.as_json)
            header = write_bundle(client, target.policy(), signed, wanted, output)
            low, high = header.range or (0, 0)
            done = _Done(output, target.policy().verify(header.checkpoint).checkpoint, low, high - low)
        else:
            stop = size if last is None else min(last, size)
            written = _write_rows(client, output, form, (first, stop), leaves_only=leaves_only, quiet=target.as_json)
            done = _Done(output, signed.checkpoint, first, written)
        _say(target, asked, done)
        if form == "receipts" and output is not None and not target.as_json:
            policy = f" --policy {target.policy_file}" if " --policy " in target.flags else ""
            note(f"Next: muniment verify {output}{policy}")


def _write_rows(
    client: Client, output: Path | None, form: str, ends: tuple[int, int], *, leaves_only: bool, quiet: bool
) -> int:
    """Write entries as rows, and return their number."""
    first, stop = ends
    write = write_csv if form == "csv" else _write_jsonl
    with _opened(output) as file, progress("Exporting", max(0, stop - first), quiet=quiet) as advance:
        entries = _readable(client.entries(first, stop), leaves_only=leaves_only)
        return write(file, _values(entries, advance, leaves_only=leaves_only))


class _Done(NamedTuple):
    """What was written: `entries` entries from `start` on, of the tree of `head`."""

    output: Path | None
    head: Checkpoint
    start: int
    entries: int

    @property
    def stop(self) -> int:
        """The index after the last one."""
        return self.start + self.entries


def _say(target: Target, asked: Asked, done: _Done) -> None:
    """Say on stderr what was written, and whether more of the times that were asked for may come."""
    output, head, start, count = done
    open_end = asked.until is not None and done.stop >= head.size
    if target.as_json:
        summary = {"entries": count, "start": start, "stop": done.stop, "tree_size": head.size, "root": head.root.hex()}
        times = {"from": asked.since, "to": asked.until, "more_may_follow": open_end} if asked.timed else {}
        note(json.dumps(summary | times | {"file": str(output) if output else None}))
        return
    exported = f"{entries_text(count)} {range_text(start, done.stop)}" if count else "no entries"
    where = f": {output}" if output else ""
    note(f"Exported {exported} of {head.origin}, each proved to be in the tree of size {head.size}{where}")
    if asked.timed:
        which = "They are all of the published ones" if count else "There are no published ones"
        note(f"{which} that were logged {asked.times}, by the log's own clock.")
    if open_end:
        note(f"No entry is published yet that was logged at {asked.until} or later: until then more may follow.")


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
