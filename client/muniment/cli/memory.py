"""What the commands remember of logs: the user's file, or the life of the command where that cannot be written."""

from __future__ import annotations

from typing import ClassVar

from muniment.cli.output import note
from muniment.errors import StateUnavailable
from muniment.state import FileState, MemoryState, State


def memory(*, keep: bool) -> State:
    """Return where checkpoints are remembered: in the user's file, or nowhere beyond this command."""
    if not keep:
        return MemoryState()
    try:
        return FileOrMemory(FileState())
    except StateUnavailable as error:
        _warn(error)
        return MemoryState()


class FileOrMemory:
    """A file of checkpoints. What cannot be read or written there is remembered as long as the command runs.

    Without this, an append would be logged and its receipt lost, each time, on a folder that is mounted read-only. A
    file that is damaged is an error all the same: what it remembers may be needed.
    """

    blocking: ClassVar[bool] = True

    def __init__(self, file: FileState) -> None:
        self._file = file
        self._notes: dict[str, str] = {}
        self._usable = True

    def get(self, origin: str) -> str | None:
        """Return the note of `origin`, or None. Raises StateError when the file is damaged."""
        if origin in self._notes or not self._usable:
            return self._notes.get(origin)
        try:
            return self._file.get(origin)
        except StateUnavailable as error:
            self._give_up(error)
            return None

    def swap(self, origin: str, expected: str | None, note: str) -> bool:
        """Compare and swap. Raises StateError when the file is damaged."""
        known = self.get(origin)
        if self._usable:
            try:
                return self._file.swap(origin, expected, note)
            except StateUnavailable as error:
                self._give_up(error)
        if known != expected:
            return False
        self._notes[origin] = note
        return True

    def _give_up(self, error: StateUnavailable) -> None:
        self._usable = False
        _warn(error)


def _warn(error: StateUnavailable) -> None:
    note(f"Note: {error}. Checkpoints are not remembered this time (--no-state says that this is meant).")
