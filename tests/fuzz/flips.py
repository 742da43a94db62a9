"""Every bit of every proof of every tree of up to 130 leaves, turned: none may still verify. Complete, so without a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from muniment.errors import BadProof
from muniment.proofs import verify_consistency, verify_inclusion
from tests.fuzz.target import Broken
from tests.oracle import byte_tree, flip

LARGEST = 130
TREE = byte_tree(LARGEST)


def flips_of(size: int) -> int:
    """Turn every bit of every inclusion and consistency proof of the tree of `size`; return how many were refused: all."""
    refused = 0
    for index in range(size):
        leaf, root = TREE.leaf_hash(index), TREE.root(size)
        # The proof comes last in both, so that it alone remains to be given.
        check = partial(_inclusion, index, size, leaf, root)
        refused += _flips(TREE.path(index, size), check, f"inclusion {index} of {size}")
    for first in range(1, size + 1):
        check = partial(verify_consistency, first, size, TREE.root(first), TREE.root(size))
        refused += _flips(TREE.proof(first, size), check, f"consistency {first} to {size}")
    return refused


def _inclusion(index: int, size: int, leaf: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    verify_inclusion(index, size, leaf, proof, root)  # type: ignore[arg-type]


def _flips(proof: list[bytes], verify: Callable[[Sequence[bytes]], None], what: str) -> int:
    refused = 0
    for at, good in enumerate(proof):
        for bit in range(256):
            proof[at] = flip(good, bit)
            try:
                verify(proof)
            except BadProof:
                refused += 1
            else:
                raise Broken(f"{what} holds with bit {bit} of hash {at} turned")
        proof[at] = good
    return refused


def flips_expected(size: int) -> int:
    """How many bits the proofs of the tree of `size` have."""
    paths = sum(len(TREE.path(index, size)) for index in range(size))
    return 256 * (paths + sum(len(TREE.proof(first, size)) for first in range(1, size + 1)))
