"""All trees of up to 130 leaves: every root, every proof, and what happens when a bit of a proof turns."""

from __future__ import annotations

import random
from functools import cache

import pytest

from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, leaf_hash, node_hash
from muniment.proofs import MAX_PROOF, root_from_inclusion, root_from_range, verify_consistency, verify_inclusion
from muniment.tree import Edge, grow, plan_consistency, plan_inclusion, plan_root
from tests.oracle import ACCUMULATED, CT_LEAVES, CT_ROOTS, Tree, accumulate, byte_tree, flip
from tests.unit.tilestore import TileStore

LARGEST = 130
EVERY_BIT = 30
TREE = byte_tree(LARGEST)


@cache
def store() -> TileStore:
    """A store of the largest tree: smaller ones are its prefixes."""
    tiles = TileStore()
    tiles.apply(grow(Edge(), map(leaf_hash, TREE.leaves)))
    return tiles


def test_hashes_are_those_of_rfc_6962() -> None:
    assert leaf_hash(b"").hex() == CT_ROOTS[1]
    assert node_hash(leaf_hash(b""), leaf_hash(b"\x00")).hex() == CT_ROOTS[2]
    assert EMPTY_ROOT.hex() == CT_ROOTS[0]


def test_known_roots() -> None:
    tree = Tree(CT_LEAVES)
    for size, expected in enumerate(CT_ROOTS):
        assert tree.root(size).hex() == expected, "the oracle itself"
        assert grow(Edge(), map(leaf_hash, CT_LEAVES[:size])).edge.root().hex() == expected


def test_every_root() -> None:
    edge = Edge()
    assert edge.root() == EMPTY_ROOT
    for size in range(1, LARGEST + 1):
        edge = grow(edge, [leaf_hash(TREE.leaves[size - 1])]).edge
        assert edge.root() == TREE.root(size)
        assert store().prove(plan_root(size), size) == [TREE.root(size)]
        assert store().edge(size).root() == TREE.root(size)


def test_every_inclusion_proof() -> None:
    for size in range(1, LARGEST + 1):
        for index in range(size):
            proof = store().prove(plan_inclusion(index, size), size)
            assert proof == TREE.path(index, size)
            assert len(proof) <= max(0, (size - 1).bit_length())
            verify_inclusion(index, size, TREE.leaf_hash(index), proof, TREE.root(size))
            assert root_from_inclusion(index, size, TREE.leaf_hash(index), proof) == TREE.root(size)


def test_every_range() -> None:
    """Neighbours are proved together by the proofs of the first and the last: in every tree, from everywhere to everywhere."""
    for size in (*range(1, 28), 63, 64, 65, LARGEST):
        leaves, root = [TREE.leaf_hash(index) for index in range(size)], TREE.root(size)
        paths = [tuple(TREE.path(index, size)) for index in range(size)]
        for first in range(size):
            for last in range(first, size, 1 if size < 30 else 7):
                assert root_from_range(first, size, leaves[first : last + 1], paths[first], paths[last]) == root


def test_a_range_that_is_not_there() -> None:
    for size in (1, 2, 3, 7, 8, 11):
        leaves, root = [TREE.leaf_hash(index) for index in range(size)], TREE.root(size)
        paths = [TREE.path(index, size) for index in range(size)]
        for first in range(size):
            for last in range(first, size):
                there, before, after = leaves[first : last + 1], paths[first], paths[last]
                for at in range(len(there)):
                    others = [*there[:at], flip(there[at], 0), *there[at + 1 :]]
                    assert root_from_range(first, size, others, before, after) != root
                for outside in (-1, size - last + first, size):
                    with pytest.raises(BadProof):
                        root_from_range(outside, size, there, before, after)
                for wrong in ([*before, bytes(32)], before[:-1], [*before[:-1], b"x"]):
                    if wrong != before:
                        with pytest.raises(BadProof):
                            root_from_range(first, size, there, wrong, after)
                with pytest.raises(BadProof):
                    root_from_range(first, size, there, before, [*after, bytes(32)])
        with pytest.raises(BadProof):
            root_from_range(0, size, [], paths[0], paths[0])
        with pytest.raises(BadProof):
            root_from_range(0, size, [leaves[0][:31]], paths[0], paths[0])


def test_every_consistency_proof() -> None:
    for second in range(1, LARGEST + 1):
        for first in range(1, second + 1):
            proof = store().prove(plan_consistency(first, second), second)
            assert proof == TREE.proof(first, second)
            assert len(proof) <= (second - 1).bit_length() + 1
            verify_consistency(first, second, TREE.root(first), TREE.root(second), proof)


def test_accumulated_vector() -> None:
    assert accumulate(TREE.root, TREE.path, TREE.proof) == ACCUMULATED, "the oracle itself"
    tiles = store()
    assert (
        accumulate(
            lambda size: tiles.prove(plan_root(size), size)[0],
            lambda index, size: tiles.prove(plan_inclusion(index, size), size),
            lambda first, second: tiles.prove(plan_consistency(first, second), second),
        )
        == ACCUMULATED
    )


def test_every_bit_of_every_inclusion_proof_counts() -> None:
    refused = 0
    for size in range(1, EVERY_BIT + 1):
        for index in range(size):
            refused += flipped_inclusions(index, size, range(256))
    assert refused == 256 * sum(len(TREE.path(i, n)) for n in range(1, EVERY_BIT + 1) for i in range(n))


def test_every_bit_of_every_consistency_proof_counts() -> None:
    refused = 0
    for second in range(1, EVERY_BIT + 1):
        for first in range(1, second + 1):
            refused += flipped_consistencies(first, second, range(256))
    assert refused == 256 * sum(len(TREE.proof(m, n)) for n in range(1, EVERY_BIT + 1) for m in range(1, n + 1))


def test_one_bit_of_each_hash_of_larger_proofs_counts() -> None:
    rng = random.Random(130)
    for size in range(EVERY_BIT + 1, LARGEST + 1):
        for number in range(size):
            flipped_inclusions(number, size, [rng.randrange(256)])
            flipped_consistencies(number + 1, size, [rng.randrange(256)])


def flipped_inclusions(index: int, size: int, bits: range | list[int]) -> int:
    """Turn these bits of each hash of a proof; return how many were refused, which must be all."""
    proof, leaf, root = TREE.path(index, size), TREE.leaf_hash(index), TREE.root(size)
    refused = 0
    for at, good in enumerate(proof):
        for bit in bits:
            proof[at] = flip(good, bit)
            try:
                verify_inclusion(index, size, leaf, proof, root)
            except BadProof:
                refused += 1
            else:
                pytest.fail(f"inclusion {index} of {size} holds with bit {bit} of hash {at} turned")
        proof[at] = good
    return refused


def flipped_consistencies(first: int, second: int, bits: range | list[int]) -> int:
    """The same for a consistency proof."""
    proof, root1, root2 = TREE.proof(first, second), TREE.root(first), TREE.root(second)
    refused = 0
    for at, good in enumerate(proof):
        for bit in bits:
            proof[at] = flip(good, bit)
            try:
                verify_consistency(first, second, root1, root2, proof)
            except BadProof:
                refused += 1
            else:
                pytest.fail(f"consistency {first} to {second} holds with bit {bit} of hash {at} turned")
        proof[at] = good
    return refused


def test_the_longest_possible_proofs_fit() -> None:
    largest = 2**63 - 1
    assert max(len(plan_inclusion(i, largest).parts) for i in (0, 1, largest // 2, largest - 1)) <= MAX_PROOF
    assert max(len(plan_consistency(m, largest).parts) for m in (1, 2, 3, largest // 2, largest - 1)) <= MAX_PROOF


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (0, 0), (1, 1), (5, 4), (0, -1), (0, 2**63), (2**63 - 1, 2**63)])
def test_no_plan_and_no_proof_for_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        plan_inclusion(index, size)
    with pytest.raises(BadProof, match="no leaf"):
        root_from_inclusion(index, size, TREE.leaf_hash(0), [])


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (2, 1), (-1, 1), (1, 2**63), (2**63, 2**63)])
def test_no_plan_between_sizes_that_have_none(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="no consistency proof"):
        plan_consistency(first, second)


def test_consistency_with_the_empty_tree() -> None:
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    for root in (TREE.root(1), b"", bytes(32)):
        with pytest.raises(BadProof):
            verify_consistency(0, 0, root, root, [])
    with pytest.raises(BadProof, match="proves nothing"):
        verify_consistency(0, 1, EMPTY_ROOT, TREE.root(1), [])
    with pytest.raises(BadProof, match="proves nothing"):
        verify_consistency(0, 2, EMPTY_ROOT, TREE.root(2), TREE.proof(1, 2))
