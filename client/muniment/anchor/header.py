"""Bitcoin block headers: 80 bytes, their proof of work, and the compact form of targets.

A header is version (4 bytes), hash of the previous block (32), Merkle root (32), time (4), bits (4), nonce
(4); integers are little-endian. Hashes here are in internal order, the order of the bytes in a header; people
see them reversed, in hex.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from muniment.errors import BadHeader

HEADER_SIZE = 80


@dataclass(frozen=True, slots=True)
class Header:
    """A block header. Made by :func:`parse_header`, which has checked its proof of work."""

    raw: bytes

    @property
    def previous(self) -> bytes:
        """The hash of the block before, 32 bytes in internal order."""
        return self.raw[4:36]

    @property
    def merkle_root(self) -> bytes:
        """The Merkle root of the block's transactions, 32 bytes in internal order: an attestation's message."""
        return self.raw[36:68]

    @property
    def time(self) -> int:
        """Unix seconds, by the miner's word: good to a couple of hours."""
        return int.from_bytes(self.raw[68:72], "little")

    @property
    def bits(self) -> int:
        """The target in compact form."""
        return int.from_bytes(self.raw[72:76], "little")

    @property
    def hash(self) -> bytes:
        """The hash of this block, 32 bytes in internal order."""
        return block_hash(self.raw)

    @property
    def block_hash(self) -> str:
        """The hash of this block as shown to people."""
        return display(self.hash)

    @property
    def work(self) -> int:
        """How many hashes it takes on average to find such a header."""
        return work_of(target_of(self.bits))


def parse_header(raw: bytes) -> Header:
    """Return a header whose proof of work holds.

    Raises BadHeader unless `raw` has 80 bytes, its bits are canonical, and its hash is not above the target they say.
    """
    if len(raw) != HEADER_SIZE:
        raise BadHeader(f"a block header has {HEADER_SIZE} bytes, not {len(raw)}")
    header = Header(bytes(raw))
    if int.from_bytes(header.hash, "little") > target_of(header.bits):
        raise BadHeader(f"block {header.block_hash} has not the work that its header claims")
    return header


def block_hash(raw: bytes) -> bytes:
    """Return the hash of a header, 32 bytes in internal order."""
    return sha256(sha256(raw).digest()).digest()


def display(internal: bytes) -> str:
    """Return a hash as shown to people: reversed, in hex."""
    return internal[::-1].hex()


def target_of(bits: int) -> int:
    """Return the target, 0 < target < 2**256, that `bits` stand for.

    Raises BadHeader unless they are in canonical form. Compact form is a length in bytes (the high byte) and the first
    three bytes of a signed big-endian number.
    """
    length, word = bits >> 24, bits & 0xFFFFFF
    target = word << 8 * (length - 3) if length > 3 else word >> 8 * (3 - length)
    if not 0 < target < 2**256 or word > 0x7FFFFF or bits_of(target) != bits:
        raise BadHeader(f"bits {bits:#010x} are no target in canonical form")
    return target


def bits_of(target: int) -> int:
    """Return the compact form of `target`, 0 < target < 2**256.

    All but the first three bytes are lost: it rounds down.
    """
    length = (target.bit_length() + 7) // 8
    word = target >> 8 * (length - 3) if length > 3 else target << 8 * (3 - length)
    if word > 0x7FFFFF:  # the highest bit would be a sign
        length, word = length + 1, word >> 8
    return length << 24 | word


def work_of(target: int) -> int:
    """Return how many hashes it takes on average to find one that is not above `target`."""
    return 2**256 // (target + 1)
