"""Freezes the bytes of published checkpoints, durably, before any calendar is told of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

from muniment.anchor.proof import NONCE_SIZE
from muniment.checkpoint import parse_checkpoint
from muniment.hashing import RootHash
from muniment.note import parse_note
from muniment_server.errors import AnchorRefused
from muniment_server.follow.anchors import rows
from muniment_server.follow.anchors.changes import save
from muniment_server.follow.anchors.schedule import START_JITTER, Triggers
from muniment_server.follow.anchors.watcher import Watcher
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, CalendarRow
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.telemetry import get_logger
from muniment_server.write import recheck

_AT_ONCE = 100
"""Anchors that are let go of in one round."""


class Freezer:
    """Freezes the checkpoints of one log, each for the calendars at `urls`. `clock` gives milliseconds since 1970."""

    def __init__(
        self,
        store: Store,
        log: LogRow,
        urls: Sequence[str],
        triggers: Triggers,
        watcher: Watcher,
        clock: Callable[[], int],
        rng: Random,
    ) -> None:
        """Make it. `rng` only spreads requests."""
        self._store = store
        self._reads = store.reads
        self._checkpoints = store.checkpoints
        self._anchors = store.anchors
        self._log = log
        self._urls = urls
        self._triggers = triggers
        self._watcher = watcher
        self._clock = clock
        self._rng = rng
        self.refusal: AnchorRefused | None = None

    async def freeze_due(self) -> AnchorRow | None:
        """Freeze the published checkpoint, if one is due; set `refusal` if it must not be. Raises StoreError."""
        last = await self._anchors.anchor(self._log.log_id)
        published = await self._checkpoints.checkpoint(self._log.log_id)
        if published is None:
            return None
        try:
            await self._check_extends(last, published)
        except AnchorRefused as error:
            self._refuse(error)
            return None
        self._refuse(None)
        start, since = (last.tree_size, last.created_at) if last else (0, self._log.created_at)
        new = published.size - start - (await self._anchors.own_entries(self._log.log_id, start) if last else 0)
        if not self._triggers.due(new, self._clock() - since):
            return None
        return await self.freeze()

    async def freeze(self) -> AnchorRow | None:
        """Freeze the bytes of the published checkpoint, durably; None when it is anchored already.

        Raises AnchorRefused when an anchor says that the log was larger, or another one, and StoreError.
        """
        last, now = await self._anchors.anchor(self._log.log_id), self._clock()
        published = await self._checkpoints.checkpoint(self._log.log_id)
        if published is None or (last and last.tree_size == published.size):
            return None
        await self._check_extends(last, published)
        note = published.note.encode()
        root = _root_of(published)
        nonce = secrets.token_bytes(NONCE_SIZE)
        row = AnchorRow(published.size, root, note, sha256(note).digest(), nonce, now)
        asked = [CalendarRow(row.tree_size, url, next_at=now + self._rng.randrange(START_JITTER)) for url in self._urls]
        if not await self._anchors.add_anchor(self._log.log_id, row, asked):
            return None
        get_logger().info("checkpoint frozen for anchoring", log=self._log.name, tree_size=row.tree_size)
        return row

    async def _check_extends(self, last: AnchorRow | None, published: Published) -> None:
        """Check that the published tree extends the one of the last anchored checkpoint. Raises AnchorRefused."""
        if last is None:
            return
        size = published.size
        if size < last.tree_size:
            raise AnchorRefused(
                "anchor_ahead",
                f"size {last.tree_size} is anchored, and the log has {size}: the database is an old copy, or lost "
                "entries. Restore a newer one; nothing is anchored until then",
            )
        tiles = await self._reads.tiles(self._log.log_id, recheck.tiles_to_extend(last.tree_size, size))
        if not recheck.extends((last.tree_size, RootHash(last.root)), (size, _root_of(published)), tiles):
            raise AnchorRefused(
                "anchor_root",
                f"the published tree of size {size} does not extend the one of size {last.tree_size} that is anchored: "
                "another history. Restore the right database; nothing is anchored until then",
            )

    def _refuse(self, refusal: AnchorRefused | None) -> None:
        if refusal and not self.refusal:
            get_logger().error("log is not anchored", log=self._log.name, code=refusal.code, detail=str(refusal))
        self.refusal = refusal
        self._watcher.refused(refusal.code if refusal else None)

    async def supersede(self) -> None:
        """Let go of anchors that no calendar has, all but the newest: its later stamp covers them too.

        Raises StoreError.
        """
        queued = await self._anchors.anchors(self._log.log_id, 0, _AT_ONCE, ("queued",))
        last = await self._anchors.anchor(self._log.log_id)
        for row in queued:
            if last and row.tree_size < last.tree_size:
                size = row.tree_size
                calendars = await self._anchors.anchor_calendars(self._log.log_id, size, size + 1)
                await save(self._store, self._log.log_id, *rows.superseded(row, calendars))


def _root_of(published: Published) -> RootHash:
    return parse_checkpoint(parse_note(published.note).text).root
