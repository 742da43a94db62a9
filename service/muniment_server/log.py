"""One log as the routes see it: what writes it, what reads it, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import time
from hashlib import sha256
from typing import Any

from muniment.tree import Edge, partial_tiles
from muniment_server.check.scrub import Scrub
from muniment_server.errors import OtherTree, OutcomeUnknown, ReadOnly, StoreError
from muniment_server.failpoints import step
from muniment_server.host.disk import Disk
from muniment_server.read.anchors import Anchors
from muniment_server.read.cache import Cache
from muniment_server.read.entries import Entries
from muniment_server.read.files import Files
from muniment_server.read.flow import run
from muniment_server.read.heads import Heads
from muniment_server.read.proofs import Proofs
from muniment_server.read.receipts import Receipts
from muniment_server.read.tiles import Tiles
from muniment_server.settings import Settings
from muniment_server.storage import EdgeTile, LogRow, Published, Store
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.trace import Trace
from muniment_server.write.batcher import Batcher
from muniment_server.write.clock import MAX_SKEW
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, Signed, Submission
from muniment_server.write.writer import Writer

_HOUSEKEEPING_SECONDS = 10.0
_RETRY_SECONDS = 0.25
_PUBLISH_EARLY = 0.8
_DOUBT_SECONDS = 1.0
"""How often a writer proves again that it has the right database, for as long as there is reason to doubt it."""


class Log:
    """A log: a writer, a reader in five parts, and the heads that both go by.

    `sequencer` and `batcher` are None in a read-only process, and where `unwritable` says why it cannot be written.
    """

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
        self.traced = trace is not None
        self._store = store
        self._metrics = metrics
        self._trace = trace
        self.heads = Heads(store, row, sequencer, self.fell_behind)
        tiles = Tiles(store, row.log_id, self.heads, cache)
        self.proofs = Proofs(self.heads, tiles)
        self.entries = Entries(store, row.log_id, self.heads)
        self.files = Files(store, row.log_id, self.heads, tiles, self.entries, cache)
        self.receipts = Receipts(row.origin, self.heads, self.proofs, self.entries)
        self.anchors = Anchors(store, row.log_id, self.proofs, self.entries)
        self._doubted = -_DOUBT_SECONDS
        self._published: Signed | None = None  # what this process published last
        self._dirty = asyncio.Event()
        self.drafting = asyncio.Lock()  # held while a batch is understood
        self._tasks: list[asyncio.Task[None]] = []
        if sequencer:
            sequencer.on_signed = self._dirty.set  # not when a waiter is answered: it may have left
            sequencer.on_refusal = self._refused
            sequencer.on_return = self._returned
            sequencer.on_moved = self.proofs.forget
            metrics.races_lost.labels(row.name).set_function(lambda: sequencer.races_lost)
            metrics.head_size.labels(row.name).set_function(lambda: sequencer.signed.size if sequencer.signed else 0)
        if sequencer or unwritable:  # in a server that only reads there is nothing to be alarmed about
            metrics.writable.labels(row.name).set_function(lambda: self.refusal is None)
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

    # --- life ---------------------------------------------------------------------------------------------------------

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
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.heads.close()
        with contextlib.suppress(StoreError):
            await self._publish()

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""
        return self.writer.refusal

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
        """Keep no tile in memory, and have a writer prove again that it has the right database, now and then.

        It is refused if not.
        """
        self.proofs.forget()
        if self.sequencer and time.monotonic() - self._doubted > _DOUBT_SECONDS:
            self._doubted = time.monotonic()
            self.sequencer.doubt()
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
            larger = await self._store.publish(self.row.log_id, one, edge_tiles(edge) if edge else ())
        except OtherTree:
            self.fell_behind()  # what was proved of the database no longer holds; nothing was published
            raise
        self.note("publish", size=signed.size, root=signed.root, larger=larger)
        self._published = signed  # also when another writer published a larger one
        if larger:
            self.heads.saw(signed.size)
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
            skew = self.sequencer.clock.skew = database - (before + _now()) // 2
            if self._store.has_clock and abs(skew) <= MAX_SKEW:
                self.sequencer.clock.rebase()  # another machine says the same

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
            receipt = await run(self.receipts.placed(submission, outcome, at))
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


def edge_tiles(edge: Edge) -> list[EdgeTile]:
    """Return the tiles of a right edge that hold something."""
    return [
        (tile.level, tile.index, bytes(edge.levels[tile.level][0])) for tile in partial_tiles(edge.size) if tile.width
    ]


def _now() -> int:
    return time.time_ns() // 1_000_000
