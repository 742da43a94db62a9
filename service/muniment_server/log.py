"""One log as the routes see it: its life, and append. What can be read of it is in :mod:`muniment_server.read.reading`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import starmap

import orjson

from muniment.event import Commitment
from muniment.hashing import leaf_hash
from muniment.receipt import Receipt
from muniment_server.check.scrub import Scrub
from muniment_server.errors import LogReadOnly, OutcomeUnknown, ReadOnly, Refused, StoreError
from muniment_server.follow.follower import Follower
from muniment_server.follow.housekeeper import Housekeeper
from muniment_server.follow.publisher import Publisher
from muniment_server.host.disk import Disk
from muniment_server.read.cache import Cache
from muniment_server.read.reading import Reader
from muniment_server.settings import Settings
from muniment_server.storage import LogRow, Store
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace
from muniment_server.write.admission import EventDraft
from muniment_server.write.batcher import Batcher, Done
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, OwnDraft, Submission

_BREATH = 200


class Log(Reader):
    """A log. `sequencer` and `batcher` are None in a read-only process, and where `unwritable` says why it cannot be written.

    `new_sequencer` makes the sequencer, of which the log is the observer.
    """

    def __init__(
        self,
        store: Store,
        row: LogRow,
        settings: Settings,
        metrics: Metrics,
        cache: Cache,
        new_sequencer: Callable[[Observer], Sequencer] | None,
        *,
        unwritable: ReadOnly | None = None,
        disk: Disk | None = None,
        trace: Trace | None = None,
    ) -> None:
        sequencer = new_sequencer(self) if new_sequencer else None
        super().__init__(store, row, sequencer, cache, trace)
        self.settings = settings
        self._unwritable = unwritable
        self._disk = disk
        self._metrics = metrics
        self.drafting = asyncio.Lock()  # held while a batch is understood
        self.publisher: Publisher | None = None
        self._housekeeper: Housekeeper | None = None
        self._followers: list[Follower] = []
        if sequencer:
            self.publisher = Publisher(store, row, sequencer, self, metrics, settings.publish_interval, self.note)
            self._housekeeper = Housekeeper(store, row, sequencer.clock)
            self._followers += [self.publisher.follower, self._housekeeper.follower]
            metrics.races_lost.labels(row.name).set_function(lambda: sequencer.races_lost)
            metrics.head_size.labels(row.name).set_function(lambda: sequencer.signed.size if sequencer.signed else 0)
        if settings.scrub_rate:
            self._followers.append(Scrub(store, row, metrics, settings.scrub_rate).follower)
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
        if self.sequencer and self.batcher and self.publisher and self._housekeeper:
            await self._housekeeper.compare_clocks()  # before the first time stamp, not some time after it
            try:
                await self.sequencer.start()
            except OutcomeUnknown as error:  # the guard cannot be raised now: the batcher tries again, and reads go on
                get_logger().warning("recovery failed", log=self.row.name, error=str(error))
            await self.publisher.publish()
            self.batcher.start()
        for follower in self._followers:
            follower.start()

    async def close(self) -> None:
        """Answer everything that was taken, publish the last head, and stop."""
        if self.batcher:
            await self.batcher.close()
        for follower in self._followers:
            await follower.close()
        if self._looking:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        if self.publisher:
            with contextlib.suppress(StoreError):
                await self.publisher.publish()

    def withdraw(self, refusal: ReadOnly) -> None:
        """Take nothing more, for this reason."""
        if self.sequencer:
            self.sequencer.withdraw(refusal)

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""
        return self.sequencer.refusal if self.sequencer else self._unwritable

    # --- what the sequencer tells: see Observer -------------------------------------------------------------------------

    def signed(self) -> None:
        """Publish it."""
        if self.publisher:
            self.publisher.follower.wake()

    def refused(self, refusal: ReadOnly) -> None:
        """Tell the operator."""
        self._metrics.guard_refusals.inc()
        get_logger().error("log is read-only", log=self.row.name, code=refusal.code, detail=str(refusal))

    def returned(self) -> None:
        """Tell the operator."""
        get_logger().info("log is writable again", log=self.row.name)

    def moved(self) -> None:
        """Keep nothing of another database."""
        self.forget_tiles()

    def fell_behind(self) -> None:
        """See Heads."""
        super().fell_behind()
        if self.batcher:
            self.batcher.look()

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
