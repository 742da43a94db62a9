"""Check RFC 6962 proofs: what a verifier has to trust of the mathematics, and all of it. Pure.

A proof that does not hold, or whose numbers make no sense, raises BadProof and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from muniment.encoding import MAX_SIZE
from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, LeafHash, RootHash, node_hash, node_hashes

MAX_PROOF = 64
"""More hashes than any proof of a tree of at most 2**63 - 1 leaves has."""


def _check_hashes(*hashes: bytes) -> None:
    # Without this an empty root would equal an empty leaf, and a proof of nothing would pass.
    for value in hashes:
        if len(value) != HASH_SIZE:
            raise BadProof(f"a hash has {len(value)} bytes, not {HASH_SIZE}")


def root_from_inclusion(index: int, size: int, leaf: LeafHash, proof: Sequence[bytes]) -> RootHash:
    """Return the root that an inclusion proof implies (RFC 9162 section 2.1.3.2). Compare it with a signed one.

    Requires 0 <= index < size <= 2**63 - 1 and 32-byte hashes. Raises BadProof, also when the proof has the wrong
    length.
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

    `before` is the inclusion proof of the first of them, `after` that of the last: what is left of the range comes from
    the one, and what is right of it from the other; nothing else in them counts. Compare the root with a signed one:
    then every leaf is proved, for one hash each. Requires 0 <= first, one leaf or more, first + len(leaves) <= size <=
    2**63 - 1 and 32-byte hashes. Raises BadProof, also when a proof has the wrong length.
    """
    low, high, end = first, first + len(leaves) - 1, size - 1
    if not 0 <= low <= high <= end < MAX_SIZE:
        raise BadProof(f"there are no leaves {first} to {high} in a tree of size {size}")
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
            nodes = node_hashes(memoryview(nodes)[:paired]) + nodes[paired:]
            low, high, end = low >> 1, high >> 1, end >> 1
    except StopIteration:
        raise BadProof("inclusion proof is too short") from None
    if [*left, *right]:
        raise BadProof("inclusion proof is too long")
    return RootHash(nodes)


def verify_consistency(first: int, second: int, root1: RootHash, root2: RootHash, proof: Sequence[bytes]) -> None:
    """Check that the tree of `second` with `root2` extends that of `first` with `root1` (RFC 9162 section 2.1.4.2).

    Requires 1 <= first <= second <= 2**63 - 1, or first == second == 0. A proof from the empty tree says nothing, so 0
    < second with first == 0 is refused; a caller that knows the empty root needs no proof. Raises BadProof.
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
    if roots_from_consistency(first, second, whole_proof(first, root1, proof)) != (root1, root2):
        raise BadProof(f"consistency proof does not connect size {first} to size {second}")


def whole_proof(first: int, root: bytes, proof: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return a consistency proof from size `first` > 0 with its first node explicit.

    Where `first` is a power of two the RFC leaves that node out: it is `root`, that of the first `first` leaves.
    """
    return (root, *proof) if first & (first - 1) == 0 else tuple(proof)


def roots_from_consistency(first: int, second: int, path: Sequence[bytes]) -> tuple[RootHash, RootHash]:
    """Return the roots of both sizes that a consistency proof implies (RFC 9162 section 2.1.4.2).

    `path` is the proof with its first node explicit, as :func:`whole_proof` makes it. When the second root is a signed
    one, the first is that of the first `first` leaves of its tree. Requires 1 <= first < second <= 2**63 - 1 and
    32-byte hashes. Raises BadProof, also when the proof has the wrong length.
    """
    if not 1 <= first < second <= MAX_SIZE:
        raise BadProof(f"no consistency from size {first} to {second}")
    if not path:
        raise BadProof("consistency proof is empty")
    _check_hashes(*path)
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
    return RootHash(old), RootHash(new)
