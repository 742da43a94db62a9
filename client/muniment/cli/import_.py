"""`muniment import`."""

from __future__ import annotations

import fcntl
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from muniment.cli.import_state import state_path
from muniment.cli.importer import REFUSED_FOR_GOOD, Importer, appended, at_line, batches, fingerprint, limits
from muniment.cli.options import Target, log_options
from muniment.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, CliError, explain
from muniment.cli.progress import progress
from muniment.cli.row_files import RowFiles
from muniment.cli.rows import FORMATS, Form, Row, Source
from muniment.errors import MunimentError, Refused
from muniment.words import counted

if TYPE_CHECKING:
    from muniment.client import Batch, Client, LogInfo


class Delimiter(click.ParamType[str]):
    """One character that separates columns."""

    name = "character"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the character. Fails on what cannot be one."""
        text = {"tab": "\t", "\\t": "\t"}.get(str(value), str(value))
        if len(text) != 1 or not text.isascii() or text in '"\r\n' or text.isalnum():
            self.fail("a delimiter is one character of punctuation, or tab", param, ctx)
        return text


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
    help="When the import asks for it: the batch that a crash cut off is not in the log, send it again.",
)
@click.option(
    "--delimiter",
    type=Delimiter(),
    metavar="CHAR",
    help="What separates the columns of CSV: a character, or tab. [default: a comma]",
)
@click.option(
    "--map",
    "index_map",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the index of each row here, as JSONL: its line of the input, its index.",
)
@click.option(
    "--receipts",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the receipt of each row here, as JSONL. Takes about twice as long.",
)
@log_options
def command(
    target: Target,
    file: str,
    form: str | None,
    assume: str | None,
    delimiter: str | None,
    index_map: Path | None,
    receipts: Path | None,
) -> None:
    """Append every row of FILE, each proof verified.

    Run it again after a crash or Ctrl-C: nothing is lost or logged twice. An event log takes JSONL (one event a line)
    or CSV (a header, then one event a row, all values strings); a raw log takes one leaf a line, without its newline.
    Of a CSV file that muniment export wrote, whose columns begin with index, leaf_hash and logged_at, the apostrophes
    that keep cells from being formulas are taken out; in all others every cell is taken as it is.
    Blank lines are skipped. FILE.muniment-import beside the input remembers how far the import came; when rows were
    added to FILE since, only those are imported. Stdin (-) cannot be resumed. --map and --receipts are files with a
    line for each row, whole after a crash too when every run names them.

    \b
    Examples:
      muniment import events.jsonl --map indices.jsonl
      muniment import users.csv --delimiter ';'
      zcat old.jsonl.gz | muniment import -
    """
    with target.open(long=True) as client:
        info = client.log_info()
        form = form or _form(file, info)
        if (form == "lines") != (info.kind == "raw"):
            raise CliError(EXIT_USAGE, "usage", f"{form} does not fit: {info.origin} is a log of kind {info.kind}")
        if delimiter and form != "csv":
            raise CliError(EXIT_USAGE, "usage", f"--delimiter is for CSV, and this is {form}: add --format csv")
        reading = Form(form, delimiter, info.max_entry_bytes)
        with closing(RowFiles(None if file == "-" else Path(file), index_map, receipts)) as files:
            if file == "-":
                _stream(target, client, info, reading, files)
            else:
                _resumable(target, client, info, Path(file), reading, assume, files)


def _form(name: str, info: LogInfo) -> str:
    if info.kind == "raw":
        return "lines"
    return "csv" if name.lower().endswith(".csv") else "jsonl"


def _resumable(
    target: Target, client: Client, info: LogInfo, path: Path, form: Form, assume: str | None, files: RowFiles
) -> None:
    with (
        _opened(path) as file,
        progress(f"Importing {path.name}", path.stat().st_size, quiet=target.as_json) as advance,
    ):
        caller = fingerprint(target.api_key())
        importer = Importer(client, info, state_path(path), form, caller, assume, files, advance)
        before = importer.state.rows
        try:
            importer.run(file)
        except (KeyboardInterrupt, MunimentError, CliError) as error:
            state = importer.state
            unsure = sum(batch.rows for batch in state.pending)
            raise _stopped(error, state.rows, unsure, "Run the same command again: it goes on from there.") from error
    state = importer.state
    new = state.rows - before
    value = {"origin": state.origin, "rows": state.rows, "new_rows": new, "first": state.first, "last": state.last}
    target.show(value | {"state": str(importer.path)}, _text(target, importer, new))


def _stopped(error: BaseException, rows: int, unsure: int, remedy: str) -> CliError:
    """Return the error of an import that ended early, which says how much is logged, and what may be."""
    may_be = f", and the {unsure} after them may be." if unsure else "."
    if isinstance(error, CliError):  # of a row, or of the input: the same command would fail again
        before = "The row before it is" if rows == 1 else f"The {rows} rows before it are"
        found, logged = error, f"{before} in the log{may_be}"
    else:
        interrupted = CliError(EXIT_INTERRUPTED, "interrupted", "interrupted")
        found = explain(error) if isinstance(error, MunimentError) else interrupted
        logged = f"{counted(rows, 'row is', 'rows are')} in the log{may_be} {remedy}"
    found.hint = f"{found.hint}\n{logged}".lstrip()
    found.extra |= {"rows": rows, "unsure": unsure}
    return found


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


def _stream(target: Target, client: Client, info: LogInfo, form: Form, files: RowFiles) -> None:
    """Import stdin, which cannot be read again: what was logged is said, whatever happens."""
    stream = _Stream(client, info, files)
    try:
        stream.run(Source(sys.stdin.buffer, form).rows())
    except (KeyboardInterrupt, MunimentError, CliError) as error:
        remedy = "Stdin cannot be resumed: send the rows after these again."
        raise _stopped(error, stream.count, stream.sent - stream.count, remedy) from error
    value = {"origin": info.origin, "rows": stream.count, "new_rows": stream.count}
    value |= {"first": stream.first, "last": stream.last}
    text = (
        f"Imported {counted(stream.count, 'row', 'rows')} into {info.origin}, each proved to be logged as it was sent."
    )
    if stream.first is not None:
        text += f"\nFrom entry {stream.first} to entry {stream.last}.\n{target.suggest(f'get {stream.first}')}"
    target.show(value, text)


class _Stream:
    """Imports rows that come once. `count` of them are logged for sure, `sent` were sent."""

    def __init__(self, client: Client, info: LogInfo, files: RowFiles) -> None:
        self._client, self._info, self._files = client, info, files
        self._lines: deque[list[int]] = deque()  # of the batches under way
        self.first: int | None = None
        self.last: int | None = None
        self.count = self.sent = 0

    def run(self, rows: Iterator[Row]) -> None:
        self._files.keep(0)
        try:
            for indices, _, receipts in appended(self._client, self._keyed(rows), receipts=self._files.receipts):
                self._files.write(self._lines.popleft(), indices, receipts)
                self.first = min(*indices, indices[0] if self.first is None else self.first)
                self.last = max(*indices, indices[0] if self.last is None else self.last)
                self.count += len(indices)
        except Refused as refused:
            if refused.status in REFUSED_FOR_GOOD:  # that batch is not logged, and what follows it was not sent
                self.sent = self.count
            raise at_line(refused, self._lines[0] if self._lines else []) from refused

    def _keyed(self, rows: Iterator[Row]) -> Iterator[Batch]:
        from muniment._flows.writes import new_key

        for batch in batches(rows, *limits(self._info)):
            self._lines.append([row.line for row in batch])
            self.sent += len(batch)
            yield [row.entry for row in batch], new_key()
