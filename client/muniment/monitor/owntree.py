"""What a monitor has read of a log, as hashes: enough to compute the root of every size of it. Pure.

A node over a full entry bundle and all above it are kept: 64 bytes for 256 entries. Of the leaves only those after the
last full bundle are; for a root or a proof within an older bundle, its leaf hashes are given, and compared.
"""

from __future__ import annotations

from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash, node_hashes
from muniment.tiles import TILE_WIDTH
from muniment.tree import Node, expand, fold, nodes_of, plan_consistency

_FULL = TILE_WIDTH * HASH_SIZE
_BUNDLE = 8
"""Height of the node over a full bundle."""


class OwnTree:
    """A tree that grows at its right edge. Changed by its owner alone.

    `tail` holds the leaf hashes after the last full bundle, 32 bytes each. `fresh` holds those of the last full
    bundles, until their owner has put them away and empties it.
    """

    def __init__(self, row: bytes = b"", tail: bytes = b"") -> None:
        self.tail = bytearray(tail)
        self.fresh = bytearray()
        self._rows = [bytearray(row)]
        self._lift()

    @property
    def row(self) -> bytearray:
        """The hash of each full bundle, 32 bytes each. Not to be changed."""
        return self._rows[0]

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self.row) // HASH_SIZE * TILE_WIDTH + len(self.tail) // HASH_SIZE

    def add(self, leaf_hashes: bytes) -> None:
        """Append leaves, given their hashes."""
        self.tail += leaf_hashes
        while len(self.tail) >= _FULL:
            self._rows[0] += expand(bytes(self.tail[:_FULL]))[_BUNDLE]
            self.fresh += self.tail[:_FULL]
            del self.tail[:_FULL]
        self._lift()

    def cut(self, size: int, tail: bytes) -> OwnTree:
        """Return the tree of the first `size` leaves, of which `tail` are those after the last full bundle."""
        return OwnTree(bytes(self.row[: size // TILE_WIDTH * HASH_SIZE]), tail)

    def bundle_needed(self, size: int) -> int | None:
        """Return the bundle whose leaf hashes the root of the first `size` leaves takes, None when none is missing."""
        index, width = divmod(size, TILE_WIDTH)
        return index if width and index < len(self.row) // HASH_SIZE else None

    def check_bundle(self, index: int, leaf_hashes: bytes) -> None:
        """Check that a full bundle has these leaf hashes. Raises BadProof."""
        own = self.row[index * HASH_SIZE : (index + 1) * HASH_SIZE]
        if len(leaf_hashes) != _FULL or expand(leaf_hashes)[_BUNDLE] != own:
            raise BadProof(f"the entries of bundle {index} are not those that were read before")

    def root_at(self, size: int, bundle: bytes = b"") -> RootHash:
        """Return the root of the first `size` leaves, size <= self.size.

        `bundle` holds the checked leaf hashes of the bundle that :meth:`bundle_needed` names.
        """
        if not size:
            return EMPTY_ROOT
        return RootHash(fold([self._node(node, size // TILE_WIDTH, bundle) for node in nodes_of(0, size)]))

    def consistency(self, first: int, bundle: bytes = b"") -> tuple[bytes, ...]:
        """Return the consistency proof from size `first` to this tree, 1 <= first < self.size, as RFC 9162 has it."""
        parts = plan_consistency(first, self.size).parts
        return tuple(fold([self._node(node, first // TILE_WIDTH, bundle) for node in part]) for part in parts)

    def _node(self, node: Node, at: int, bundle: bytes) -> bytes:
        if node.height >= _BUNDLE:
            found = self._rows[node.height - _BUNDLE][node.index * HASH_SIZE : (node.index + 1) * HASH_SIZE]
        else:
            index, position = divmod(node.index << node.height, TILE_WIDTH)
            known = self.tail if index == len(self.row) // HASH_SIZE else bundle if index == at else b""
            leaves = known[position * HASH_SIZE : (position + (1 << node.height)) * HASH_SIZE]
            found = expand(bytes(leaves))[node.height] if leaves else bytearray()
        if len(found) != HASH_SIZE:
            raise AssertionError(f"bad index math: no node {node} in a tree of size {self.size}")
        return bytes(found)

    def _lift(self) -> None:
        """Add every node that the row below completes."""
        height = 0
        while len(self._rows[height]) >= 2 * HASH_SIZE:
            if height + 1 == len(self._rows):
                self._rows.append(bytearray())
            below, above = self._rows[height], self._rows[height + 1]
            above += node_hashes(memoryview(below)[2 * len(above) : len(below) & -64])
            height += 1
