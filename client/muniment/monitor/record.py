"""The findings of a monitor on disk, one JSON line each: what is durable before it is reported, and what webhooks read.

A finding is written once: the same again, after a crash, has the same id. A line that a crash cut off was reported to
no reader, and is cut away. Damage before the last line raises :class:`~muniment.errors.StateError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muniment.errors import FormatError, StateError, StateUnavailable
from muniment.monitor.findings import Finding
from muniment.rowtext import inert_json

FILE = "findings.jsonl"
MAX_LINE = 1024 * 1024


def line_of(value: Any) -> bytes:
    """Return a JSON value as a line that no terminal obeys."""
    return inert_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode() + b"\n"


class Record:
    """The findings of one folder. Belongs to one process."""

    def __init__(self, folder: Path) -> None:
        """Open, and cut off what a crash left of a last line. Raises StateError."""
        self.path = folder / FILE
        self._ids: set[str] = set()
        try:
            self.size = self._open()
        except OSError as error:
            raise StateUnavailable(f"cannot open {self.path}: {error.strerror}") from error
        self.alarms = 0

    def _open(self) -> int:
        if not self.path.exists():
            return 0
        size = 0
        for at, finding in read(self.path, 0):
            self._ids.add(finding.id)
            size = at
        with self.path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        return size

    def add(self, findings: list[Finding]) -> list[Finding]:
        """Write the findings that are new, durably, and return these. Raises StateUnavailable."""
        new = list({found.id: found for found in findings if found.id not in self._ids}.values())
        if not new:
            return []
        lines = b"".join(line_of(found.to_json()) for found in new)
        try:
            self._append(lines)
        except OSError as error:
            raise StateUnavailable(f"cannot write {self.path}: {error.strerror}") from error
        self.size += len(lines)
        self._ids.update(found.id for found in new)
        return new

    def _append(self, lines: bytes) -> None:
        created = not self.path.exists()
        with self.path.open("ab") as file:
            if file.tell() > self.size:  # a write that failed half-way
                file.truncate(self.size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if created:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def read(path: Path, start: int) -> Iterator[tuple[int, Finding]]:
    """Yield each finding from byte `start` on, with where the next one begins. Raises StateError, OSError.

    A last line without its end is no finding yet.
    """
    with path.open("rb") as file:
        file.seek(start)
        at = start
        while (line := file.readline(MAX_LINE + 1)).endswith(b"\n"):
            at += len(line)
            yield at, _parse(path, line, at)
        if len(line) > MAX_LINE:
            raise StateError(f"{path} is damaged at byte {at}: a line without an end; this says nothing about any log")


def _parse(path: Path, line: bytes, at: int) -> Finding:
    try:
        return Finding.from_json(json.loads(line))
    except (FormatError, ValueError, RecursionError) as error:
        message = f"{path} is damaged before byte {at}; this says nothing about any log. Move it away to start anew"
        raise StateError(message) from error
