"""`muniment export`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from muniment.cli import files
from muniment.cli.options import Number, Target, log_options
from muniment.cli.output import inert_json, note
from muniment.cli.progress import progress
from muniment.cli.table import write_csv

if TYPE_CHECKING:
    from muniment.client import Entry


@click.command("export", short_help="Write entries as JSONL or CSV.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), help="[default: csv when FILE ends in .csv, else jsonl]"
)
@click.option("--start", type=Number(), default=0, show_default=True, help="First index.")
@click.option("--stop", type=Number(), help="Index after the last. [default: all that is published]")
@log_options
def command(target: Target, output: Path | None, form: str | None, start: int, stop: int | None) -> None:
    """Write entries as rows, every one compared with the signed tree before it is written.

    JSONL rows are {"index", "leaf_hash", "logged_at", "event"}; the log's own entries have "own", raw leaves "leaf"
    (base64). CSV has a column for each member of the events; values that are not strings are JSON. A cell that a
    spreadsheet would compute gets an apostrophe before it; a member named like a column of ours, such as index or
    event.index, gets the prefix "event.".

    \b
    Examples:
      muniment export -o log.jsonl
      muniment export --start 1000 --stop 2000 --format csv > rows.csv
    """
    form = form or ("csv" if output and output.suffix.lower() == ".csv" else "jsonl")
    write = write_csv if form == "csv" else _write_jsonl
    with target.open(long=True) as client, _opened(output) as file:
        head = client.checkpoint().checkpoint
        last = head.size if stop is None else min(stop, head.size)
        with progress("Exporting", max(0, last - start), quiet=target.as_json) as advance:
            seen = _Seen(advance)
            count = write(file, map(seen.row, client.entries(start, last)))
    summary = {"entries": count, "start": start, "stop": start + count, "tree_size": head.size, "root": head.root.hex()}
    if target.as_json:
        note(json.dumps(summary | {"closed": seen.closed, "file": str(output) if output else None}))
    else:
        note(
            f"Exported {count} entries [{start}, {start + count}) of {head.origin}, each proved to be in the tree"
            f" of size {head.size} with root {head.root.hex()}{f': {output}' if output else ''}"
        )
        if seen.closed:
            note(
                f"{seen.closed} of them are events of which nothing is opened: reading them needs an API key with"
                " scope read (MUNIMENT_API_KEY or --api-key-file)."
            )


class _Seen:
    """Makes rows of entries, and counts the events that stay closed to this caller."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self.closed = 0

    def row(self, entry: Entry) -> dict[str, Any]:
        self._advance(1)
        self.closed += entry.hidden == ("*",)
        return entry.to_json()


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
        file.write(inert_json(json.dumps(row, ensure_ascii=False)) + "\n")
    return count
