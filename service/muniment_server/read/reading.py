"""What can be read of a log: proofs, receipts, entries, and the C2SP files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, NamedTuple

import orjson

from muniment.anchored import AnchoredCheckpoint
from muniment.checkpoint import parse_checkpoint
from muniment.encoding import b64
from muniment.errors import BadProof
from muniment.event import Commitment, EventLeaf, OwnLeaf, format_time, parse_leaf
from muniment.hashing import HASH_SIZE, LeafHash, RootHash, leaf_hash
from muniment.note import parse_note
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.receipt import Receipt
from muniment.tiles import MAX_ENTRY, TILE_WIDTH, Bundle, Tile, encode_bundle, width_at
from muniment.tree import Edge, Node, Plan, TileRows, expand, place, plan_consistency, plan_inclusion, plan_root
from muniment_server.errors import Corrupt, NotFound, Refused
from muniment_server.read.cache import Cache, Rows
from muniment_server.read.heads import Heads
from muniment_server.read.loader import BundleDone, ColdBundles, ColdTiles, Done
from muniment_server.storage import AnchorRow, CalendarRow, LogRow, Store, StoredPayload, leaf_key
from muniment_server.tile_rows import hash_at, heap, path, siblings
from muniment_server.trace import Trace
from muniment_server.write.admission import EventDraft, commit
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Signed

_SHARED = 16
"""Entries whose index differs in lower bits alone share the proof from this height on: it is kept."""
_MAX_HEAPS = 256
"""Full tiles of level 1 whose hashes are kept apart, 38 kB each: those of a log of 16 million entries. Without, a proof takes a tenth longer."""
_LEAVES = 64
"""Leaves of a bundle that are read at a time: at most four megabytes."""


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


class Reader(Heads):
    """Reads a log, from memory where it can, else with one query of the database."""

    def __init__(
        self, store: Store, row: LogRow, sequencer: Sequencer | None, cache: Cache, trace: Trace | None = None
    ) -> None:
        super().__init__(store, row, sequencer)
        self._cache = cache
        self._cold_tiles = ColdTiles(store, row.log_id, cache, self._is_tied)
        self._cold_bundles = ColdBundles(store, row.log_id, cache)
        self._trace = trace
        self.traced = trace is not None
        self.frame: tuple[Signed | None, bytes, bytes] = (None, b"", b"")  # kept by the route of proofs
        # Of a signed head, the part of proofs from height _SHARED on, by the index without its lower bits.
        self._uppers: tuple[Signed | None, dict[int, list[bytes]]] = (None, {})
        self._heaps: dict[int, list[bytes]] = {}  # by index of the tile

    def note(self, event: str, **values: Any) -> None:
        """Write a line of the trace, if there is one."""
        if self._trace:
            self._trace(self.row.name, event, **values)

    # --- proofs ---------------------------------------------------------------------------------------------------------

    async def prove_inclusion(self, index: int, size: int | None) -> Proof:
        """Prove entry `index` in the tree of `size` (default: the latest signed one). Raises NotFound."""
        signed = await self.latest(max(size or 0, index + 1))
        size = self._known_size(signed.size if size is None else size, signed)
        if index >= size:
            raise NotFound(
                "no_entry",
                f"there is no entry {index} in the tree of size {size}",
                "Ask for a smaller index, or again later.",
            )
        return await self._prove(plan_inclusion(index, size), size, signed, index)

    def prove_now(self, index: int) -> Proof | None:
        """Prove an entry under the latest signed head, when everything needed is in memory; else None."""
        signed, edge = self._latest_now(index + 1), self._edge_now()
        if not signed or not edge or edge.size != signed.size:
            return None

        bottom = self._rows_now(edge, 0, index // TILE_WIDTH)
        if bottom is None:
            return None

        def rows_of(level: int, tile: int) -> Rows:
            rows = self._rows_now(edge, level, tile) if level else bottom
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
        """Return the hashes of a full tile of level 1, if they are kept: those that are asked for first, up to _MAX_HEAPS."""
        found = self._heaps.get(part)
        if found is None and (part + 1) << _SHARED <= size and len(self._heaps) < _MAX_HEAPS:
            found = self._heaps[part] = heap(rows_of(1, part))
        return found

    def warm(self, index: int, done: Done) -> bool:
        """Have what :meth:`prove_now` needs read, and call `done`. Returns False when it is not tiles that it needs."""
        signed = self._latest_now(index + 1)
        if signed:
            self._cold_tiles.proof(index, signed.size, done)
        return bool(signed)

    def warm_tile(self, tile: Tile, done: Done) -> bool:
        """Have what :meth:`file_now` needs read, and call `done`. Returns False for tiles that are not full."""
        needed = (tile.index + 1) * TILE_WIDTH << 8 * tile.level
        if needed >= 2**63 or not self._latest_now(needed):
            return False
        self._cold_tiles.tile(tile.level, tile.index, done)
        return True

    def warm_bundle(self, bundle: Bundle, done: BundleDone) -> bool:
        """Have a bundle read, and call `done` (see :meth:`ColdBundles.bundle`). Returns False for one that is not full."""
        needed = (bundle.index + 1) * TILE_WIDTH
        if bundle.width != TILE_WIDTH or needed >= 2**63 or not self._latest_now(needed):
            return False
        self._cold_bundles.bundle(bundle.index, done)
        return True

    def _rows_now(self, edge: Edge | None, level: int, index: int) -> Rows | None:
        """Return the rows of a tile from the right edge or the cache."""
        if edge and level < len(edge.levels) and edge.size >> 8 * (level + 1) == index:
            return edge.levels[level]
        return self._cache.get(self.row.log_id, level, index)

    async def prove_consistency(self, first: int, second: int | None) -> Proof:
        """Prove that the tree of `second` (default: the latest signed one) extends that of `first` >= 1. Raises NotFound."""
        signed = await self.latest(max(first, second or 0))
        second = self._known_size(signed.size if second is None else second, signed)
        self._known_size(first, signed)
        if first > second:
            raise Refused(
                "sizes_reversed",
                f"first ({first}) is larger than second ({second})",
                "Give the smaller size as first.",
            )
        return await self._prove(plan_consistency(first, second), second, signed)

    @staticmethod
    def _known_size(size: int, signed: Signed) -> int:
        if size > signed.size:
            raise NotFound(
                "no_such_size",
                f"the log has {signed.size} entries, not {size}",
                f"Ask for a size up to {signed.size}, or again later.",
                tree_size=signed.size,
            )
        return size

    async def _prove(self, plan: Plan, size: int, signed: Signed, index: int | None = None) -> Proof:
        """Fold a plan together with the root of `size`, the tie to `signed` and the leaf hash, with one read of the tiles."""
        leaf = Plan(() if index is None else ((Node(0, index),),))
        plans = [plan, plan_root(size), plan_consistency(size, signed.size), leaf]
        lookup = await self._rows([tile for part in plans for tile in part.tiles(signed.size)])
        hashes, root, tie, found = (part.fold(lambda node: _find(lookup, node)) for part in plans)
        proof = Proof(size, root[0], hashes, signed, tie, found[0] if found else b"")
        try:
            _check(proof, index)
        except BadProof as error:
            raise self._mixed(error) from error
        return proof

    def _mixed(self, error: BadProof) -> Corrupt:
        """Return what says that tiles and signed head do not fit, and keep none of those tiles."""
        self.forget_tiles()
        return Corrupt(f"the stored tiles do not lead to the signed head: {error}")

    async def path_of(self, index: int, leaf: LeafHash, size: int, root: RootHash) -> list[bytes]:
        """Return the inclusion proof of an entry, once it leads to this root. Raises Damaged."""
        plan = plan_inclusion(index, size)
        rows = await self._rows(plan.tiles(size))
        proof = plan.fold(lambda node: _find(rows, node))
        try:
            verify_inclusion(index, size, leaf, proof, root)
        except BadProof as error:
            raise self._mixed(error) from error
        return proof

    def forget_tiles(self) -> None:
        """Keep no tile in memory: some may have come from another database."""
        self._cache.forget(self.row.log_id)
        self._heaps.clear()
        self._uppers = (None, {})

    async def _rows(self, tiles: Sequence[Tile]) -> dict[tuple[int, int], Rows]:
        """Return the rows of tiles: from the right edge, the cache, or one read of the database. Raises Damaged."""
        found: dict[tuple[int, int], Rows] = {}
        cold: dict[tuple[int, int], Tile] = {}
        edge = self._edge_now()
        for tile in tiles:
            rows = self._rows_now(edge, tile.level, tile.index)
            if rows is None or len(rows[0]) < tile.width * HASH_SIZE:
                cold[tile.level, tile.index] = max(
                    tile, cold.get((tile.level, tile.index), tile), key=lambda t: t.width
                )
            else:
                found[tile.level, tile.index] = rows
        if cold:
            found |= await self._cold(list(cold.values()))
        return found

    async def _cold(self, tiles: Sequence[Tile]) -> dict[tuple[int, int], Rows]:
        stored = await self._store.tiles(self.row.log_id, tiles)
        found: dict[tuple[int, int], Rows] = {}
        for tile in sorted(tiles, reverse=True):  # those above first
            data = stored.get((tile.level, tile.index), b"")
            if len(data) < tile.width * HASH_SIZE:
                raise Corrupt(f"tile {tile.level}/{tile.index} is missing or too short")
            found[tile.level, tile.index] = rows = expand(data)
            if len(data) == TILE_WIDTH * HASH_SIZE and self._is_tied(tile.level, tile.index, rows):
                self._cache.put(self.row.log_id, tile.level, tile.index, rows)
        return found

    def _is_tied(self, level: int, index: int, rows: TileRows) -> bool:
        """Tell whether the tile above is in memory and has the root of this full one.

        Up to the right edge, of which the signed root was made, each then leads to the next. What does not may be
        another database's, and proofs from memory are not verified each time.
        """
        above = self._rows_now(self._edge_now(), level + 1, index // TILE_WIDTH)
        at = HASH_SIZE * (index % TILE_WIDTH)
        return above is not None and above[0][at : at + HASH_SIZE] == rows[8]

    async def find(self, wanted: bytes) -> int:
        """Return the lowest index of an entry with this leaf hash. Raises NotFound."""
        for index, leaf in await self._store.find_leaves(self.row.log_id, [leaf_key(wanted)]):
            if leaf_hash(leaf) == wanted:
                return index
        raise NotFound(
            "no_entry", "no entry has this leaf hash", "The leaf hash is SHA-256(0x00 || leaf), in lowercase hex."
        )

    # --- entries --------------------------------------------------------------------------------------------------------

    async def receipt(self, index: int, size: int | None, *, with_payload: bool) -> Receipt:
        """Return the receipt of an entry at a published checkpoint (default: the latest). Raises NotFound.

        `with_payload` says whether the caller may see payloads: only then does the receipt of an event open its members.
        """
        published = await self.published(size)
        if index >= published.size:
            raise await self._not_covered(index, published.size)
        root = parse_checkpoint(parse_note(published.note).text).root
        return await self._stored_receipt(
            index, Signed(published.size, root, published.note), with_payload=with_payload
        )

    async def _not_covered(self, index: int, size: int) -> NotFound:
        if size == (await self.published()).size and index < (await self.latest()).size:
            return NotFound(
                "not_published_yet",
                f"entry {index} is in the log, but not yet under a published checkpoint",
                "Ask again in a second.",
                retry_after=1,
            )
        return NotFound(
            "no_entry", f"there is no entry {index} under the checkpoint of size {size}", "Ask for a smaller index."
        )

    async def _stored_receipt(self, index: int, signed: Signed, *, with_payload: bool) -> Receipt:
        leaves = await self._store.leaves(self.row.log_id, index, index + 1)
        if not leaves:
            raise Corrupt(f"entry {index} is missing")
        proof = await self.path_of(index, leaf_hash(leaves[0]), signed.size, signed.root)
        commitment, disclosures = None, None
        if with_payload and isinstance(parse_leaf(leaves[0]), EventLeaf):
            for stored in await self._store.payloads(self.row.log_id, index, index + 1):
                opened = _open(stored)
                commitment, disclosures = Commitment(opened.members), tuple(opened.disclosures)
        return Receipt(
            self.row.origin, index, leaves[0], signed.size, tuple(proof), signed.note, commitment, disclosures
        )

    async def anchors(self, start: int, limit: int) -> tuple[list[AnchorRow], dict[int, list[CalendarRow]]]:
        """Return up to `limit` anchors with tree_size >= start, smallest first, and the calendars of each by its size."""
        found = await self._store.anchors(self.row.log_id, start, limit)
        calendars: dict[int, list[CalendarRow]] = {row.tree_size: [] for row in found}
        if found:
            stop = found[-1].tree_size + 1
            for one in await self._store.anchor_calendars(self.row.log_id, found[0].tree_size, stop):
                calendars.setdefault(one.tree_size, []).append(one)
        return found, calendars

    async def anchor_of(self, index: int) -> AnchoredCheckpoint:
        """Return the earliest confirmed anchor that covers an entry, as a receipt has it. Raises NotFound."""
        row = await self._store.covering_anchor(self.row.log_id, index)
        if row is None or row.ots is None or row.height is None:
            raise NotFound(
                "no_anchor",
                f"no confirmed anchor covers entry {index} yet",
                "Anchors take hours: GET /anchors says how far they are.",
            )
        leaves = await self._store.leaves(self.row.log_id, index, index + 1)
        if not leaves:
            raise Corrupt(f"entry {index} is missing")
        proof = await self.path_of(index, leaf_hash(leaves[0]), row.tree_size, RootHash(row.root))
        return AnchoredCheckpoint(row.checkpoint.decode(), row.tree_size, tuple(proof), row.ots, row.height, row.header)

    async def entries(self, start: int, limit: int, *, with_payload: bool) -> tuple[list[dict[str, Any]], int]:
        """Return up to `limit` entries from `start`, as JSON values, and the size of the signed head they are under."""
        size = (await self.latest(start + 1)).size
        stop = min(start + limit, size)
        if start >= stop:
            return [], size
        leaves = await self.leaves(start, stop)
        payloads = await self._store.payloads(self.row.log_id, start, stop) if with_payload else []
        by_index = {stored.index: stored for stored in payloads}
        return [_entry(start + at, leaf, by_index.get(start + at)) for at, leaf in enumerate(leaves)], size

    async def leaves(self, start: int, stop: int) -> list[bytes]:
        """Return the leaves [start, stop), which a signed head covers."""
        leaves = await self._store.leaves(self.row.log_id, start, stop)
        if len(leaves) != stop - start:
            raise Corrupt(f"entries {start + len(leaves)} to {stop} are missing")
        return leaves

    async def entry(self, index: int, *, with_payload: bool) -> dict[str, Any]:
        """Return one entry as a JSON value. Raises NotFound."""
        found, size = await self.entries(index, 1, with_payload=with_payload)
        if not found:
            raise NotFound("no_entry", f"the log has {size} entries: there is no entry {index}", "Indices start at 0.")
        return found[0]

    # --- C2SP -----------------------------------------------------------------------------------------------------------

    async def tile(self, tile: Tile) -> bytes | None:
        """Return the bytes of a tile, or None when no signed head has it at this width."""
        if not await self._served(tile.level, tile.index, tile.width):
            return None
        data = self._cache.data(self.row.log_id, tile.level, tile.index)
        if data is None:
            data = bytes((await self._cold([tile]))[tile.level, tile.index][0])
        return data[: tile.width * HASH_SIZE]

    def file_now(self, wanted: Tile | Bundle) -> bytes | None:
        """Return the bytes of a tile or bundle that a signed head has, when they are in memory; else None."""
        level = wanted.level if isinstance(wanted, Tile) else 0
        needed = wanted.index * TILE_WIDTH + wanted.width << 8 * level
        if needed >= 2**63 or not self._latest_now(needed):
            return None
        if isinstance(wanted, Bundle):
            return self._cache.bundle(self.row.log_id, wanted.index) if wanted.width == TILE_WIDTH else None
        data = self._cache.data(self.row.log_id, level, wanted.index)
        return data and data[: wanted.width * HASH_SIZE]

    async def bundle(self, bundle: Bundle) -> bytes | None:
        """Return the bytes of an entry bundle, or None when no signed head has it at this width."""
        found = await self.bundle_up_to(bundle, TILE_WIDTH * (MAX_ENTRY + 2), nullcontext())
        return found if isinstance(found, bytes) else None

    async def bundle_up_to(
        self, bundle: Bundle, most: int, turn: AbstractAsyncContextManager[None]
    ) -> bytes | int | None:
        """As :meth:`bundle`; of one that has more than `most` bytes, only how many they are.

        Never much more than `most` bytes of it are in memory. Leaves are read within a `turn`. Raises Damaged.
        """
        if not await self._served(0, bundle.index, bundle.width):
            return None
        at, stop = bundle.index * TILE_WIDTH, bundle.index * TILE_WIDTH + bundle.width
        data, size = bytearray(), 0
        while at < stop:
            async with turn:
                part = encode_bundle(await self.leaves(at, min(at + _LEAVES, stop)))
            at += _LEAVES
            size += len(part)
            if size <= most:
                data += part
            del part  # otherwise each of those who wait for a turn would keep megabytes
        if size > most:
            return size
        if bundle.width == TILE_WIDTH:
            self._cache.put_bundle(self.row.log_id, bundle.index, bytes(data))
        return bytes(data)

    async def _served(self, level: int, index: int, width: int) -> bool:
        """Tell whether the latest signed head has a tile of at least this width."""
        needed = index * TILE_WIDTH + width << 8 * level
        return needed < 2**63 and width_at(level, index, (await self.latest(needed)).size) >= width


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


def _open(stored: StoredPayload) -> EventDraft:
    return commit(orjson.loads(stored.payload), stored.payload, stored.seed)


def _entry(index: int, leaf: bytes, stored: StoredPayload | None) -> dict[str, Any]:
    value: dict[str, Any] = {"index": index, "leaf": b64(leaf), "leaf_hash": LeafHash(leaf_hash(leaf)).hex()}
    content = parse_leaf(leaf)
    if isinstance(content, EventLeaf):
        value["logged_at"] = format_time(content.logged_at)
    elif isinstance(content, OwnLeaf):
        value["typ"] = content.typ
        value["logged_at"] = content.value["logged_at"]
    if stored:
        opened = _open(stored)
        value["event"] = orjson.Fragment(stored.payload)
        value["commitment"] = Commitment(opened.members).value()
        value["disclosures"] = opened.disclosures
    return value
