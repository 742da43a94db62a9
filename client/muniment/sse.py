"""Checkpoints as Server-Sent Events (HTML section 9.2): what the log writes, and what a reader makes of it.

An event has no name, so that a browser's `onmessage` gets it. Its id is the size of the tree, its data the note, byte
for byte: the note ends with a newline, and the data with an empty line for it.
"""

from __future__ import annotations

from typing import NamedTuple

from muniment.encoding import parse_decimal
from muniment.errors import FormatError

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b":\n\n"
"""A comment: it says that the log is there, and that nothing was published."""
MAX_EVENT = 1_048_576
"""Bytes of one event, at the most; a note is far shorter."""


class CheckpointEvent(NamedTuple):
    """A published checkpoint: the size of its tree, and its note."""

    size: int
    note: str


def format_event(event: CheckpointEvent) -> bytes:
    """Return an event as it is sent."""
    lines = [f"id: {event.size}", *(f"data: {line}" for line in event.note.split("\n"))]
    return "\n".join([*lines, "", ""]).encode()


class EventReader:
    """Makes events of the bytes of a stream, in whatever pieces these come."""

    def __init__(self) -> None:
        self._begun = b""  # the line that has not ended yet
        self._held = 0  # bytes of the event that has not ended yet
        self._fields: dict[str, list[str]] = {}

    def read(self, data: bytes) -> list[CheckpointEvent]:
        """Return the events that end in `data`. Comments, and events of other names, are left out.

        Raises FormatError.
        """
        *lines, self._begun = (self._begun + data).split(b"\n")
        found = [event for line in lines if (event := self._line(line.removesuffix(b"\r")))]
        if self._held + len(self._begun) > MAX_EVENT:
            raise FormatError(f"an event of the stream has more than {MAX_EVENT} bytes")
        return found

    def _line(self, line: bytes) -> CheckpointEvent | None:
        if not line:
            fields, self._fields, self._held = self._fields, {}, 0
            return _event(fields)
        if not line.startswith(b":"):
            self._held += len(line) + 1
            try:
                name, _, value = line.decode().partition(":")
            except UnicodeDecodeError:
                raise FormatError("the stream is not UTF-8") from None
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
        return None


def _event(fields: dict[str, list[str]]) -> CheckpointEvent | None:
    if "data" not in fields or fields.get("event", ["message"])[-1] not in ("", "message"):
        return None
    return CheckpointEvent(parse_decimal(fields.get("id", [""])[-1], "the id of an event"), "\n".join(fields["data"]))
