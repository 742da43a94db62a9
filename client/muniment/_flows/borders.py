"""Which entries were logged in a span of time: found in the signed tree, so that no server decides what is left out."""

from __future__ import annotations

from bisect import bisect_left

from muniment._flows import reads
from muniment._flows.reads import Session
from muniment._flows.steps import Flow
from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError
from muniment.event import EventLeaf, OwnLeaf, parse_leaf, parse_time
from muniment.tiles import TILE_WIDTH
from muniment.times import Moment, check_span, milliseconds


def range_of_times(session: Session, since: Moment | None, until: Moment | None) -> Flow[tuple[int, int]]:
    """Return the entries [start, stop) of the published tree that were logged from `since` to before `until`.

    Without one of them to the beginning or to the end. Along a log times never go back (docs/spec/event.md, section 6),
    so a few bundles of authenticated leaves tell: start == stop when there is no such entry.

    Raises FormatError also when the times of a bundle go back, and for a raw log, whose entries have none.
    """
    low, high = (None if moment is None else milliseconds(moment) for moment in (since, until))
    check_span(low, high)
    head = (yield from reads.checkpoint(session)).checkpoint
    start = 0 if low is None else (yield from _border(session, head, low))
    stop = head.size if high is None else (yield from _border(session, head, high))
    return start, stop


def _border(session: Session, head: Checkpoint, moment: int) -> Flow[int]:
    """Return the first index whose entry is not before a moment; the size of the tree when all are before it."""
    low, high = 0, -(-head.size // TILE_WIDTH)  # bundles: what is before `low` is before it, from `high` on nothing is
    while low < high:
        middle = (low + high) // 2
        times = yield from _times(session, head, middle)
        if times[-1] < moment:
            low = middle + 1
        elif times[0] >= moment:
            high = middle
        else:
            return middle * TILE_WIDTH + bisect_left(times, moment)
    return min(low * TILE_WIDTH, head.size)


def _times(session: Session, head: Checkpoint, bundle: int) -> Flow[list[int]]:
    """Return when the entries of a bundle were logged."""
    leaves = yield from session.tiles.leaves(head, bundle)
    times = [_logged_at(leaf) for leaf in leaves]
    if times != sorted(times):
        first = bundle * TILE_WIDTH
        raise FormatError(
            f"the times of the entries {first} to {first + len(times) - 1} go back: those of a log never do"
        )
    return times


def _logged_at(leaf: bytes) -> int:
    content = parse_leaf(leaf)
    if isinstance(content, EventLeaf):
        return content.logged_at
    if isinstance(content, OwnLeaf):
        return parse_time(str(content.value.get("logged_at")))
    raise FormatError("the entries of a raw log have no time")
