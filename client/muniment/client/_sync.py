"""The client for code that may block."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from muniment._flows import anchors, reads, without_receipts, writes
from muniment._flows.anchors import AnchorFiles, AnchorInfo
from muniment._flows.borders import range_of_times
from muniment._flows.following import Following, FollowingCheckpoints
from muniment._flows.receipts import ReceiptPages
from muniment._flows.results import ConsistencyProof, Entry, InclusionProof, LogInfo
from muniment._flows.searching import Hit, HitPages
from muniment._flows.steps import Call, Exclusive, Flow, Lost, Request, Response, Step
from muniment._flows.without_receipts import Appended
from muniment._flows.writes import Batcher, Entryish, PreparedEntry
from muniment.client._ahead import Batch, in_order
from muniment.client._hits import Hits
from muniment.client._http import (
    BATCH_BYTES,
    BATCH_ENTRIES,
    CONNECTIONS,
    QUIET,
    Base,
    Options,
    Settings,
    in_vain,
    log_url,
    lost,
    made,
)
from muniment.errors import MunimentError
from muniment.evidence import Evidence
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt
from muniment.sse import MEDIA_TYPE, EventReader
from muniment.times import Moment
from muniment.wire import Deadline, NoAnswer, ask, bounded, listen

T = TypeVar("T")


class Client(Base):
    """A log behind a URL, for code that may block. Safe to share between threads.

    What it takes besides the URL is in :class:`~muniment.client.Options`; `policy` is required.

    Every method raises Unreachable, Unavailable or Refused when no answer came, FormatError or VerificationError
    when the answer is not proved, Inconsistent when the log contradicts a checkpoint it signed before, Behind when the
    server has less of the log than was seen before, and StateError when the state fails. Those of an append carry
    `idempotency_key`, under which it can be repeated.

    "The tree" is that of the largest checkpoint this client has accepted: the published one, or a newer one that an
    append of its own was answered with.
    """

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None, **options: Unpack[Options]) -> None:
        super().__init__(url, **options)
        self._http = bounded(made(lambda: httpx.Client(transport=transport, **self._options)))
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(CONNECTIONS)
        self._counting = threading.Lock()  # guards the two below
        self._sending = 0
        self._closed = False

    @classmethod
    def trust_on_first_use(
        cls, url: str, *, transport: httpx.BaseTransport | None = None, **settings: Unpack[Settings]
    ) -> Policy:
        """Return a policy that pins the keys the server at `url` names.

        Save it, and compare it with what the operator publishes. This proves nothing about today's server; it makes
        sure that later answers come from the same log.
        """
        where = log_url(url, settings.get("log"))
        nothing = Policy(())  # vouches for nothing, and nothing is asked of it
        with cls(url, transport=transport, policy=nothing, **settings) as client:
            return client._run(reads.first_use(where, client._retries))

    # --- performing steps ---------------------------------------------------------------------------------------------

    def _run(self, flow: Flow[T], call: Deadline | None = None) -> T:
        call = call or self._deadline()
        with closing(flow):
            outcome, failure = None, None
            while True:
                try:
                    step = flow.throw(failure) if failure else flow.send(outcome)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                try:
                    outcome, failure = self._perform(step, call), None
                except MunimentError as error:
                    outcome, failure = None, error

    def _perform(self, step: Step, call: Deadline) -> Any:
        if isinstance(step, Request):
            return self._exchange(step, call)
        if isinstance(step, Exclusive):
            with _held(self._lock, call):
                return self._run(step.flow, call)
        if isinstance(step, Call):
            return step.function()
        if step.seconds >= call.left():
            return False
        time.sleep(step.seconds)
        return True

    def _exchange(self, request: Request, call: Deadline) -> Response | Lost:
        with _held(self._turns, call):
            if self._closed:
                return Lost("the client is closed", again=False)
            try:
                return Response(*ask(self._http, request.limit, self._seconds(call), **self._arguments(request)))
            except NoAnswer as error:
                return lost(error, self.url)

    def close(self) -> None:
        """Close the connections, except that of a batch that is on its way: it is closed once the answer came."""
        with self._counting:
            self._closed = True
            idle = not self._sending
        if idle:
            self._http.close()

    def _send_batch(self, entries: list[PreparedEntry], key: str) -> Response:
        return self._send(writes.send_batch(self._session, entries, key))

    def _send(self, flow: Flow[Response]) -> Response:
        """Send a batch, in a thread of its own.

        The client keeps its connection open meanwhile: closed, it would go on reading from whatever is opened next.
        """
        with self._counting:
            self._sending += 1
        try:
            return self._run(flow)
        finally:
            with self._counting:
                self._sending -= 1
                last = self._closed and not self._sending
            if last:
                self._http.close()

    def _check_batch(self, entries: list[PreparedEntry], answer: Response) -> list[Receipt]:
        return self._run(writes.check_batch(self._session, entries, answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- appending ----------------------------------------------------------------------------------------------------

    def append(self, entry: Entryish, *, idempotency_key: str | None = None) -> Receipt:
        """Append an event (a mapping) or a raw leaf (bytes) and return its receipt, once it is durable and verified.

        The same append sent twice is logged once: retries repeat the Idempotency-Key, and equal raw leaves are one
        entry. Give a key of your own to be able to repeat the call itself after an error; it holds as long as the
        log says (``GET /log``).

        Raises EventRefused when the event has no canonical form, NotWhatWasSent when the answer is a
        proof of something else.
        """
        prepared = PreparedEntry.of(entry, self._default)
        return self._run(writes.append(self._session, prepared, idempotency_key or writes.new_key()))

    def append_many(
        self, entries: Iterable[Entryish], *, batch_entries: int = BATCH_ENTRIES, batch_bytes: int = BATCH_BYTES
    ) -> Iterator[Receipt]:
        """Append entries in batches and yield their receipts, in order.

        While a batch is on its way, `entries` is read for the next and the answer to the one before is verified; no
        more than that is held in memory. A batch is logged as a whole or not at all, and is sent once the log has
        answered the one before. When an entry cannot be logged, those before it are, and their receipts come before the
        error. A caller that takes no more receipts, or gets an answer that is not proved, leaves at most one batch that
        may be logged and is not accounted for.
        """
        batches = writes.batches(entries, Batcher(batch_entries, batch_bytes), self._default)
        for receipts in self.append_batches((batch, writes.new_key()) for batch in batches):
            yield from receipts

    def append_batches(self, batches: Iterable[Batch]) -> Iterator[list[Receipt]]:
        """Append batches, each under its Idempotency-Key, and yield the receipts of each: see :meth:`append_many`.

        Each is read from `batches` while the one before is on its way. So when the log refuses a batch, the next was
        read, but not sent; and all before it were verified.
        """
        return in_order(batches, self._send_batch, self._check_batch)

    def append_without_receipts(self, batches: Iterable[Batch]) -> Iterator[Appended]:
        """As :meth:`append_batches`, for callers that keep no receipts: yield where the entries of each batch are.

        They are proved all the same. Neighbours are proved together, and raw leaves need no receipts: that takes a
        fraction of the work. Raises as the other appends.
        """
        return in_order(
            batches,
            lambda entries, key: self._send(without_receipts.send_without_receipts(self._session, entries, key)),
            lambda entries, answer: self._run(without_receipts.check_appended(self._session, entries, answer)),
        )

    def append_batch(self, entries: list[PreparedEntry], *, idempotency_key: str | None = None) -> list[Receipt]:
        """Append one batch, all or none, and return its receipts in order. One Idempotency-Key covers the batch."""
        return self._run(writes.append_batch(self._session, entries, idempotency_key or writes.new_key()))

    # --- reading ------------------------------------------------------------------------------------------------------

    def entry(self, index: int) -> Entry:
        """Return the entry at `index`, opened as far as the log opens it to this caller."""
        return self._run(reads.entry(self._session, index))

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[Entry]:
        """Yield the entries [start, stop) of the tree, each compared with it; by default to its end."""
        pages = reads.EntryPages(self._session, start, stop)
        while page := self._run(pages.next_page()):
            yield from page

    def follow(self, start: int | None = None, *, interval: float = 1.0) -> Iterator[Entry]:
        """Yield the entries from `start` on as they are published, without an end; by default those from now on.

        Each is compared with the signed tree. While there is none, the log is asked every `interval` seconds. An error
        ends this, also that a server is away for longer than the retries last: call it again, from the entry after the
        last one.
        """
        following = Following(self._session, start, interval)
        while True:
            yield from self._run(following.next_page())

    def search(
        self,
        query: str,
        *,
        start_time: Moment | None = None,
        end_time: Moment | None = None,
        newest: bool = True,
        limit: int | None = None,
        receipts: bool = False,
    ) -> Hits:
        """Return the hits of a query, newest first, logged from `start_time` to before `end_time`: an iterator.

        The grammar is in docs/search.md; QueryError says where a text is no query. Times are datetimes or texts. The
        iterator's `complete_to` and `tree_size` say how far the log was searched. A hit that is not what was asked for
        raises NotWhatWasSent or FormatError. Nothing proves that the server shows all.

        With `receipts` each hit has its verified receipt, all at one checkpoint, and the event shown is the one in it;
        PayloadsClosed says that a receipt opens nothing to this caller.
        It is an argument and no method, since nothing else differs; it takes one request more for each page of hits.
        """
        times = (start_time, end_time)
        pages = HitPages(self._session, query, times, newest=newest, limit=limit, receipts=receipts)
        return Hits(pages, self._hits(pages))

    def _hits(self, pages: HitPages) -> Iterator[Hit]:
        while not pages.ended:
            yield from self._run(pages.next_page())

    def receipt(self, index: int, *, tree_size: int | None = None, members: Collection[str] | None = None) -> Receipt:
        """Return the receipt of entry `index`, at the latest published checkpoint or at the one of `tree_size`.

        With `members` it opens these members of the event and no others, and the values of the others are not sent.
        Then it raises Refused (``unknown_member``) when the event does not have them all, and UnknownMember when the
        log does not open them to this caller. An entry of the last second may not be published yet: this waits for it
        as long as the retries allow.
        """
        return self._run(reads.receipt(self._session, index, tree_size, members))

    def receipts(self, start: int = 0, stop: int | None = None, *, at: str | None = None) -> Iterator[Receipt]:
        """Yield the receipts of the entries [start, stop), all at one checkpoint, as a bundle of receipts takes them.

        At the latest published one, or at that of the note `at`, which is proved to be of the tree. Raises Behind when
        the server does not have that much.
        """
        pages = ReceiptPages(self._session, start, stop, at)
        while page := self._run(pages.next_page()):
            yield from page

    def range_of_times(self, *, start_time: Moment | None = None, end_time: Moment | None = None) -> tuple[int, int]:
        """Return the entries [start, stop) of some times: logged from `start_time` to before `end_time`, and published.

        Found in the signed tree, in which times never go back: no entry of these times is outside of them. Both are the
        same index when there is none. While `stop` is the size of the tree, more may be published yet.
        Raises FormatError for a raw log, whose entries have no time.
        """
        return self._run(range_of_times(self._session, start_time, end_time))

    def anchored_receipt(self, index: int) -> Receipt:
        """Return the receipt of entry `index` with the earliest confirmed anchor that covers it.

        Raises Refused (``no_anchor``) before there is one. What the anchor shows,
        :func:`muniment.anchor.check.check_receipt_anchor` says.
        """
        return self._run(anchors.anchored_receipt(self._session, index))

    def anchors(self, start: int = 0) -> Iterator[AnchorInfo]:
        """Yield what the server says of its anchors of sizes >= `start`, in order of size. Its word, and no more."""
        pages = anchors.AnchorPages(self._session, start)
        while page := self._run(pages.next_page()):
            yield from page

    def anchor(self, size: int) -> AnchorInfo:
        """Return what the server says of the anchor at `size`. Its word, and no more."""
        return self._run(anchors.anchor(self._session, size))

    def anchor_files(self, size: int) -> AnchorFiles:
        """Return the anchored checkpoint of `size`, verified to be of the tree, and its proof for ``check_anchor``."""
        return self._run(anchors.anchor_files(self._session, size))

    def inclusion(
        self, index: int | None = None, *, leaf_hash: bytes | None = None, tree_size: int | None = None
    ) -> InclusionProof:
        """Return the inclusion proof of the leaf at `index` or with `leaf_hash`, by default in the latest tree."""
        return self._run(reads.inclusion(self._session, index, leaf_hash, tree_size))

    def consistency(self, since: VerifiedCheckpoint | Receipt | str) -> ConsistencyProof:
        """Return the proof that the published checkpoint and `since` are of one tree.

        `since` is a checkpoint, its note, or a receipt.
        """
        return self._run(reads.consistency(self._session, since))

    def evidence(
        self, one: VerifiedCheckpoint | Receipt | str, other: VerifiedCheckpoint | Receipt | str
    ) -> Evidence | None:
        """Return evidence that two signed heads contradict each other, None when the log proves that they agree.

        Each is a checkpoint, its note, or a receipt. The log is asked when their sizes differ, and has to be the one
        that shows the larger tree.
        """
        return self._run(reads.evidence(self._session, one, other))

    def checkpoint(self) -> VerifiedCheckpoint:
        """Return the published checkpoint. It may be older than one seen before, but never contradicts it."""
        return self._run(reads.checkpoint(self._session))

    def checkpoints(
        self, start: int | None = None, *, follow: bool = False, interval: float = 1.0
    ) -> Iterator[VerifiedCheckpoint]:
        """Yield the published checkpoints of sizes >= `start`, in order of size, each of the same tree.

        A server may leave some out, and no proof can show it. With `follow` there is no end: each comes as it is
        published, by default from the latest on. A log without a stream, whichever serves tlog-tiles, is asked every
        `interval` seconds instead; one without a list of checkpoints then shows the latest alone. An error ends this,
        also that a server is away for longer than the retries last: call it again, from the size after the last one.
        """
        if not follow:
            pages = reads.CheckpointPages(self._session, start or 0)
            while page := self._run(pages.next_page()):
                yield from page
            return
        following = FollowingCheckpoints(self._session, start, interval)
        while True:
            page = self._run(following.next_page())
            yield from page
            if not page and following.streams:
                yield from self._told(following)

    def _told(self, following: FollowingCheckpoints) -> Iterator[VerifiedCheckpoint]:
        """Yield what the stream tells, until it ends or there is none."""
        reader, arguments = EventReader(), self._arguments(following.request())
        try:
            with closing(listen(self._http, MEDIA_TYPE, QUIET, **arguments)) as pieces:
                for piece in pieces:
                    for event in reader.read(piece):
                        if signed := self._run(following.told(event)):
                            yield signed
        except NoAnswer as error:
            following.streams = error.again

    def tile(self, level: int, index: int) -> list[bytes]:
        """Return the 1 to 256 hashes of a tile."""
        return self._run(reads.tile(self._session, level, index))

    def bundle(self, index: int) -> list[bytes]:
        """Return the 1 to 256 leaves from index 256 * `index` on."""
        return self._run(reads.bundle(self._session, index))

    def log_info(self) -> LogInfo:
        """Return what the server says about the log.

        Its origin and keys are compared with the policy; the rest is the server's word.
        """
        return self._run(reads.log_info(self._session))


@contextmanager
def _held(lock: threading.Lock | threading.Semaphore, call: Deadline) -> Iterator[None]:
    """Hold a lock. Raises Unreachable when others hold it for all that is left of the call."""
    if not lock.acquire(timeout=call.left()):
        raise in_vain()
    try:
        yield
    finally:
        lock.release()
