"""How far an import has come: a small file beside the input, written before every batch and durable before it is sent.

It names the bytes that are logged for sure, and the batches under way, each with its Idempotency-Key: one whose answer
is awaited or being verified, and the next. After a crash they are sent again under the same keys, so they are logged
once, and in order, because a batch is sent only once the log has answered the one before. A key holds only for a time
and for one API key; beyond that the log itself is searched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from muniment.cli.output import EXIT_USAGE, CliError

IMPORT_TYPE = "muniment/import@v1"


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch that may or may not be in the log.

    It ends at byte `end` of the input, whose bytes before that have the SHA-256 `digest` (hex), and has `rows` rows. It
    was first sent at `sent_at` (milliseconds since 1970), under `key`, when the log had `tree_size` entries or more, by
    the API key whose fingerprint is `caller`.
    """

    end: int
    digest: str
    rows: int
    key: str
    tree_size: int
    sent_at: int
    caller: str


@dataclass(frozen=True, slots=True)
class ImportState:
    """What of an input is in the log `origin`: the bytes before `offset`, as `rows` entries.

    `digest` is the SHA-256 of these bytes, in hex. `first` and `last` are the lowest index and the highest, or None
    before the first batch. `pending` are the batches under way, in the order of the input, from `offset` on; none was
    sent before the log answered the one before it.
    """

    origin: str
    form: str
    offset: int
    digest: str
    rows: int = 0
    first: int | None = None
    last: int | None = None
    pending: tuple[Pending, ...] = ()

    def begun(self, pending: Pending) -> ImportState:
        """Return the state with one more batch under way."""
        return replace(self, pending=(*self.pending, pending))

    def abandoned(self) -> ImportState:
        """Return the state without the batches under way, none of which is in the log."""
        return replace(self, pending=())

    def done(self, indices: Sequence[int]) -> ImportState:
        """Return the state with the first batch under way logged at these indices. Requires one under way."""
        if not self.pending:
            raise AssertionError("no batch under way")
        batch, low, high = self.pending[0], min(indices), max(indices)
        return replace(
            self,
            offset=batch.end,
            digest=batch.digest,
            rows=self.rows + batch.rows,
            first=low if self.first is None else min(low, self.first),
            last=high if self.last is None else max(high, self.last),
            pending=self.pending[1:],
        )


def state_path(source: Path) -> Path:
    """Return where the state of importing `source` is kept."""
    return source.with_name(f"{source.name}.muniment-import")


def load(path: Path) -> ImportState | None:
    """Return the state in a file, or None when there is no file. Raises CliError when it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {path}: {error.strerror}") from error
    try:
        return _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        hint = "It said how much is logged already: look with `muniment export` before you import again."
        raise CliError(EXIT_USAGE, "import_state", f"{path} is damaged", hint) from error


def _parse(value: Any) -> ImportState:
    if not isinstance(value, dict) or value.pop("typ", None) != IMPORT_TYPE:
        raise ValueError("not an import state")
    pending = value.pop("pending")
    state = ImportState(**value, pending=tuple(Pending(**batch) for batch in pending))
    numbers = [state.offset, state.rows] + [number for batch in state.pending for number in (batch.end, batch.rows)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("not an import state")
    return state


def save(path: Path, state: ImportState) -> None:
    """Write the state; durable when it returns. Raises CliError."""
    from muniment.state import replace_file

    try:
        replace_file(path, (json.dumps({"typ": IMPORT_TYPE, **asdict(state)}, indent=1) + "\n").encode())
    except OSError as error:
        hint = "An import keeps its progress beside its input: copy the input to a folder where you may write."
        raise CliError(EXIT_USAGE, "unwritable", f"cannot write {path}: {error.strerror}", hint) from error
