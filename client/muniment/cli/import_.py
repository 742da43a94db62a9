"""`muniment import`."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from muniment.cli.import_state import state_path
from muniment.cli.importer import Importer, batches, fingerprint, limits
from muniment.cli.options import Target, log_options
from muniment.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, CliError
from muniment.cli.progress import progress
from muniment.cli.rows import FORMATS, Source

if TYPE_CHECKING:
    from muniment.client import Client, LogInfo


@click.command("import", short_help="Append every row of a file, resumably.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="[default: lines for a raw log; else csv for FILE.csv, jsonl for all others]",
)
@click.option(
    "--cut-off-batch",
    "assume",
    type=click.Choice(["lost"]),
    help="Only when told so: what a crash cut off is not in the log.",
)
@log_options
def command(target: Target, file: str, form: str | None, assume: str | None) -> None:
    """Append every row of FILE, each proof verified.

    Run it again after a crash or Ctrl-C: nothing is lost or logged twice. An event log takes JSONL (one event a line)
    or CSV (a header, then one event a row, all values strings); a raw log takes one leaf a line, without its newline.
    Blank lines are skipped. FILE.muniment-import beside the input remembers how far the import came; when rows were
    added to FILE since, only those are imported. Stdin (-) cannot be resumed.

    \b
    Examples:
      muniment import events.jsonl
      muniment import users.csv
      zcat old.jsonl.gz | muniment import -
    """
    with target.open(long=True) as client:
        info = client.log_info()
        form = form or _form(file, info)
        if (form == "lines") != (info.kind == "raw"):
            raise CliError(EXIT_USAGE, "usage", f"{form} does not fit: {info.origin} is a log of kind {info.kind}")
        if file == "-":
            _stream(target, client, info, form)
        else:
            _resumable(target, client, info, Path(file), form, assume)


def _form(name: str, info: LogInfo) -> str:
    if info.kind == "raw":
        return "lines"
    return "csv" if name.lower().endswith(".csv") else "jsonl"


def _resumable(target: Target, client: Client, info: LogInfo, path: Path, form: str, assume: str | None) -> None:
    with (
        _opened(path) as file,
        progress(f"Importing {path.name}", path.stat().st_size, quiet=target.as_json) as advance,
    ):
        importer = Importer(client, info, state_path(path), form, fingerprint(target.api_key()), assume, advance)
        before = importer.state.rows
        try:
            importer.run(file)
        except KeyboardInterrupt:
            hint = "Run the same command again: it goes on from here."
            message = f"interrupted; {importer.state.rows} rows are in the log"
            raise CliError(EXIT_INTERRUPTED, "interrupted", message, hint, rows=importer.state.rows) from None
        except CliError as error:
            error.hint = f"{error.hint}\nThe {importer.state.rows} rows before it are in the log.".lstrip()
            raise
    state = importer.state
    new = state.rows - before
    value = {"origin": state.origin, "rows": state.rows, "new_rows": new, "first": state.first, "last": state.last}
    target.show(value | {"state": str(importer.path)}, _text(target, importer, new))


def _text(target: Target, importer: Importer, new: int) -> str:
    state = importer.state
    if state.first is None or state.last is None:
        return f"Nothing to import: {importer.path.name.removesuffix('.muniment-import')} has no rows."
    if not new:
        return f"Nothing new: its {state.rows} rows are in {state.origin} already ({importer.path} remembers)."
    return (
        f"Imported {new} rows into {state.origin}, each proved to be logged as it was sent.\n"
        f"In all {state.rows} rows, from entry {state.first} to entry {state.last}.\n"
        + target.suggest(f"get {state.first}")
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the input for this import alone: two at once would each log the same rows."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    except BlockingIOError as error:
        raise CliError(EXIT_USAGE, "busy", f"another import of {path} is running") from error
    except OSError as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {path}: {error.strerror}") from error


def _stream(target: Target, client: Client, info: LogInfo, form: str) -> None:
    """Import stdin, which cannot be read again: what was logged is said, whatever happens."""
    from muniment._flows.writes import new_key

    rows = Source(sys.stdin.buffer, form).rows()
    first, last, count = None, None, 0
    keyed = (([row.entry for row in batch], new_key()) for batch in batches(rows, *limits(info)))
    try:
        for appended in client.append_without_receipts(keyed):
            first = min(*appended.indices, appended.indices[0] if first is None else first)
            last = max(*appended.indices, appended.indices[0] if last is None else last)
            count += len(appended.indices)
    except CliError as error:
        error.hint = f"{error.hint}\nThe {count} rows before it are in the log.".lstrip()
        raise
    value = {"origin": info.origin, "rows": count, "new_rows": count, "first": first, "last": last}
    text = f"Imported {count} rows into {info.origin}, each proved to be logged as it was sent."
    if first is not None:
        text += f"\nFrom entry {first} to entry {last}.\n{target.suggest(f'get {first}')}"
    target.show(value, text)
