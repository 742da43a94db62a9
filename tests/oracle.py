"""A second opinion on Merkle trees: RFC 6962 section 2.1 transcribed, recursion for recursion, and proofs spoiled on purpose.

Nothing here shares an idea with :mod:`muniment.tree`: no tiles, no bit tricks, no loops over levels. Where both agree for every
small tree, either both are right or both misread the RFC in the same way, and for that there are the published vectors.

The accumulated vector
----------------------

``ACCUMULATED`` is one SHA-256 over every root, inclusion proof and consistency proof of all trees of 1 to 130 leaves. Another
implementation that computes it needs no vector files. Leaf i is the single byte i, so leaf hash i is SHA-256(0x00 || byte(i)).
Feed one SHA-256, for each size n from 1 to 130 in turn, with

1. the root MTH(D[0:n]), 32 bytes;
2. for each index i from 0 to n-1: the inclusion proof PATH(i, D[0:n]), leaf sibling first;
3. for each m from 1 to n: the consistency proof PROOF(m, D[0:n]), in the order of the RFC (empty when m = n);

where a proof is fed as one byte, its number of hashes, and then its hashes of 32 bytes each. The constant is the lowercase hex of
the digest: 8,515 inclusion proofs, 8,515 consistency proofs, 130 roots.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

ACCUMULATED_SIZE = 130
ACCUMULATED = "62a9b9033d094ab09a26d52eb21b03be8726bc1e0ff433c370e6c30e16c2cd6d"

# Leaves and roots that certificate transparency logs have tested with since 2011; the roots are those of sizes 0 to 8.
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


class Tree:
    """The Merkle tree over `leaves`, by the definitions of RFC 6962. Subtree hashes are kept, or 130 trees would take minutes."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.leaves = list(leaves)
        self._known: dict[tuple[int, int], bytes] = {}

    def mth(self, low: int, high: int) -> bytes:
        """MTH(D[low:high])."""
        found = self._known.get((low, high))
        if found is None:
            if low == high:
                found = sha256(b"").digest()
            elif high - low == 1:
                found = sha256(b"\x00" + self.leaves[low]).digest()
            else:
                middle = low + _split(high - low)
                found = _node(self.mth(low, middle), self.mth(middle, high))
            self._known[low, high] = found
        return found

    def root(self, size: int) -> bytes:
        """MTH(D[0:size])."""
        return self.mth(0, size)

    def leaf_hash(self, index: int) -> bytes:
        """MTH({d(index)})."""
        return self.mth(index, index + 1)

    def path(self, index: int, size: int) -> list[bytes]:
        """PATH(index, D[0:size])."""
        return self._path(index, 0, size)

    def _path(self, m: int, low: int, high: int) -> list[bytes]:
        if high - low == 1:
            return []
        k = _split(high - low)
        if m < k:
            return [*self._path(m, low, low + k), self.mth(low + k, high)]
        return [*self._path(m - k, low + k, high), self.mth(low, low + k)]

    def proof(self, first: int, second: int) -> list[bytes]:
        """PROOF(first, D[0:second])."""
        return self._subproof(first, 0, second, True)

    def _subproof(self, m: int, low: int, high: int, known: bool) -> list[bytes]:
        if m == high - low:
            return [] if known else [self.mth(low, high)]
        k = _split(high - low)
        if m <= k:
            return [*self._subproof(m, low, low + k, known), self.mth(low + k, high)]
        return [*self._subproof(m - k, low + k, high, False), self.mth(low, low + k)]


def byte_tree(size: int) -> Tree:
    """The tree whose leaf i is the single byte i (modulo 256)."""
    return Tree([bytes([i % 256]) for i in range(size)])


def accumulate(
    root: Callable[[int], bytes],
    path: Callable[[int, int], Sequence[bytes]],
    proof: Callable[[int, int], Sequence[bytes]],
) -> str:
    """The accumulated vector of an implementation, by the recipe above."""
    digest = sha256()

    def feed(hashes: Sequence[bytes]) -> None:
        digest.update(bytes([len(hashes)]) + b"".join(hashes))

    for size in range(1, ACCUMULATED_SIZE + 1):
        digest.update(root(size))
        for index in range(size):
            feed(path(index, size))
        for first in range(1, size + 1):
            feed(proof(first, size))
    return digest.hexdigest()


# --- verification by definition -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inclusion:
    """What an inclusion proof claims."""

    index: int
    size: int
    leaf: bytes
    proof: tuple[bytes, ...]
    root: bytes

    def holds(self) -> bool:
        """Whether PATH(index, D[0:size]) could have been this proof of this root."""
        if not 0 <= self.index < self.size < 2**63 or not _are_hashes(self.leaf, self.root, *self.proof):
            return False
        return _implied(self.index, self.size, self.leaf, self.proof) == self.root


def _implied(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    if size == 1:
        return None if proof else leaf
    if not proof:
        return None
    k, rest, last = _split(size), proof[:-1], proof[-1]
    below = _implied(index, k, leaf, rest) if index < k else _implied(index - k, size - k, leaf, rest)
    if below is None:
        return None
    return _node(below, last) if index < k else _node(last, below)


@dataclass(frozen=True)
class Consistency:
    """What a consistency proof claims."""

    first: int
    second: int
    root1: bytes
    root2: bytes
    proof: tuple[bytes, ...]

    def holds(self) -> bool:
        """Whether PROOF(first, D[0:second]) could have been this proof of these roots."""
        if not 0 <= self.first <= self.second < 2**63:
            return False
        if self.first == self.second:  # then nothing is hashed, and only equal roots can be claimed
            empty = self.first or self.root1 == sha256(b"").digest()
            return bool(empty) and not self.proof and self.root1 == self.root2
        if not self.first or not _are_hashes(self.root1, self.root2, *self.proof):
            return False
        return _both(self.first, self.second, self.proof, self.root1) == (self.root1, self.root2)


def _both(m: int, size: int, proof: Sequence[bytes], known: bytes | None) -> tuple[bytes, bytes] | None:
    """Old and new root of one subtree; `known` is the old root where the subtree starts at leaf 0."""
    if m == size:
        if known is not None:
            return None if proof else (known, known)
        return (proof[0], proof[0]) if len(proof) == 1 else None
    if not proof:
        return None
    k, rest, last = _split(size), proof[:-1], proof[-1]
    below = _both(m, k, rest, known) if m <= k else _both(m - k, size - k, rest, None)
    if below is None:
        return None
    old, new = below
    return (old, _node(new, last)) if m <= k else (_node(last, old), _node(last, new))


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == 32 for value in values)


# --- spoiled proofs -----------------------------------------------------------------------------------------------------

NUMBERS: dict[str, Callable[[int], int]] = {
    "plus 1": lambda n: n + 1,
    "minus 1": lambda n: n - 1,
    "xor 2": lambda n: n ^ 2,
    "double": lambda n: n * 2,
    "half": lambda n: n // 2,
    "negative": lambda n: -n - 1,
    "zero": lambda n: 0,
    "plus 2^32": lambda n: n + 2**32,
    "plus 2^63": lambda n: n + 2**63,
    "plus 2^64": lambda n: n + 2**64,
}


def spoiled_hashes(value: bytes, rng: random.Random, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield every way a single hash goes wrong; `other` is a good hash of something else."""
    yield "random", rng.randbytes(32)
    yield "of nothing", sha256(b"").digest()
    yield "other", other
    yield "absent", b""
    yield "zeros", bytes(32)
    yield "cut", value[:-1]
    yield "long", value + b"\x00"
    if value:
        yield "one bit", flip(value, rng.randrange(8 * len(value)))


def flip(value: bytes, bit: int) -> bytes:
    """`value` with one bit turned."""
    return (int.from_bytes(value) ^ (1 << bit)).to_bytes(len(value))


def spoiled_proofs(
    proof: tuple[bytes, ...], rng: random.Random, root: bytes
) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    """Yield every way the list of hashes goes wrong."""
    garbage = rng.randbytes(32)
    yield "leading garbage", (garbage, *proof)
    yield "trailing garbage", (*proof, garbage)
    yield "leading root", (root, *proof)
    yield "trailing root", (*proof, root)
    yield "sixty-four more", proof + (garbage,) * 64
    if proof:
        at = rng.randrange(len(proof))
        yield "emptied", ()
        yield "first missing", proof[1:]
        yield "last missing", proof[:-1]
        yield "one missing", proof[:at] + proof[at + 1 :]
        yield "one inserted", (*proof[:at], garbage, *proof[at:])
        yield "one twice", (*proof[:at], proof[at], *proof[at:])
        for name, value in spoiled_hashes(proof[at], rng, root):
            yield f"one {name}", (*proof[:at], value, *proof[at + 1 :])
    if len(proof) > 1:
        at = rng.randrange(len(proof) - 1)
        yield "two swapped", (*proof[:at], proof[at + 1], proof[at], *proof[at + 2 :])
        yield "reversed", proof[::-1]


def spoil_inclusion(case: Inclusion, rng: random.Random, other: bytes) -> Iterator[tuple[str, Inclusion]]:
    """Yield (what was done, the spoiled claim). Only a claim with another size may still hold: ask `holds`."""
    for name, change in NUMBERS.items():
        yield f"index {name}", replace(case, index=change(case.index))
        yield f"size {name}", replace(case, size=change(case.size))
    for name, value in spoiled_hashes(case.root, rng, other):
        yield f"root {name}", replace(case, root=value)
    for name, value in spoiled_hashes(case.leaf, rng, other):
        yield f"leaf {name}", replace(case, leaf=value)
    for name, proof in spoiled_proofs(case.proof, rng, case.root):
        yield f"proof {name}", replace(case, proof=proof)


def spoil_consistency(case: Consistency, rng: random.Random, other: bytes) -> Iterator[tuple[str, Consistency]]:
    """Yield (what was done, the spoiled claim). Only a claim with another size may still hold: ask `holds`."""
    for name, change in NUMBERS.items():
        yield f"first {name}", replace(case, first=change(case.first))
        yield f"second {name}", replace(case, second=change(case.second))
    for name, value in spoiled_hashes(case.root1, rng, other):
        yield f"root1 {name}", replace(case, root1=value)
    for name, value in spoiled_hashes(case.root2, rng, other):
        yield f"root2 {name}", replace(case, root2=value)
    yield "roots swapped", replace(case, root1=case.root2, root2=case.root1)
    for name, proof in spoiled_proofs(case.proof, rng, case.root1):
        yield f"proof {name}", replace(case, proof=proof)
