"""Reads the full tiles that memory has not: all that are asked for in one turn of the event loop with one query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from muniment.hashing import HASH_SIZE
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import expand
from muniment_server.cache import Cache
from muniment_server.storage import Store

Done = Callable[[Exception | None], None]
_AT_ONCE = 64
"""Requests whose tiles are read together: about half a megabyte."""
_FULL = TILE_WIDTH * HASH_SIZE


class _Asked(NamedTuple):
    tiles: Sequence[Tile]
    done: Done
    proof: bool  # inner nodes are needed as well


class ColdTiles:
    """Brings tiles of one log into its cache. Owned by the event loop.

    What is missing or too short stays out of the cache: whoever then misses it finds that out, and says so.
    """

    def __init__(self, store: Store, log_id: int, cache: Cache) -> None:
        self._store = store
        self._log_id = log_id
        self._cache = cache
        self._asked: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None

    def proof(self, index: int, size: int, done: Done) -> None:
        """Call `done` once the full tiles above entry `index` in the tree of `size` were read, or with what went wrong."""
        tiles = []
        level = 0
        while (tile := index >> 8 * (level + 1)) < size >> 8 * (level + 1):
            tiles.append(Tile(level, tile, TILE_WIDTH))
            level += 1
        self._ask(_Asked(tiles, done, proof=True))

    def tile(self, level: int, index: int, done: Done) -> None:
        """Call `done` once a full tile was read, or with what went wrong."""
        self._ask(_Asked([Tile(level, index, TILE_WIDTH)], done, proof=False))

    def _ask(self, asked: _Asked) -> None:
        self._asked.append(asked)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # whoever asks in this turn, too
            while self._asked:
                asked, self._asked = self._asked[:_AT_ONCE], self._asked[_AT_ONCE:]
                await self._serve(asked)
        finally:
            self._task = None

    async def _serve(self, asked: list[_Asked]) -> None:
        stored, error = {}, None
        try:
            stored = await self._read({tile for one in asked for tile in one.tiles})
        except Exception as wrong:  # noqa: BLE001 - whatever it was, whoever waits is told
            error = wrong
        for one in asked:
            for tile in one.tiles:
                if self._keep(tile, stored, proof=one.proof):
                    await asyncio.sleep(0)  # 255 hashes: others go on in between
            one.done(error)

    async def _read(self, tiles: set[Tile]) -> dict[tuple[int, int], bytes]:
        missing = sorted(tile for tile in tiles if self._cache.data(self._log_id, tile.level, tile.index) is None)
        return await self._store.tiles(self._log_id, missing) if missing else {}

    def _keep(self, tile: Tile, stored: dict[tuple[int, int], bytes], *, proof: bool) -> bool:
        """Put a tile into the cache; return whether its inner nodes were made."""
        where = (self._log_id, tile.level, tile.index)
        data = stored.get(where[1:]) or self._cache.data(*where)
        if data is None or len(data) != _FULL:
            return False
        if not proof:
            self._cache.put_data(*where, data)
        elif self._cache.get(*where) is None:
            self._cache.put(*where, expand(data))
            return True
        return False
