"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Iterable
from contextlib import aclosing, asynccontextmanager, closing
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
from muniment._flows.values import Default
from muniment._flows.without_receipts import Appended
from muniment._flows.writes import Batcher, Entryish, PreparedEntry
from muniment.client._ahead import Batch, in_order_async, unwrap
from muniment.client._hits import AsyncHits
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
from muniment.wire import Deadline, NoAnswer, ask_async, bounded, listen_async

T = TypeVar("T")


class AsyncClient(Base):
    """A log behind a URL, for asyncio: to be used on one event loop, by any number of tasks.

    Arguments, results and errors are those of :class:`~muniment.Client`. What it takes besides the URL is in
    :class:`~muniment.client.Options`; `policy` is required. A call that is cancelled may or may not have been carried
    out: repeat an append under a key of your own.

    "The tree" is that of the largest checkpoint this client has accepted: the published one, or a newer one that an
    append of its own was answered with.
    """

    def __init__(
        self, url: str, *, transport: httpx.AsyncBaseTransport | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(url, **options)
        self._http = bounded(made(lambda: httpx.AsyncClient(transport=transport, **self._options)))
        self._lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(CONNECTIONS)

    @classmethod
    async def trust_on_first_use(
        cls, url: str, *, transport: httpx.AsyncBaseTransport | None = None, **settings: Unpack[Settings]
    ) -> Policy:
        """Return a policy that pins the keys the server at `url` names.

        Save it, and compare it with what the operator publishes. This proves nothing about today's server; it makes
        sure that later answers come from the same log.
        """
        where = log_url(url, settings.get("log"))
        nothing = Policy(())  # vouches for nothing, and nothing is asked of it
        async with cls(url, transport=transport, policy=nothing, **settings) as client:
            return await client._run(reads.first_use(where, client._retries))

    # --- performing steps ---------------------------------------------------------------------------------------------

    async def _run(self, flow: Flow[T], call: Deadline | None = None) -> T:
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
                    outcome, failure = await self._perform(step, call), None
                except MunimentError as error:
                    outcome, failure = None, error

    async def _perform(self, step: Step, call: Deadline) -> Any:
        if isinstance(step, Request):
            return await self._exchange(step, call)
        if isinstance(step, Exclusive):
            async with _held(self._lock, call):
                return await self._run(step.flow, call)
        if isinstance(step, Call):
            return await asyncio.to_thread(step.function)
        if step.seconds >= call.left():
            return False
        await asyncio.sleep(step.seconds)
        return True

    async def _exchange(self, request: Request, call: Deadline) -> Response | Lost:
        async with _held(self._turns, call):
            if self._http.is_closed:
                return Lost("the client is closed", again=False)
            try:
                seconds = self._seconds(call)
                return Response(*await ask_async(self._http, request.limit, seconds, **self._arguments(request)))
            except NoAnswer as error:
                return lost(error, self.url)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- appending ----------------------------------------------------------------------------------------------------

    async def append(self, entry: Entryish, *, idempotency_key: str | None = None) -> Receipt:
        """Append an event (a mapping) or a raw leaf (bytes) and return its receipt, once it is durable and verified.

        The same append sent twice is logged once: retries repeat the Idempotency-Key, and equal raw leaves are one
        entry. After an error the call can be repeated under the key that the error carries, or under your own.

        Raises EventRefused when the event has no canonical form, NotWhatWasSent when the answer is a proof of something
        else.
        """
        prepared = PreparedEntry.of(entry, self._default)
        return await self._run(writes.append(self._session, prepared, idempotency_key or writes.new_key()))

    async def append_many(
        self,
        entries: Iterable[Entryish] | AsyncIterable[Entryish],
        *,
        batch_entries: int = BATCH_ENTRIES,
        batch_bytes: int = BATCH_BYTES,
    ) -> AsyncIterator[Receipt]:
        """Append entries in batches and yield their receipts, in order.

        A batch is logged as a whole or not at all. An asynchronous source is read while a batch is on its way, at most
        `batch_entries` ahead. A slow one is not waited for: the next batch is what has arrived since the last was
        answered. When an entry cannot be logged, those before it are, and their receipts come before the error.
        """
        batcher = Batcher(batch_entries, batch_bytes)
        if isinstance(entries, AsyncIterable):
            source = arriving(entries, batcher, self._default)
        else:
            source = lift(entries, batcher, self._default)
        async with aclosing(self.append_batches(keyed(source))) as answered:
            async for receipts in answered:
                for receipt in receipts:
                    yield receipt

    def append_batches(self, batches: Iterable[Batch] | AsyncIterable[Batch]) -> AsyncGenerator[list[Receipt], None]:
        """Append batches, each under its Idempotency-Key, and yield the receipts of each.

        Each is read from `batches` while the one before is on its way. So when the log refuses a batch, the next was
        read, but not sent; and all before it were verified.
        """
        return in_order_async(given(batches), self._send_batch, self._check_batch)

    def append_without_receipts(
        self, batches: Iterable[Batch] | AsyncIterable[Batch]
    ) -> AsyncGenerator[Appended, None]:
        """Append batches, each under its Idempotency-Key, and yield where the entries of each are.

        They are proved all the same. Neighbours are proved together, and raw leaves need no receipts: that takes a
        fraction of the work of :meth:`append_batches`.
        """
        return in_order_async(
            given(batches),
            lambda entries, key: self._run(without_receipts.send_without_receipts(self._session, entries, key)),
            lambda entries, answer: self._run(without_receipts.check_appended(self._session, entries, answer)),
        )

    async def _send_batch(self, entries: list[PreparedEntry], key: str) -> Response:
        return await self._run(writes.send_batch(self._session, entries, key))

    async def _check_batch(self, entries: list[PreparedEntry], answer: Response) -> list[Receipt]:
        return await self._run(writes.check_batch(self._session, entries, answer))

    async def append_batch(self, entries: list[PreparedEntry], *, idempotency_key: str | None = None) -> list[Receipt]:
        """Append one batch, all or none, and return its receipts in order. One Idempotency-Key covers the batch."""
        return await self._run(writes.append_batch(self._session, entries, idempotency_key or writes.new_key()))

    # --- reading ------------------------------------------------------------------------------------------------------

    async def entry(self, index: int) -> Entry:
        """Return the entry at `index`, opened as far as the log opens it to this caller."""
        return await self._run(reads.entry(self._session, index))

    async def entries(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Entry]:
        """Yield the entries [start, stop) of the tree, each compared with it; by default to its end."""
        pages = reads.EntryPages(self._session, start, stop)
        while page := await self._run(pages.next_page()):
            for entry in page:
                yield entry

    async def follow(self, start: int | None = None, *, interval: float = 1.0) -> AsyncIterator[Entry]:
        """Yield the entries from `start` on as they are published, without an end; by default those from now on.

        Each is compared with the signed tree. While there is none, the log is asked every `interval` seconds. An error
        ends this, also that a server is away for longer than the retries last: call it again, from the entry after the
        last one.
        """
        following = Following(self._session, start, interval)
        while True:
            for entry in await self._run(following.next_page()):
                yield entry

    def search(
        self,
        query: str,
        *,
        start_time: Moment | None = None,
        end_time: Moment | None = None,
        newest: bool = True,
        limit: int | None = None,
        receipts: bool = False,
    ) -> AsyncHits:
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
        return AsyncHits(pages, self._hits(pages))

    async def _hits(self, pages: HitPages) -> AsyncGenerator[Hit, None]:
        while not pages.ended:
            for hit in await self._run(pages.next_page()):
                yield hit

    async def receipt(
        self, index: int, *, tree_size: int | None = None, members: Collection[str] | None = None
    ) -> Receipt:
        """Return the receipt of entry `index`, at the latest published checkpoint or at the one of `tree_size`.

        With `members` it opens these members of the event and no others, and the values of the others are not sent.
        Then it raises Refused (``unknown_member``) when the event does not have them all, and UnknownMember when the
        log does not open them to this caller. An entry of the last second may not be published yet: this waits for it
        as long as the retries allow.
        """
        return await self._run(reads.receipt(self._session, index, tree_size, members))

    async def receipts(
        self, start: int = 0, stop: int | None = None, *, at: str | None = None
    ) -> AsyncIterator[Receipt]:
        """Yield the receipts of the entries [start, stop), all at one checkpoint, as a bundle of receipts takes them.

        At the latest published one, or at that of the note `at`, which is proved to be of the tree. Raises Behind when
        the server does not have that much.
        """
        pages = ReceiptPages(self._session, start, stop, at)
        while page := await self._run(pages.next_page()):
            for receipt in page:
                yield receipt

    async def range_of_times(
        self, *, start_time: Moment | None = None, end_time: Moment | None = None
    ) -> tuple[int, int]:
        """Return the entries [start, stop) of some times: logged from `start_time` to before `end_time`, and published.

        Found in the signed tree, in which times never go back: no entry of these times is outside of them. Both are the
        same index when there is none. While `stop` is the size of the tree, more may be published yet.
        Raises FormatError for a raw log, whose entries have no time.
        """
        return await self._run(range_of_times(self._session, start_time, end_time))

    async def anchored_receipt(self, index: int) -> Receipt:
        """Return the receipt of entry `index` with the earliest confirmed anchor that covers it.

        Raises Refused (``no_anchor``) before there is one. What the anchor shows,
        :func:`muniment.anchor.check.check_receipt_anchor` says.
        """
        return await self._run(anchors.anchored_receipt(self._session, index))

    async def anchors(self, start: int = 0) -> AsyncIterator[AnchorInfo]:
        """Yield what the server says of its anchors of sizes >= `start`, in order of size. Its word, and no more."""
        pages = anchors.AnchorPages(self._session, start)
        while page := await self._run(pages.next_page()):
            for anchor in page:
                yield anchor

    async def anchor(self, size: int) -> AnchorInfo:
        """Return what the server says of the anchor at `size`. Its word, and no more."""
        return await self._run(anchors.anchor(self._session, size))

    async def anchor_files(self, size: int) -> AnchorFiles:
        """Return the anchored checkpoint of `size`, verified to be of the tree, and its proof for ``check_anchor``."""
        return await self._run(anchors.anchor_files(self._session, size))

    async def inclusion(
        self, index: int | None = None, *, leaf_hash: bytes | None = None, tree_size: int | None = None
    ) -> InclusionProof:
        """Return the inclusion proof of the leaf at `index` or with `leaf_hash`, by default in the latest tree."""
        return await self._run(reads.inclusion(self._session, index, leaf_hash, tree_size))

    async def consistency(self, since: VerifiedCheckpoint | Receipt | str) -> ConsistencyProof:
        """Return the proof that the published checkpoint and `since` are of one tree.

        `since` is a checkpoint, its note, or a receipt.
        """
        return await self._run(reads.consistency(self._session, since))

    async def evidence(
        self, one: VerifiedCheckpoint | Receipt | str, other: VerifiedCheckpoint | Receipt | str
    ) -> Evidence | None:
        """Return evidence that two signed heads contradict each other, None when the log proves that they agree.

        Each is a checkpoint, its note, or a receipt. The log is asked when their sizes differ, and has to be the one
        that shows the larger tree.
        """
        return await self._run(reads.evidence(self._session, one, other))

    async def checkpoint(self) -> VerifiedCheckpoint:
        """Return the published checkpoint. It may be older than one seen before, but never contradicts it."""
        return await self._run(reads.checkpoint(self._session))

    async def checkpoints(
        self, start: int | None = None, *, follow: bool = False, interval: float = 1.0
    ) -> AsyncIterator[VerifiedCheckpoint]:
        """Yield the published checkpoints of sizes >= `start`, in order of size, each of the same tree.

        A server may leave some out, and no proof can show it. With `follow` there is no end: each comes as it is
        published, by default from the latest on. A log without a stream, whichever serves tlog-tiles, is asked every
        `interval` seconds instead; one without a list of checkpoints then shows the latest alone. An error ends this,
        also that a server is away for longer than the retries last: call it again, from the size after the last one.
        """
        if not follow:
            pages = reads.CheckpointPages(self._session, start or 0)
            while page := await self._run(pages.next_page()):
                for signed in page:
                    yield signed
            return
        following = FollowingCheckpoints(self._session, start, interval)
        while True:
            page = await self._run(following.next_page())
            for signed in page:
                yield signed
            if not page and following.streams:
                async with aclosing(self._told(following)) as told:
                    async for signed in told:
                        yield signed

    async def _told(self, following: FollowingCheckpoints) -> AsyncGenerator[VerifiedCheckpoint]:
        """Yield what the stream tells, until it ends or there is none."""
        reader, arguments = EventReader(), self._arguments(following.request())
        try:
            async with aclosing(listen_async(self._http, MEDIA_TYPE, QUIET, **arguments)) as pieces:
                async for piece in pieces:
                    for event in reader.read(piece):
                        if signed := await self._run(following.told(event)):
                            yield signed
        except NoAnswer as error:
            following.streams = error.again

    async def tile(self, level: int, index: int) -> list[bytes]:
        """Return the 1 to 256 hashes of a tile."""
        return await self._run(reads.tile(self._session, level, index))

    async def bundle(self, index: int) -> list[bytes]:
        """Return the 1 to 256 leaves from index 256 * `index` on."""
        return await self._run(reads.bundle(self._session, index))

    async def log_info(self) -> LogInfo:
        """Return what the server says about the log.

        Its origin and keys are compared with the policy; the rest is the server's word.
        """
        return await self._run(reads.log_info(self._session))


@asynccontextmanager
async def _held(lock: asyncio.Lock | asyncio.Semaphore, call: Deadline) -> AsyncIterator[None]:
    """Hold a lock. Raises Unreachable when others hold it for all that is left of the call."""
    try:
        async with asyncio.timeout(call.left()):
            await lock.acquire()
    except TimeoutError:
        raise in_vain() from None
    try:
        yield
    finally:
        lock.release()


# --- sources of batches -----------------------------------------------------------------------------------------------


async def given(batches: Iterable[Batch] | AsyncIterable[Batch]) -> AsyncGenerator[Batch, None]:
    if isinstance(batches, AsyncGenerator):
        async with aclosing(batches):
            async for batch in batches:
                yield batch
    elif isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch


async def keyed(batches: AsyncGenerator[list[PreparedEntry], None]) -> AsyncGenerator[Batch, None]:
    async with aclosing(batches):
        async for batch in batches:
            yield batch, writes.new_key()


async def lift(
    entries: Iterable[Entryish], batcher: Batcher, default: Default | None
) -> AsyncGenerator[list[PreparedEntry], None]:
    for batch in writes.batches(entries, batcher, default):
        yield batch


async def arriving(
    entries: AsyncIterable[Entryish], batcher: Batcher, default: Default | None
) -> AsyncGenerator[list[PreparedEntry], None]:
    """Yield what has arrived since the last batch, as batches; wait only when nothing has."""
    queue: asyncio.Queue[PreparedEntry | Exception | None] = asyncio.Queue(batcher.max_entries)
    reader = asyncio.create_task(_read(entries, queue, default))
    try:
        while (item := unwrap(await queue.get())) is not None:
            for full in batcher.add(item):
                yield full
            if queue.empty() and (rest := batcher.take()):
                yield rest
    except Exception:
        if rest := batcher.take():
            yield rest
        raise
    finally:
        reader.cancel()
        await asyncio.wait([reader])
    if rest := batcher.take():
        yield rest


async def _read(
    entries: AsyncIterable[Entryish],
    queue: asyncio.Queue[PreparedEntry | Exception | None],
    default: Default | None,
) -> None:
    try:
        async for entry in entries:
            await queue.put(PreparedEntry.of(entry, default))
    except Exception as error:  # noqa: BLE001 - raised again by the consumer, after what came before it was sent
        await queue.put(error)
    else:
        await queue.put(None)
