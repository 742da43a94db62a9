"""Whether a copy of a log, rows as lines of JSON in any order, says what the log says: no more, no less, nothing else.

The lines are read once, and of each row two hashes are kept at the place of its index, in a file that has no name:
33 bytes an entry. Then the entries of the log, each proved by its tree, are compared with these in their order. Pure
but for that file.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

from muniment.encoding import parse_hex
from muniment.errors import EventRefused, FormatError
from muniment.hashing import LeafHash
from muniment.strictjson import canonical

MOST_RANGES = 1000
"""Ranges of indices that are named of one finding. All are counted."""
_HASH = 16
_SLOT = 1 + 2 * _HASH
_CLOSED, _OPEN = 1, 2
_NOTHING = bytes(_HASH)
"""What stands for a row that is no canonical JSON, or for two rows of one index that differ: no row has this hash."""


@dataclass
class Found:
    """Indices, or numbers of lines, that are wrong in one way: their count, and half-open ranges of them."""

    count: int = 0
    ranges: list[list[int]] = field(default_factory=list)

    def add(self, index: int) -> None:
        """Take note of one."""
        self.count += 1
        if self.ranges and self.ranges[-1][1] == index:
            self.ranges[-1][1] += 1
        elif len(self.ranges) < MOST_RANGES:
            self.ranges.append([index, index + 1])


FINDINGS = {
    "malformed": "lines that are no rows of a log, by number of line",
    "foreign": "rows that are not of this log's entry, or of none",
    "altered": "rows that say something else than their entry",
    "duplicate": "rows that are there again",
    "unwanted": "rows of entries that the query does not find",
    "missing": "entries that have no row",
}
"""Everything that can be wrong with a copy."""


class Copy:
    """The rows of a copy of the entries [start, stop) of a log, which has `size` entries. Use it as a context manager.

    Members in `ignored` are not looked at, as what collects logs adds its own. With `leaves_only` nor is `event`.
    """

    def __init__(
        self, start: int, stop: int, size: int, *, ignored: Collection[str] = (), leaves_only: bool = False
    ) -> None:
        self.start, self.stop = start, stop
        self._size = size
        self._ignored = frozenset(ignored)
        self._leaves_only = leaves_only
        self.rows = 0
        self.outside = 0
        self.found = {name: Found() for name in FINDINGS}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self._file.truncate(max(stop - start, 1) * _SLOT)
        self._slots = mmap.mmap(self._file.fileno(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slots.close()
        self._file.close()

    @property
    def good(self) -> bool:
        """Tell whether nothing was found."""
        return not any(found.count for found in self.found.values())

    # --- the rows -----------------------------------------------------------------------------------------------------

    def add(self, line: bytes, number: int) -> None:
        """Take a line of the copy. `number` is for what is found."""
        row = _row(line)
        if row is None:
            self.found["malformed"].add(number)
            return
        self.rows += 1
        index: int = row["index"]
        if index >= self._size:
            self.found["foreign"].add(index)
        elif self.start <= index < self.stop:
            self._put(index, row)
        else:
            self.outside += 1

    def _put(self, index: int, row: dict[str, Any]) -> None:
        at = (index - self.start) * _SLOT
        kind = _OPEN if "event" in row else _CLOSED
        slot = bytes([kind]) + bytes.fromhex(row["leaf_hash"])[:_HASH] + self._digest(row)
        if self._slots[at]:
            self.found["duplicate"].add(index)
            if slot != self._slots[at : at + _SLOT]:  # one of them is wrong at least
                self._slots[at + 1 + _HASH : at + _SLOT] = _NOTHING
            return
        self._slots[at : at + _SLOT] = slot

    def _digest(self, row: dict[str, Any]) -> bytes:
        """Return a hash of what a row says, however it is written."""
        rest = {name: value for name, value in row.items() if name != "event" and name not in self._ignored}
        event = None if self._leaves_only else row.get("event")
        try:
            return sha256(canonical(rest) + b"\n" + canonical(event)).digest()[:_HASH]
        except EventRefused:
            return _NOTHING

    # --- the log ------------------------------------------------------------------------------------------------------

    def compare(
        self, index: int, leaf_hash: LeafHash, row: Callable[[bool], dict[str, Any]], *, wanted: bool | None
    ) -> None:
        """Compare an entry of the log with its row.

        `row` returns what the row is to be: with what the event says, or with its leaf instead. `wanted` says whether
        the copy is to have it; None where that cannot be told.
        """
        at = (index - self.start) * _SLOT
        slot = self._slots[at : at + _SLOT]
        if not slot[0]:
            if wanted:
                self.found["missing"].add(index)
        elif slot[1 : 1 + _HASH] != leaf_hash[:_HASH]:
            self.found["foreign"].add(index)
        elif slot[1 + _HASH :] != self._digest(row(slot[0] == _OPEN)):
            self.found["altered"].add(index)
        elif wanted is False:
            self.found["unwanted"].add(index)


def _row(line: bytes) -> dict[str, Any] | None:
    """Return the row in a line; None when it is none."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        if not isinstance(row, dict) or type(row["index"]) is not int or row["index"] < 0:
            return None
        parse_hex(row["leaf_hash"], 32)
    except (ValueError, KeyError, TypeError, RecursionError, FormatError):
        return None
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises ValueError when a name is there twice: readers would differ about what it says."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
