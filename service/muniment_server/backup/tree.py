"""Checks a whole log against a signed head, bottom up, before anything of it is used.

First the tiles: the hashes of level 0 are folded into every tile above them, into the root of each published
checkpoint, and into the signed root. Then the leaves, bundle by bundle: each bundle has to fold to a hash that is
known to be right by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from muniment import strictjson
from muniment.checkpoint import Checkpoint
from muniment.errors import EventRefused, FormatError, VerificationError
from muniment.event import EventLeaf, parse_leaf
from muniment.hashing import HASH_SIZE, LeafHash, RootHash, leaf_hash
from muniment.policy import Policy
from muniment.tiles import TILE_WIDTH, Bundle, Tile, width_at
from muniment.tree import Edge, Growth, expand, grow, plan_root
from muniment_server.backup import Progress
from muniment_server.check.fsck.entries import erased_by
from muniment_server.errors import Corrupt
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import StoredPayload
from muniment_server.write.admission import canonicalize, commit

_GROUP = 16
"""Bundles that are read at the same time."""


class Source(Protocol):
    """Where a log is read from. Each method raises Corrupt, naming what is missing or malformed."""

    def call(self, place: Tile | Bundle) -> str:
        """Return how messages call a tile or bundle."""

    async def tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        """Return the bytes of tiles, each exactly as wide as asked for."""

    async def leaves(self, bundle: Bundle) -> list[bytes]:
        """Return the leaves of a bundle, exactly as many as its width."""

    async def published(self, bundle: Bundle) -> list[Published]:
        """Return the published checkpoints whose last entry is in this bundle, smallest first."""

    async def payloads(self, bundle: Bundle, events: Sequence[int]) -> list[StoredPayload]:
        """Return the payloads that are left of `events`, and of no other entry.

        `events` are the indices of the events in this bundle.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """One bundle that was checked: its leaves, its tile at level 0, and what else belongs to its entries."""

    bundle: Bundle
    leaves: list[bytes]
    hashes: bytes
    events: list[int]
    payloads: list[StoredPayload]
    published: list[Published]

    @property
    def start(self) -> int:
        """Index of the first leaf."""
        return self.bundle.index * TILE_WIDTH


@dataclass(slots=True)
class Tree:
    """Every hash above the leaves of a signed head: checked, so that leaves can be checked against them.

    `upper` has the tiles of level 1 and above as they are at this size. `last` is the partial tile of level 0, or
    empty.
    """

    head: Checkpoint
    upper: dict[tuple[int, int], bytes] = field(default_factory=dict)
    last: bytes = b""

    def bundles(self) -> list[Bundle]:
        """Return every bundle of this tree."""
        count = (self.head.size + TILE_WIDTH - 1) // TILE_WIDTH
        return [Bundle(index, width_at(0, index, self.head.size)) for index in range(count)]

    def holds(self, bundle: Bundle, hashes: bytes) -> bool:
        """Tell whether these leaf hashes are those of the bundle."""
        if bundle.width < TILE_WIDTH:
            return hashes == self.last
        position = bundle.index % TILE_WIDTH * HASH_SIZE
        known = self.upper[1, bundle.index // TILE_WIDTH][position : position + HASH_SIZE]
        return bytes(expand(hashes)[8]) == known


# --- tiles ------------------------------------------------------------------------------------------------------------


async def check_tiles(
    source: Source, head: Checkpoint, policy: Policy, known: Mapping[int, RootHash], progress: Progress
) -> Tree:
    """Check every tile and every published checkpoint up to `head`.

    `known` has further roots to meet, by size. Raises Corrupt.
    """
    tree, edge = Tree(head), Edge()
    bundles = tree.bundles()
    for at in range(0, len(bundles), _GROUP):
        group = bundles[at : at + _GROUP]
        data = await source.tiles([Tile(0, *bundle) for bundle in group])
        notes = await asyncio.gather(*map(source.published, group))
        for hashes, published in zip(data, notes, strict=True):
            growth = grow(edge, map(LeafHash, _split(hashes)))
            wanted = {**known, **_signed_roots(published, head.origin, policy)}
            if (wrong := _wrong_root(edge.size, growth, wanted)) is not None:
                raise Corrupt(await _locate(source, tree, wrong))
            tree.upper |= {(tile.level, tile.index): tile.data for tile in growth.tiles if tile.level}
            edge = growth.edge
        progress("tiles", edge.size, head.size)
    if edge.root() != head.root:
        raise Corrupt(await _locate(source, tree, head.size))
    if head.size % TILE_WIDTH:
        tree.last = bytes(edge.levels[0][0])
    await _check_upper(source, tree)
    return tree


def _split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)]


def _signed_roots(published: Sequence[Published], origin: str, policy: Policy) -> dict[int, RootHash]:
    found: dict[int, RootHash] = {}
    for each in published:
        try:
            signed = policy.verify(each.note).checkpoint
        except (FormatError, VerificationError) as error:
            raise Corrupt(f"the published checkpoint of size {each.size} does not verify: {error}") from error
        if (signed.origin, signed.size) != (origin, each.size):
            raise Corrupt(
                f"the published checkpoint of size {each.size} is one of {signed.origin!r}, size {signed.size}"
            )
        found[each.size] = signed.root
    return found


def _wrong_root(low: int, growth: Growth, wanted: Mapping[int, RootHash]) -> int | None:
    """Return the first size in (low, size of growth] at which the tiles have another root than wanted."""
    for size in sorted(wanted):
        if low < size <= growth.edge.size and plan_root(size).fold(growth.lookup)[0] != wanted[size]:
            return size
    return None


async def _check_upper(source: Source, tree: Tree) -> None:
    for (level, index), right in sorted(tree.upper.items()):
        tile = Tile(level, index, len(right) // HASH_SIZE)
        (found,) = await source.tiles([tile])
        if found != right:
            first = (index * TILE_WIDTH + first_difference(found, right)) << 8 * level
            raise Corrupt(f"{source.call(tile)} is wrong, first for the subtree that starts at index {first}")


async def _locate(source: Source, tree: Tree, size: int) -> str:
    """Return a sentence on why the root of `size` is wrong.

    The reason is the first entry that its tile contradicts, or another history.
    """
    for bundle in tree.bundles()[: (size + TILE_WIDTH - 1) // TILE_WIDTH]:
        tile = Tile(0, *bundle)
        (found,) = await source.tiles([tile])
        right = b"".join(map(leaf_hash, await source.leaves(bundle)))
        if found != right:
            index = bundle.index * TILE_WIDTH + first_difference(found, right)
            return f"entry {index} does not hash to what {source.call(tile)} holds"
    return (
        f"the first {size} entries hash to another root than the checkpoint of size {size}: one of the entries from "
        f"index 0 to {size - 1} was changed with its tile, or this is another history"
    )


def first_difference(left: bytes, right: bytes) -> int:
    """Return the position of the first hash that differs in two tiles."""
    pairs = zip(_split(left), _split(right), strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)) // HASH_SIZE)


# --- leaves -----------------------------------------------------------------------------------------------------------


async def checked_parts(source: Source, tree: Tree, start: int = 0, *, payloads: bool) -> AsyncIterator[Part]:
    """Yield every bundle from the one that holds entry `start`, checked against the tree. Raises Corrupt."""
    bundles = tree.bundles()[start // TILE_WIDTH :]
    for at in range(0, len(bundles), _GROUP):
        group = bundles[at : at + _GROUP]
        for part in await asyncio.gather(*(_part(source, tree, bundle, payloads=payloads) for bundle in group)):
            yield part


async def _part(source: Source, tree: Tree, bundle: Bundle, *, payloads: bool) -> Part:
    leaves = await source.leaves(bundle)
    hashes = b"".join(map(leaf_hash, leaves))
    if not tree.holds(bundle, hashes):
        raise Corrupt(await _wrong_leaf(source, bundle, hashes))
    start = bundle.index * TILE_WIDTH
    contents = {start + at: _content(start + at, leaf) for at, leaf in enumerate(leaves)}
    events = [index for index, content in contents.items() if content]
    opened = await source.payloads(bundle, events) if payloads else []
    for stored in opened:
        _check_payload(stored, contents[stored.index])
    return Part(bundle, leaves, hashes, events, opened, await source.published(bundle))


async def _wrong_leaf(source: Source, bundle: Bundle, hashes: bytes) -> str:
    tile = Tile(0, *bundle)
    (right,) = await source.tiles([tile])
    index = bundle.index * TILE_WIDTH + first_difference(hashes, right)
    return f"entry {index}, in {source.call(bundle)}, does not hash to what {source.call(tile)} holds"


def _content(index: int, leaf: bytes) -> EventLeaf | None:
    try:
        content = parse_leaf(leaf)
    except FormatError as error:
        raise Corrupt(f"entry {index}: {error}") from error
    return content if isinstance(content, EventLeaf) else None


def _check_payload(stored: StoredPayload, leaf: EventLeaf | None) -> None:
    """Raise Corrupt unless a payload is canonical and, with its seed, opens the commitment in its leaf."""
    try:
        value, canonical = canonicalize(stored.payload)
        if leaf and canonical == stored.payload and commit(value, canonical, stored.seed).commitment == leaf.commitment:
            return
    except EventRefused:
        pass
    raise Corrupt(f"the payload of entry {stored.index} is not what its leaf commits to")


# --- erasure ----------------------------------------------------------------------------------------------------------

_ERASURE = "muniment/erasure@v1"


def erased_indices(leaf: bytes) -> frozenset[int]:
    """Return the indices whose payload an erasure entry names; none for every other leaf.

    Raises Corrupt when an erasure entry names none. Their payload and seed must not come back, whichever members were
    erased. A leaf of this type in a form that this release cannot read is refused: to ignore it could bring back what
    the operator promised to be gone.
    """
    if _ERASURE.encode() not in leaf:
        return frozenset()
    try:
        value = orjson.loads(leaf)
        ours = isinstance(value, dict) and value.get("typ") == _ERASURE and strictjson.canonical(value) == leaf
    except (orjson.JSONDecodeError, EventRefused):
        return frozenset()
    if not ours:
        return frozenset()
    named = erased_by(value)
    if named is None:
        raise Corrupt("an erasure entry is in a form that this release cannot read: restore with --no-payloads")
    return named
