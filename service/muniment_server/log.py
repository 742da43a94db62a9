"""One log as the routes see it: its life, and append. What can be read of it is in :mod:`muniment_server.read.reading`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import starmap

import orjson

from muniment.event import Commitment
from muniment.hashing import leaf_hash
from muniment.receipt import Receipt
from muniment.tree import Edge, partial_tiles
from muniment_server.check.scrub import Scrub
from muniment_server.errors import LogReadOnly, OtherTree, OutcomeUnknown, ReadOnly, Refused, StoreError
from muniment_server.failpoints import step
from muniment_server.host.disk import Disk
from muniment_server.read.cache import Cache
from muniment_server.read.reading import Reader
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import EdgeTile, Published
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace
from muniment_server.write.admission import EventDraft
from muniment_server.write.batcher import Batcher, Done
from muniment_server.write.clock import MAX_SKEW
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, OwnDraft, Signed, Submission

_HOUSEKEEPING_SECONDS = 10.0
_RETRY_SECONDS = 0.25
_PUBLISH_EARLY = 0.8
_BREATH = 200


class Log(Reader):
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
        super().__init__(store, row, sequencer, cache, trace)
        self.settings = settings
        self._unwritable = unwritable
        self._disk = disk
        self._metrics = metrics
        self._published: Signed | None = None  # what this process published last
        self._dirty = asyncio.Event()
        self.drafting = asyncio.Lock()  # held while a batch is understood
        self._tasks: list[asyncio.Task[None]] = []
        if sequencer:
            sequencer.on_signed = self._dirty.set  # not when a waiter is answered: it may have left
            sequencer.on_refusal = self._refused
            sequencer.on_return = self._returned
            sequencer.on_moved = self.forget_tiles
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
            try:
                await self.sequencer.start()
            except OutcomeUnknown as error:  # the guard cannot be raised now: the batcher tries again, and reads go on
                get_logger().warning("recovery failed", log=self.row.name, error=str(error))
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

    def _refused(self, refusal: ReadOnly) -> None:
        self._metrics.guard_refusals.inc()
        get_logger().error("log is read-only", log=self.row.name, code=refusal.code, detail=str(refusal))

    def withdraw(self, refusal: ReadOnly) -> None:
        """Take nothing more, for this reason."""
        if self.sequencer:
            self.sequencer.withdraw(refusal)

    def _returned(self) -> None:
        get_logger().info("log is writable again", log=self.row.name)

    def fell_behind(self) -> None:
        """See Heads."""
        super().fell_behind()
        if self.batcher:
            self.batcher.look()

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
        if not self.sequencer or not (signed := self.sequencer.signed) or signed is self._published:
            return False
        one, edge = Published(signed.size, signed.note, _now()), self.sequencer.edge()
        try:
            larger = await self._checkpoints.publish(self.row.log_id, one, edge_tiles(edge) if edge else ())
        except OtherTree:
            self.fell_behind()  # what was proved of the database no longer holds; nothing was published
            raise
        self.note("publish", size=signed.size, root=signed.root, larger=larger)
        self._published = signed  # also when another writer published a larger one
        if larger:
            self._seen, self._looked = max(self._seen, signed.size), time.monotonic()
        self._metrics.published_size.labels(self.row.name).set(signed.size)
        return True

    async def _housekeeper(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self._compare_clocks()
                await self._store.catalog.forget_expired(_now())
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    async def _compare_clocks(self) -> None:
        before = _now()
        database = await self._reads.clock()
        if self.sequencer:
            skew = self.sequencer.clock.skew = database - (before + _now()) // 2
            if self._store.has_clock and abs(skew) <= MAX_SKEW:
                self.sequencer.clock.rebase()  # another machine says the same

    # --- append ---------------------------------------------------------------------------------------------------------

    def _writing(self) -> Batcher:
        if not self.batcher:
            raise self._not_writing()
        if self._disk and self._disk.low:
            hint = "Nothing was written. The operator must make room; retry later."
            raise Refused("disk_low", "the disk is nearly full", hint, retry_after=10)
        return self.batcher

    def check_room(self) -> None:
        """Raise Refused when this log takes nothing at the moment: before a body is read for nothing."""
        self._writing().check_room()

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
        draft, builder = submission.drafts[0], outcome.builder
        if not outcome.new or builder is None or isinstance(draft, OwnDraft):
            return None
        if self._trace:
            self.note_now(submission, outcome)
        return builder.receipt(outcome.indices[0], outcome.leaves[0], draft)

    def note_now(self, submission: Submission, outcome: Outcome) -> bool:
        """Do for a submission of one new entry what :meth:`note_answers` does. Returns False when that needs the database."""
        if not self._trace:
            return True
        if not outcome.new or not outcome.builder:
            return False
        self._note_answer(submission, outcome, 0, outcome.builder.proof(outcome.indices[0]))
        return True

    def _not_writing(self) -> Refused:
        if self._unwritable:
            return LogReadOnly(self._unwritable.code)
        return Refused("read_only", "this server only reads", "Send entries to the log's writer.", retry_after=60)

    async def note_answers(self, submission: Submission, outcome: Outcome) -> None:
        """Write the trace lines of an acknowledgement, if there is a trace: for the first and the last entry of a submission."""
        if not self._trace:
            return
        ends = sorted({0, len(outcome.indices) - 1})
        indices = [outcome.indices[at] for at in ends]
        leaves = [outcome.leaves[at] for at in ends] if outcome.leaves else []
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
            return [await self._stored_receipt(index, outcome.signed, with_payload=True) for index in outcome.indices]
        signed = outcome.signed
        made: list[Receipt] = []
        for draft, index, leaf in zip(submission.drafts, outcome.indices, outcome.leaves, strict=True):
            proof = await self._inclusion(index, leaf, outcome)
            opened = (
                (Commitment(draft.members), tuple(draft.disclosures)) if isinstance(draft, EventDraft) else (None, None)
            )
            if len(made) % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)  # a large batch takes a while: let others be answered in between
            made.append(Receipt(self.row.origin, index, leaf, signed.size, tuple(proof), signed.note, *opened))
        return made

    async def write_receipts(self, submission: Submission, outcome: Outcome, text: bytearray) -> None:
        """Add what :meth:`receipts` returns to `text`, as a JSON array: thousands of texts at a time would take megabytes."""
        made: Iterable[bytes]
        if outcome.builder and outcome.new == len(outcome.indices):
            made = starmap(
                outcome.builder.receipt, zip(outcome.indices, outcome.leaves, submission.drafts, strict=True)
            )
        else:
            made = (orjson.dumps(receipt.to_json()) for receipt in await self.receipts(submission, outcome))
        before = b"["
        for number, receipt in enumerate(made, 1):
            text += before
            text += receipt
            before = b","
            if not number % _BREATH:
                await asyncio.sleep(0)
        text += b"]"

    async def _inclusion(self, index: int, leaf: bytes, outcome: Outcome) -> list[bytes]:
        if outcome.builder:
            with contextlib.suppress(KeyError):  # an old entry: its tiles were not touched
                return outcome.builder.proof(index)
        return await self.path_of(index, leaf_hash(leaf), outcome.signed.size, outcome.signed.root)


def edge_tiles(edge: Edge) -> list[EdgeTile]:
    """Return the tiles of a right edge that hold something."""
    return [
        (tile.level, tile.index, bytes(edge.levels[tile.level][0])) for tile in partial_tiles(edge.size) if tile.width
    ]


def _now() -> int:
    return time.time_ns() // 1_000_000
