"""The states of an anchor in words.

Apart from :mod:`~muniment_server.follow.anchors.rows`, which needs the library for timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence

from muniment_server.storage.anchors import HELD, AnchorRow, CalendarRow

OPEN = ("queued", "pending", "complete")
EXPLANATIONS = {
    "queued": "frozen, and not with any calendar yet; proves nothing yet",
    "pending": "a calendar's promise; proves nothing yet",
    "complete": "a path to a Bitcoin block; not deep enough yet, or not checked here",
    "confirmed": "existed before this Bitcoin block, whose header was checked here",
    "superseded": "never reached a calendar; a newer checkpoint was anchored instead",
}


def is_degraded(row: AnchorRow, calendars: Sequence[CalendarRow], held: int) -> bool:
    """Tell whether fewer than `held` calendars hold an anchor that still needs them."""
    return row.state in ("queued", "pending") and sum(one.state in HELD for one in calendars) < held
