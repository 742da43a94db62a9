"""One log as the routes see it: append, and everything that can be read of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from muniment.checkpoint import parse_checkpoint
from muniment.encoding import b64
from muniment.errors import BadProof
from muniment.event import Commitment, EventLeaf, OwnLeaf, format_time, parse_leaf
from muniment.hashing import HASH_SIZE, LeafHash, leaf_hash
from muniment.note import parse_note
from muniment.receipt import Receipt
from muniment.tiles import TILE_WIDTH, Bundle, Tile, encode_bundle, width_at
from muniment.tree import (
    Edge,
    Node,
    Plan,
    expand,
    hash_at,
    partial_tiles,
    path,
    place,
    plan_consistency,
    plan_inclusion,
    plan_root,
)
from muniment_server.admission import EventDraft, Refused, commit
from muniment_server.batcher import Batcher, Done
from muniment_server.cache import Cache, Rows
from muniment_server.disk import Disk
from muniment_server.failpoints import step
from muniment_server.scrub import Scrub
from muniment_server.sequencer import MAX_SKEW, ReadOnly, Sequencer
from muniment_server.settings import Settings
from muniment_server.storage import LogRow, Published, Store, StoredPayload, StoreError, leaf_key
from muniment_server.submission import Outcome, OwnDraft, Signed, Submission
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace

_HOUSEKEEPING_SECONDS = 10.0
_RETRY_SECONDS = 0.25
_LOOK_SECONDS = 1.0
_FOLLOW_SECONDS = 0.1
"""How long a process that only reads may answer with a head before it looks for a larger one."""
_PUBLISH_EARLY = 0.8
_MAX_UPPERS = 4096
"""Tiles whose part of a proof above them is kept: two megabytes."""
_BREATH = 200


class Damaged(StoreError):
    """The database lacks, or contradicts, something a signed head covers."""


class NotThere(Exception):
    """There is no such entry, size or checkpoint (yet). `code` is stable; `extra` goes into the problem document."""

    def __init__(self, code: str, detail: str, hint: str, **extra: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.extra = extra


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


class Log:
    """A log. `sequencer` and `batcher` are None in a read-only process, and where `unwritable` says why it cannot be written."""

    def __init__(
        self,
        store: Store,
        row: LogRow,
        settings: Settings,
        metrics: Metrics,
        cache: Cache,
        sequencer: Sequencer | None,
        *,
        unwritable: ReadOnly | None = None,
        disk: Disk | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.row = row
        self.settings = settings
        self.sequencer = sequencer
        self._unwritable = unwritable
        self._disk = disk
        self._trace = trace
        self._store = store
        self._metrics = metrics
        self._cache = cache
        self._published = 0  # size of the last checkpoint this process published
        self._seen = 0  # size of the largest published checkpoint that this process saw, whoever published it
        self._looked = -_LOOK_SECONDS
        self._looking: asyncio.Task[None] | None = None
        self._kept: tuple[Signed, Edge] | None = None  # of a log that others write
        # Of a signed head, the part of proofs above their lowest tile, which its 256 entries share.
        self._uppers: tuple[Signed | None, dict[int, list[bytes]]] = (None, {})
        self.frame: tuple[Signed | None, bytes, bytes] = (None, b"", b"")  # kept by the route of proofs
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        if sequencer:
            sequencer.on_signed = self._dirty.set  # not when a waiter is answered: it may have left
            sequencer.on_refusal = self._refused
            metrics.races_lost.labels(row.name).set_function(lambda: sequencer.races_lost)
            metrics.head_size.labels(row.name).set_function(lambda: sequencer.signed.size if sequencer.signed else 0)
        if sequencer or unwritable:  # in a server that only reads there is nothing to be alarmed about
            metrics.writable.labels(row.name).set_function(lambda: self.refusal is None)
        self.batcher = sequencer and Batcher(
            sequencer,
            row.name,
            metrics,
            max_commit=settings.max_commit_entries,
            max_entries=settings.max_queue_entries,
            max_bytes=settings.max_queue_bytes,
            max_age=settings.max_queue_seconds,
        )

    # --- life -----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, publish what is signed, and begin to take entries. Raises StoreError when the database does not answer."""
        if self.sequencer and self.batcher:
            await self._compare_clocks()  # before the first time stamp, not some time after it
            await self.sequencer.start()
            await self._publish()
            self.batcher.start()
            self._tasks = [
                asyncio.create_task(self._publisher(), name=f"publisher {self.row.name}"),
                asyncio.create_task(self._housekeeper(), name=f"housekeeper {self.row.name}"),
            ]
        if self.settings.scrub_rate:
            scrub = Scrub(self._store, self.row, self._metrics, self.settings.scrub_rate)
            self._tasks.append(asyncio.create_task(scrub.run(), name=f"scrub {self.row.name}"))

    async def close(self) -> None:
        """Answer everything that was taken, publish the last head, and stop."""
        if self.batcher:
            await self.batcher.close()
        for task in (*self._tasks, *filter(None, (self._looking,))):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        with contextlib.suppress(StoreError):
            await self._publish()

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""
        return self.sequencer.refusal if self.sequencer else self._unwritable

    def note(self, event: str, **values: Any) -> None:
        """Write a line of the trace, if there is one."""
        if self._trace:
            self._trace(self.row.name, event, **values)

    def _refused(self, refusal: ReadOnly) -> None:
        self._metrics.guard_refusals.inc()
        get_logger().error("log is read-only", log=self.row.name, code=refusal.code, detail=str(refusal))

    async def _publisher(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            started = time.monotonic()
            try:
                if not await self._publish():
                    continue
            except Exception as error:  # noqa: BLE001 - whatever it was, a log that no longer publishes is worse
                get_logger().warning("publishing failed", log=self.row.name, error=f"{type(error).__name__}: {error}")
                self._dirty.set()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                # What was signed just after this one is still to be out within the interval: leave time for its publication, and for
                # a loop that is late because it is busy.
                took = time.monotonic() - started
                await asyncio.sleep(max(_PUBLISH_EARLY * self.settings.publish_interval - 2 * took, 0))

    @step("log.publish")
    async def _publish(self) -> bool:
        """Publish the last signed head, unless there is nothing new; tell whether there was."""
        signed = self.sequencer and self.sequencer.signed
        if not signed or signed.size <= self._published:
            return False
        larger = await self._store.publish(self.row.log_id, Published(signed.size, signed.note, _now()))
        self.note("publish", size=signed.size, root=signed.root, larger=larger)
        self._published = signed.size  # also when another writer published a larger one
        if larger:
            self._seen, self._looked = max(self._seen, signed.size), time.monotonic()
        self._metrics.published_size.labels(self.row.name).set(signed.size)
        return True

    async def _housekeeper(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self._compare_clocks()
                await self._store.forget_expired(_now())
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    async def _compare_clocks(self) -> None:
        before = _now()
        database = await self._store.clock()
        if self.sequencer:
            skew = self.sequencer.skew = database - (before + _now()) // 2
            if self._store.has_clock and abs(skew) <= MAX_SKEW:
                self.sequencer.believe_clock()  # another machine says the same

    # --- append ---------------------------------------------------------------------------------------------------------

    def _writing(self) -> Batcher:
        if not self.batcher:
            raise self._not_writing()
        if self._disk and self._disk.low:
            hint = "Nothing was written. The operator must make room; retry later."
            raise Refused(503, "disk_low", "the disk is nearly full", hint, retry_after=10)
        return self.batcher

    async def append(self, submission: Submission) -> Outcome:
        """Append, or find, the entries of a submission. Raises Refused."""
        outcome = await self._writing().submit(submission)
        await self.note_answers(submission, outcome)
        return outcome

    def submit(self, submission: Submission, done: Done) -> None:
        """As :meth:`append`, for callers that answer from `done`, which is called in the event loop. Raises Refused.

        They make the receipt with :meth:`receipt_now`; where that has none, with :meth:`note_answers` and :meth:`receipts`.
        """
        self._writing().put(submission, done)

    def receipt_now(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """Return the JSON receipt of a submission of one new entry; None when that needs the database."""
        draft = submission.drafts[0]
        if not outcome.new or not outcome.maker or isinstance(draft, OwnDraft):
            return None
        self.note_now(submission, outcome)
        return outcome.maker.receipt(outcome.indices[0], outcome.leaves[0], draft)

    def note_now(self, submission: Submission, outcome: Outcome) -> bool:
        """Do for a submission of one new entry what :meth:`note_answers` does. Returns False when that needs the database."""
        if not self._trace:
            return True
        if not outcome.new or not outcome.maker:
            return False
        self._note_answer(submission, outcome, 0, outcome.maker.proof(outcome.indices[0]))
        return True

    def _not_writing(self) -> Refused:
        if self._unwritable:
            hint = "The operator finds the reason in the server's log; reads go on."
            return Refused(503, self._unwritable.code, "this log is read-only here", hint, retry_after=30)
        return Refused(503, "read_only", "this server only reads", "Send entries to the log's writer.", retry_after=60)

    async def note_answers(self, submission: Submission, outcome: Outcome) -> None:
        """Write the trace lines of an acknowledgement, if there is a trace: for the first and the last entry of a submission."""
        if not self._trace:
            return
        ends = sorted({0, len(outcome.indices) - 1})
        indices = [outcome.indices[at] for at in ends]
        leaves = [outcome.leaves[at] for at in ends] if outcome.leaves else ()
        some = Submission([submission.drafts[at] for at in ends])
        for at, receipt in zip(
            ends, await self.receipts(some, replace(outcome, indices=indices, leaves=leaves)), strict=True
        ):
            self._note_answer(submission, outcome, at, receipt.proof, receipt.leaf_hash)

    def _note_answer(
        self, submission: Submission, outcome: Outcome, at: int, proof: Sequence[bytes], leaf: bytes | None = None
    ) -> None:
        self.note(
            "answer",
            index=outcome.indices[at],
            leaf_hash=leaf or leaf_hash(outcome.leaves[at]),
            size=outcome.signed.size,
            root=outcome.signed.root,
            hashes=proof,
            key=submission.key and sha256(f"{submission.caller}/{submission.key}".encode()).digest(),
            first=outcome.indices[0],
        )

    async def receipts(self, submission: Submission, outcome: Outcome) -> list[Receipt]:
        """Return the receipt of every entry of a submission, at the signed head of its outcome."""
        if outcome.replayed:
            return [await self._stored_receipt(index, outcome.signed, secrets=True) for index in outcome.indices]
        signed = outcome.signed
        made: list[Receipt] = []
        for draft, index, leaf in zip(submission.drafts, outcome.indices, outcome.leaves, strict=True):
            proof = await self._inclusion(index, signed.size, outcome)
            opened = (
                (Commitment(draft.members), tuple(draft.disclosures)) if isinstance(draft, EventDraft) else (None, None)
            )
            if len(made) % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)  # a large batch takes a while: let others be answered in between
            made.append(Receipt(self.row.origin, index, leaf, signed.size, tuple(proof), signed.note, *opened))
        return made

    async def receipt_texts(self, submission: Submission, outcome: Outcome) -> list[bytes]:
        """Return what :meth:`receipts` does, as JSON."""
        made: list[bytes] = []
        if outcome.maker and outcome.new == len(outcome.indices):
            for draft, index, leaf in zip(submission.drafts, outcome.indices, outcome.leaves, strict=True):
                if len(made) % _BREATH == _BREATH - 1:
                    await asyncio.sleep(0)
                made.append(outcome.maker.receipt(index, leaf, draft))
            return made
        for receipt in await self.receipts(submission, outcome):
            if len(made) % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            made.append(orjson.dumps(receipt.to_json()))
        return made

    async def _inclusion(self, index: int, size: int, outcome: Outcome) -> list[bytes]:
        if outcome.maker:
            with contextlib.suppress(KeyError):  # an old entry: its tiles were not touched
                return outcome.maker.proof(index)
        return await self._fold(plan_inclusion(index, size), size)

    # --- heads ----------------------------------------------------------------------------------------------------------

    async def latest(self, at_least: int = 0) -> Signed:
        """Return the latest signed head this process knows of: its own, or the published one when that may be larger.

        `at_least` is the size a caller asked for. Raises NotThere when nothing was published yet.
        """
        if now := self._latest_now(at_least):
            return now
        return await self._look()

    async def _look(self) -> Signed:
        """Ask the database for the published head, and return the larger one of that and our own."""
        own = self.sequencer.signed if self.sequencer else None
        published = await self.published()
        if own and own.size > published.size:
            return own
        signed = Signed(published.size, parse_checkpoint(parse_note(published.note).text).root, published.note)
        if not self.sequencer:
            await self._keep(signed)
        return signed

    async def _keep(self, signed: Signed) -> None:
        """Keep the head of a log that others write, with its right edge, so that reads need no database until there is a larger one."""
        if self._kept and self._kept[0].size >= signed.size:
            return
        stored = await self._store.tiles(self.row.log_id, partial_tiles(signed.size))
        # Damaged tiles are not kept: a proof that needs them finds that out by itself, and others are as good as ever.
        with contextlib.suppress(BadProof):
            edge = Edge.of(signed.size, stored)
            if edge.root() == signed.root:
                self._kept = (signed, edge)

    def _latest_now(self, at_least: int = 0) -> Signed | None:
        """Return the latest signed head when it surely is in memory; None when the database has to be asked."""
        if self.sequencer:
            own, interval = None if self.refusal else self.sequencer.signed, _LOOK_SECONDS
        else:
            own, interval = self._kept[0] if self._kept else None, _FOLLOW_SECONDS
        # Another writer of this log may have published more: look now and then, also when nobody asks for a size. In good time, and
        # beside the requests: otherwise all that come in the meantime would have to wait.
        age = time.monotonic() - self._looked
        if interval / 2 < age < interval and self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_beside())
        return own if own and age < interval and own.size >= max(at_least, self._seen) else None

    async def _look_beside(self) -> None:
        try:
            with contextlib.suppress(StoreError, NotThere):  # whoever needs it will ask, and be told
                await self._look()
        finally:
            self._looking = None

    def _edge_now(self) -> Edge | None:
        """Return the right edge of a signed head that is in memory."""
        if self.sequencer:
            return self.sequencer.edge()
        return self._kept[1] if self._kept else None

    async def published(self, size: int | None = None) -> Published:
        """Return the published checkpoint of `size`, or the largest one. Raises NotThere."""
        found = await self._store.checkpoint(self.row.log_id, size)
        if found and size is None:
            self._seen, self._looked = max(self._seen, found.size), time.monotonic()
        if found:
            return found
        if size is None:
            raise NotThere(
                "no_checkpoint", "no checkpoint was published yet", "Run `muniment-server init` again to finish it."
            )
        later = await self._store.checkpoints(self.row.log_id, size, 1)
        hint = f"The next published size is {later[0].size}." if later else "Ask GET /checkpoint for the latest."
        raise NotThere(
            "no_checkpoint",
            f"no checkpoint of size {size} was published",
            hint,
            **({"next_size": later[0].size} if later else {}),
        )

    async def checkpoints(self, start: int, limit: int) -> list[Published]:
        """Return up to `limit` published checkpoints with size >= start, smallest first."""
        return await self._store.checkpoints(self.row.log_id, start, limit)

    # --- proofs ---------------------------------------------------------------------------------------------------------

    async def prove_inclusion(self, index: int, size: int | None) -> Proof:
        """Prove entry `index` in the tree of `size` (default: the latest signed one). Raises NotThere."""
        signed = await self.latest(max(size or 0, index + 1))
        size = self._known_size(signed.size if size is None else size, signed)
        if index >= size:
            raise NotThere(
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

        if self._uppers[0] is not signed:
            self._uppers = (signed, {})
        uppers = self._uppers[1]
        upper = uppers.get(index // TILE_WIDTH)
        try:
            if upper is None:
                upper = path(index, signed.size, edge.tails, rows_of, 8)
                if len(uppers) < _MAX_UPPERS:
                    uppers[index // TILE_WIDTH] = upper
            lower = path(index, signed.size, edge.tails, rows_of, 0, 8)
        except _Cold:
            return None
        return Proof(signed.size, signed.root, lower + upper, signed, [], hash_at(bottom, 0, index % TILE_WIDTH))

    def _rows_now(self, edge: Edge | None, level: int, index: int) -> Rows | None:
        """Return the rows of a tile from the right edge or the cache."""
        if edge and level < len(edge.levels) and edge.size >> 8 * (level + 1) == index:
            return edge.levels[level]
        return self._cache.get(self.row.log_id, level, index)

    async def prove_consistency(self, first: int, second: int | None) -> Proof:
        """Prove that the tree of `second` (default: the latest signed one) extends that of `first` >= 1. Raises NotThere."""
        signed = await self.latest(max(first, second or 0))
        second = self._known_size(signed.size if second is None else second, signed)
        self._known_size(first, signed)
        if first > second:
            raise Refused(
                400,
                "sizes_reversed",
                f"first ({first}) is larger than second ({second})",
                "Give the smaller size as first.",
            )
        return await self._prove(plan_consistency(first, second), second, signed)

    @staticmethod
    def _known_size(size: int, signed: Signed) -> int:
        if size > signed.size:
            raise NotThere(
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
        return Proof(size, root[0], hashes, signed, tie, found[0] if found else b"")

    async def _fold(self, plan: Plan, size: int) -> list[bytes]:
        rows = await self._rows(plan.tiles(size))
        return plan.fold(lambda node: _find(rows, node))

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
        for tile in tiles:
            data = stored.get((tile.level, tile.index), b"")
            if len(data) < tile.width * HASH_SIZE:
                raise Damaged(f"tile {tile.level}/{tile.index} is missing or too short")
            found[tile.level, tile.index] = rows = expand(data)
            if len(data) == TILE_WIDTH * HASH_SIZE:
                self._cache.put(self.row.log_id, tile.level, tile.index, rows)
        return found

    async def find(self, wanted: bytes) -> int:
        """Return the lowest index of an entry with this leaf hash. Raises NotThere."""
        for index, leaf in await self._store.find_leaves(self.row.log_id, [leaf_key(wanted)]):
            if leaf_hash(leaf) == wanted:
                return index
        raise NotThere(
            "no_entry", "no entry has this leaf hash", "The leaf hash is SHA-256(0x00 || leaf), in lowercase hex."
        )

    # --- entries --------------------------------------------------------------------------------------------------------

    async def receipt(self, index: int, size: int | None, *, secrets: bool) -> Receipt:
        """Return the receipt of an entry at a published checkpoint (default: the latest). Raises NotThere.

        `secrets` says whether the caller may see payloads: only then does the receipt of an event open its members.
        """
        published = await self.published(size)
        if index >= published.size:
            raise await self._not_covered(index, published.size)
        root = parse_checkpoint(parse_note(published.note).text).root
        return await self._stored_receipt(index, Signed(published.size, root, published.note), secrets=secrets)

    async def _not_covered(self, index: int, size: int) -> NotThere:
        if size == (await self.published()).size and index < (await self.latest()).size:
            return NotThere(
                "not_published_yet",
                f"entry {index} is in the log, but not yet under a published checkpoint",
                "Ask again in a second.",
                retry_after=1,
            )
        return NotThere(
            "no_entry", f"there is no entry {index} under the checkpoint of size {size}", "Ask for a smaller index."
        )

    async def _stored_receipt(self, index: int, signed: Signed, *, secrets: bool) -> Receipt:
        leaves = await self._store.leaves(self.row.log_id, index, index + 1)
        if not leaves:
            raise Damaged(f"entry {index} is missing")
        proof = await self._fold(plan_inclusion(index, signed.size), signed.size)
        commitment, disclosures = None, None
        if secrets and isinstance(parse_leaf(leaves[0]), EventLeaf):
            for stored in await self._store.payloads(self.row.log_id, index, index + 1):
                opened = _open(stored)
                commitment, disclosures = Commitment(opened.members), tuple(opened.disclosures)
        return Receipt(
            self.row.origin, index, leaves[0], signed.size, tuple(proof), signed.note, commitment, disclosures
        )

    async def entries(self, start: int, limit: int, *, secrets: bool) -> tuple[list[dict[str, Any]], int]:
        """Return up to `limit` entries from `start`, as JSON values, and the size of the signed head they are under."""
        size = (await self.latest(start + 1)).size
        stop = min(start + limit, size)
        if start >= stop:
            return [], size
        leaves = await self._store.leaves(self.row.log_id, start, stop)
        if len(leaves) != stop - start:
            raise Damaged(f"entries {start + len(leaves)} to {stop} are missing")
        payloads = await self._store.payloads(self.row.log_id, start, stop) if secrets else []
        by_index = {stored.index: stored for stored in payloads}
        return [_entry(start + at, leaf, by_index.get(start + at)) for at, leaf in enumerate(leaves)], size

    async def entry(self, index: int, *, secrets: bool) -> dict[str, Any]:
        """Return one entry as a JSON value. Raises NotThere."""
        found, size = await self.entries(index, 1, secrets=secrets)
        if not found:
            raise NotThere("no_entry", f"the log has {size} entries: there is no entry {index}", "Indices start at 0.")
        return found[0]

    # --- C2SP -----------------------------------------------------------------------------------------------------------

    async def tile(self, tile: Tile) -> bytes | None:
        """Return the bytes of a tile, or None when no signed head has it at this width."""
        if not await self._served(tile.level, tile.index, tile.width):
            return None
        rows = self._cache.get(self.row.log_id, tile.level, tile.index)
        if rows is None:
            rows = (await self._cold([tile]))[tile.level, tile.index]
        return _wide(rows, tile.width)

    def file_now(self, wanted: Tile | Bundle) -> bytes | None:
        """Return the bytes of a tile or bundle that a signed head has, when they are in memory; else None."""
        level = wanted.level if isinstance(wanted, Tile) else 0
        needed = wanted.index * TILE_WIDTH + wanted.width << 8 * level
        if needed >= 2**63 or not self._latest_now(needed):
            return None
        if isinstance(wanted, Bundle):
            return self._cache.bundle(self.row.log_id, wanted.index) if wanted.width == TILE_WIDTH else None
        rows = self._cache.get(self.row.log_id, level, wanted.index)
        return None if rows is None else _wide(rows, wanted.width)

    async def bundle(self, bundle: Bundle) -> bytes | None:
        """Return the bytes of an entry bundle, or None when no signed head has it at this width."""
        if not await self._served(0, bundle.index, bundle.width):
            return None
        start = bundle.index * TILE_WIDTH
        leaves = await self._store.leaves(self.row.log_id, start, start + bundle.width)
        if len(leaves) != bundle.width:
            raise Damaged(f"entries of bundle {bundle.index} are missing")
        data = encode_bundle(leaves)
        if bundle.width == TILE_WIDTH:
            self._cache.put_bundle(self.row.log_id, bundle.index, data)
        return data

    async def _served(self, level: int, index: int, width: int) -> bool:
        """Tell whether the latest signed head has a tile of at least this width."""
        needed = index * TILE_WIDTH + width << 8 * level
        return needed < 2**63 and width_at(level, index, (await self.latest(needed)).size) >= width


def _now() -> int:
    return time.time_ns() // 1_000_000


def _find(rows: dict[tuple[int, int], Rows], node: Node) -> bytes:
    level, index, row, position = place(node)
    return hash_at(rows[level, index], row, position)


def _wide(rows: Rows, width: int) -> bytes:
    return bytes(rows[0]) if width == TILE_WIDTH else bytes(rows[0][: width * HASH_SIZE])


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
