"""The tree above the leaves.

It folds the roots of tiles, in order, into every root that was signed, and compares every upper tile.
"""

from __future__ import annotations

from collections.abc import Sequence

from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash
from muniment.tiles import MAX_LEVEL, TILE_WIDTH, Tile
from muniment.tree import (
    Edge,
    Node,
    TileGrowth,
    TileRows,
    expand,
    fold,
    grow,
    hash_in,
    nodes_of,
    partial_tiles,
    place,
    plan_root,
)
from muniment_server.check.fsck.chunk import Chunk
from muniment_server.check.fsck.report import Report
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Reads

Wanted = dict[int, list[tuple[str, RootHash]]]
"""Which root a size must have, and who says so: head, guard or checkpoint."""
_FULL = TILE_WIDTH * HASH_SIZE


class Fold:
    """Owns the right edge above level 0 while chunks come in, left to right. Its level l is the tree's level l + 1."""

    def __init__(self, reads: Reads, log: LogRow, report: Report, wanted: Wanted) -> None:
        self._reads = reads
        self._log = log
        self._report = report
        self._wanted = wanted
        self._first = list(wanted)  # those that are not of a checkpoint
        self._edge = Edge()
        self._bad: set[str] = set()  # who contradicted the entries already: one bad entry spoils all later roots
        self.known: dict[int, RootHash] = {0: EMPTY_ROOT}  # roots of the wanted sizes, as recomputed
        self._explained: set[tuple[int, int]] = set()  # hashes, by (level, position), above a tile that is wrong
        self.wrong: dict[tuple[int, int], bytes] = {}  # what tiles that are wrong should be

    async def begin(self, start: int) -> None:
        """Take the tiles left of `start`, a multiple of 256, as they are stored.

        Raises BadProof when they are not there.
        """
        self._compare_root(0, EMPTY_ROOT)
        size = start // TILE_WIDTH
        tiles = [Tile(tile.level + 1, tile.index) for tile in partial_tiles(size) if tile.width]
        stored = await self._reads.tiles(self._log.log_id, tiles) if tiles else {}
        self._edge = Edge.of(size, {(level - 1, index): data for (level, index), data in stored.items()})

    async def add(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        for size, root in chunk.signed:
            self._wanted.setdefault(size, []).append(("checkpoint", root))
        for index, data in chunk.wrong.items():
            self._mark(0, index, data)
        ends: dict[int, list[int]] = {}
        for size in self._sizes(chunk):
            ends.setdefault(size // TILE_WIDTH, []).append(size)
        roots = iter(chunk.roots)
        first = chunk.start // TILE_WIDTH
        pending: list[bytes] = []
        for index in range(first, first + len(chunk.roots) + 1):
            if sizes := ends.get(index):
                await self._advance(pending)
                pending = []
                self._check_sizes(index, sorted(sizes), chunk.tiles.get(index, b""))
            if (above := next(roots, None)) is not None:
                pending.append(above)
        await self._advance(pending)
        self._report.tiles += chunk.stop // TILE_WIDTH - first + bool(chunk.stop % TILE_WIDTH)

    def _sizes(self, chunk: Chunk) -> set[int]:
        first = {size for size in self._first if chunk.start < size <= chunk.stop}
        return first | {size for size, _ in chunk.signed}

    def _check_sizes(self, index: int, sizes: Sequence[int], data: bytes) -> None:
        """Recompute the roots of sizes that end in tile 0/`index`, or right before it."""
        left = [self._edge.lookup(node) for node in nodes_of(0, index)]
        rows = expand(data) if data else []
        for size in sizes:
            inside = nodes_of(0, size - index * TILE_WIDTH)
            root = RootHash(fold(left + [hash_in(rows, node.height, node.index) for node in inside]))
            self.known[size] = root
            self._compare_root(size, root)

    def _compare_root(self, size: int, root: RootHash) -> None:
        for source, said in self._wanted.get(size, ()):
            if said != root and source not in self._bad:
                self._bad.add(source)
                detail = f"the entries do not hash to the {source}'s root of size {size}"
                self._report.add_one(f"{source}_root", max(size - 1, 0), detail)

    async def _advance(self, roots: Sequence[bytes]) -> None:
        if not roots:
            return
        # The roots of tiles are the leaves of the tree above.
        growth = grow(self._edge, roots)  # type: ignore[arg-type]
        self._edge = growth.edge
        await self._compare([tile for tile in growth.tiles if len(tile.data) == _FULL])

    def checkpoints(self) -> list[tuple[int, RootHash]]:
        """Return (size, root) of every published checkpoint that was signed as it should be."""
        return [(size, root) for size, said in self._wanted.items() for source, root in said if source == "checkpoint"]

    async def end(self) -> None:
        """Compare the tiles above level 0 that are not full."""
        size = self._edge.size
        rest = [
            TileGrowth(level, size >> 8 * (level + 1), 0, bytes(rows[0]))
            for level, rows in enumerate(self._edge.levels)
            if rows[0]
        ]
        await self._compare(rest)

    async def _compare(self, tiles: Sequence[TileGrowth]) -> None:
        if not tiles:
            return
        stored = await self._reads.tiles(self._log.log_id, [Tile(tile.level + 1, tile.index) for tile in tiles])
        for tile in tiles:
            self._report.tiles += 1
            level, data = tile.level + 1, stored.get((tile.level + 1, tile.index), b"")
            if data[: len(tile.data)] != tile.data:
                self._blame(level, tile.index, tile.data, data)
                self._mark(level, tile.index, tile.data)

    def _mark(self, level: int, index: int, right: bytes) -> None:
        """Remember what a wrong tile should be, and that the hashes above it may be wrong for that reason alone."""
        self.wrong[level, index] = right
        while level < MAX_LEVEL:
            level += 1
            self._explained.add((level, index))
            index //= TILE_WIDTH

    def _blame(self, level: int, index: int, right: bytes, stored: bytes) -> None:
        """Name the first hash of a tile that is wrong, unless something below it was named already."""
        for at in range(len(right) // HASH_SIZE):
            same = right[at * HASH_SIZE : (at + 1) * HASH_SIZE] == stored[at * HASH_SIZE : (at + 1) * HASH_SIZE]
            if not same and (level, index * TILE_WIDTH + at) not in self._explained:
                detail = f"tile {level}/{index} is wrong from hash {at}: its subtree starts here"
                self._report.add_one("tile", (index * TILE_WIDTH + at) << 8 * level, detail)
                return


async def tie(reads: Reads, log: LogRow, report: Report, index: int, size: int, root: RootHash) -> None:
    """Check by stored tiles alone that the tile of entry `index` leads to `root`, the root of `size`."""
    plan = plan_root(size)
    wanted = {(tile.level, tile.index): tile for tile in plan.tiles(size)}
    for level in range(1, len(partial_tiles(size))):
        wanted.setdefault((level, index >> 8 * (level + 1)), Tile(level, index >> 8 * (level + 1)))
    stored = await reads.tiles(log.log_id, list(wanted.values()))
    rows = {where: expand(data) for where, data in stored.items()}
    for level in range(1, len(partial_tiles(size)) - 1):
        child, position = index >> 8 * (level + 1), (index >> 8 * (level + 1)) % TILE_WIDTH
        below, above = rows.get((level, child)), rows.get((level + 1, child // TILE_WIDTH))
        full = below is not None and len(below[0]) == _FULL and (child + 1) << 8 * (level + 1) <= size
        said = above[0][position * HASH_SIZE : (position + 1) * HASH_SIZE] if above else b""
        if full and below and bytes(below[8]) != bytes(said):
            report.add_one("tile", child << 8 * (level + 1), f"tile {level}/{child} does not hash to what is above it")
    try:
        found = plan.fold(lambda node: _find(rows, node))[0]
    except (KeyError, AssertionError):
        found = b""
    if found != root:
        report.add_one("head_root", size - 1, f"the stored tiles do not hash to the head's root of size {size}")


def _find(rows: dict[tuple[int, int], TileRows], node: Node) -> bytes:
    level, index, row, position = place(node)
    return hash_in(rows[level, index], row, position)
