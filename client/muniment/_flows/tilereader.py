"""Reads tiles and entry bundles of one log, each authenticated by the root of a checkpoint before a caller sees it.

The right edge (the tiles that are not full) folds to the root, so it is checked as a whole. A full tile is checked
against its own hash in the tile above it, and so on up to the edge. Tiles that passed are kept: a tree that only grows
never changes a full tile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from muniment._flows.steps import Flow, Request, Retries, send
from muniment.checkpoint import Checkpoint
from muniment.errors import BadProof, FormatError, Refused
from muniment.hashing import HASH_SIZE, RootHash, leaf_hash
from muniment.tiles import (
    MAX_ENTRY,
    TILE_WIDTH,
    Bundle,
    Tile,
    decode_bundle,
    format_bundle,
    format_tile,
    width_at,
)
from muniment.tree import (
    Edge,
    Node,
    Plan,
    TileRows,
    expand,
    hash_in,
    partial_tiles,
    place,
    plan_consistency,
    plan_inclusion,
    plan_root,
)

KEPT = 64
"""Full tiles kept in memory, about 16 KiB each."""


class TileReader:
    """Authenticated reads below any of several checkpoints.

    These are consistent with one another: the caller vouches for that.
    """

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._full: OrderedDict[tuple[int, int], TileRows] = OrderedDict()
        self._edge: tuple[RootHash, Edge] | None = None

    def hashes(self, head: Checkpoint, level: int, index: int) -> Flow[bytes]:
        """Return the hashes of a tile as it is in `head`'s tree, 32 to 8,192 bytes.

        Raises BadProof when the server's bytes do not lead to the root, FormatError when the tree has no such tile.
        """
        rows = yield from self._rows(head, level, index)
        return bytes(rows[0])

    def leaves(self, head: Checkpoint, index: int) -> Flow[list[bytes]]:
        """Return the 1 to 256 leaves of an entry bundle as it is in `head`'s tree. Raises BadProof, FormatError."""
        hashes = yield from self.hashes(head, 0, index)
        width = len(hashes) // HASH_SIZE
        data = yield from self._fetch(
            format_bundle(Bundle(index, width)), format_bundle(Bundle(index)), TILE_WIDTH * (MAX_ENTRY + 2)
        )
        leaves = decode_bundle(data)[:width]
        check_leaves(leaves, hashes, index * TILE_WIDTH)
        return leaves

    def root_at(self, head: Checkpoint, size: int) -> Flow[RootHash]:
        """Return the root of the first `size` leaves of `head`'s tree, 1 <= size <= head.size. Raises BadProof."""
        roots = yield from self._fold(head, plan_root(size))
        return RootHash(roots[0])

    def consistency(self, head: Checkpoint, first: int) -> Flow[tuple[bytes, ...]]:
        """Return the consistency proof from size `first` to `head`, 1 <= first <= head.size. Raises BadProof."""
        found = yield from self._fold(head, plan_consistency(first, head.size))
        return tuple(found)

    def inclusions(self, head: Checkpoint, low: int, high: int) -> Flow[list[tuple[bytes, ...]]]:
        """Return the inclusion proofs of the leaves [low, high) in `head`'s tree, low < high <= head.size.

        Raises BadProof. They are right by construction: each hash is of a tile that leads to the root.
        """
        found: list[tuple[bytes, ...]] = []
        for index in range(low // TILE_WIDTH, (high - 1) // TILE_WIDTH + 1):
            first = index * TILE_WIDTH
            leaves = range(max(low, first), min(high, first + TILE_WIDTH))
            if width_at(0, index, head.size) == TILE_WIDTH:
                found += yield from self._full_tile(head, index, leaves)
            else:
                for leaf in leaves:
                    found.append(tuple((yield from self._fold(head, plan_inclusion(leaf, head.size)))))
        return found

    def _full_tile(self, head: Checkpoint, index: int, leaves: range) -> Flow[list[tuple[bytes, ...]]]:
        """Return the proofs of leaves of one full tile: within it each has its own way, and above it all have one."""
        rows = yield from self._rows(head, 0, index)
        above = yield from self._fold(head, Plan(plan_inclusion(leaves[0], head.size).parts[8:]))
        within = [leaf % TILE_WIDTH for leaf in leaves]
        return [(*(hash_in(rows, row, leaf >> row ^ 1) for row in range(8)), *above) for leaf in within]

    def _fold(self, head: Checkpoint, plan: Plan) -> Flow[list[bytes]]:
        rows: dict[tuple[int, int], TileRows] = {}
        for tile in plan.tiles(head.size):
            rows[tile.level, tile.index] = yield from self._rows(head, tile.level, tile.index)

        def lookup(node: Node) -> bytes:
            level, index, row, position = place(node)
            return hash_in(rows[level, index], row, position)

        return plan.fold(lookup)

    def _rows(self, head: Checkpoint, level: int, index: int) -> Flow[TileRows]:
        width = width_at(level, index, head.size)
        if not width:
            raise FormatError(f"no tile {level}/{index} in a tree of size {head.size}")
        if width < TILE_WIDTH:
            edge = yield from self._edge_of(head)
            return edge.levels[level]
        rows = self._full.get((level, index))
        if rows is None:
            rows = yield from self._read_full(head, level, index)
        self._keep((level, index), rows)
        return rows

    def _keep(self, key: tuple[int, int], rows: TileRows) -> None:
        self._full.pop(key, None)
        self._full[key] = rows
        if len(self._full) > KEPT:
            self._full.popitem(last=False)

    def _read_full(self, head: Checkpoint, level: int, index: int) -> Flow[TileRows]:
        above = yield from self._rows(head, level + 1, index // TILE_WIDTH)
        rows = expand((yield from self._fetch_tile(Tile(level, index))))
        if bytes(rows[8]) != hash_in(above, 0, index % TILE_WIDTH):
            raise BadProof(f"tile {level}/{index} does not lead to the signed root of size {head.size}")
        return rows

    def _edge_of(self, head: Checkpoint) -> Flow[Edge]:
        if self._edge and self._edge[0] == head.root and self._edge[1].size == head.size:
            return self._edge[1]
        tiles: dict[tuple[int, int], bytes] = {}
        for tile in partial_tiles(head.size):
            if tile.width:
                tiles[tile.level, tile.index] = yield from self._fetch_tile(tile)
        edge = Edge.of(head.size, tiles)
        if edge.root() != head.root:
            raise BadProof(f"the tiles at the right edge do not lead to the signed root of size {head.size}")
        self._edge = head.root, edge
        return edge

    def _fetch_tile(self, tile: Tile) -> Flow[bytes]:
        full = tile._replace(width=TILE_WIDTH)
        data = yield from self._fetch(format_tile(tile), format_tile(full), TILE_WIDTH * HASH_SIZE)
        if len(data) < tile.width * HASH_SIZE:
            raise BadProof(f"tile {format_tile(tile)} has {len(data)} bytes, not {tile.width * HASH_SIZE}")
        return data[: tile.width * HASH_SIZE]

    def _fetch(self, path: str, full: str, limit: int) -> Flow[bytes]:
        """Return a tile or bundle.

        A server may have dropped a partial one once the full one exists (C2SP tlog-tiles).
        """
        try:
            response = yield from send(Request("GET", f"/tile/{path}", limit=limit), self._retries)
        except Refused as refused:
            if refused.status != 404 or path == full:
                raise
            response = yield from send(Request("GET", f"/tile/{full}", limit=limit), self._retries)
        return response.body


def check_leaves(leaves: Sequence[bytes], hashes: bytes, start: int) -> None:
    """Check that leaf `start` + i has the i-th of the authenticated `hashes`, neither more nor fewer.

    Raises BadProof.
    """
    if len(leaves) * HASH_SIZE != len(hashes):
        raise BadProof(f"{len(leaves)} leaves from index {start}, not {len(hashes) // HASH_SIZE}")
    for at, leaf in enumerate(leaves):
        if leaf_hash(leaf) != hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE]:
            raise BadProof(f"the leaf at index {start + at} is not the one in the signed tree")
