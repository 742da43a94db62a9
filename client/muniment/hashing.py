"""RFC 6962 section 2.1 hashing with SHA-256."""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import NewType

LeafHash = NewType("LeafHash", bytes)
"""SHA-256(0x00 || leaf), 32 bytes."""
RootHash = NewType("RootHash", bytes)
"""Merkle tree hash of a whole tree, 32 bytes."""

HASH_SIZE = 32
_PAIR = Struct(f"{2 * HASH_SIZE}s")
EMPTY_ROOT = RootHash(sha256(b"").digest())
"""Root of the tree of size 0: SHA-256 of the empty string."""


def leaf_hash(leaf: bytes) -> LeafHash:
    """Return SHA-256(0x00 || leaf)."""
    return LeafHash(sha256(b"\x00" + leaf).digest())


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 || left || right) for two 32-byte hashes."""
    return sha256(b"\x01" + left + right).digest()


def node_hashes(hashes: memoryview) -> bytes:
    """Return the node hash over each pair of neighbouring 32-byte hashes.

    Requires whole pairs: a multiple of 64 bytes.
    """
    # To walk through the pairs is faster than to cut them out.
    return b"".join([sha256(b"\x01" + pair).digest() for (pair,) in _PAIR.iter_unpack(hashes)])
