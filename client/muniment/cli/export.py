"""`muniment export`."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from muniment.cli.options import Number, Target, log_options
from muniment.cli.output import EXIT_USAGE, CliError, note
from muniment.cli.progress import progress

if TYPE_CHECKING:
    from muniment.client import Entry

_FIXED = ("index", "leaf_hash", "logged_at")


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
    (base64). CSV has a column per member of the events; values that are not strings are JSON.

    \b
    Examples:
      muniment export -o log.jsonl
      muniment export --start 1000 --stop 2000 --format csv > rows.csv
    """
    form = form or ("csv" if output and output.suffix.lower() == ".csv" else "jsonl")
    write = _write_csv if form == "csv" else _write_jsonl
    with target.open(long=True) as client, _opened(output) as file:
        head = client.checkpoint().checkpoint
        last = head.size if stop is None else min(stop, head.size)
        with progress("Exporting", max(0, last - start), quiet=target.as_json) as advance:
            count = write(file, _counted(client.entries(start, last), advance))
    summary = {"entries": count, "start": start, "stop": start + count, "tree_size": head.size, "root": head.root.hex()}
    if target.as_json:
        note(json.dumps(summary | {"file": str(output) if output else None}))
    else:
        note(
            f"Exported {count} entries [{start}, {start + count}) of {head.origin}, each proved to be in the tree"
            f" of size {head.size} with root {head.root.hex()}{f': {output}' if output else ''}"
        )


def _counted(entries: Iterable[Entry], advance: Any) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield entry.to_json()
        advance(1)


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    """Open the output; a file gets its name only when it is complete."""
    if path is None:
        yield sys.stdout
        return
    beside = path.with_name(f"{path.name}.part")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise CliError(EXIT_USAGE, "unwritable", f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _write_jsonl(file: IO[str], rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - counts the rows
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_csv(file: IO[str], rows: Iterable[dict[str, Any]]) -> int:
    """Write rows with a column for each member that occurs.

    Which ones do is known only at the end, so rows wait on disk.
    """
    columns: dict[str, None] = {}
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        for row in rows:
            flat = _flat(row)
            columns |= dict.fromkeys(flat)
            spool.write(json.dumps(flat) + "\n")
            count += 1
        spool.seek(0)
        names = [*_FIXED, *sorted(set(columns) - set(_FIXED))]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for line in spool:
            writer.writerow(json.loads(line))
    return count


def _flat(row: dict[str, Any]) -> dict[str, str]:
    flat = {name: str(row[name]) for name in _FIXED if name in row}
    for name, value in (row.get("event") or {}).items():
        column = f"event.{name}" if name in (*_FIXED, "own", "leaf", "hidden") else name
        flat[column] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for name in ("own", "hidden"):
        if name in row:
            flat[name] = json.dumps(row[name], ensure_ascii=False)
    if "leaf" in row:
        flat["leaf"] = row["leaf"]
    return flat
