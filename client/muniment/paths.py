"""Checks many inclusion proofs of one tree: what neighbours have in common is hashed once. Pure.

It never accepts what :func:`muniment.proofs.verify_inclusion` refuses, nor the other way round; tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Sequence

from muniment.hashing import HASH_SIZE, LeafHash, RootHash, node_hash
from muniment.proofs import verify_inclusion


class Paths:
    """Checks inclusion proofs in one tree.

    From a node on, the way to the root is fixed by the node's place and hash and by the rest of the proof. So when
    the proof before this one came by the same place with the same hash and the same rest, and led to the root,
    this one leads there too.
    """

    def __init__(self, size: int, root: RootHash) -> None:
        self._size = size
        self._root = root
        self._index = -1  # of the leaf proved last
        self._proof: tuple[bytes, ...] = ()
        self._way: list[bytes] = []  # from that leaf up: by height, the nodes that are complete

    def verify(self, index: int, leaf: LeafHash, proof: tuple[bytes, ...]) -> None:
        """Check that `leaf` is leaf `index`. Raises BadProof exactly when :func:`verify_inclusion` does."""
        height = (index ^ self._index).bit_length()  # of the lowest node above both leaves
        way = _climb(index, leaf, proof[:height]) if self._meets(index, leaf, proof, height) else []
        if way and way[height] == self._way[height]:
            self._way[: len(way)] = way
        else:
            verify_inclusion(index, self._size, leaf, proof, self._root)
            self._way = _climb(index, leaf, proof[: _complete(index, self._size)])
        self._index, self._proof = index, proof

    def _meets(self, index: int, leaf: LeafHash, proof: tuple[bytes, ...], height: int) -> bool:
        """Tell whether the proof goes on from `height` as the last one did, below a complete node.

        Its hashes are not looked at.
        """
        # A leaf of another length could be made up for by its sibling: what is hashed has no mark between the two.
        whole = index >= 0 and len(leaf) == HASH_SIZE and len(proof) == len(self._proof)
        return whole and height < len(self._way) and proof[height:] == self._proof[height:]


def _complete(index: int, size: int) -> int:
    """Return the height of the largest complete subtree of the tree of `size` that leaf `index` is in.

    Requires index < size.
    """
    height = 0
    while ((index >> height + 1) + 1) << height + 1 <= size:
        height += 1
    return height


def _climb(index: int, leaf: bytes, siblings: Sequence[bytes]) -> list[bytes]:
    """Return the nodes from a leaf up to the height of a complete subtree, the leaf first, given their siblings."""
    way = [leaf]
    for sibling in siblings:
        leaf = node_hash(sibling, leaf) if index & 1 else node_hash(leaf, sibling)
        way.append(leaf)
        index >>= 1
    return way
