"""Anchors of a log as they are read: a page of them, and the one that covers an entry."""

from __future__ import annotations

from muniment.anchored import AnchoredCheckpoint
from muniment.hashing import RootHash, leaf_hash
from muniment_server.errors import NotFound
from muniment_server.read.entries import Entries
from muniment_server.read.flow import run
from muniment_server.read.proofs import Proofs
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, CalendarRow


class Anchors:
    """Reads the anchors of one log."""

    def __init__(self, store: Store, log_id: int, proofs: Proofs, entries: Entries) -> None:
        self._anchors = store.anchors
        self._log_id = log_id
        self._proofs = proofs
        self._entries = entries

    async def page(self, start: int, limit: int) -> tuple[list[AnchorRow], dict[int, list[CalendarRow]]]:
        """Return up to `limit` anchors with tree_size >= start, smallest first, and the calendars of each by size."""
        found = await self._anchors.anchors(self._log_id, start, limit)
        calendars: dict[int, list[CalendarRow]] = {row.tree_size: [] for row in found}
        if found:
            stop = found[-1].tree_size + 1
            for one in await self._anchors.anchor_calendars(self._log_id, found[0].tree_size, stop):
                calendars.setdefault(one.tree_size, []).append(one)
        return found, calendars

    async def covering(self, index: int) -> AnchoredCheckpoint:
        """Return the earliest confirmed anchor that covers an entry, as a receipt has it. Raises NotFound."""
        row = await self._anchors.covering_anchor(self._log_id, index)
        if row is None or row.ots is None or row.height is None:
            raise await self._not_covered(index)
        leaf = leaf_hash(await self._entries.leaf(index))
        proof = await run(self._proofs.path(index, leaf, row.tree_size, RootHash(row.root)))
        return AnchoredCheckpoint(row.checkpoint.decode(), row.tree_size, tuple(proof), row.ots, row.height, row.header)

    async def _not_covered(self, index: int) -> NotFound:
        """Return the refusal of an entry that no confirmed anchor covers. Where there is none at all, none may come."""
        if await self._anchors.anchors(self._log_id, 0, 1):
            why, hint = " yet", "Anchors take hours: GET /anchors says how far they are."
        else:
            why, hint = ": this log has none", "It was never anchored: ask its operator whether it is going to be."
        return NotFound("no_anchor", f"no confirmed anchor covers entry {index}{why}", hint)
