"""Answers that may be large, read and made in steps: no more of them is in memory than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import orjson

from muniment.tiles import MAX_ENTRY, TILE_WIDTH, Bundle, Tile, encode_bundle
from muniment_server.log import Log
from muniment_server.web.room import Budget, busy

PAGE = 4 * 2**20
"""Bytes of a page of entries, about: it ends before the entry that goes beyond them."""
_STEP = 3 * 2**19
"""Bytes that are read at a time, about.

They are more than what the C library takes from its heap, where they would leave holes.
"""
_FIRST, _MOST = 16, 128  # entries that are read at first, when nothing is known of their size, and at the most
_COVERED = 65_536
_BREATH = 16  # entries that are made without letting others have a turn, if they are small
_BREATH_BYTES = 131_072
WHOLE = 2**20
"""Bytes of the largest bundle that is in memory as a whole."""
_PIECE = 262_144
_LEAF = MAX_ENTRY + 2
_WAIT_SECONDS = 0.05


class Page(NamedTuple):
    """A page of entries: its JSON array, the index behind its last one, and the size of the tree."""

    text: bytes
    following: int
    size: int


class _Making:
    """A page in the making: it ends where it is large enough, or there is no more room for it.

    What was taken at a time is kept in one piece. Many texts that grow side by side would leave holes as large as
    they are themselves.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._covered = self._breath = _COVERED
        self._parts: list[bytes] = []
        self.size = self.count = 0

    async def read(self, log: Log, start: int, limit: int, *, with_payload: bool) -> tuple[bool, int]:
        """Read up to `limit` entries from `start`.

        Returns whether the page may go on behind them, and the size of the tree.
        """
        async with self._budget.turn():
            entries, size = await log.entries.page(start, limit, with_payload=with_payload)
            texts = await self._texts(entries)
            if texts:
                self._parts.append(b",".join(texts))
            return len(texts) == len(entries), size

    async def _texts(self, entries: Sequence[dict[str, Any]]) -> list[bytes]:
        texts: list[bytes] = []
        for value in entries:
            text = orjson.dumps(value)
            after = self.size + len(text) + 1
            if (self.count and after > PAGE) or not self._cover(after):
                break
            texts.append(text)
            self.size = after
            self.count += 1
            if not self.count % _BREATH or after > self._breath:
                self._breath = after + _BREATH_BYTES
                await asyncio.sleep(0)
        return texts

    def text(self) -> bytes:
        """Return the array."""
        return b"[" + b",".join(self._parts) + b"]"

    def _cover(self, size: int) -> bool:
        if size > self._covered:
            self._covered = size + _COVERED
            return self._budget.cover(self._covered)
        return True


async def page_of(log: Log, start: int, limit: int, budget: Budget, *, with_payload: bool) -> Page:
    """Return up to `limit` entries from `start`, fewer when they are large or there is little room.

    Raises Refused when there is room for none of them.
    """
    made, step, more = _Making(budget), _FIRST, True
    while more:
        more, size = await made.read(log, start + made.count, min(step, limit - made.count), with_payload=with_payload)
        more = more and made.count < limit and start + made.count < size
        step = min(4 * step, _MOST, max(1, _STEP * made.count // max(made.size, 1)))
    if not made.count and start < size:
        raise busy()
    return Page(made.text(), start + made.count, size)


class LargeBundle(NamedTuple):
    """A bundle that is too large to be in memory as a whole, and how many bytes it has."""

    log: Log
    start: int
    stop: int
    length: int

    @classmethod
    def of(cls, log: Log, bundle: Tile | Bundle, length: int) -> LargeBundle:
        """Return the bundle that has this place."""
        start = bundle.index * TILE_WIDTH
        return cls(log, start, start + bundle.width, length)

    async def pieces(self, budget: Budget) -> AsyncGenerator[bytes]:
        """Yield its bytes. Each piece is to be sent before the next one is asked for."""
        at = self.start
        while at < self.stop:
            count = max(1, await granted(budget) // _LEAF)
            async with budget.turn():
                piece = encode_bundle(await self.log.entries.leaves(at, min(at + count, self.stop)))
            at += count
            yield piece


async def granted(budget: Budget) -> int:
    """Return how many bytes may be read now.

    Waits for room: clients that do not read are cut off, and others make some.
    """
    budget.give_back()
    while True:
        budget.check_client()
        share = min(_PIECE, budget.rooms.answers.share(budget.peer))
        if share >= _LEAF and budget.cover(share):
            return share
        await asyncio.sleep(_WAIT_SECONDS)
