"""How much of a log rests on its operator alone: what no published checkpoint, and no confirmed anchor, covers yet."""

from __future__ import annotations

from dataclasses import dataclass

from muniment_server.errors import NotFound
from muniment_server.read.entries import Entries, logged_at
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow


@dataclass(frozen=True, slots=True)
class Covered:
    """What is covered by one kind of evidence: the first `tree_size` of a log's `size` entries.

    `since` is when the oldest entry that is not covered was logged, in milliseconds; None when there is none. Where it
    is not `exact`, that entry was logged then or later: entries of raw logs have no time.
    """

    size: int
    tree_size: int
    since: int | None
    exact: bool


class Coverage:
    """Reads it of one log, as the database has it: the same in every process that can read that."""

    def __init__(self, store: Store, row: LogRow, entries: Entries) -> None:
        self._store = store
        self._row = row
        self._entries = entries
        self._anchored = 0  # size of the largest confirmed anchor that was found; a confirmed one stays so

    async def now(self) -> dict[str, Covered]:
        """Return what published checkpoints cover, and what confirmed anchors do. Raises NotFound, StoreError."""
        published = await self._store.checkpoints.checkpoint(self._row.log_id)
        if published is None:
            raise NotFound("no_checkpoint", "no checkpoint was published yet", "Ask again when the log was made.")
        anchored = await self._largest_anchor(published.size)
        head = await self._store.reads.head(self._row.log_id)  # last, so that it is not smaller
        return {
            "checkpoint": await self._covered(head.size, published.size),
            "anchor": await self._covered(head.size, anchored),
        }

    async def _largest_anchor(self, published: int) -> int:
        """Return the size of the largest confirmed anchor, 0 without one. It is found by halving."""
        low, high = self._anchored, published + 1  # there is none of `high` or more
        middle = low + 1
        while low + 1 < high:
            found = await self._store.anchors.anchors(self._row.log_id, middle, 1, ("confirmed",))
            low, high = (found[0].tree_size, high) if found else (low, middle)
            middle = (low + high) // 2
        self._anchored = low
        return low

    async def _covered(self, size: int, tree_size: int) -> Covered:
        if size <= tree_size:
            return Covered(size, tree_size, None, exact=True)
        if self._row.kind == "event":
            return Covered(size, tree_size, logged_at(await self._entries.leaf(tree_size)), exact=True)
        before = await self._store.checkpoints.checkpoint(self._row.log_id, tree_size) if tree_size else None
        return Covered(size, tree_size, before.published_at if before else self._row.created_at, exact=False)
