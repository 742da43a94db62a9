"""Changes of a stored anchor: by compare-and-swap, so that of two that change it neither is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muniment_server.failpoints import step
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, CalendarRow

ROUNDS = 10
"""How often a change is tried again when another task or process was quicker."""

Change = Callable[[AnchorRow, CalendarRow], tuple[AnchorRow, CalendarRow] | None]


async def change(store: Store, log_id: int, due: CalendarRow, make: Change) -> CalendarRow | None:
    """Change an anchor and one of its calendars as of now, again if another was quicker; return the calendar's new row.

    Returns None when nothing was changed: `make` said so, or others were always quicker. Raises StoreError.
    """
    size = due.tree_size
    for _ in range(ROUNDS):
        row = await store.anchors.anchor(log_id, size)
        found = await store.anchors.anchor_calendars(log_id, size, size + 1)
        calendar = next((one for one in found if one.url == due.url), None)
        new = row and calendar and make(row, calendar)
        if not new:
            return None
        if await save(store, log_id, new[0], [new[1]]):
            return new[1]
    return None  # asked for again: nothing says that it was done


@step("anchorer.save")
async def save(store: Store, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
    """Store an anchor and those of its calendars that changed; False when it was changed since it was read.

    Raises StoreError.
    """
    return await store.anchors.save_anchor(log_id, row, calendars)
