"""RFC 6962 Merkle trees over tiles: what a proof consists of, and how a tree grows. Pure: nothing here reads or waits.

Proofs are made in three steps. *Plan*: which complete subtrees does the proof need, and which tiles hold them. *Fetch*:
the caller gets those tiles, in one read. *Fold*: the hashes of the plan become the hashes of the proof.

The plan is the definition: an inclusion proof is what :func:`plan_inclusion` folds to. The server has a faster way
(``muniment_server.tile_rows``), and a test compares the two (``tests/unit/test_tile_rows.py``). To check a proof takes
nothing of this module: see :mod:`muniment.proofs`.

A complete subtree is a :class:`Node`. It lies in exactly one tile: at level height // 8, where it is the root of
2**(height % 8) neighbouring hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from muniment.encoding import MAX_SIZE
from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, LeafHash, RootHash, node_hash, node_hashes
from muniment.tiles import TILE_WIDTH, Tile, width_at

_FULL = TILE_WIDTH * HASH_SIZE


class Node(NamedTuple):
    """The complete subtree over the leaves [index << height, (index + 1) << height)."""

    height: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used


TileRows = list[bytearray]
"""A tile with the inner nodes that are complete.

Row h, for h in [0, 8], holds its nodes of height h within the tile, 32 bytes each.
"""

Lookup = Callable[[Node], bytes]


# --- plan -------------------------------------------------------------------------------------------------------------


def nodes_of(low: int, high: int) -> list[Node]:
    """Return the complete subtrees that make up the leaves [low, high), left to right.

    Requires `low` to be a multiple of the smallest power of two >= high - low, as every subtree of an RFC 6962 tree is.
    """
    nodes: list[Node] = []
    while low < high:
        height = (high - low).bit_length() - 1
        nodes.append(Node(height, low >> height))
        low += 1 << height
    return nodes


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` (RFC 6962 section 2.1). Requires size >= 2."""
    return 1 << ((size - 1).bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """The subtrees a proof consists of, in proof order, each as its complete subtrees."""

    parts: tuple[tuple[Node, ...], ...]

    def tiles(self, size: int) -> list[Tile]:
        """Return the tiles, as they are in the tree of `size`, that hold every node of this plan."""
        places = {(level, index) for part in self.parts for level, index, _, _ in map(place, part)}
        return [Tile(level, index, width_at(level, index, size)) for level, index in sorted(places)]

    def fold(self, lookup: Lookup) -> list[bytes]:
        """Return the hashes of the proof, given the hash of each node."""
        return [fold([lookup(node) for node in part]) for part in self.parts]


def plan_root(size: int) -> Plan:
    """Plan the root of the tree of `size` > 0: its fold is one hash."""
    return Plan((tuple(nodes_of(0, size)),))


def plan_inclusion(index: int, size: int) -> Plan:
    """Plan PATH(index, D[0:size]) of RFC 6962 section 2.1.1.

    Requires 0 <= index < size <= 2**63 - 1, else ValueError.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError(f"no leaf {index} in a tree of size {size}")
    low, high = 0, size
    parts: list[tuple[Node, ...]] = []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            parts.append(tuple(nodes_of(middle, high)))
            high = middle
        else:
            parts.append(tuple(nodes_of(low, middle)))
            low = middle
    return Plan(tuple(reversed(parts)))


def plan_consistency(first: int, second: int) -> Plan:
    """Plan PROOF(first, D[0:second]) of RFC 6962 section 2.1.2.

    Requires 1 <= first <= second <= 2**63 - 1, else ValueError.
    """
    if not 1 <= first <= second <= MAX_SIZE:
        raise ValueError(f"no consistency proof from size {first} to {second}")
    low, high = 0, second
    parts: list[tuple[Node, ...]] = []
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            parts.append(tuple(nodes_of(middle, high)))
            high = middle
        else:
            parts.append(tuple(nodes_of(low, middle)))
            low = middle
    if low:  # the verifier knows the root of [0, first) itself, but not that of a part of it
        parts.append(tuple(nodes_of(low, high)))
    return Plan(tuple(reversed(parts)))


# --- fetch and fold ---------------------------------------------------------------------------------------------------


def place(node: Node) -> tuple[int, int, int, int]:
    """Return where a node lies: tile level, tile index, row within the tile, position in the row."""
    level, row = divmod(node.height, 8)
    per_tile = 8 - row
    return level, node.index >> per_tile, row, node.index & ((1 << per_tile) - 1)


def hash_in(rows: Sequence[bytes | bytearray], row: int, position: int) -> bytes:
    """Return one 32-byte hash of a tile.

    Raises AssertionError when the tile is too narrow: the plan was for another size.
    """
    found = bytes(rows[row][position * HASH_SIZE : (position + 1) * HASH_SIZE])
    if len(found) != HASH_SIZE:
        raise AssertionError(
            f"bad index math: no hash {position} in row {row} of a tile with {len(rows[row]) // HASH_SIZE}"
        )
    return found


def fold(hashes: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees given left to right, tallest first. Requires at least one hash."""
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def expand(data: bytes) -> TileRows:
    """Return the rows of a tile, given its hashes (32 to 8,192 bytes)."""
    rows: TileRows = [bytearray(data)]
    below = bytes(data)
    for _ in range(8):
        below = node_hashes(memoryview(below)[: len(below) & -64])
        rows.append(bytearray(below))
    return rows


# --- grow -------------------------------------------------------------------------------------------------------------


class TileGrowth(NamedTuple):
    """A tile as an append leaves it.

    `data` is its first `len(data) // 32` hashes, of which `old_width` were there before.
    """

    level: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    old_width: int
    data: bytes


class Edge:
    """The right edge of a tree of `size`: for each level, the rows of the tile that is not yet full.

    Never changed in place. `levels[l]` has ``(size >> 8*l) % 256`` hashes in row 0.
    """

    __slots__ = ("_tails", "levels", "size")

    def __init__(self, size: int = 0, levels: Sequence[TileRows] = ()) -> None:
        self.size = size
        self.levels = tuple(levels)
        self._tails: list[bytes] | None = None

    @classmethod
    def of(cls, size: int, tiles: dict[tuple[int, int], bytes]) -> Edge:
        """Build the edge of `size` from the hashes of its partial tiles, keyed by (level, index). Longer data is cut.

        Raises BadProof when a tile is missing or too short: the store does not hold the tree it says it holds.
        """
        levels: list[TileRows] = []
        for tile in partial_tiles(size):
            data = tiles.get((tile.level, tile.index), b"")[: tile.width * HASH_SIZE] if tile.width else b""
            if len(data) != tile.width * HASH_SIZE:
                raise BadProof(f"tile {tile.level}/{tile.index} has {len(data) // HASH_SIZE} hashes, not {tile.width}")
            levels.append(expand(data))
        return cls(size, levels)

    def lookup(self, node: Node) -> bytes:
        """Return the hash of a node that lies in the right edge."""
        level, _, row, position = place(node)
        return hash_in(self.levels[level], row, position)

    @property
    def tails(self) -> list[bytes]:
        """The root over the last ``size % 2**h`` leaves, for each height h in [0, bit length of size].

        Empty where there are none.
        """
        if self._tails is None:
            value = b""
            self._tails = [value]
            for height in range(self.size.bit_length()):
                if self.size >> height & 1:
                    left = self.lookup(Node(height, (self.size >> height) - 1))
                    value = node_hash(left, value) if value else left
                self._tails.append(value)
        return self._tails

    def root(self) -> RootHash:
        """Return the Merkle tree hash."""
        return RootHash(self.tails[-1]) if self.size else EMPTY_ROOT


def partial_tiles(size: int) -> list[Tile]:
    """Return, for each level of the tree of `size`, the tile the next hash goes to; its width is in [0, 255].

    Requires size >= 0, else ValueError.
    """
    if size < 0:
        raise ValueError(f"no tree has size {size}")
    tiles: list[Tile] = []
    level = 0
    while size >> (8 * level):
        count = size >> (8 * level)
        tiles.append(Tile(level, count // TILE_WIDTH, count % TILE_WIDTH))
        level += 1
    return tiles


def _new_rows() -> TileRows:
    return [bytearray() for _ in range(9)]


class Growth(NamedTuple):
    """What :func:`grow` made: the new edge, the tiles to store, and the rows of every tile touched.

    `rows` is keyed by (level, index).
    """

    edge: Edge
    tiles: list[TileGrowth]
    rows: dict[tuple[int, int], TileRows]

    def lookup(self, node: Node) -> bytes:
        """Return the hash of a node in a tile touched by this growth. Raises KeyError for others."""
        level, index, row, position = place(node)
        return hash_in(self.rows[level, index], row, position)

    def then(self, later: Growth) -> Growth:
        """Return this growth and `later`, which grew from its edge, as one."""
        before = {(tile.level, tile.index): tile for tile in self.tiles}
        tiles = []
        for tile in later.tiles:
            first = before.pop((tile.level, tile.index), tile)
            tiles.append(TileGrowth(tile.level, tile.index, first.old_width, tile.data))
        return Growth(later.edge, [*before.values(), *tiles], self.rows | later.rows)


def _widen(rows: TileRows, hashes: bytes) -> None:
    """Add hashes to a tile, as many as it has room for, and every inner node they complete."""
    rows[0] += hashes
    for height in range(8):
        below, row = rows[height], rows[height + 1]
        done, pairs = 2 * len(row), len(below) & -64
        if done == pairs:
            return
        row += node_hashes(memoryview(below)[done:pairs])


def grow(edge: Edge, leaf_hashes: Iterable[LeafHash]) -> Growth:
    """Append leaf hashes to the tree with this right edge. `edge` stays as it was."""
    levels = [[bytearray(row) for row in rows] for rows in edge.levels]
    old_widths = [len(rows[0]) // HASH_SIZE for rows in levels]
    next_index = [edge.size >> (8 * (level + 1)) for level in range(len(levels))]
    full: dict[tuple[int, int], TileRows] = {}
    stored: list[TileGrowth] = []
    added = b"".join(leaf_hashes)
    count, level = len(added) // HASH_SIZE, 0
    touched = []
    while added:
        if level == len(levels):
            levels.append(_new_rows())
            old_widths.append(0)
            next_index.append(0)
        touched.append(level)
        roots = b""
        while added:
            rows = levels[level]
            room = _FULL - len(rows[0])
            _widen(rows, added[:room])
            added = added[room:]
            if len(rows[0]) == _FULL:
                full[level, next_index[level]] = rows
                stored.append(TileGrowth(level, next_index[level], old_widths[level], bytes(rows[0])))
                levels[level], old_widths[level] = _new_rows(), 0
                next_index[level] += 1
                roots += rows[8]
        added, level = roots, level + 1
    rows_of = full | {(level, next_index[level]): rows for level, rows in enumerate(levels)}
    stored += [
        TileGrowth(level, next_index[level], old_widths[level], bytes(levels[level][0]))
        for level in touched
        if levels[level][0]
    ]
    return Growth(Edge(edge.size + count, levels), stored, rows_of)
