"""RFC 6962 Merkle trees over tiles: grow, prove, verify. Pure: nothing here reads, writes or waits.

Proofs are made in three steps. *Plan*: which complete subtrees does the proof need, and which tiles hold them. *Fetch*: the
caller gets those tiles, in one read. *Fold*: the hashes of the plan become the hashes of the proof.

That plan is the definition of an inclusion proof here. The server has a faster way (``muniment_server.tile_rows``), which is tested
against it.

A complete subtree is a :class:`Node`. It lies in exactly one tile: at level height // 8, where it is the root of 2**(height % 8)
neighbouring hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import NamedTuple

from muniment.encoding import MAX_SIZE
from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, LeafHash, RootHash, node_hash
from muniment.tiles import TILE_WIDTH, Tile, width_at

_FULL = TILE_WIDTH * HASH_SIZE
_PAIR = Struct(f"{2 * HASH_SIZE}s")
"""Two neighbouring hashes. To walk through them is faster than to cut them out."""
MAX_PROOF = 64
"""More hashes than any proof of a tree of at most 2**63 - 1 leaves has."""


class Node(NamedTuple):
    """The complete subtree over the leaves [index << height, (index + 1) << height)."""

    height: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used


TileRows = list[bytearray]
"""A tile with the inner nodes that are complete: row h holds its nodes of height h within the tile, 32 bytes each, h in [0, 8]."""

Lookup = Callable[[Node], bytes]


# --- plan ---------------------------------------------------------------------------------------------------------------


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
    """Plan PATH(index, D[0:size]) of RFC 6962 section 2.1.1. Requires 0 <= index < size <= 2**63 - 1, else ValueError."""
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
    """Plan PROOF(first, D[0:second]) of RFC 6962 section 2.1.2. Requires 1 <= first <= second <= 2**63 - 1, else ValueError."""
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


# --- fetch and fold -----------------------------------------------------------------------------------------------------


def place(node: Node) -> tuple[int, int, int, int]:
    """Return where a node lies: tile level, tile index, row within the tile, position in the row."""
    level, row = divmod(node.height, 8)
    per_tile = 8 - row
    return level, node.index >> per_tile, row, node.index & ((1 << per_tile) - 1)


def hash_in(rows: Sequence[bytes | bytearray], row: int, position: int) -> bytes:
    """Return one 32-byte hash of a tile. Raises AssertionError when the tile is too narrow: the plan was for another size."""
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


def _nodes_over(hashes: memoryview) -> bytes:
    """Return the node hash over each pair of neighbouring hashes. Requires whole pairs: a multiple of 64 bytes."""
    return b"".join([sha256(b"\x01" + pair).digest() for (pair,) in _PAIR.iter_unpack(hashes)])


def expand(data: bytes) -> TileRows:
    """Return the rows of a tile, given its hashes (32 to 8,192 bytes)."""
    rows: TileRows = [bytearray(data)]
    below = bytes(data)
    for _ in range(8):
        below = _nodes_over(memoryview(below)[: len(below) & -64])
        rows.append(bytearray(below))
    return rows


# --- inclusion, in closed form ------------------------------------------------------------------------------------------


# --- grow ---------------------------------------------------------------------------------------------------------------


class TileGrowth(NamedTuple):
    """A tile as an append leaves it: `data` is its first `len(data) // 32` hashes, of which `old_width` were there before."""

    level: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    old_width: int
    data: bytes


class Edge:
    """The right edge of a tree of `size`: for each level, the rows of the tile that is not yet full. Never changed in place.

    `levels[l]` has ``(size >> 8*l) % 256`` hashes in row 0.
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
        """The root over the last ``size % 2**h`` leaves, for each height h in [0, bit length of size]; empty where there are none."""
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
    """Return, for each level of the tree of `size`, the tile the next hash goes to; its width is in [0, 255]. Requires size >= 0, else ValueError."""
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
    """What :func:`grow` made: the new edge, the tiles to store, and the rows of every tile touched, by (level, index)."""

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
        row += _nodes_over(memoryview(below)[done:pairs])


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


# --- verify -------------------------------------------------------------------------------------------------------------


def _check_hashes(*hashes: bytes) -> None:
    # Without this an empty root would equal an empty leaf, and a proof of nothing would pass.
    for value in hashes:
        if len(value) != HASH_SIZE:
            raise BadProof(f"a hash has {len(value)} bytes, not {HASH_SIZE}")


def root_from_inclusion(index: int, size: int, leaf: LeafHash, proof: Sequence[bytes]) -> RootHash:
    """Return the root that an inclusion proof implies (RFC 9162 section 2.1.3.2). Compare it with a signed one.

    Requires 0 <= index < size <= 2**63 - 1 and 32-byte hashes. Raises BadProof, also when the proof has the wrong length.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise BadProof(f"no leaf {index} in a tree of size {size}")
    _check_hashes(leaf, *proof)
    node, last, root = index, size - 1, bytes(leaf)
    for sibling in proof:
        if not last:
            raise BadProof("inclusion proof is too long")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise BadProof("inclusion proof is too short")
    return RootHash(root)


def verify_inclusion(index: int, size: int, leaf: LeafHash, proof: Sequence[bytes], root: RootHash) -> None:
    """Check that `leaf` is leaf `index` of the tree of `size` with `root`. Raises BadProof."""
    _check_hashes(root)
    if root_from_inclusion(index, size, leaf, proof) != root:
        raise BadProof(f"inclusion proof of leaf {index} does not lead to the root of size {size}")


def root_from_range(
    first: int, size: int, leaves: Sequence[bytes], before: Sequence[bytes], after: Sequence[bytes]
) -> RootHash:
    """Return the root of the tree of `size` in which neighbouring leaves have these hashes, the first at index `first`.

    `before` is the inclusion proof of the first of them, `after` that of the last: what is left of the range comes from the one, and
    what is right of it from the other; nothing else in them counts. Compare the root with a signed one: then every leaf is proved, for
    one hash each. Requires 0 <= first, one leaf or more, first + len(leaves) <= size <= 2**63 - 1 and 32-byte hashes. Raises BadProof,
    also when a proof has the wrong length.
    """
    low, high, end = first, first + len(leaves) - 1, size - 1
    if not 0 <= low <= high <= end < MAX_SIZE:
        raise BadProof(f"no leaves [{first}, {high + 1}) in a tree of size {size}")
    _check_hashes(*leaves, *before, *after)
    left, right, nodes = iter(before), iter(after), b"".join(leaves)
    try:
        while end:
            # A node has a sibling unless it is the last of its row and even: that one moves up as it is.
            sibling = next(left) if low & 1 or low < end else b""
            nodes = sibling + nodes if low & 1 else nodes
            sibling = next(right) if high & 1 or high < end else b""
            nodes = nodes if high & 1 else nodes + sibling
            paired = len(nodes) & -2 * HASH_SIZE
            nodes = _nodes_over(memoryview(nodes)[:paired]) + nodes[paired:]
            low, high, end = low >> 1, high >> 1, end >> 1
    except StopIteration:
        raise BadProof("inclusion proof is too short") from None
    if [*left, *right]:
        raise BadProof("inclusion proof is too long")
    return RootHash(nodes)


def verify_consistency(first: int, second: int, root1: RootHash, root2: RootHash, proof: Sequence[bytes]) -> None:
    """Check that the tree of `second` with `root2` extends that of `first` with `root1` (RFC 9162 section 2.1.4.2).

    Requires 1 <= first <= second <= 2**63 - 1, or first == second == 0. A proof from the empty tree says nothing, so 0 < second
    with first == 0 is refused; a caller that knows the empty root needs no proof. Raises BadProof.
    """
    if not 0 <= first <= second <= MAX_SIZE:
        raise BadProof(f"no consistency from size {first} to {second}")
    if first == second:
        _check_same(first, root1, root2, proof)  # compares and hashes nothing, so lengths do not matter
    elif not first:
        raise BadProof("consistency with the empty tree proves nothing")
    else:
        _check_hashes(root1, root2, *proof)
        _check_extends(first, second, root1, root2, proof)


def _check_same(size: int, root1: RootHash, root2: RootHash, proof: Sequence[bytes]) -> None:
    if proof:
        raise BadProof("a proof between equal sizes has no hashes")
    if root1 != root2:
        raise BadProof(f"two roots of size {size} differ")
    if not size and root1 != EMPTY_ROOT:
        raise BadProof("the root of the empty tree is not SHA-256 of nothing")


def _check_extends(first: int, second: int, root1: bytes, root2: bytes, proof: Sequence[bytes]) -> None:
    if not proof:
        raise BadProof("consistency proof is empty")
    path = [root1, *proof] if first & (first - 1) == 0 else list(proof)
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if not last:
            raise BadProof("consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise BadProof("consistency proof is too short")
    if old != root1 or new != root2:
        raise BadProof(f"consistency proof does not connect size {first} to size {second}")
