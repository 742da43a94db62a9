"""The heads of a log: the latest one that may be shown, those that were published, and the right edge with them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from muniment.checkpoint import parse_checkpoint
from muniment.errors import BadProof
from muniment.note import parse_note
from muniment.tree import Edge, partial_tiles
from muniment_server.errors import Behind, NotFound, StoreError
from muniment_server.read.feed import Feed
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Signed

_LOOK_SECONDS = 1.0
_FOLLOW_SECONDS = 0.1
"""How long a process that only reads may answer with a head before it looks for a larger one."""
_FEED_SECONDS = 0.25
"""How often it looks for what to tell those who follow the log, while there are any."""


class Heads:
    """The heads of a log. `sequencer` is None in a process that does not write it.

    `fell_behind` is called when the database has a smaller published head than it had before.
    """

    def __init__(self, store: Store, row: LogRow, sequencer: Sequencer | None, fell_behind: Callable[[], None]) -> None:
        self.feed = Feed(store.checkpoints, row.log_id, row.name, _LOOK_SECONDS if sequencer else _FEED_SECONDS)
        self.row = row
        self.sequencer = sequencer
        self._reads = store.reads
        self._checkpoints = store.checkpoints
        self.fell_behind = fell_behind
        self._seen = 0  # size of the largest published checkpoint that this process saw, of any writer
        self._looked = -_LOOK_SECONDS
        self._looking: asyncio.Task[None] | None = None
        self._kept: tuple[Signed, Edge] | None = None  # of a log that others write

    async def latest(self, at_least: int = 0) -> Signed:
        """Return the latest signed head this process knows of: its own, or the published one when that may be larger.

        `at_least` is the size a caller asked for. Raises NotFound when nothing was published yet.
        """
        if now := self.latest_now(at_least):
            return now
        return await self._look()

    async def _look(self) -> Signed:
        """Ask the database for the published head, and return the larger one of that and our own."""
        own = self.sequencer.signed if self.sequencer else None
        published = await self.published()
        if own and own.size > published.size:
            return own
        signed = Signed(published.size, parse_checkpoint(parse_note(published.note).text).root, published.note)
        if not self.sequencer:
            await self._keep(signed)
        return signed

    async def _keep(self, signed: Signed) -> None:
        """Keep the head of a log that others write, with its right edge.

        Reads then need no database until there is a larger one.
        """
        if self._kept and self._kept[0].size >= signed.size:
            return
        stored = await self._reads.tiles(self.row.log_id, partial_tiles(signed.size))
        # Damaged tiles are not kept: a proof that needs them finds that out by itself, and others are as good as ever.
        with contextlib.suppress(BadProof):
            edge = Edge.of(signed.size, stored)
            if edge.root() == signed.root:
                self._kept = (signed, edge)

    def latest_now(self, at_least: int = 0) -> Signed | None:
        """Return the latest signed head when it surely is in memory; None when the database has to be asked."""
        if self.sequencer:
            own, interval = None if self.sequencer.refusal else self.sequencer.signed, _LOOK_SECONDS
        else:
            own, interval = self._kept[0] if self._kept else None, _FOLLOW_SECONDS
        # Another writer of this log may have published more: look now and then, also when no reader asks for a size. In
        # good time, and beside the requests: otherwise all that come in the meantime would have to wait.
        age = time.monotonic() - self._looked
        if interval / 2 < age < interval and self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_beside())
        return own if own and age < interval and own.size >= max(at_least, self._seen) else None

    async def _look_beside(self) -> None:
        try:
            with contextlib.suppress(StoreError, NotFound):  # a reader that needs it will ask, and be told
                await self._look()
        finally:
            self._looking = None

    def edge_now(self) -> Edge | None:
        """Return the right edge of a signed head that is in memory."""
        if self.sequencer:
            return self.sequencer.edge()
        return self._kept[1] if self._kept else None

    async def published(self, size: int | None = None) -> Published:
        """Return the published checkpoint of `size`, or the largest one. Raises NotFound.

        The largest one never goes back in a process: raises Behind instead.
        """
        if size is None:
            return await self._largest()
        found = await self._checkpoints.checkpoint(self.row.log_id, size)
        if found:
            return found
        later = await self._checkpoints.checkpoints(self.row.log_id, size, 1)
        hint = f"The next published size is {later[0].size}." if later else "Ask GET /checkpoint for the latest."
        raise NotFound(
            "no_checkpoint",
            f"no checkpoint of size {size} was published",
            hint,
            **({"next_size": later[0].size} if later else {}),
        )

    async def _largest(self) -> Published:
        while True:
            least = self._seen
            found = await self._checkpoints.checkpoint(self.row.log_id)
            size = found.size if found else 0
            if size < least:
                self.fell_behind()
                raise Behind(f"size {least} was published, and the database has {size}")
            if not found:
                raise NotFound(
                    "no_checkpoint", "no checkpoint was published yet", "Run `muniment-server init` again to finish it."
                )
            if size >= self._seen:  # otherwise another request has seen a larger one meanwhile: look again
                self.saw(size)
                return found

    def saw(self, size: int) -> None:
        """Take note that a checkpoint of this size is published."""
        if size > self._seen:
            self.feed.wake()
        self._seen, self._looked = max(self._seen, size), time.monotonic()

    async def checkpoints(self, start: int, limit: int, *, newest: bool = False) -> list[Published]:
        """Return up to `limit` published checkpoints with size >= start, smallest first.

        With `newest` those with size <= start, largest first.
        """
        return await self._checkpoints.checkpoints(self.row.log_id, start, limit, newest=newest)

    async def border(self, moment: int) -> int:
        """Return the size of the first checkpoint that was not published before a moment, or the first size behind all.

        It is found by halving. Where the clock of a publisher was set back, times of publication go back, and it is one
        of those around that place.
        """
        low, high = 0, (await self.published()).size + 1
        while low < high:
            found = await self.checkpoints(middle := (low + high) // 2, 1)
            low, high = (found[0].size + 1, high) if found and found[0].published_at < moment else (low, middle)
        return low

    async def close(self) -> None:
        """Look no more."""
        await self.feed.close()
        if self._looking:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
