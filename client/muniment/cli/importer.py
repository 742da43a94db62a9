"""The import itself: batches, each noted beside the input before it is sent, so that none is lost or logged twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from muniment import strictjson
from muniment.cli.import_state import ImportState, Pending, load, save
from muniment.cli.output import EXIT_USAGE, CliError, explain
from muniment.cli.row_files import RowFiles
from muniment.cli.rows import Form, Row, Source
from muniment.errors import Refused

if TYPE_CHECKING:
    from muniment.client import Batch, Client, LogInfo
    from muniment.receipt import Receipt

MAX_ENTRIES = 1000
MAX_BYTES = 2 * 1024 * 1024
SETTLED = 10.0
"""Seconds after which a batch that was under way when the last run ended is surely logged and published, or lost."""

REFUSED_FOR_GOOD = {400, 413, 415, 422}
"""Answers to the content of a batch: every earlier attempt at the same bytes was refused too."""


def fingerprint(api_key: str | None) -> str:
    """Return what tells API keys apart without being of use to a thief; "" for none.

    Idempotency-Keys are scoped to the caller.
    """
    return sha256(f"muniment import\n{api_key}".encode()).hexdigest()[:16] if api_key else ""


@dataclass(slots=True)
class Importer:
    """Imports one file.

    `state` and `tree_size` are changed by this class alone; `state` is what the file beside the input says. `lines`
    are those of the rows under way, by Idempotency-Key.
    """

    client: Client
    info: LogInfo
    path: Path
    form: Form
    caller: str
    assume: str | None
    files: RowFiles
    advance: Callable[[int], None] = lambda _: None
    state: ImportState = field(init=False)
    tree_size: int = field(init=False)
    lines: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Load the state. Raises CliError when it is of another log or format."""
        found = load(self.path)
        self.state = found or ImportState(self.info.origin, self.form.text, 0, sha256().hexdigest())
        if (self.state.origin, self.state.form) != (self.info.origin, self.form.text):
            hint = f"Remove {self.path} to import the whole file into this log."
            raise CliError(
                EXIT_USAGE, "import_state", f"{self.path} is about {self.state.form} into {self.state.origin}", hint
            )
        self.tree_size = self.client.checkpoint().checkpoint.size

    def run(self, file: IO[bytes]) -> None:
        """Import what is not in the log yet. Requires `file` to be seekable."""
        self.files.keep(self.state.rows)
        header = Source(file, self.form).header() if self.form.name == "csv" and self.state.offset else None
        file.seek(0)
        source = Source(file, self.form)
        if source.skip(self.state.offset) != self.state.digest:
            raise self._changed()
        self.advance(self.state.offset)
        rows = source.rows(header)
        unlogged = self._settle(rows)
        self._append(self._begun(batches(chain(unlogged, rows), *limits(self.info))))

    def _changed(self) -> CliError:
        hint = f"Put the file back as it was, or remove {self.path} to import all of it again."
        return CliError(
            EXIT_USAGE, "input_changed", "the part of the input that is in the log already was changed since", hint
        )

    def _append(self, noted: Iterable[Batch]) -> None:
        """Send batches that are in the state, and take each out of it once it is verified."""
        try:
            for indices, size, receipts in appended(self.client, noted, receipts=self.files.receipts):
                self.tree_size = max(self.tree_size, size)
                self._done(indices, receipts)
        except Refused as refused:
            # What was verified is not under way any more, and what follows a refused batch is not sent.
            lines = self.lines[self.state.pending[0].key] if self.state.pending else []
            if refused.status in REFUSED_FOR_GOOD and refused.code != "idempotency_mismatch":
                self._save(self.state.abandoned())
            raise at_line(refused, lines) from refused

    def _begun(self, found: Iterable[list[Row]]) -> Iterator[Batch]:
        """Note each batch as under way before it is yielded, to be sent."""
        from muniment._flows.writes import new_key

        for batch in found:
            end, key = batch[-1], new_key()
            pending = Pending(end.end, end.digest, len(batch), key, self.tree_size, _now(), self.caller)
            self._save(self.state.begun(pending))
            yield self._batch(batch, key)

    def _batch(self, rows: Sequence[Row], key: str) -> Batch:
        self.lines[key] = [row.line for row in rows]
        return [row.entry for row in rows], key

    def _done(self, indices: Sequence[int], receipts: Sequence[Receipt]) -> None:
        before = self.state.offset
        self.files.write(self.lines.pop(self.state.pending[0].key), indices, receipts)
        self._save(self.state.done(indices))
        self.advance(self.state.offset - before)

    def _save(self, state: ImportState) -> None:
        save(self.path, state)
        self.state = state

    # --- batches that were cut off ------------------------------------------------------------------------------------

    def _settle(self, rows: Iterator[Row]) -> list[Row]:
        """Find out about the batches under way when the last run ended.

        Returns the rows read that turn out not to be in the log.

        1. Their bytes are those that were sent.
        2. A raw leaf that is there already is found again by its content; an event by its key, while the key holds.
        3. Otherwise the log is searched for the batch. When it is not there, those after it were not sent.
        """
        while self.state.pending:
            pending = self.state.pending[0]
            batch = list(islice(rows, pending.rows))
            if not batch or (batch[-1].end, batch[-1].digest) != (pending.end, pending.digest):  # 1
                raise self._changed()
            to_send = self._batch(batch, pending.key)
            if self.info.kind == "raw" or self._holds(pending):  # 2
                self._append([to_send])
            elif (indices := self._find(batch, pending)) is not None:  # 3
                self._done(indices, list(map(self.client.receipt, indices)) if self.files.receipts else ())
            else:
                self._save(self.state.abandoned())
                return batch
        return []

    def _holds(self, pending: Pending) -> bool:
        """Tell whether the server surely still knows the key of a batch."""
        ttl = self.info.idempotency_ttl_seconds
        age = (_now() - pending.sent_at) / 1000
        return pending.caller == self.caller and 0 <= age < ttl - min(60.0, ttl / 4)

    def _find(self, batch: list[Row], pending: Pending) -> list[int] | None:
        """Return the indices of a batch in the log, or None when it is not there. Events of a batch are neighbours."""
        if self.assume == "lost":
            return None
        time.sleep(
            SETTLED
        )  # however long ago it was noted: it may have been sent, or sent again, just before the last run ended
        wanted = [row.entry.body for row in batch]
        # Behind what is accounted for: the batch before it may have the same content.
        start = pending.tree_size if self.state.last is None else max(pending.tree_size, self.state.last + 1)
        found = _find_run(wanted, self._bodies(start), start)
        if found is None:
            return None
        return list(range(found, found + len(wanted)))

    def _bodies(self, start: int) -> Iterator[bytes | None]:
        """Yield the canonical form of each event from `start` on, None for entries that are no events."""
        for entry in self.client.entries(start):
            if entry.hidden:
                raise CliError(
                    EXIT_USAGE,
                    "outcome_unknown",
                    f"rows {self.state.rows + 1}"
                    f" to {self.state.rows + sum(batch.rows for batch in self.state.pending)},"
                    " which were cut off, may or may not be in the log,"
                    f" and entry {entry.index} cannot be read to find out",
                    "Use an API key with scope read, or say what you know:"
                    " --cut-off-batch lost (they are logged again).",
                )
            yield None if entry.event is None else strictjson.canonical(entry.event)


def appended(
    client: Client, batches: Iterable[Batch], *, receipts: bool
) -> Iterator[tuple[Sequence[int], int, Sequence[Receipt]]]:
    """Append batches; yield the indices of each, the size of a tree that has them, and the receipts if asked for."""
    if not receipts:
        for one in client.append_without_receipts(batches):
            yield one.indices, one.tree_size, ()
        return
    for found in client.append_batches(batches):
        yield [receipt.index for receipt in found], max(receipt.tree_size for receipt in found), found


def at_line(refused: Refused, lines: Sequence[int]) -> CliError:
    """Return the error for a batch with an entry that the log refuses, named by its line of the input."""
    error, number = explain(refused), refused.problem.get("line")
    if isinstance(number, int) and 0 < number <= len(lines):
        line = error.extra["line"] = lines[number - 1]
        error.message = f"line {line}: {error.message.replace(f'entry {number} of the batch: ', '')}"
    return error


def limits(info: LogInfo) -> tuple[int, int]:
    """Return the most entries and the most bytes of a batch: ours, or the log's where they are smaller."""
    return min(MAX_ENTRIES, info.max_batch_entries), min(MAX_BYTES, info.max_batch_bytes)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _find_run(wanted: list[bytes], bodies: Iterable[bytes | None], start: int) -> int | None:
    """Return the index at which `wanted` stands in `bodies`, the first of which has index `start`, or None."""
    begun: list[int] = []  # where a run began that has matched so far
    for index, body in enumerate(bodies, start):
        begun = [low for low in (*begun, index) if wanted[index - low] == body]
        if begun and index - begun[0] == len(wanted) - 1:
            return begun[0]
    return None


def batches(rows: Iterable[Row], max_entries: int, max_bytes: int) -> Iterator[list[Row]]:
    """Yield rows as batches. When a row is bad, those before it are yielded before the error is raised."""
    batch: list[Row] = []
    size = 0
    try:
        for row in rows:
            length = len(row.entry.body) + 2  # at most: a newline, or the length of a raw leaf
            if batch and (len(batch) == max_entries or size + length > max_bytes):
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += length
    except CliError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
