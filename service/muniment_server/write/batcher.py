"""Turns many requests into few commits: one batch in flight, the next one starts when the last commit has returned."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from muniment_server.errors import ClockRefused, LogReadOnly, OutcomeUnknown, ReadOnly, Refused, StoreError
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, Submission

_EXPECTED = (StoreError, ReadOnly, ClockRefused)
_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 2.0
_BREATH = 64
"""Answers given without letting others have a turn: a millisecond."""


Done = Callable[[Outcome | Refused], None]
"""Called once, in the event loop, with what became of a submission. Must not raise."""


class _Waiting(NamedTuple):
    submission: Submission
    done: Done
    size: int
    since: float


class Batcher:
    """The queue before one log's sequencer. Its own task is the only caller of :meth:`Sequencer.run`."""

    def __init__(
        self,
        sequencer: Sequencer,
        name: str,
        metrics: Metrics,
        *,
        max_commit: int,
        max_entries: int,
        max_bytes: int,
        max_age: float,
    ) -> None:
        self._sequencer = sequencer
        self._name = name
        self._metrics = metrics
        self._max_commit = max_commit
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._queue: deque[_Waiting] = deque()
        self._entries = 0  # queued, not those of the batch in flight
        self._bytes = 0
        self._running: set[tuple[str, str]] = set()  # Idempotency-Keys from submit until their batch is answered
        self._wake = asyncio.Event()
        self._depth = metrics.queue_depth.labels(name)
        self._commit_seconds = metrics.commit_seconds.labels(name)
        self._batch_entries = metrics.batch_entries.labels(name)
        self._closing = False
        self._failing: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sequence."""
        self._task = asyncio.create_task(self._loop(), name=f"batcher {self._name}")

    async def close(self) -> None:
        """Take nothing more, and answer everything that was taken."""
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task

    async def submit(self, submission: Submission) -> Outcome:
        """Return where the entries are, once they are durable and signed. Raises Refused."""
        waiting: asyncio.Future[Outcome | Refused] = asyncio.get_running_loop().create_future()
        # A request that is cancelled must not hurt the batch that others wait for.
        self.put(submission, lambda answer: None if waiting.done() else waiting.set_result(answer))
        answer = await waiting
        if isinstance(answer, Refused):
            raise answer
        return answer

    def put(self, submission: Submission, done: Done) -> None:
        """Queue a submission. `done` is called once its entries are durable and signed, or not. Raises Refused."""
        drafts, caller, key = submission
        size = submission.size
        now = time.monotonic()
        if self._closing:
            raise _shutting_down()
        if key is not None and (caller, key) in self._running:
            raise _key_in_use()
        if self._queue:  # a submission larger than the queue is still taken when it is alone
            self._check_queue(len(drafts), size, now)
        self._queue.append(_Waiting(submission, done, size, now))
        self._entries += len(drafts)
        self._bytes += size
        if key is not None:
            self._running.add((caller, key))
        self._wake.set()

    def check_room(self) -> None:
        """Raise Refused when nothing more would be taken now, whatever it is.

        For callers that have not read the body yet, which would be for nothing.
        """
        if self._closing:
            raise _shutting_down()
        if self._queue:
            self._check_queue(1, 0, time.monotonic())

    def _check_queue(self, entries: int, size: int, now: float) -> None:
        if self._entries + entries > self._max_entries or self._bytes + size > self._max_bytes:
            raise _overloaded("too many entries are waiting")
        # The caller that came first waits longest. Beyond this, what is taken now would be late, and so would its
        # checkpoint.
        if now - self._queue[0].since > self._max_age:
            raise _overloaded(f"entries wait for more than {self._max_age:g} s")

    def _take(self) -> list[_Waiting]:
        if self._entries <= self._max_commit:
            batch = list(self._queue)
            self._queue.clear()
            self._entries = self._bytes = 0
            return batch
        batch = []
        room = self._max_commit
        while self._queue and (not batch or len(self._queue[0].submission.drafts) <= room):
            waiting = self._queue.popleft()
            batch.append(waiting)
            room -= len(waiting.submission.drafts)
            self._bytes -= waiting.size
        self._entries -= self._max_commit - room
        return batch

    async def _loop(self) -> None:
        while True:
            await self._wait()
            self._wake.clear()
            while self._queue:
                batch = self._take()
                self._depth.set(self._entries)
                await self._tell(zip(batch, await self._answers(batch), strict=True))
                del batch  # otherwise a large one would stay in memory until the next one comes
                # Those who were answered may have sent the next request by now: it goes into the next batch, not the
                # one after it. A batch has its price, whatever is in it.
                await asyncio.sleep(0)
            if self._closing and not self._queue:
                return

    async def _tell(self, told: Iterable[tuple[_Waiting, Outcome | Refused]]) -> None:
        """Give answers to those who wait for them."""
        for number, (waiting, answer) in enumerate(told, 1):
            if waiting.submission.key is not None:
                self._running.discard((waiting.submission.caller, waiting.submission.key))
            waiting.done(answer)
            if not number % _BREATH:
                await asyncio.sleep(0)  # reads, and the batch in flight, go on in between

    async def _wait(self) -> None:
        """Wait for a submission.

        Meanwhile, after an error, recover: so that what was committed is signed, and the next one answered.
        """
        delay = _RETRY_SECONDS
        while not self._wake.is_set():
            if self._sequencer.lost:
                try:
                    await self._sequencer.start()
                    self._failing = None
                except Exception as error:  # noqa: BLE001 - whatever it was, only a successful reload ends this
                    self._failing = _failure(error).code
                    get_logger().warning("recovery failed", log=self._name, error=f"{type(error).__name__}: {error}")
                    delay = min(2 * delay, _MAX_RETRY_SECONDS)
            pause = delay if self._sequencer.lost else self._sequencer.next_look
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    def look(self) -> None:
        """Have the sequencer recover, if it has lost its state, although nothing was submitted."""
        self._wake.set()

    @property
    def failing(self) -> str | None:
        """The code that the last try to store something was answered with, and the next one may be; or None."""
        return self._failing

    def tried(self, code: str | None) -> None:
        """Take note of a try that others made: the code that it failed with, or None.

        A success of theirs does not show that a sequencer has recovered that has lost its state.
        """
        if code or not self._sequencer.lost:
            self._failing = code

    async def _answers(self, batch: Sequence[_Waiting]) -> Sequence[Outcome | Refused]:
        """Run a batch; whatever goes wrong becomes the answer of everybody in it."""
        started = time.perf_counter()
        try:
            answers = await self._run([waiting.submission for waiting in batch])
        except _EXPECTED as error:
            get_logger().warning("batch failed", log=self._name, error=str(error))
            return [self._failed(error)] * len(batch)
        except Exception as error:  # noqa: BLE001 - a bug fails this batch, not the task that all later ones need
            get_logger().exception("batch failed unexpectedly", log=self._name)
            return [self._failed(error)] * len(batch)
        self._failing = None
        self._commit_seconds.observe(time.perf_counter() - started)
        self._count(answers)
        return answers

    def _failed(self, error: Exception) -> Refused:
        """Return what the waiters of a failed batch are told, and let the log be read again.

        Otherwise only the next batch would show whether all is well again. What a clock says needs no reading.
        """
        failure = _failure(error)
        if not isinstance(error, ClockRefused | ReadOnly):
            self._failing = failure.code
            self._sequencer.doubt()
        return failure

    async def _run(self, submissions: Sequence[Submission]) -> Sequence[Outcome | Refused]:
        answers = await self._sequencer.run(submissions)
        if len(answers) != len(submissions):  # would leave a caller waiting for good
            raise AssertionError(f"{len(answers)} answers to {len(submissions)} submissions")
        return answers

    def _count(self, answers: Sequence[Outcome | Refused]) -> None:
        new = known = replayed = 0
        for answer in answers:
            if isinstance(answer, Outcome):
                new += answer.new
                if answer.replayed:
                    replayed += len(answer.indices)
                else:
                    known += len(answer.indices) - answer.new
        for outcome, count in (("new", new), ("known", known), ("replayed", replayed)):
            if count:
                self._metrics.appends.labels(self._name, outcome).inc(count)
        if new:
            self._batch_entries.observe(new)


def _shutting_down() -> Refused:
    return Refused("shutting_down", "the server is shutting down", "Retry in a few seconds.", retry_after=1)


def _key_in_use() -> Refused:
    detail = "a request with this Idempotency-Key is being processed"
    hint = "Retry in a second: the same key then answers with the same entry."
    return Refused("idempotency_running", detail, hint, retry_after=1)


def _overloaded(detail: str) -> Refused:
    return Refused("overloaded", detail, "Retry after the time given.", retry_after=1)


def _failure(error: Exception) -> Refused:
    """Return what the waiters of a failed batch are told."""
    if isinstance(error, ReadOnly):
        return LogReadOnly(error.code)
    if isinstance(error, ClockRefused):
        return Refused("clock", str(error), "The operator must repair the clock; nothing was written.", retry_after=30)
    if isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown):
        hint = "Nothing was written. Retry after the time given."
        return Refused("database_unavailable", "the database does not answer", hint, retry_after=1)
    return Refused(
        "outcome_unknown",
        "the entry may or may not have been stored",
        "Send exactly the same request again, with the same Idempotency-Key for an event: it cannot be logged twice.",
        retry_after=1,
    )
