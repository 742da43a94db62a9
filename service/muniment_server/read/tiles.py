"""The rows of a log's tiles: from the right edge, the cache, or one read of the database."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from muniment.hashing import HASH_SIZE
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import Edge, TileRows, expand, partial_tiles
from muniment_server.errors import Corrupt
from muniment_server.read.cache import Cache, Rows
from muniment_server.read.flow import Call, Flow
from muniment_server.read.heads import Heads
from muniment_server.read.loader import ColdTiles
from muniment_server.storage import Store

_FULL = TILE_WIDTH * HASH_SIZE


class Tiles:
    """Reads tiles. `cold` brings full ones into the cache, many with one query."""

    def __init__(self, store: Store, log_id: int, heads: Heads, cache: Cache) -> None:
        self._reads = store.reads
        self._log_id = log_id
        self._heads = heads
        self._cache = cache
        self.cold = ColdTiles(store.reads, log_id, cache, self._is_tied)

    def now(self, edge: Edge | None, level: int, index: int) -> Rows | None:
        """Return the rows of a tile of the right edge or the cache, or None."""
        if edge and level < len(edge.levels) and edge.size >> 8 * (level + 1) == index:
            return edge.levels[level]
        return self._cache.get(self._log_id, level, index)

    def rows(self, tiles: Sequence[Tile]) -> Flow[dict[tuple[int, int], Rows]]:
        """Return the rows of tiles by level and index, with one read of what memory has not. Raises Corrupt."""
        found: dict[tuple[int, int], Rows] = {}
        cold: dict[tuple[int, int], Tile] = {}
        edge = self._heads.edge_now()
        for tile in tiles:
            rows = self.now(edge, tile.level, tile.index)
            if rows is None or len(rows[0]) < tile.width * HASH_SIZE:
                cold[tile.level, tile.index] = max(
                    tile, cold.get((tile.level, tile.index), tile), key=lambda t: t.width
                )
            else:
                found[tile.level, tile.index] = rows
        if cold:
            found |= yield Call(partial(self.read, list(cold.values())))
        return found

    async def read(self, tiles: Sequence[Tile]) -> dict[tuple[int, int], Rows]:
        """Return the rows of tiles from the database, and keep the full ones. Raises Corrupt."""
        stored = await self._reads.tiles(self._log_id, tiles)
        found: dict[tuple[int, int], Rows] = {}
        for tile in sorted(tiles, reverse=True):  # those above first
            data = stored.get((tile.level, tile.index), b"")
            if len(data) < tile.width * HASH_SIZE:
                raise Corrupt(f"tile {tile.level}/{tile.index} is missing or too short")
            found[tile.level, tile.index] = rows = expand(data)
            if len(data) == _FULL and self._is_tied(tile.level, tile.index, rows):
                self._cache.put(self._log_id, tile.level, tile.index, rows)
        return found

    async def edge(self, size: int) -> Edge:
        """Return the right edge of the tree as it was at `size`. Raises BadProof when the tiles are not there."""
        return Edge.of(size, await self._reads.tiles(self._log_id, partial_tiles(size)))

    def _is_tied(self, level: int, index: int, rows: TileRows) -> bool:
        """Tell whether the tile above is in memory and has the root of this full one.

        Up to the right edge, of which the signed root was made, each then leads to the next. What does not may be
        another database's, and proofs from memory are not verified each time.
        """
        above = self.now(self._heads.edge_now(), level + 1, index // TILE_WIDTH)
        at = HASH_SIZE * (index % TILE_WIDTH)
        return above is not None and above[0][at : at + HASH_SIZE] == rows[8]

    def forget(self) -> None:
        """Keep no tile in memory: some may have come from another database."""
        self._cache.forget(self._log_id)
