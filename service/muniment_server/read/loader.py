"""Reads the full tiles and bundles that memory has not.

Many that are asked for in one turn of the event loop are read with one query.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from muniment.hashing import HASH_SIZE
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import TileRows, expand
from muniment_server.read.cache import Cache
from muniment_server.storage.log import Reads

Done = Callable[[Exception | None], None]
Tied = Callable[[int, int, TileRows], bool]
"""Tells whether the tile above has the root of a full tile, given its level, index and rows."""
BundleDone = Callable[[bytes | Exception | None], None]
_FULL = TILE_WIDTH * HASH_SIZE

T = TypeVar("T")


class Coalescer(ABC, Generic[T]):
    """Serves what is asked for in parts of `part`.

    Once another part is waiting for the one before, up to `reads` run at a time.
    """

    part: int
    reads: int

    def __init__(self, reads: Reads, log_id: int, cache: Cache) -> None:
        self._reads = reads
        self._log_id = log_id
        self._cache = cache
        self._asked: list[T] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def _ask(self, asked: T) -> None:
        self._asked.append(asked)
        running = len(self._tasks)
        if not running or (running < self.reads and len(self._asked) >= self.part):
            self._tasks.add(asyncio.get_running_loop().create_task(self._run()))

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # callers that ask in this turn, too
            while self._asked:
                asked, self._asked = self._asked[: self.part], self._asked[self.part :]
                await self._serve(asked)
        finally:
            self._tasks.discard(asyncio.current_task())

    @abstractmethod
    async def _serve(self, asked: list[T]) -> None:
        """Read for these, and tell each of them. Never raises."""


class _Tiles(NamedTuple):
    tiles: Sequence[Tile]
    done: Done
    proof: bool  # inner nodes are needed as well


class ColdTiles(Coalescer[_Tiles]):
    """Brings tiles of one log into its cache. Owned by the event loop.

    What is missing or too short stays out of the cache. So do inner nodes that the tile above does not have: a
    connection may lead to another database by now. The reader that then misses them finds out, and says so.
    """

    part = 32  # a quarter of a megabyte
    reads = (
        4  # beside large batches each read waits for its turns in the event loop, and a tenth of a second is soon gone
    )

    def __init__(self, reads: Reads, log_id: int, cache: Cache, tied: Tied) -> None:
        super().__init__(reads, log_id, cache)
        self._tied = tied

    def proof(self, index: int, size: int, done: Done) -> None:
        """Call `done` once the full tiles above entry `index` in the tree of `size` were read.

        If that fails, `done` gets what went wrong.
        """
        tiles = []
        level = 0
        while (tile := index >> 8 * (level + 1)) < size >> 8 * (level + 1):
            if self._cache.get(self._log_id, level, tile) is None:
                tiles.append(Tile(level, tile, TILE_WIDTH))
            level += 1
        self._ask(_Tiles(tiles, done, proof=True))

    def tile(self, level: int, index: int, done: Done) -> None:
        """Call `done` once a full tile was read, or with what went wrong."""
        self._ask(_Tiles([Tile(level, index, TILE_WIDTH)], done, proof=False))

    async def _serve(self, asked: list[_Tiles]) -> None:
        stored, error = {}, None
        try:
            stored = await self._read({tile for one in asked for tile in one.tiles})
        except Exception as wrong:  # noqa: BLE001 - whatever it was, each caller that waits is told
            error = wrong
        for one in asked:
            for tile in reversed(one.tiles):  # those above first
                if self._keep(tile, stored, proof=one.proof):
                    await asyncio.sleep(0)  # 255 hashes: others go on in between
            one.done(error)

    async def _read(self, tiles: set[Tile]) -> dict[tuple[int, int], bytes]:
        missing = sorted(tile for tile in tiles if self._cache.data(self._log_id, tile.level, tile.index) is None)
        return await self._reads.tiles(self._log_id, missing) if missing else {}

    def _keep(self, tile: Tile, stored: dict[tuple[int, int], bytes], *, proof: bool) -> bool:
        """Put a tile into the cache; return whether its inner nodes were made."""
        where = (self._log_id, tile.level, tile.index)
        data = stored.get(where[1:]) or self._cache.data(*where)
        if data is None or len(data) != _FULL:
            return False
        self._cache.put_data(*where, data)
        if not proof or self._cache.get(*where) is not None:
            return False
        rows = expand(data)
        if self._tied(tile.level, tile.index, rows):
            self._cache.put(*where, rows)
        return True


class _Bundle(NamedTuple):
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    done: BundleDone


class ColdBundles(Coalescer[_Bundle]):
    """Reads full entry bundles of one log, and keeps the small ones in its cache. Owned by the event loop."""

    part = 16  # at most four megabytes, by what the store joins; usually a hundred kilobytes
    reads = 2  # the database joins one part, while answers are made of the other

    def bundle(self, index: int, done: BundleDone) -> None:
        """Call `done` with a bundle, with what went wrong, or with None for one that has to be read leaf by leaf."""
        self._ask(_Bundle(index, done))

    async def _serve(self, asked: list[_Bundle]) -> None:
        try:
            found = await self._reads.bundles(self._log_id, sorted({one.index for one in asked}))
        except Exception as error:  # noqa: BLE001 - whatever it was, each caller that waits is told
            for one in asked:
                one.done(error)
            return
        for index, data in found.items():
            self._cache.put_bundle(self._log_id, index, data)
        for one in asked:
            one.done(found.get(one.index))
