"""One log as the routes see it: what writes it, what reads it, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from muniment_server.check.scrub import Scrub
from muniment_server.errors import OutcomeUnknown, ReadOnly, StoreError
from muniment_server.follow.exposure import Exposure
from muniment_server.follow.follower import Follower
from muniment_server.follow.housekeeper import Housekeeper
from muniment_server.follow.indexer import Indexer
from muniment_server.follow.publisher import Publisher
from muniment_server.host.disk import Disk
from muniment_server.read.anchors import Anchors
from muniment_server.read.cache import Cache
from muniment_server.read.coverage import Coverage
from muniment_server.read.entries import Entries
from muniment_server.read.files import Files
from muniment_server.read.flow import run
from muniment_server.read.heads import Heads
from muniment_server.read.proofs import Proofs
from muniment_server.read.receipts import Receipts
from muniment_server.read.search import Search
from muniment_server.read.tiles import Tiles
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace
from muniment_server.write.batcher import Batcher
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, Submission
from muniment_server.write.writer import Writer

_DOUBT_SECONDS = 1.0
"""How often a writer proves again that it has the right database, for as long as there is reason to doubt it."""


class Log:
    """A log: a writer, a reader in five parts, and the heads that both go by.

    `sequencer` and `batcher` are None in a read-only process, and where `unwritable` says why it cannot be written.
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
        self.row = row
        self.settings = settings
        self.sequencer = sequencer
        self.traced = trace is not None
        self._metrics = metrics
        self._database_seconds = metrics.database_seconds.labels(row.name)
        self._trace = trace
        self.heads = Heads(store, row, sequencer, self.fell_behind)
        tiles = Tiles(store, row.log_id, self.heads, cache)
        self.proofs = Proofs(self.heads, tiles)
        self.entries = Entries(store, row.log_id, self.heads)
        self.files = Files(store, row.log_id, self.heads, tiles, self.entries, cache)
        self.receipts = Receipts(row.origin, self.heads, self.proofs, self.entries)
        self.anchors = Anchors(store, row.log_id, self.proofs, self.entries)
        self.coverage = Coverage(store, row, self.entries)
        members = settings.searched(row.name) if row.kind == "event" else frozenset[str]()
        searched = members is None or bool(members)
        self.search = Search(store, row.log_id, self.heads, self.entries, members) if searched else None
        self._doubted = -_DOUBT_SECONDS
        self.drafting = asyncio.Lock()  # held while a batch is understood
        self.publisher: Publisher | None = None
        self._housekeeper: Housekeeper | None = None
        self._followers: list[Follower | Indexer] = [Exposure(self.coverage, row.name, metrics).follower]
        self._trouble: str | None = None  # as far as the operator was told
        self.batcher = (
            Batcher(
                sequencer,
                row.name,
                metrics,
                max_commit=settings.max_commit_entries,
                max_entries=settings.max_queue_entries,
                max_bytes=settings.max_queue_bytes,
                max_age=settings.max_queue_seconds,
            )
            if sequencer
            else None
        )
        self.writer = Writer(sequencer, self.batcher, unwritable, disk)
        if sequencer and self.batcher:
            self.publisher = Publisher(store, row, sequencer, self.heads, metrics, settings.publish_interval, self.note)
            self._housekeeper = Housekeeper(store, row, sequencer.clock, self.batcher.tried)
            self._followers += [self.publisher.follower, self._housekeeper.follower]
            metrics.races_lost.set_function(row.name, lambda: sequencer.races_lost)
            metrics.guard_refusals.labels(row.name)  # shows 0 from the start
            metrics.head_size.labels(row.name).set_function(lambda: sequencer.signed.size if sequencer.signed else 0)
        if sequencer and searched:
            self._followers.append(Indexer(store, row, metrics, members))
        if settings.scrub_rate:
            self._followers.append(Scrub(store, row, metrics, settings.scrub_rate).follower)
        metrics.subscribers.labels(row.name).set_function(lambda: self.heads.feed.subscribers)
        if sequencer or unwritable:  # in a server that only reads there is nothing to be alarmed about
            metrics.writable.labels(row.name).set_function(lambda: self.writer.obstacle is None)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, publish what is signed, and begin to take entries.

        Raises StoreError when the database does not answer.
        """
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
        await self.heads.close()
        if self.publisher:
            with contextlib.suppress(StoreError):
                await self.publisher.publish()

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""
        return self.writer.refusal

    def tell_trouble(self) -> None:
        """Tell the operator once that appends are refused, and once that they are taken again.

        Refusals of the log and a full disk have lines of their own.
        """
        was, self._trouble = self._trouble, self.writer.trouble
        if bool(self._trouble) == bool(was):  # another code of the same outage begins nothing: /readyz has it
            return
        if self._trouble:
            detail = self.sequencer and self.sequencer.clock_doubt
            get_logger().error("appends are refused", log=self.row.name, code=self._trouble, detail=detail or "")
        else:
            get_logger().info("appends are taken again", log=self.row.name, code=was)

    def withdraw(self, refusal: ReadOnly) -> None:
        """Take nothing more, for this reason."""
        if self.sequencer:
            self.sequencer.withdraw(refusal)

    # --- what the sequencer tells: see Observer -----------------------------------------------------------------------

    def signed(self) -> None:
        """Publish it."""
        if self.publisher:
            self.publisher.follower.wake()

    def stored(self, seconds: float) -> None:
        """Count it."""
        self._database_seconds.observe(seconds)

    def refused(self, refusal: ReadOnly) -> None:
        """Tell the operator."""
        self._metrics.guard_refusals.labels(self.row.name).inc()
        get_logger().error("log is read-only", log=self.row.name, code=refusal.code, detail=str(refusal))

    def returned(self) -> None:
        """Tell the operator."""
        get_logger().info("log is writable again", log=self.row.name)

    def moved(self) -> None:
        """Keep nothing of another database."""
        self.proofs.forget()

    def fell_behind(self) -> None:
        """Keep no tile in memory, and have a writer prove again that it has the right database, now and then.

        It is refused if not.
        """
        self.proofs.forget()
        if self.sequencer and time.monotonic() - self._doubted > _DOUBT_SECONDS:
            self._doubted = time.monotonic()
            self.sequencer.doubt()
        if self.batcher:
            self.batcher.look()

    # --- append -------------------------------------------------------------------------------------------------------

    async def append(self, submission: Submission) -> Outcome:
        """Append, or find, the entries of a submission. Raises Refused."""
        outcome = await self.writer.submit(submission)
        await self.note_answers(submission, outcome)
        return outcome

    # --- trace --------------------------------------------------------------------------------------------------------

    def note(self, event: str, **values: Any) -> None:
        """Write a line of the trace, if there is one."""
        if self._trace:
            self._trace(self.row.name, event, **values)

    async def note_answers(self, submission: Submission, outcome: Outcome) -> None:
        """Write the trace lines of an acknowledgement, if there is a trace: of a submission's first and last entry."""
        if not self.traced:
            return
        for at in sorted({0, len(outcome.indices) - 1}):
            receipt = await run(self.receipts.of_append(submission, outcome, at))
            self.note(
                "answer",
                index=receipt.index,
                leaf_hash=receipt.leaf_hash,
                size=outcome.signed.size,
                root=outcome.signed.root,
                hashes=receipt.proof,
                key=submission.key and sha256(f"{submission.caller}/{submission.key}".encode()).digest(),
                first=outcome.indices[0],
            )
