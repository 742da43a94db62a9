"""The index of leaf keys in SQLite, written behind the entries.

Leaf keys are random, so in a large index each entry belongs on another page, and a commit writes whole pages. Entries therefore wait
in memory until there are some for the same pages. The keys are divided into :data:`SPANS` equal spans. Each time the log has grown by
:data:`STEP` entries one span, in turn, is carried over into ``leaf_keys``, in the same commit as an append. So about
``SPANS * STEP`` entries at the end of the log are not in the table yet, or only those of some spans. ``leaf_keys_carried`` counts the
steps, and the entries themselves say the rest: after a crash the keys of the last ones are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

SPANS = 64
STEP = 1024

Row = tuple[int, int]
"""A leaf key, and the index of an entry that has it."""


def span_of(key: int) -> int:
    """Return the span of a leaf key (a signed 64-bit integer): 0 to 63, by its highest bits."""
    return key >> 58 & SPANS - 1


def floor_of(steps: int) -> int:
    """Return the index below which every entry is in the table after so many steps: what the span carried longest ago holds."""
    return max(0, steps - SPANS + 1) * STEP


class Recent:
    """The leaf keys of the last entries of one log: all that are not in the table, and some that are.

    Made for the entries from :func:`floor_of` `steps` on, of which :meth:`add` has to be told in order. Only the writer changes it,
    after a commit; others may look up at any time.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.size = floor_of(steps)
        self._spans: list[dict[int, int]] = [{} for _ in range(SPANS)]
        self._twins: tuple[Row, ...] = ()  # keys are 8 bytes of a hash: who tries can find two leaves with the same one

    def add(self, keys: Iterable[int]) -> None:
        """Take the keys of the entries from `size` on."""
        index, spans = self.size, self._spans
        for index, key in enumerate(keys, self.size):
            if spans[key >> 58 & SPANS - 1].setdefault(key, index) != index:
                self._twins += ((key, index),)
            self.size = index + 1  # last: whoever reads a size finds all entries below it

    def holds(self, keys: Iterable[int]) -> bool:
        """Tell whether an entry here has one of these keys."""
        spans = self._spans
        return any([key in spans[key >> 58 & SPANS - 1] for key in keys])

    def find(self, keys: Iterable[int]) -> Iterator[int]:
        """Yield the indices of the entries here that have one of these keys."""
        wanted = set(keys)
        for key in wanted:
            index = self._spans[span_of(key)].get(key)
            if index is not None:
                yield index
        yield from (index for key, index in self._twins if key in wanted)

    def due(self) -> list[Row]:
        """Return the rows, in the order of the table, that are to be carried over now: of every step that the log has grown by."""
        rows: list[Row] = []
        for step in range(self.steps, self.size // STEP):
            rows += self._of_step(step)
        return sorted(rows)

    def carried(self) -> None:
        """Forget what :meth:`due` returned: it is in the table."""
        for step in range(self.steps, self.size // STEP):
            span, stop = step % SPANS, (step + 1) * STEP
            self._twins = tuple(row for row in self._twins if span_of(row[0]) != span or row[1] >= stop)
            kept = {key: index for key, index in self._spans[span].items() if index >= stop}
            self._spans[span] = dict(row for row in self._twins if span_of(row[0]) == span) | kept
        self.steps = max(self.steps, self.size // STEP)

    def _of_step(self, step: int) -> Sequence[Row]:
        span, stop = step % SPANS, (step + 1) * STEP
        twins = (row for row in self._twins if span_of(row[0]) == span)
        return [row for row in (*self._spans[span].items(), *twins) if stop - SPANS * STEP <= row[1] < stop]
