"""What never changes, kept in memory up to a number of bytes: full tiles with inner nodes, and full entry bundles.

The number is nearly what the tiles of the logs take, within limits: a proof from memory costs the same in a log of any
size.

A tile of 256 hashes takes 9 kB, and nearly all of the work of reading it again goes into its inner nodes. So a
fourteenth of it, its :data:`muniment_server.tile_rows.CachedRows`, is kept for longer: with that, a proof needs the
hashes again, but only a few of the inner nodes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from muniment.tree import TileRows
from muniment_server.tile_rows import CachedRows, compact, with_top

T = TypeVar("T", list[bytes], CachedRows)

Rows = Sequence[bytes | bytearray]
_MAX_BUNDLE = 32_768
_ROOM = 4 * 2**20
"""Bytes that tops leave to the rest, or half of all where that is less."""
_OVERHEAD = 360
"""Bytes an element takes beyond its content: key, list, and the headers of the objects in it."""
_LOG_BITS = 59
"""Bits of a key below those of the log."""
_BUNDLES, _GZIPPED = -1, 13
"""The levels that stand for entry bundles, as they are and as gzip. Those of tiles end at 7."""
_TILE = 40 * 256
"""Bytes for each tile of level 0: 97 of a hundred have room."""
_LEAST = 38 * 2**20
_MOST = 512 * 2**20
_SHARE = 16
"""The part of this machine's memory that the cache takes, unless it is told otherwise: a sixteenth."""


class Cache:
    """Full tiles and bundles of all logs, least recently used first out, at most `most` bytes of them.

    Bundles would take all of that, whatever the logs have. So there is room for the tiles that were seen to exist, or
    _LEAST. Tops drive out everything else, but for _ROOM, never the other way round.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tiles: dict[int, int] = {}  # by log: tiles of level 0 up to the last one that was put here
        self._limit = min(most, _LEAST)
        self._kept: _Recent[list[bytes]] = _Recent()
        self._tops: _Recent[CachedRows] = _Recent()  # the very objects that are in the rows of tiles that are kept

    @property
    def size(self) -> int:
        """Bytes of memory it takes."""
        return self._kept.size + self._tops.size

    def get(self, log_id: int, level: int, index: int) -> Rows | None:
        """Return the rows of a full tile, read with :func:`muniment_server.tile_rows.hash_at`.

        None when the tile is not here, also when it has no inner nodes.
        """
        found = self._kept.get(_key(log_id, level, index))
        return found if found and len(found) > 1 else None

    def data(self, log_id: int, level: int, index: int) -> bytes | None:
        """Return the hashes of a full tile, or None."""
        found = self._kept.get(_key(log_id, level, index))
        return found[0] if found else None

    def put(self, log_id: int, level: int, index: int, rows: TileRows) -> None:
        """Keep a full tile. There are 256 times as many at level 0 as above, so those are thinned."""
        key = _key(log_id, level, index)
        if level:
            self._put(key, [bytes(row) for row in rows])
        else:
            self._make_room(log_id, index)
            kept, top = compact(rows)
            self._tops.put(key, top)
            self._tops.shrink(max(self._limit - _ROOM, self._limit // 2))
            self._put(key, kept)

    def _make_room(self, log_id: int, index: int) -> None:
        if index >= self._tiles.get(log_id, 0):
            self._tiles[log_id] = index + 1
            self._limit = min(self._most, max(_LEAST, _TILE * sum(self._tiles.values())))

    def put_data(self, log_id: int, level: int, index: int, data: bytes) -> None:
        """Keep a full tile, unless it is kept already.

        Without its inner nodes, if its top is not known: a proof makes them.
        """
        key = _key(log_id, level, index)
        if not self._kept.get(key):
            top = self._tops.get(key)
            self._put(key, with_top(data, top) if top else [data])

    def bundle(self, log_id: int, index: int) -> bytes | None:
        """Return a full entry bundle, or None."""
        return self.data(log_id, _BUNDLES, index)

    def put_bundle(self, log_id: int, index: int, data: bytes) -> None:
        """Keep a full entry bundle, unless it is so large that it would drive out the tiles of thousands of proofs."""
        if len(data) <= _MAX_BUNDLE:
            self.put_data(log_id, _BUNDLES, index, data)

    def gzipped(self, log_id: int, index: int) -> bytes | None:
        """Return a full entry bundle as gzip, or None."""
        return self.data(log_id, _GZIPPED, index)

    def put_gzipped(self, log_id: int, index: int, data: bytes) -> None:
        """Keep a full entry bundle as gzip, under the same limit: it takes a third of what it is made of."""
        if len(data) <= _MAX_BUNDLE:
            self.put_data(log_id, _GZIPPED, index, data)

    def forget(self, log_id: int) -> None:
        """Drop everything of a log: some of it may have come from another database."""
        for kept in (self._kept, self._tops):
            kept.drop(lambda key: key >> _LOG_BITS == log_id)

    def _put(self, key: int, rows: list[bytes]) -> None:
        self._kept.put(key, rows)
        self._kept.shrink(self._limit - self._tops.size)


def most_for(memory: int) -> int:
    """Return the most bytes that a cache should take of so many bytes of memory, when the operator sets no number."""
    return max(_LEAST, min(_MOST, memory // _SHARE))


class _Recent(Generic[T]):
    """Elements by key, in the order of their last use."""

    def __init__(self) -> None:
        self._elements: OrderedDict[int, T] = OrderedDict()
        self.size = 0  # bytes

    def get(self, key: int) -> T | None:
        found = self._elements.get(key)
        if found is not None:
            self._elements.move_to_end(key)
        return found

    def put(self, key: int, element: T) -> None:
        old = self._elements.pop(key, None)
        self._elements[key] = element
        self.size += _weight(element) - (_weight(old) if old else 0)

    def drop(self, wanted: Callable[[int], bool]) -> None:
        """Drop the elements with a key that is wanted."""
        for key in list(filter(wanted, self._elements)):
            self.size -= _weight(self._elements.pop(key))

    def shrink(self, limit: int) -> None:
        """Drop what was used least recently, until no more than `limit` bytes are left."""
        while self.size > limit:
            self.size -= _weight(self._elements.popitem(last=False)[1])


def _key(log_id: int, level: int, index: int) -> int:
    """Return a number for a tile or bundle, smaller than a tuple.

    Requires level < 15 and index < 2**55, as in trees of up to 2**63 leaves.
    """
    return log_id << _LOG_BITS | (level + 1) << 55 | index


def _weight(element: Sequence[bytes]) -> int:
    # The rows of a tile from the fifth on are those of its top, and counted there, or next to nothing.
    return sum(map(len, element[:4])) + _OVERHEAD
