"""Full tiles as they are kept in memory, and inclusion proofs made from them. Pure.

The definition of an inclusion proof is :func:`muniment.tree.plan_inclusion`: what is here is many times faster, and
tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from muniment.hashing import HASH_SIZE, node_hash
from muniment.proofs import MAX_PROOF
from muniment.tree import hash_in

CachedRows = tuple[bytes, bytes]
"""Rows 4 and 6 of a full tile: 640 bytes that spare most of the 247 hashes it takes to prove one of its hashes."""


def compact(rows: Sequence[bytes | bytearray]) -> tuple[list[bytes], CachedRows]:
    """Return the rows of a full tile without those that are quickly made again, and its top, which is part of them.

    The rows take 10 kB instead of 16.
    """
    top = bytes(rows[4]), bytes(rows[6])
    kept = with_top(bytes(rows[0]), top)
    kept[3] = bytes(rows[3])
    return kept, top


def with_top(hashes: bytes, top: CachedRows) -> list[bytes]:
    """Return the rows of a full tile as far as its hashes and its top hold them, to be read with :func:`hash_at`."""
    return [hashes, b"", b"", b"", top[0], b"", top[1], b""]


def heap(rows: Sequence[bytes | bytearray]) -> list[bytes]:
    """Return the 511 hashes of a full tile, each an object of its own.

    That of row r is at (256 >> r) + position. Takes 38 kB.
    """
    hashes = [b""]
    for row in range(8, -1, -1):
        data = bytes(rows[row])
        hashes += [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]
    return hashes


def siblings(hashes: Sequence[bytes], position: int) -> list[bytes]:
    """Return the siblings on the way from a hash of a tile, as :func:`heap` gives it, to the tile's root."""
    at = 256 + position
    return [
        hashes[at ^ 1],
        hashes[at >> 1 ^ 1],
        hashes[at >> 2 ^ 1],
        hashes[at >> 3 ^ 1],
        hashes[at >> 4 ^ 1],
        hashes[at >> 5 ^ 1],
        hashes[at >> 6 ^ 1],
        hashes[at >> 7 ^ 1],
    ]


def hash_at(rows: Sequence[bytes | bytearray], row: int, position: int) -> bytes:
    """Return a hash of a tile, made from the rows below where its own is left empty; `row` is in [0, 7].

    Raises AssertionError as :func:`hash_in`.
    """
    if not row or rows[row]:
        return hash_in(rows, row, position)
    return node_hash(hash_at(rows, row - 1, 2 * position), hash_at(rows, row - 1, 2 * position + 1))


def path(
    index: int,
    size: int,
    tails: Sequence[bytes],
    rows_of: Callable[[int, int], Sequence[bytes | bytearray]],
    low: int = 0,
    high: int = MAX_PROOF,
) -> list[bytes]:
    """Return PATH(index, D[0:size]) of RFC 6962 section 2.1.1: what :func:`plan_inclusion` folds to, many times faster.

    `tails` is that of the :class:`Edge` of `size`; `rows_of(level, index)` gives the rows of a tile. The sibling at
    each height lies in the same tile as the node itself; only the one at the right end may be incomplete, and is a
    tail. Given `low` and `high`, only the siblings at heights in [low, high) are returned. Requires 0 <= index < size.
    """
    found: list[bytes] = []
    last = size - 1
    height, stop = low, min(last.bit_length(), high)
    while height < stop:
        level, row = height >> 3, height & 7
        tile = index >> 8 * level + 8
        if not row and (tile + 1) << 8 * level + 8 <= size and height + 8 <= stop:
            found += _siblings(rows_of(level, tile), index >> height & 255)
            height += 8
            continue
        node = index >> height
        if node & 1 or (node + 2) << height <= size:
            found.append(hash_at(rows_of(level, tile), row, (node ^ 1) & (255 >> row)))
        elif (node + 1) << height < size:
            found.append(tails[height])
        height += 1
    return found


def _siblings(rows: Sequence[bytes | bytearray], position: int) -> list[bytes]:
    """Return the siblings on the way from a hash of a full tile to the tile's root.

    Written out: proofs spend their time here.
    """
    # Where the sibling stands in each row.
    at = position << 5
    a, b, c, d = at ^ 32, at >> 1 & -32 ^ 32, at >> 2 & -32 ^ 32, at >> 3 & -32 ^ 32
    e, f, g, h = at >> 4 & -32 ^ 32, at >> 5 & -32 ^ 32, at >> 6 & -32 ^ 32, at >> 7 & -32 ^ 32
    if rows[1]:
        first, second, third, fourth, fifth, sixth, seventh, eighth = map(bytes, rows[:8])
        return [
            first[a : a + 32],
            second[b : b + 32],
            third[c : c + 32],
            fourth[d : d + 32],
            fifth[e : e + 32],
            sixth[f : f + 32],
            seventh[g : g + 32],
            eighth[h : h + 32],
        ]
    first, fourth, fifth, seventh = bytes(rows[0]), bytes(rows[3]), bytes(rows[4]), bytes(rows[6])
    return [
        first[a : a + 32],
        sha256(b"\x01" + first[2 * b : 2 * b + 64]).digest(),
        _root_of_four(first, 4 * c),
        fourth[d : d + 32] or node_hash(_root_of_four(first, 8 * d), _root_of_four(first, 8 * d + 128)),
        fifth[e : e + 32],
        sha256(b"\x01" + fifth[2 * f : 2 * f + 64]).digest(),
        seventh[g : g + 32],
        sha256(b"\x01" + seventh[2 * h : 2 * h + 64]).digest(),
    ]


def _root_of_four(hashes: bytes, at: int) -> bytes:
    left = sha256(b"\x01" + hashes[at : at + 64]).digest()
    return sha256(b"\x01" + left + sha256(b"\x01" + hashes[at + 64 : at + 128]).digest()).digest()
