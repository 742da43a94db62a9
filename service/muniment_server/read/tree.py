"""Proofs of many entries at one head: what neighbours have in common is made once, and nothing is taken on trust."""

from __future__ import annotations

from collections.abc import Callable

from muniment.errors import BadProof
from muniment.hashing import HASH_SIZE, LeafHash, leaf_hash
from muniment.proofs import verify_inclusion
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import Edge, expand
from muniment_server.errors import Corrupt
from muniment_server.read.cache import Rows
from muniment_server.read.flow import run
from muniment_server.read.tiles import Tiles
from muniment_server.tile_rows import heap, path, siblings
from muniment_server.write.submission import Signed


class TreeAt:
    """Proves entries in the tree of one signed head, best in the order of their indices.

    Of each tile of level 0 one hash is proved, and the others make up the same root; so an entry is proved once its
    leaf has the hash that the tile has. Raises BadProof unless `edge` has the root of `signed`. `mixed` returns what is
    raised later, when tiles do not lead there, and keeps none of them in memory.
    """

    def __init__(self, tiles: Tiles, edge: Edge, signed: Signed, mixed: Callable[[BadProof], Corrupt]) -> None:
        if edge.root() != signed.root:
            raise BadProof("the right edge of the stored tiles does not lead to the signed root")
        self._tiles = tiles
        self._edge = edge
        self._signed = signed
        self._mixed = mixed
        self._tile = -1  # of level 0, to which what follows belongs
        self._rows: dict[tuple[int, int], Rows] = {}
        self._heap: list[bytes] = []  # of a full one
        self._upper: list[bytes] = []  # of a proof, from height 8 on

    async def proof(self, index: int, leaf: bytes) -> list[bytes]:
        """Return the inclusion proof of an entry with this leaf, its sibling first. Raises Corrupt."""
        if index // TILE_WIDTH != self._tile:
            await self._turn_to(index // TILE_WIDTH)
        at = index % TILE_WIDTH * HASH_SIZE
        if self._rows_of(0, self._tile)[0][at : at + HASH_SIZE] != leaf_hash(leaf):
            raise Corrupt(f"entry {index} is not the one that tile 0/{self._tile} has")
        return self._lower(index) + self._upper

    def _lower(self, index: int) -> list[bytes]:
        if self._heap:
            return siblings(self._heap, index % TILE_WIDTH)
        return path(index, self._signed.size, self._edge.tails, self._rows_of, 0, 8)

    async def _turn_to(self, tile: int) -> None:
        size, first = self._signed.size, tile * TILE_WIDTH
        self._tile = -1  # until all that follows is of this tile
        self._rows = await run(self._tiles.rows(_full_tiles(tile, size)))
        self._heap = []
        if (0, tile) in self._rows:  # its inner nodes are made again, of the hashes that are compared with leaves
            self._rows[0, tile] = expand(bytes(self._rows[0, tile][0]))
            self._heap = heap(self._rows[0, tile])
        self._upper = path(first, size, self._edge.tails, self._rows_of, 8)
        leaf = LeafHash(bytes(self._rows_of(0, tile)[0][:HASH_SIZE]))
        try:
            verify_inclusion(first, size, leaf, self._lower(first) + self._upper, self._signed.root)
        except BadProof as error:
            raise self._mixed(error) from error
        self._tile = tile

    def _rows_of(self, level: int, index: int) -> Rows:
        found = self._rows.get((level, index))
        return self._edge.levels[level] if found is None else found


def _full_tiles(tile: int, size: int) -> list[Tile]:
    """Return the tile of level 0 and those above it, as far as they are full in the tree of `size`."""
    found, level = [], 0
    while (tile + 1) << 8 * (level + 1) <= size:
        found.append(Tile(level, tile, TILE_WIDTH))
        tile, level = tile // TILE_WIDTH, level + 1
    return found
