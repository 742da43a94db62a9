"""Compares anchors with the headers of Bitcoin's blocks, and settles what comes of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from muniment.anchor.check import AnchorCheck, check_anchor, look_up
from muniment.anchor.proof import BitcoinAttestation
from muniment.anchor.sources import HeaderSource
from muniment.errors import AnchorMismatch
from muniment_server.follow.anchors import rows
from muniment_server.follow.anchors.changes import ROUNDS, save
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import get_logger

T = TypeVar("T")

_AT_ONCE = 100
"""Anchors whose blocks are looked at in one round."""


class Blocks:
    """The blocks of one log's anchors. Without a source nothing is settled. `clock` gives milliseconds since 1970."""

    def __init__(
        self, store: Store, log: LogRow, source: HeaderSource | None, clock: Callable[[], int], threads: Executor
    ) -> None:
        """Make it. `threads` are those in which the source is asked.

        Not the loop's own: the guard needs them, and a source may hang.
        """
        self._store = store
        self._anchors = store.anchors
        self._log = log
        self._source = source
        self._clock = clock
        self._threads = threads

    async def settle_due(self) -> None:
        """Look at the blocks of anchors again: deep enough by now, or gone in a reorganisation? Raises StoreError."""
        if self._source is None:
            return
        for row in await self._anchors.due_anchors(self._log.log_id, self._clock(), _AT_ONCE):
            await self.settle(row.tree_size)

    async def settle(self, size: int) -> None:
        """Look at the blocks of one anchor. Raises StoreError."""
        if self._source is None:
            return
        for _ in range(ROUNDS):
            row = await self._anchors.anchor(self._log.log_id, size)
            if row is None or row.ots is None:
                return
            check = await self._in_thread(check_anchor, row.checkpoint, row.ots, self._source, rows.MIN_DEPTH)
            calendars = await self._anchors.anchor_calendars(self._log.log_id, size, size + 1)
            new, changed = rows.settled(row, calendars, check, self._clock())
            if await save(self._store, self._log.log_id, new, changed):
                self._say(row, new, check)
                return

    def _say(self, old: AnchorRow, new: AnchorRow, check: AnchorCheck) -> None:
        if new.state == old.state:
            return
        if old.state == "confirmed" or new.state == "pending":
            get_logger().error(
                "an anchor is not confirmed any more: the chain was reorganised",
                log=self._log.name,
                tree_size=new.tree_size,
                detail=check.claim,
            )
        elif new.state == "confirmed":
            get_logger().info("anchor confirmed", log=self._log.name, tree_size=new.tree_size, claim=check.claim)

    async def check(self, claims: Sequence[BitcoinAttestation]) -> None:
        """Compare what a calendar attests with the headers. Raises AnchorMismatch, NoHeader, SourceUnavailable."""
        for claim in claims:
            await self._in_thread(_look_up, claim, self._source)

    async def _in_thread(self, work: Callable[..., T], *values: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)


def _look_up(claim: BitcoinAttestation, source: HeaderSource | None) -> None:
    """Raise AnchorMismatch unless a claim is true, or, without a source, could be."""
    if source:
        look_up(claim, source)
    elif len(claim.message) != 32:
        raise AnchorMismatch(f"{len(claim.message)} bytes are no Merkle root")
