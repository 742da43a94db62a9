"""PyPI pymerkle, another RFC 6962 tree, has the same root at every size and makes the same proofs."""

from __future__ import annotations

import random

import pytest
from pymerkle import InmemoryTree
from pymerkle.proof import InclusionProof

from tests.interop.sample import SIZE, Sample


@pytest.fixture
def tree(sample: Sample) -> InmemoryTree:
    """A pymerkle tree over the leaves."""
    made = InmemoryTree(algorithm="sha256")
    made.append_entries(sample.leaves)
    return made


def _path(proof: InclusionProof) -> list[str]:
    """Return the hashes of a pymerkle proof without the first, which is the leaf's own."""
    return [value.hex() for value in proof.path[1:]]


def test_roots_agree_at_every_size(sample: Sample, tree: InmemoryTree) -> None:
    for size in range(1, SIZE + 1):
        found = sample.get(f"/proof/inclusion?index={size - 1}&tree_size={size}").json()
        assert found["root"] == tree.get_root(size).hex()


def test_inclusion_proofs_agree(sample: Sample, tree: InmemoryTree) -> None:
    some = random.Random(1)
    for _ in range(300):
        size = some.randint(1, SIZE)
        index = some.randrange(size)
        found = sample.get(f"/proof/inclusion?index={index}&tree_size={size}").json()
        assert found["hashes"] == _path(tree.prove_inclusion(index + 1, size))
