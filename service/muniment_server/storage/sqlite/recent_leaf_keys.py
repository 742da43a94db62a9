"""The index of leaf keys in SQLite, written behind the entries.

Leaf keys are random, so in a large index each entry belongs on another page, and a commit writes whole pages. Entries
therefore wait in memory until there are some for the same pages. The keys are divided into :data:`SPANS` equal spans.
Each time the log has grown by :data:`STEP` entries one span, in turn, is carried over into ``leaf_keys``, in the same
commit as an append. So about ``SPANS * STEP`` entries at the end of the log are not in the table yet, or only those of
some spans. ``leaf_keys_carried`` counts the steps, and the entries themselves say the rest: after a crash the keys of
the last ones are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

SPANS = 64
STEP = 1024
_BUCKETS = 64
"""Of each span. With so many a look-up goes through some ten rows."""
_KEY = Struct(">q")
_ROW = Struct(">qq")

Row = tuple[int, int]
"""A leaf key, and the index of an entry that has it."""


def span_of(key: int) -> int:
    """Return the span of a leaf key (a signed 64-bit integer): 0 to 63, by its highest bits."""
    return key >> 58 & SPANS - 1


def floor_of(steps: int) -> int:
    """Return the index below which every entry is in the table after so many steps.

    It is what the span that was carried longest ago holds.
    """
    return max(0, steps - SPANS + 1) * STEP


class Recent:
    """The leaf keys of the last entries of one log: all that are not in the table, and some that are.

    Made for the entries from :func:`floor_of` `steps` on, of which :meth:`add` has to be told in order. Only the writer
    changes it, after a commit; others may look up at any time. There can be 65,536 rows: as bytes they take a megabyte,
    as objects six.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.size = floor_of(steps)
        self._buckets = [
            bytearray() for _ in range(SPANS * _BUCKETS)
        ]  # by the highest bits of the key; lowest index first

    def add(self, keys: Iterable[int]) -> None:
        """Take the keys of the entries from `size` on."""
        index, buckets, pack = self.size, self._buckets, _ROW.pack
        for index, key in enumerate(keys, self.size):
            buckets[key >> 52 & 4095] += pack(key, index)
            self.size = index + 1  # last: a reader of a size finds all entries below it

    def holds(self, keys: Sequence[int]) -> bool:
        """Tell whether an entry here has one of these keys."""
        buckets, pack = self._buckets, _KEY.pack
        # The end of one row and the beginning of the next can look like a key as well.
        likely = [key for key in keys if pack(key) in buckets[key >> 52 & 4095]]
        return next(self.find(likely), None) is not None

    def find(self, keys: Iterable[int]) -> Iterator[int]:
        """Yield the indices of the entries here that have one of these keys."""
        for key in set(keys):
            bucket, wanted = self._buckets[key >> 52 & 4095], _KEY.pack(key)
            at = bucket.find(wanted)
            while at >= 0:
                if at % _ROW.size == 0:
                    yield _ROW.unpack_from(bucket, at)[1]
                at = bucket.find(wanted, at + 1)

    def due(self) -> list[Row]:
        """Return the rows that are to be carried over now, of every step that the log has grown by.

        They are in the order of the table.
        """
        rows: list[Row] = []
        for step in range(self.steps, self.size // STEP):
            stop = (step + 1) * STEP
            for bucket in self._of_step(step):
                rows += [row for row in _ROW.iter_unpack(bucket) if stop - SPANS * STEP <= row[1] < stop]
        return sorted(rows)

    def carried(self) -> None:
        """Forget what :meth:`due` returned: it is in the table."""
        for step in range(self.steps, self.size // STEP):
            stop = (step + 1) * STEP
            first = step % SPANS * _BUCKETS
            self._buckets[first : first + _BUCKETS] = [_from(bucket, stop) for bucket in self._of_step(step)]
        self.steps = max(self.steps, self.size // STEP)

    def _of_step(self, step: int) -> list[bytearray]:
        first = step % SPANS * _BUCKETS
        return self._buckets[first : first + _BUCKETS]


def _from(bucket: bytearray, start: int) -> bytearray:
    """Return the rows of a bucket whose index is `start` or more, which are its last ones."""
    return bytearray(b"".join([_ROW.pack(*row) for row in _ROW.iter_unpack(bucket) if row[1] >= start]))
