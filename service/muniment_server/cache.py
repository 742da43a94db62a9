"""What never changes, kept in memory up to a number of bytes: full tiles with their inner nodes, and full entry bundles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from muniment.tree import TileRows, thin

Rows = Sequence[bytes | bytearray]
_MAX_BUNDLE = 32_768
_OVERHEAD = 700
"""Bytes an element takes beyond its content: key, list, and the headers of up to nine objects."""


class Full(NamedTuple):
    """Which full tile or bundle: `level` is -1 for a bundle."""

    log_id: int
    level: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used


class Cache:
    """Full tiles and bundles of all logs, least recently used first out, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[int, int, int], Rows] = OrderedDict()
        self.size = 0  # bytes

    def get(self, log_id: int, level: int, index: int) -> Rows | None:
        """Return the rows of a full tile, read with :func:`muniment.tree.hash_at`; or None, also for one without inner nodes."""
        found = self._find(log_id, level, index)
        return found if found and len(found) > 1 else None

    def data(self, log_id: int, level: int, index: int) -> bytes | None:
        """Return the hashes of a full tile, or None."""
        found = self._find(log_id, level, index)
        return bytes(found[0]) if found else None

    def _find(self, log_id: int, level: int, index: int) -> Rows | None:
        found = self._kept.get((log_id, level, index))
        if found is not None:
            self._kept.move_to_end((log_id, level, index))
        return found

    def put(self, log_id: int, level: int, index: int, rows: TileRows) -> None:
        """Keep a full tile. There are 256 times as many at level 0 as above, so those are thinned."""
        self._put(Full(log_id, level, index), thin(rows) if level == 0 else [bytes(row) for row in rows])

    def put_data(self, log_id: int, level: int, index: int, data: bytes) -> None:
        """Keep a full tile without its inner nodes, unless it is kept already: a proof makes them when it needs them."""
        if not self._find(log_id, level, index):
            self._put(Full(log_id, level, index), [data])

    def bundle(self, log_id: int, index: int) -> bytes | None:
        """Return a full entry bundle, or None."""
        return self.data(log_id, -1, index)

    def put_bundle(self, log_id: int, index: int, data: bytes) -> None:
        """Keep a full entry bundle, unless it is so large that it would drive out the tiles of thousands of proofs."""
        if len(data) <= _MAX_BUNDLE:
            self._put(Full(log_id, -1, index), [data])

    def _put(self, key: Full, rows: Rows) -> None:
        self.size += _weight(rows) - _weight(self._kept.pop(key, ()))
        self._kept[key] = rows
        while self.size > self._limit:
            self.size -= _weight(self._kept.popitem(last=False)[1])


def _weight(rows: Rows) -> int:
    return sum(map(len, rows)) + _OVERHEAD if rows else 0
