"""What an operator can do with anchors from the command line, beside a running server or without one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from random import SystemRandom

from muniment.anchor.sources import HeaderSource
from muniment_server.follow.anchors.anchorer import Anchorer
from muniment_server.follow.anchors.calendar import new_client
from muniment_server.follow.anchors.running import calendars_of, options_of
from muniment_server.follow.anchors.states import OPEN
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, Anchors, AnchorSummary, CalendarRow
from muniment_server.storage.catalog import LogRow

_PAGE = 100
_ASKED = ("queued", "pending", "bad_attestation", "given_up")


class KeepsNothing:
    """A watcher that is told nothing it keeps."""

    def asked(self, url: str, outcome: str) -> None:
        """See Watcher."""

    def summary(self, found: AnchorSummary) -> None:
        """See Watcher."""

    def refused(self, code: str | None) -> None:
        """See Watcher."""


def _now() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_anchorer(
    settings: Settings, store: Store, log: LogRow, source: HeaderSource | None, clock: Callable[[], int] = _now
) -> AsyncIterator[Anchorer]:
    """Give an anchorer without a lease: beside the server's own it is only wasteful. Raises SetupError."""
    async with new_client() as client:
        calendars, options = calendars_of(settings, client), options_of(settings)
        with ThreadPoolExecutor(1, "anchorer") as threads:
            yield Anchorer(store, log, calendars, source, options, KeepsNothing(), clock, SystemRandom(), threads)


async def anchor_now(anchors: Anchors, log: LogRow, anchorer: Anchorer) -> AnchorRow | None:
    """Anchor the published checkpoint, and return its row; None when nothing was published yet.

    Raises AnchorRefused, StoreError.
    """
    await anchorer.freezer.freeze()
    row = await anchors.anchor(log.log_id)
    if row is None:
        return None
    await _hurry(anchors, log, row)
    await anchorer.ask_all()
    await anchorer.freezer.supersede()
    return await anchors.anchor(log.log_id, row.tree_size)


async def retry(anchors: Anchors, log: LogRow, anchorer: Anchorer) -> list[AnchorRow]:
    """Ask every calendar now about every anchor that is open, look at their blocks, and return those still open.

    Raises StoreError.
    """
    for row in await open_anchors(anchors, log):
        await _hurry(anchors, log, row)
    await anchorer.ask_all()
    await anchorer.blocks.settle_due()
    return await open_anchors(anchors, log)


async def open_anchors(anchors: Anchors, log: LogRow) -> list[AnchorRow]:
    """Return every anchor that is neither confirmed nor superseded. Raises StoreError."""
    found: list[AnchorRow] = []
    while page := await anchors.anchors(log.log_id, found[-1].tree_size + 1 if found else 0, _PAGE, OPEN):
        found += page
    return found


async def _hurry(anchors: Anchors, log: LogRow, row: AnchorRow) -> None:
    """Make what is to be asked about an anchor due now."""
    calendars = await anchors.anchor_calendars(log.log_id, row.tree_size, row.tree_size + 1)
    due = [_due(one) for one in calendars if one.state in _ASKED]
    await anchors.save_anchor(log.log_id, replace(row, next_at=0 if row.ots else None), due)


def _due(row: CalendarRow) -> CalendarRow:
    given_up = row.state == "given_up"
    return replace(row, state="queued" if given_up else row.state, attempts=0 if given_up else row.attempts, next_at=0)
