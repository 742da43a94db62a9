"""The import itself: batches, each noted beside the input before it is sent, so that none is lost or logged twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from muniment import strictjson
from muniment.cli.import_state import ImportState, Pending, load, save
from muniment.cli.output import EXIT_USAGE, CliError
from muniment.cli.rows import Row, Source, read_header
from muniment.errors import Refused

if TYPE_CHECKING:
    from muniment.client import Client, LogInfo

MAX_ENTRIES = 500
MAX_BYTES = 2 * 1024 * 1024
SETTLED = 10.0
"""Seconds after which a batch that was cut off is surely either logged and published, or lost."""

_REFUSED_FOR_GOOD = {400, 413, 415, 422}
"""Answers to the content of a batch: every earlier attempt at the same bytes was refused too."""


def fingerprint(api_key: str | None) -> str:
    """Return what tells API keys apart without being of use to a thief; "" for none. Idempotency-Keys are scoped to the caller."""
    return sha256(f"muniment import\n{api_key}".encode()).hexdigest()[:16] if api_key else ""


@dataclass(slots=True)
class Importer:
    """Imports one file. `state` and `tree_size` are changed by this class alone; `state` is what the file beside the input says."""

    client: Client
    info: LogInfo
    path: Path
    form: str
    caller: str
    assume: str | None
    advance: Callable[[int], None] = lambda _: None
    state: ImportState = field(init=False)
    tree_size: int = field(init=False)

    def __post_init__(self) -> None:
        """Load the state. Raises CliError when it is of another log or format."""
        found = load(self.path)
        self.state = found or ImportState(self.info.origin, self.form, 0, sha256().hexdigest())
        if (self.state.origin, self.state.form) != (self.info.origin, self.form):
            hint = f"Remove {self.path} to import the whole file into this log."
            raise CliError(
                EXIT_USAGE, "import_state", f"{self.path} is about {self.state.form} into {self.state.origin}", hint
            )
        self.tree_size = self.client.checkpoint().checkpoint.size

    def run(self, file: IO[bytes]) -> None:
        """Import what is not in the log yet. Requires `file` to be seekable."""
        header = read_header(file) if self.form == "csv" and self.state.offset else None
        file.seek(0)
        source = Source(file, self.form)
        if source.skip(self.state.offset) != self.state.digest:
            raise self._changed()
        self.advance(self.state.offset)
        rows = source.rows(header)
        if self.state.pending is not None:
            self._settle(list(islice(rows, self.state.pending.rows)), self.state.pending)
        for batch in batches(
            rows, min(MAX_ENTRIES, self.info.max_batch_entries), min(MAX_BYTES, self.info.max_batch_bytes)
        ):
            self._begin(batch)

    def _changed(self) -> CliError:
        hint = f"Put the file back as it was, or remove {self.path} to import all of it again."
        return CliError(
            EXIT_USAGE, "input_changed", "the part of the input that is in the log already was changed since", hint
        )

    def _begin(self, batch: list[Row]) -> None:
        """Note a new batch, then send it."""
        from muniment._flows.writes import new_key

        end = batch[-1]
        pending = Pending(end.end, end.digest, len(batch), new_key(), self.tree_size, _now(), self.caller)
        self._save(self.state.begun(pending))
        self._send(batch, pending)

    def _send(self, batch: list[Row], pending: Pending) -> None:
        try:
            receipts = self.client.append_batch([row.draft for row in batch], idempotency_key=pending.key)
        except Refused as refused:
            if refused.status in _REFUSED_FOR_GOOD and refused.code != "idempotency_mismatch":
                self._save(self.state.abandoned())
            raise
        self.tree_size = max(self.tree_size, *(receipt.tree_size for receipt in receipts))
        self._done([receipt.index for receipt in receipts])

    def _done(self, indices: list[int]) -> None:
        before = self.state.offset
        self._save(self.state.done(indices))
        self.advance(self.state.offset - before)

    def _save(self, state: ImportState) -> None:
        save(self.path, state)
        self.state = state

    # --- the batch that was cut off -------------------------------------------------------------------------------------

    def _settle(self, batch: list[Row], pending: Pending) -> None:
        """Find out about the batch under way when the last run ended, and log it if it is not in the log.

        1. Its bytes are those that were sent.
        2. A raw leaf that is there already is found again by its content; an event by its key, while the key holds.
        3. Otherwise the log is searched for the batch.
        """
        if not batch or (batch[-1].end, batch[-1].digest) != (pending.end, pending.digest):  # 1
            raise self._changed()
        if self.info.kind == "raw" or self._holds(pending):  # 2
            self._send(batch, pending)
            return
        indices = self._find(batch, pending)  # 3
        if indices is None:
            self._save(self.state.abandoned())
            self._begin(batch)
        else:
            self._done(indices)

    def _holds(self, pending: Pending) -> bool:
        """Tell whether the server surely still knows the key of a batch."""
        ttl = self.info.idempotency_ttl_seconds
        age = (_now() - pending.sent_at) / 1000
        return pending.caller == self.caller and 0 <= age < ttl - min(60.0, ttl / 4)

    def _find(self, batch: list[Row], pending: Pending) -> list[int] | None:
        """Return the indices of a batch in the log, or None when it is not there. Events of a batch are neighbours."""
        if self.assume == "lost":
            return None
        time.sleep(max(0.0, min(SETTLED, SETTLED - (_now() - pending.sent_at) / 1000)))
        wanted = [row.draft.body for row in batch]
        found = _find_run(wanted, self._bodies(pending.tree_size), pending.tree_size)
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
                    f"the batch that was cut off may or may not be in the log, and entry {entry.index} cannot be read to find out",
                    "Use an API key with scope read, or say what you know: --cut-off-batch lost (it is logged again).",
                )
            yield None if entry.event is None else strictjson.canonical(entry.event)


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
            length = len(row.draft.body) + 2  # at most: a newline, or the length of a raw leaf
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
