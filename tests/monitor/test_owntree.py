"""The hashes of what was read give every root and every proof, as a tree of all leaves does."""

from __future__ import annotations

import random

import pytest

from muniment.errors import BadProof
from muniment.hashing import leaf_hash
from muniment.monitor.owntree import OwnTree
from muniment.proofs import verify_consistency
from tests.oracle import Tree

LEAVES = [b"leaf %d" % number for number in range(1100)]
HASHES = b"".join(leaf_hash(leaf) for leaf in LEAVES)


def own(size: int) -> OwnTree:
    tree = OwnTree()
    tree.add(HASHES[: size * 32])
    return tree


def bundle(tree: OwnTree, size: int) -> bytes:
    index = tree.bundle_needed(size)
    return b"" if index is None else HASHES[index * 8192 : (index + 1) * 8192]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 767, 768, 1024, 1100])
def test_every_root_and_every_proof(size: int) -> None:
    tree, oracle = own(size), Tree(LEAVES)
    assert tree.size == size
    steps = {*range(0, size + 1, 37), *range(max(0, size - 3), size + 1), 255, 256, 257, 511, 512, 513}
    for first in sorted(step for step in steps if step <= size):
        root = tree.root_at(first, bundle(tree, first))
        assert root == oracle.root(first)
        if 0 < first < size:
            proof = tree.consistency(first, bundle(tree, first))
            verify_consistency(first, size, root, tree.root_at(size), proof)


def test_leaves_may_come_in_any_pieces() -> None:
    rng = random.Random(1)
    tree, at = OwnTree(), 0
    while at < len(LEAVES):
        step = rng.choice([0, 1, 3, 255, 256, 300])
        tree.add(HASHES[at * 32 : (at + step) * 32])
        at = min(at + step, len(LEAVES))
        assert tree.root_at(tree.size) == own(at).root_at(at)
    assert tree.fresh == HASHES[: 1024 * 32]


def test_cut() -> None:
    tree = own(1100)
    for size in (0, 1, 255, 256, 300, 768, 1000, 1100):
        tail = HASHES[size // 256 * 256 * 32 : size * 32]
        assert tree.cut(size, tail).root_at(size) == own(size).root_at(size)


@pytest.mark.parametrize("wrong", [b"", HASHES[: 255 * 32], HASHES[32 : 257 * 32], HASHES[: 8192 - 1] + b"x"])
def test_a_bundle_that_was_not_read(wrong: bytes) -> None:
    with pytest.raises(BadProof):
        own(1100).check_bundle(0, wrong)
    own(1100).check_bundle(0, HASHES[:8192])


def test_a_bundle_that_is_needed_and_not_given() -> None:
    with pytest.raises(AssertionError, match="bad index math"):
        own(1100).root_at(300)
