"""The files of a log that are its C2SP tiles: hash tiles, and entry bundles."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from muniment.hashing import HASH_SIZE
from muniment.tiles import MAX_ENTRY, TILE_WIDTH, Bundle, Tile, encode_bundle, width_at
from muniment_server.read.cache import Cache
from muniment_server.read.entries import Entries
from muniment_server.read.flow import Ask, Call, Flow
from muniment_server.read.heads import Heads
from muniment_server.read.loader import ColdBundles
from muniment_server.read.tiles import Tiles
from muniment_server.storage import Store

_LEAVES = 64
"""Leaves of a bundle that are read at a time: at most four megabytes."""
_LARGEST = TILE_WIDTH * (MAX_ENTRY + 2)
"""Bytes of the largest bundle there is."""


_EFFORT = 6


class Files:
    """Reads tiles and bundles of one log at any width up to the latest signed head."""

    def __init__(self, store: Store, log_id: int, heads: Heads, tiles: Tiles, entries: Entries, cache: Cache) -> None:
        self._log_id = log_id
        self._heads = heads
        self._tiles = tiles
        self._entries = entries
        self._cache = cache
        self._cold_bundles = ColdBundles(store.reads, log_id, cache)

    def file(
        self, wanted: Tile | Bundle, most: int = _LARGEST, turn: AbstractAsyncContextManager[None] | None = None
    ) -> Flow[bytes | int | None]:
        """Return the bytes of a tile or bundle; None when no signed head has it at this width. Raises Corrupt.

        Of a bundle with more than `most` bytes, return only how many they are: never much more than `most` of them are
        in memory. The leaves of one that is not read as a whole are read within a `turn` each time.
        """
        found: bytes | int | None = self.file_now(wanted)
        if found is not None:
            return found
        if isinstance(wanted, Tile):
            return (yield from self._tile(wanted))
        return (yield from self._bundle(wanted, most, turn or nullcontext()))

    def file_now(self, wanted: Tile | Bundle) -> bytes | None:
        """As :meth:`file`, when the bytes are in memory; else None.

        The fast path asks this first: to make and end the generators of :meth:`file` and of its answer takes 0.4 us,
        where all of the answer takes 6 us.
        """
        level = wanted.level if isinstance(wanted, Tile) else 0
        needed = wanted.index * TILE_WIDTH + wanted.width << 8 * level
        if needed >= 2**63 or not self._heads.latest_now(needed):
            return None
        if isinstance(wanted, Bundle):
            return self._cache.bundle(self._log_id, wanted.index) if wanted.width == TILE_WIDTH else None
        data = self._cache.data(self._log_id, level, wanted.index)
        return data and data[: wanted.width * HASH_SIZE]

    def gzipped_now(self, bundle: Bundle) -> bytes | None:
        """Return a full bundle as gzip, when a signed head has it and it is in memory so; else None."""
        return self._cache.gzipped(self._log_id, bundle.index) if self._is_full_now(0, bundle.index) else None

    async def gzip(self, bundle: Bundle, data: bytes) -> bytes:
        """Return a full bundle as gzip, and keep it so. `data` are its bytes. The event loop goes on meanwhile."""
        zipped = await asyncio.to_thread(gzip.compress, data, _EFFORT, mtime=0)
        self._cache.put_gzipped(self._log_id, bundle.index, zipped)
        return zipped

    def _tile(self, tile: Tile) -> Flow[bytes | None]:
        if self._is_full_now(tile.level, tile.index):
            yield Ask(partial(self._tiles.cold.tile, tile.level, tile.index))
            data = self.file_now(tile)
            if data is not None:
                return data
        if not (yield Call(partial(self._has, tile.level, tile.index, tile.width))):
            return None
        data = self._cache.data(self._log_id, tile.level, tile.index)
        if data is None:
            rows = yield Call(partial(self._tiles.read, [tile]))
            data = bytes(rows[tile.level, tile.index][0])
        return data[: tile.width * HASH_SIZE]

    def _bundle(self, bundle: Bundle, most: int, turn: AbstractAsyncContextManager[None]) -> Flow[bytes | int | None]:
        if bundle.width == TILE_WIDTH and self._is_full_now(0, bundle.index):
            data: bytes | None = yield Ask(partial(self._cold_bundles.bundle, bundle.index))
            if data is not None:  # the database joins small leaves only: none of these is large
                return data
        if not (yield Call(partial(self._has, 0, bundle.index, bundle.width))):
            return None
        found: bytes | int = yield Call(partial(self._join, bundle, most, turn))
        return found

    async def _join(self, bundle: Bundle, most: int, turn: AbstractAsyncContextManager[None]) -> bytes | int:
        """Return a bundle, made of its leaves, or how many bytes it has."""
        at, stop = bundle.index * TILE_WIDTH, bundle.index * TILE_WIDTH + bundle.width
        data, size = bytearray(), 0
        while at < stop:
            async with turn:
                part = encode_bundle(await self._entries.leaves(at, min(at + _LEAVES, stop)))
            at += _LEAVES
            size += len(part)
            if size <= most:
                data += part
            del part  # otherwise each of those who wait for a turn would keep megabytes
        if size > most:
            return size
        if bundle.width == TILE_WIDTH:
            self._cache.put_bundle(self._log_id, bundle.index, bytes(data))
        return bytes(data)

    def _is_full_now(self, level: int, index: int) -> bool:
        """Tell whether a signed head that is in memory has the full tile."""
        needed = (index + 1) * TILE_WIDTH << 8 * level
        return needed < 2**63 and self._heads.latest_now(needed) is not None

    async def _has(self, level: int, index: int, width: int) -> bool:
        """Tell whether the latest signed head has a tile of at least this width."""
        needed = index * TILE_WIDTH + width << 8 * level
        return needed < 2**63 and width_at(level, index, (await self._heads.latest(needed)).size) >= width
