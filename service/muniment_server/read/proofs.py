"""Proofs of a log: that an entry is in a tree of it, and that one tree extends another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from muniment.errors import BadProof
from muniment.hashing import LeafHash, RootHash
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.tiles import TILE_WIDTH
from muniment.tree import (
    Edge,
    Node,
    Plan,
    place,
    plan_consistency,
    plan_inclusion,
    plan_root,
)
from muniment_server.errors import Corrupt, NotFound, Refused
from muniment_server.read.cache import Rows
from muniment_server.read.flow import Ask, Call, Flow
from muniment_server.read.heads import Heads
from muniment_server.read.tiles import Tiles
from muniment_server.read.tree import TreeAt
from muniment_server.tile_rows import hash_at, heap, path, siblings
from muniment_server.write.submission import Signed

_SHARED = 16
"""Entries whose index differs in lower bits alone share the proof from this height on: it is kept."""
_MAX_HEAPS = 256
"""Full tiles of level 1 whose hashes are kept apart, 38 kB each: those of a log of 16 million entries. Without, a proof
takes a tenth longer."""


class Proof(NamedTuple):
    """A proof at `size` under `root`, and what ties that size to the signed head `signed`.

    `leaf_hash` is that of the entry an inclusion proof is of.
    """

    size: int
    root: bytes
    hashes: list[bytes]
    signed: Signed
    tie: list[bytes]
    leaf_hash: bytes = b""


class _Cold(Exception):
    """A tile is not in memory."""


class Proofs:
    """Proves, from memory where that can, else with one read of the tiles."""

    def __init__(self, heads: Heads, tiles: Tiles) -> None:
        self._heads = heads
        self._tiles = tiles
        # Of a signed head, the part of proofs from height _SHARED on, by the index without its lower bits.
        self._uppers: tuple[Signed | None, dict[int, list[bytes]]] = (None, {})
        self._heaps: dict[int, list[bytes]] = {}  # by index of the tile

    def inclusion(self, index: int, size: int | None = None) -> Flow[Proof]:
        """Prove entry `index` in the tree of `size`: plan, fetch, fold, verify. Raises NotFound, Corrupt.

        By default in that of the latest signed head, for which there is a shorter way: :meth:`inclusion_now`.
        """
        if size is None and (proof := (yield from self._latest_inclusion(index))):
            return proof
        signed = yield from self._latest(max(size or 0, index + 1))
        size = _known_size(signed.size if size is None else size, signed)
        if index >= size:
            raise NotFound(
                "no_entry",
                f"there is no entry {index} in the tree of size {size}",
                "Ask for a smaller index, or again later.",
            )
        return (yield from self._prove(plan_inclusion(index, size), size, signed, index))

    def consistency(self, first: int, second: int | None = None) -> Flow[Proof]:
        """Prove that the tree of `second` (default: the latest signed one) extends that of `first` >= 1.

        Raises NotFound, Refused, Corrupt.
        """
        signed = yield from self._latest(max(first, second or 0))
        second = _known_size(signed.size if second is None else second, signed)
        _known_size(first, signed)
        if first > second:
            raise Refused(
                "sizes_reversed",
                f"first ({first}) is larger than second ({second})",
                "Give the smaller size as first.",
            )
        return (yield from self._prove(plan_consistency(first, second), second, signed))

    def path(self, index: int, leaf: LeafHash, size: int, root: RootHash) -> Flow[list[bytes]]:
        """Return the inclusion proof of an entry, once it leads to this root. Raises Corrupt."""
        (proof,) = yield from self._fold([plan_inclusion(index, size)], size)
        try:
            verify_inclusion(index, size, leaf, proof, root)
        except BadProof as error:
            raise self._mixed(error) from error
        return proof

    async def tree(self, signed: Signed) -> TreeAt:
        """Return what proves many entries at this head, which may be an older one. Raises Corrupt."""
        try:
            return TreeAt(self._tiles, await self._tiles.edge(signed.size), signed, self._mixed)
        except BadProof as error:
            raise self._mixed(error) from error

    def _latest(self, at_least: int) -> Flow[Signed]:
        signed: Signed | None = self._heads.latest_now(at_least)
        if signed is None:
            signed = yield Call(partial(self._heads.latest, at_least))
        return signed

    def _prove(self, plan: Plan, size: int, signed: Signed, index: int | None = None) -> Flow[Proof]:
        """Fold a plan together with the root of `size`, the tie to `signed` and the leaf hash."""
        leaf = Plan(() if index is None else ((Node(0, index),),))
        plans = [plan, plan_root(size), plan_consistency(size, signed.size), leaf]
        hashes, root, tie, found = yield from self._fold(plans, signed.size)
        proof = Proof(size, root[0], hashes, signed, tie, found[0] if found else b"")
        try:
            _check(proof, index)
        except BadProof as error:
            raise self._mixed(error) from error
        return proof

    def _fold(self, plans: Sequence[Plan], size: int) -> Flow[list[list[bytes]]]:
        """Return what each plan folds to, with one read of the tiles, as they are in the tree of `size`."""
        rows = yield from self._tiles.rows([tile for plan in plans for tile in plan.tiles(size)])
        return [plan.fold(lambda node: _find(rows, node)) for plan in plans]

    def _mixed(self, error: BadProof) -> Corrupt:
        """Return what says that tiles and signed head do not fit, and keep none of those tiles."""
        self.forget()
        return Corrupt(f"the stored tiles do not lead to the signed head: {error}")

    def forget(self) -> None:
        """Keep no tile in memory, nor what was made of one: some may have come from another database."""
        self._tiles.forget()
        self._heaps.clear()
        self._uppers = (None, {})

    # --- the shorter way, for the latest tree -------------------------------------------------------------------------

    def _latest_inclusion(self, index: int) -> Flow[Proof | None]:
        """Return what :meth:`inclusion_now` does, once its tiles were read; None when that is not enough."""
        proof = self.inclusion_now(index)
        if proof is None and (signed := self._heads.latest_now(index + 1)):
            yield Ask(partial(self._tiles.cold.proof, index, signed.size))
            proof = self.inclusion_now(index)  # None when there is another head by now, or a tile is damaged
        return proof

    def inclusion_now(self, index: int) -> Proof | None:
        """As :meth:`inclusion` of an entry in the latest tree, when everything needed is in memory; else None.

        Nothing is planned here, nor verified again: every tile in memory was compared with the one above it. That takes
        8 us, not 138 us, in a tree of 66,000 entries.
        """
        signed, edge = self._heads.latest_now(index + 1), self._heads.edge_now()
        if not signed or not edge or edge.size != signed.size:
            return None

        rows_now = self._tiles.now
        bottom = rows_now(edge, 0, index // TILE_WIDTH)
        if bottom is None:
            return None

        def rows_of(level: int, tile: int) -> Rows:
            rows = rows_now(edge, level, tile) if level else bottom
            if rows is None:
                raise _Cold
            return rows

        try:
            lower = path(index, signed.size, edge.tails, rows_of, 0, 8)
            upper = self._upper(index, signed, edge, rows_of)
        except _Cold:
            return None
        return Proof(signed.size, signed.root, lower + upper, signed, [], hash_at(bottom, 0, index % TILE_WIDTH))

    def _upper(self, index: int, signed: Signed, edge: Edge, rows_of: Callable[[int, int], Rows]) -> list[bytes]:
        """Return the part of a proof from height 8 on."""
        part = index >> _SHARED
        hashes = self._heap(part, signed.size, rows_of)
        if hashes is None:
            return path(index, signed.size, edge.tails, rows_of, 8)
        if self._uppers[0] is not signed:
            self._uppers = (signed, {})
        upper = self._uppers[1].get(part)
        if upper is None:
            upper = self._uppers[1][part] = path(index, signed.size, edge.tails, rows_of, _SHARED)
        return siblings(hashes, index >> 8 & 255) + upper

    def _heap(self, part: int, size: int, rows_of: Callable[[int, int], Rows]) -> list[bytes] | None:
        """Return the hashes of a full tile of level 1, if they are kept: those asked for first, up to _MAX_HEAPS."""
        found = self._heaps.get(part)
        if found is None and (part + 1) << _SHARED <= size and len(self._heaps) < _MAX_HEAPS:
            found = self._heaps[part] = heap(rows_of(1, part))
        return found


def _known_size(size: int, signed: Signed) -> int:
    if size > signed.size:
        raise NotFound(
            "no_such_size",
            f"the log has {signed.size} entries, not {size}",
            f"Ask for a size up to {signed.size}, or again later.",
            tree_size=signed.size,
        )
    return size


def _check(proof: Proof, index: int | None) -> None:
    """Check that a proof leads to its root, and that to the signed head. Raises BadProof.

    That `index` is None says that it is a consistency proof, whose first root only the caller knows.
    """
    size, root, signed = proof.size, RootHash(proof.root), proof.signed
    if index is not None:
        verify_inclusion(index, size, LeafHash(proof.leaf_hash), proof.hashes, root)
    verify_consistency(size, signed.size, root, signed.root, proof.tie)


def _find(rows: dict[tuple[int, int], Rows], node: Node) -> bytes:
    level, index, row, position = place(node)
    return hash_at(rows[level, index], row, position)
