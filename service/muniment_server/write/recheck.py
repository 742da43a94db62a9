"""The check before a signature: what is stored, recomputed by another path than the one that made it. Pure.

:func:`muniment.tree.grow` makes hashes and roots from leaf hashes in memory. Here they are made again from the leaves
and tiles as they were read back, so that a bit that flips anywhere on the way, in memory or in the database, is found
before it is signed. Yeti 2022 signed one flipped bit of a leaf hash, and the log could not be saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct

from muniment.errors import BadProof
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash
from muniment.proofs import verify_consistency
from muniment.tiles import TILE_WIDTH, Tile, width_at
from muniment.tree import Lookup, Node, expand, hash_in, partial_tiles, place, plan_consistency, plan_root
from muniment_server.errors import Mismatch

StoredTiles = Mapping[tuple[int, int], bytes]
"""Bytes of tiles by (level, index), as wide as they are stored by now: 32 to 8,192 bytes."""

FULL = TILE_WIDTH * HASH_SIZE
_PAIR = Struct(f"{2 * HASH_SIZE}s")  # not shared with muniment.hashing: a mistake there must not be made here as well


def tiles_between(old: int, size: int) -> list[Tile]:
    """Return the tiles of the tree of `size` that are not full, or hold a hash that the tree of `old` has not.

    Requires old <= size.
    """
    found = {(tile.level, tile.index): tile for tile in partial_tiles(size) if tile.width}
    level = 0
    while size >> 8 * level:
        low, high = old >> 8 * level, size >> 8 * level
        if low < high:
            for index in range(low // TILE_WIDTH, (high - 1) // TILE_WIDTH + 1):
                found[level, index] = Tile(level, index, width_at(level, index, size))
        level += 1
    return [found[where] for where in sorted(found)]


def edge_bytes(size: int, stored: StoredTiles) -> dict[tuple[int, int], bytes]:
    """Return the tiles of the right edge of `size`, cut to their width then.

    Raises Mismatch when one is missing or too short.
    """
    found = {}
    for tile in partial_tiles(size):
        if tile.width:
            found[tile.level, tile.index] = _cut(tile, stored)
    return found


def check_kept(before: StoredTiles, after: StoredTiles) -> None:
    """Check that tiles only grew at their end. Raises Mismatch."""
    for (level, index), data in before.items():
        if after.get((level, index), b"")[: len(data)] != data:
            raise Mismatch(index * TILE_WIDTH << 8 * level, f"tile {level}/{index} is no longer what it was")


def check_count(old: int, size: int, leaves: Sequence[bytes]) -> None:
    """Check that the leaves [old, size) are all there. Raises Mismatch."""
    if len(leaves) != size - old:
        raise Mismatch(old + len(leaves), f"{size - old - len(leaves)} entries from {old + len(leaves)} on are missing")


def check_new(old: int, size: int, leaves: Sequence[bytes], stored: StoredTiles) -> None:
    """Check every hash that the tree of `size` has and that of `old` has not, from the leaves [old, size) up.

    Raises Mismatch. `stored` may hold more: the leaves of a larger tree can be checked part by part.
    """
    check_count(old, size, leaves)
    made = b"".join([sha256(b"\x00" + leaf).digest() for leaf in leaves])
    level = 0
    while made:
        _compare(level, old >> 8 * level, made, stored)
        level += 1
        complete = range(old >> 8 * level, size >> 8 * level)
        made = b"".join([root_by_pairs(stored[level - 1, index][:FULL]) for index in complete])


def check_root(size: int, root: bytes, stored: StoredTiles) -> None:
    """Check the root of `size` against its right edge. Raises Mismatch."""
    if root_of_edge(size, stored) != root:
        raise Mismatch(max(size - 1, 0), f"the stored tiles do not hash to the root of size {size}")


def root_of_edge(size: int, stored: StoredTiles) -> bytes:
    """Return the root of `size` by pairing hashes level by level. Raises Mismatch when a tile is missing or too short.

    At each tile level what the levels below amount to stands behind the tile's own hashes.
    """
    below = b""
    for tile in partial_tiles(size):
        own = _cut(tile, stored) if tile.width else b""
        below = root_by_pairs(own + below)
    return below or bytes(EMPTY_ROOT)


def root_by_pairs(hashes: bytes) -> bytes:
    """Return the Merkle tree hash over hashes that stand one behind the other; nothing for none."""
    whole = len(hashes) // _BLOCK * _BLOCK
    blocks = [_block(hashes[at : at + _BLOCK]) for at in range(0, whole, _BLOCK)]
    return _paired(b"".join(blocks) + _paired(hashes[whole:]))


_BLOCK = 16 * HASH_SIZE


@lru_cache(1024)
def _block(hashes: bytes) -> bytes:
    """Return the root over sixteen hashes.

    It is kept by what it is made of: bytes that changed are other bytes, and hashed anew.
    """
    return _paired(hashes)


def _paired(hashes: bytes) -> bytes:
    while len(hashes) > HASH_SIZE:
        paired = len(hashes) // 64 * 64
        made = [sha256(b"\x01" + pair).digest() for (pair,) in _PAIR.iter_unpack(hashes[:paired])]
        hashes = b"".join(made) + hashes[paired:]
    return hashes


def _cut(tile: Tile, stored: StoredTiles) -> bytes:
    data = stored.get((tile.level, tile.index), b"")[: tile.width * HASH_SIZE]
    if len(data) != tile.width * HASH_SIZE:
        first = tile.index * TILE_WIDTH + len(data) // HASH_SIZE << 8 * tile.level
        raise Mismatch(first, f"tile {tile.level}/{tile.index} has {len(data) // HASH_SIZE} hashes, not {tile.width}")
    return data


def _compare(level: int, first: int, made: bytes, stored: StoredTiles) -> None:
    """Compare the hashes from position `first` of a level on with what its tiles hold."""
    at = 0
    while at < len(made):
        index, skip = divmod(first + at // HASH_SIZE, TILE_WIDTH)
        part = made[at : at + (TILE_WIDTH - skip) * HASH_SIZE]
        found = stored.get((level, index), b"")[skip * HASH_SIZE : skip * HASH_SIZE + len(part)]
        if found != part:
            wrong = next(n for n in range(0, len(part), HASH_SIZE) if found[n : n + 32] != part[n : n + 32])
            position = index * TILE_WIDTH + skip + wrong // HASH_SIZE
            raise Mismatch(position << 8 * level, f"hash {position} of level {level} is not that of what it stands for")
        at += len(part)


def tiles_to_extend(first: int, second: int) -> list[Tile]:
    """Return the tiles that :func:`extends` needs for two sizes, in any order."""
    small, large = sorted((first, second))
    return plan_consistency(small, large).tiles(large) if small else []


def extends(first: tuple[int, RootHash], second: tuple[int, RootHash], stored: StoredTiles) -> bool:
    """Tell whether the tree `second`, a (size, root), extends `first`.

    It does when the proof in `stored` connects these two roots. Both go into one proof (RFC 9162 section 2.1.4), so it
    does not matter where the tiles came from: wrong ones prove nothing. Every tree extends the empty one.
    """
    (size1, root1), (size2, root2) = first, second
    if not size1 or size1 >= size2:
        return first == second or (first == (0, EMPTY_ROOT) and size2 > 0)
    try:
        proof = plan_consistency(size1, size2).fold(_lookup(stored))
        verify_consistency(size1, size2, root1, root2, proof)
    except (BadProof, Mismatch):
        return False
    return True


def root_of_nodes(size: int, stored: StoredTiles) -> bytes:
    """Return the root of `size` from any tiles that hold its complete subtrees.

    Raises Mismatch when one is missing or too short.
    """
    if not size:
        return bytes(EMPTY_ROOT)
    return plan_root(size).fold(_lookup(stored))[0]


def _lookup(stored: StoredTiles) -> Lookup:
    """Return what finds a node in these tiles. It raises Mismatch when the node's tile is missing or too short."""
    rows = {where: expand(data) for where, data in stored.items()}

    def lookup(node: Node) -> bytes:
        level, index, row, position = place(node)
        try:
            return hash_in(rows[level, index], row, position)
        except (KeyError, AssertionError):
            raise Mismatch(node.index << node.height, f"tile {level}/{index} is missing or too short") from None

    return lookup
