"""How far the sinks of a log are: where its entries are pushed to (see :mod:`muniment_server.follow.push`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SinkState:
    """The cursor of one sink.

    The entries below `start` were taken, and those of [start, looked) are none that it wants. [start, stop) is the
    batch under way, at the published checkpoint of `tree_size`; there is none where `stop` is `start`. `mark` is of
    the settings that decide what is sent, and never changes. Times are milliseconds since 1970.
    """

    name: str
    mark: bytes
    start: int
    looked: int
    stop: int
    tree_size: int
    failures: int
    next_at: int
    moved_at: int
    last_error: str = ""

    @property
    def under_way(self) -> bool:
        """Tell whether there is a batch that was cut and not taken yet, as far as is known."""
        return self.stop > self.start

    def place(self) -> tuple[int, int, int]:
        """Return what a compare-and-swap compares: a try that failed elsewhere does not undo that this one did not."""
        return self.start, self.looked, self.stop

    def values(self) -> tuple[int, int, int, int, int, int, int, str]:
        """Return what may change, in the order of the columns."""
        return (
            *(self.start, self.looked, self.stop, self.tree_size),
            *(self.failures, self.next_at, self.moved_at, self.last_error),
        )


class Sinks(Protocol):
    """The cursors of sinks. What moved one is durable when it returns."""

    async def sinks(self, log_id: int) -> list[SinkState]:
        """Return the cursors of a log, by name: also of sinks that no server has any more."""

    async def sink(self, log_id: int, name: str) -> SinkState | None:
        """Return a cursor, or None where none was begun."""

    async def begin_sink(self, log_id: int, state: SinkState) -> bool:
        """Store a cursor where there is none of this name; tell whether it was."""

    async def move_sink(self, log_id: int, expected: SinkState, state: SinkState) -> bool:
        """Replace a cursor by one of the same name and mark, if its place is that of `expected`.

        Tells whether it was. One that goes back is refused: raises AssertionError.
        """


def check_move(expected: SinkState, state: SinkState) -> None:
    """Raise AssertionError unless a cursor may move so: what was taken stays taken."""
    same = (state.name, state.mark) == (expected.name, expected.mark)
    if not same or state.start < expected.start or not state.start <= state.looked:
        raise AssertionError(f"the cursor of sink {state.name} would go back")
