"""The least store of tiles that a log could have: it only lets a tile grow by suffix, and serves prefixes of it."""

from __future__ import annotations

from collections.abc import Callable

from muniment.hashing import HASH_SIZE
from muniment.tiles import Tile
from muniment.tree import Edge, Growth, Node, Plan, TileRows, expand, hash_in, partial_tiles, place


class TileStore:
    """Tiles by (level, index), each as wide as it has become."""

    def __init__(self) -> None:
        self.tiles: dict[tuple[int, int], bytes] = {}

    def apply(self, growth: Growth) -> None:
        """Store a growth, refusing anything that is not an append to what is there."""
        for tile in growth.tiles:
            old = self.tiles.get((tile.level, tile.index), b"")
            assert len(old) == tile.old_width * HASH_SIZE
            assert tile.data.startswith(old)
            assert len(old) < len(tile.data) <= 256 * HASH_SIZE
            assert len(tile.data) % HASH_SIZE == 0
            self.tiles[tile.level, tile.index] = tile.data
        stored = [(tile.level, tile.index) for tile in growth.tiles]
        assert len(set(stored)) == len(stored), "one growth names a tile twice"

    def fetch(self, tile: Tile) -> bytes:
        """The tile at exactly the width that is asked for."""
        data = self.tiles[tile.level, tile.index][: tile.width * HASH_SIZE]
        assert len(data) == tile.width * HASH_SIZE
        return data

    def edge(self, size: int) -> Edge:
        """The right edge of `size`, from stored bytes."""
        return Edge.of(
            size,
            {(tile.level, tile.index): self.tiles.get(tile[:2], b"") for tile in partial_tiles(size) if tile.width},
        )

    def lookup(self, plan: Plan, size: int) -> Callable[[Node], bytes]:
        """Fetch what `plan` asks for, no more, and answer from that."""
        rows: dict[tuple[int, int], TileRows] = {
            (tile.level, tile.index): expand(self.fetch(tile)) for tile in plan.tiles(size)
        }

        def find(node: Node) -> bytes:
            level, index, row, position = place(node)
            return hash_in(rows[level, index], row, position)

        return find

    def prove(self, plan: Plan, size: int) -> list[bytes]:
        """Plan, fetch, fold."""
        return plan.fold(self.lookup(plan, size))
