"""Good proofs spoiled in every way the oracle knows: accepted exactly when the definition accepts them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from muniment.errors import BadProof
from muniment.hashing import leaf_hash
from muniment.proofs import verify_consistency, verify_inclusion
from tests.oracle import Consistency, Inclusion, byte_tree, spoil_consistency, spoil_inclusion

SIZES = [*range(1, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]
TREE = byte_tree(300)


def accepts(claim: Inclusion | Consistency) -> bool:
    """What the code under test says; anything but BadProof escapes and fails the test."""
    try:
        if isinstance(claim, Inclusion):
            verify_inclusion(claim.index, claim.size, claim.leaf, claim.proof, claim.root)
        else:
            verify_consistency(claim.first, claim.second, claim.root1, claim.root2, claim.proof)
    except BadProof:
        return False
    return True


@pytest.mark.parametrize("size", SIZES)
def test_spoiled_inclusion_proofs(size: int) -> None:
    rng = random.Random(size)
    seen: Counter[str] = Counter()
    for index in sorted({0, 1, size // 2, size - 2, size - 1, rng.randrange(size)} & set(range(size))):
        good = Inclusion(index, size, TREE.leaf_hash(index), tuple(TREE.path(index, size)), TREE.root(size))
        assert good.holds()
        assert accepts(good)
        for name, claim in spoil_inclusion(good, rng, TREE.root(size % 300 + 1)):
            if claim == good:
                continue
            seen[name] += 1
            assert accepts(claim) is claim.holds(), (name, claim)
            # One root is the root of one size only, but a walk to it may not notice a wrong size: sizes come from signed heads.
            assert not accepts(claim) or name.startswith("size"), (name, claim)
    assert len(seen) >= (55 if size > 3 else 35)


@pytest.mark.parametrize("second", SIZES)
def test_spoiled_consistency_proofs(second: int) -> None:
    rng = random.Random(second)
    seen: Counter[str] = Counter()
    for first in sorted({1, 2, second // 2, second - 1, second, rng.randrange(second) + 1} & set(range(1, second + 1))):
        good = Consistency(first, second, TREE.root(first), TREE.root(second), tuple(TREE.proof(first, second)))
        assert good.holds()
        assert accepts(good)
        for name, claim in spoil_consistency(good, rng, TREE.root(second % 300 + 1)):
            if claim == good:
                continue
            seen[name] += 1
            assert accepts(claim) is claim.holds(), (name, claim)
            assert not accepts(claim) or name.startswith(("first", "second")), (name, claim)
    assert len(seen) >= (55 if second > 3 else 35)


def test_a_proof_of_one_leaf_says_nothing_of_its_neighbours() -> None:
    for size in range(2, 34):
        for index in range(size):
            proof, root = tuple(TREE.path(index, size)), TREE.root(size)
            for other in range(size):
                claim = Inclusion(other, size, TREE.leaf_hash(other), proof, root)
                assert accepts(claim) is (other == index)
                claim = Inclusion(other, size, TREE.leaf_hash(index), proof, root)
                assert accepts(claim) is (other == index)


def test_an_inner_node_cannot_pass_as_a_leaf() -> None:
    """Second preimages: the bytes that hash to a node, given as an entry, do not hash to it."""
    children = TREE.leaf_hash(0) + TREE.leaf_hash(1)
    for entry in (children, b"\x01" + children, b"\x00" + children):
        assert not accepts(Inclusion(0, 1, leaf_hash(entry), (), TREE.root(2)))


def test_consistency_between_unrelated_trees_is_refused() -> None:
    other = byte_tree(40)
    other.leaves[0] = b"another history"
    for second in range(2, 41):
        for first in range(1, second):
            assert not accepts(
                Consistency(first, second, other.root(first), TREE.root(second), tuple(TREE.proof(first, second)))
            )
            assert not accepts(
                Consistency(first, second, TREE.root(first), other.root(second), tuple(TREE.proof(first, second)))
            )
            assert not accepts(
                Consistency(first, second, TREE.root(first), other.root(second), tuple(other.proof(first, second)))
            )
