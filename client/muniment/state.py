"""The last checkpoint seen of each log: what lets a client notice that a log was rewritten between two visits.

A state holds one note per origin and replaces it only by compare and swap, so that two clients that share it never lose
what one of them saw. Damage to the memory raises :class:`~muniment.errors.StateError`: it says nothing about any log.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from muniment import strictjson
from muniment.checkpoint import parse_checkpoint
from muniment.errors import BadSignature, EventRefused, FormatError, PolicyNotMet, StateError, StateUnavailable
from muniment.note import parse_note, verify_note
from muniment.policy import Policy, VerifiedCheckpoint

STATE_TYPE = "muniment/checkpoints@v1"
MAX_STATE = 64 * 1024 * 1024


class State(Protocol):
    """Remembers one checkpoint note per origin."""

    blocking: ClassVar[bool]
    """True when get and swap may wait for a disk or a lock: an event loop then calls them in a thread."""

    def get(self, origin: str) -> str | None:
        """Return the note last swapped in for `origin`, or None. Raises StateError."""
        ...

    def swap(self, origin: str, expected: str | None, note: str) -> bool:
        """Make `note` the one of `origin` if the present one is still `expected`; tell whether it was.

        When it returns True, every later get of any client of this state sees `note`, also after a
        crash. Raises StateError.
        """
        ...


class MemoryState:
    """Remembers as long as the process lives. Safe to share between threads."""

    blocking: ClassVar[bool] = False

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, origin: str) -> str | None:
        """Return the note of `origin`, or None."""
        return self._notes.get(origin)

    def swap(self, origin: str, expected: str | None, note: str) -> bool:
        """Compare and swap."""
        with self._lock:
            if self._notes.get(origin) != expected:
                return False
            self._notes[origin] = note
            return True


class FileState:
    """Remembers in a JSON file, shared by the processes that name it.

    The file is replaced as a whole (written beside, fsynced, renamed, folder fsynced) under a lock on ``<path>.lock``:
    a crash leaves the old content or the new, and two processes never overwrite each other.
    """

    blocking: ClassVar[bool] = True

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()

    def get(self, origin: str) -> str | None:
        """Return the note of `origin`, or None. Raises StateError when the file is damaged or cannot be read."""
        return self._read().get(origin)

    def swap(self, origin: str, expected: str | None, note: str) -> bool:
        """Compare and swap, durable when it returns True. Raises StateError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                notes = self._read()
                if notes.get(origin) != expected:
                    return False
                replace_file(self.path, _format(notes | {origin: note}))
                return True
        except OSError as error:
            raise StateUnavailable(f"cannot write {self.path}: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock file of its own: the state file is replaced, and a lock on a replaced file holds no other process back.
        with open(f"{self.path}.lock", "w") as lock:  # noqa: PTH123 - a name derived by suffix
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, str]:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_STATE + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateUnavailable(f"cannot read {self.path}: {error}") from error
        notes = _parse(data)
        if notes is None:
            raise StateError(
                f"{self.path} is damaged; this says nothing about any log."
                " Move the file away to start with an empty memory"
            )
        return notes


def remembered(policy: Policy, origin: str, note: str) -> VerifiedCheckpoint:
    """Return the checkpoint in a note that was remembered for `origin`. The quorum is not asked of it.

    Raises StateError when it is damaged, which must not accuse the log, and PolicyNotMet when only keys signed it that
    this policy does not list. That may be another log under an old name: to forget the first is for its reader.
    """
    keys = {(log.vkey.name, log.vkey.key_id): log.vkey for log in policy.logs if log.vkey.name == origin}
    try:
        parsed = parse_note(note)
        checkpoint = parse_checkpoint(parsed.text)
        if checkpoint.origin != origin:
            raise FormatError(f"it is of {checkpoint.origin}")  # noqa: TRY301 - one message for every damage
        if any((line.name, line.key_id) in keys for line in parsed.signatures):
            verify_note(parsed, keys.values())
            return VerifiedCheckpoint(checkpoint, note)
    except (FormatError, BadSignature) as error:
        raise StateError(
            f"the checkpoint remembered for {origin} does not verify ({error}): the memory is damaged"
        ) from error
    raise PolicyNotMet(
        f"the checkpoint of size {checkpoint.size} that is remembered for {origin} was signed with a key that the"
        " policy does not list: this is another log under an old name, or a log with a new key. If you know which, list"
        " the old key in the policy too, or forget what was seen: move checkpoints.json away, which commands keep in"
        " ~/.local/state/muniment or $XDG_STATE_HOME/muniment"
    )


def state_folder() -> Path:
    """Return the folder for what the command line remembers: $XDG_STATE_HOME/muniment or ~/.local/state/muniment.

    Raises StateUnavailable.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    try:
        root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError as error:  # a user without a home, as containers have
        raise StateUnavailable("no folder to remember checkpoints in: XDG_STATE_HOME and HOME are not set") from error
    return root / "muniment"


def default_path() -> Path:
    """Return where the command line remembers checkpoints."""
    return state_folder() / "checkpoints.json"


def _format(notes: dict[str, str]) -> bytes:
    return (json.dumps({"typ": STATE_TYPE, "checkpoints": notes}, indent=1, ensure_ascii=False) + "\n").encode()


def _parse(data: bytes) -> dict[str, str] | None:
    """Return the notes in a state file, or None when it is damaged."""
    try:
        value: Any = strictjson.parse(data)
    except EventRefused:
        return None
    notes = value.get("checkpoints") if isinstance(value, dict) and value.get("typ") == STATE_TYPE else None
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        return None
    return notes


def replace_file(path: Path, data: bytes) -> None:
    """Replace the file at `path` so that a crash at any moment leaves the old content or the new, never a part.

    Links are followed.
    """
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # without it a power cut may bring the old name back
    finally:
        os.close(folder)
