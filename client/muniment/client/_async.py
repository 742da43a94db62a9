"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, closing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from muniment._flows import anchors, reads, writes
from muniment._flows.anchors import AnchorFiles, AnchorInfo
from muniment._flows.results import ConsistencyProof, Entry, InclusionProof, LogInfo
from muniment._flows.steps import Call, Exclusive, Flow, Lost, Request, Response, Step
from muniment._flows.writes import Batcher, Entryish, PreparedEntry
from muniment.client._ahead import in_order_async, unwrap
from muniment.client._http import BATCH_BYTES, BATCH_ENTRIES, CONNECTIONS, Base, Options, in_vain, log_url, lost
from muniment.errors import MunimentError
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt
from muniment.wire import Deadline, NoAnswer, ask_async, bounded

T = TypeVar("T")


class AsyncClient(Base):
    """A log behind a URL, for asyncio. Arguments, results and errors are those of :class:`Client`."""

    def __init__(
        self, url: str, *, transport: httpx.AsyncBaseTransport | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(url, **options)
        self._http = bounded(httpx.AsyncClient(transport=transport, **self._options))
        self._lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(CONNECTIONS)

    @classmethod
    async def trust_on_first_use(
        cls, url: str, *, transport: httpx.AsyncBaseTransport | None = None, **options: Unpack[Options]
    ) -> Policy:
        """Return a policy that pins the keys the server at `url` names: see :meth:`Client.trust_on_first_use`."""
        where = log_url(url, options.get("log"))
        options["policy"] = Policy(())  # vouches for nothing, and nothing is asked of it
        async with cls(url, transport=transport, **options) as client:
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
        """Append an entry and return its verified receipt: see :meth:`Client.append`."""
        return await self._run(
            writes.append(self._session, PreparedEntry.of(entry), idempotency_key or writes.new_key())
        )

    async def append_many(
        self,
        entries: Iterable[Entryish] | AsyncIterable[Entryish],
        *,
        batch_entries: int = BATCH_ENTRIES,
        batch_bytes: int = BATCH_BYTES,
    ) -> AsyncIterator[Receipt]:
        """Append entries in batches and yield their receipts, in order: see :meth:`Client.append_many`.

        An asynchronous source is read while a batch is on its way, at most `batch_entries` ahead. A slow one is not
        waited for: the next batch is what has arrived since the last was answered.
        """
        batcher = Batcher(batch_entries, batch_bytes)
        source = arriving(entries, batcher) if isinstance(entries, AsyncIterable) else lift(entries, batcher)
        async with aclosing(in_order_async(source, self._send_batch, self._check_batch)) as answered:
            async for receipts in answered:
                for receipt in receipts:
                    yield receipt

    async def _send_batch(self, entries: list[PreparedEntry]) -> Response:
        return await self._run(writes.send_batch(self._session, entries, writes.new_key()))

    async def _check_batch(self, entries: list[PreparedEntry], answer: Response) -> list[Receipt]:
        return await self._run(writes.check_batch(self._session, entries, answer))

    async def append_batch(self, entries: list[PreparedEntry], *, idempotency_key: str | None = None) -> list[Receipt]:
        """Append one batch of prepared entries, all or none: see :meth:`Client.append_batch`."""
        return await self._run(writes.append_batch(self._session, entries, idempotency_key or writes.new_key()))

    # --- reading ------------------------------------------------------------------------------------------------------

    async def entry(self, index: int) -> Entry:
        """Return the entry at `index`: see :meth:`Client.entry`."""
        return await self._run(reads.entry(self._session, index))

    async def entries(self, start: int = 0, stop: int | None = None) -> AsyncIterator[Entry]:
        """Yield the entries [start, stop): see :meth:`Client.entries`."""
        pages = reads.EntryPages(self._session, start, stop)
        while page := await self._run(pages.next_page()):
            for entry in page:
                yield entry

    async def receipt(self, index: int, *, tree_size: int | None = None) -> Receipt:
        """Return the receipt of entry `index`: see :meth:`Client.receipt`."""
        return await self._run(reads.receipt(self._session, index, tree_size))

    async def anchored_receipt(self, index: int) -> Receipt:
        """Return the receipt of entry `index` with an anchor: see :meth:`Client.anchored_receipt`."""
        return await self._run(anchors.anchored_receipt(self._session, index))

    async def anchors(self, start: int = 0) -> AsyncIterator[AnchorInfo]:
        """Yield what the server says of its anchors: see :meth:`Client.anchors`."""
        pages = anchors.AnchorPages(self._session, start)
        while page := await self._run(pages.next_page()):
            for anchor in page:
                yield anchor

    async def anchor(self, size: int) -> AnchorInfo:
        """Return what the server says of the anchor at `size`: see :meth:`Client.anchor`."""
        return await self._run(anchors.anchor(self._session, size))

    async def anchor_files(self, size: int) -> AnchorFiles:
        """Return the anchored checkpoint of `size` and its proof: see :meth:`Client.anchor_files`."""
        return await self._run(anchors.anchor_files(self._session, size))

    async def inclusion(
        self, index: int | None = None, *, leaf_hash: bytes | None = None, tree_size: int | None = None
    ) -> InclusionProof:
        """Return the inclusion proof of a leaf: see :meth:`Client.inclusion`."""
        return await self._run(reads.inclusion(self._session, index, leaf_hash, tree_size))

    async def consistency(self, since: VerifiedCheckpoint | Receipt | str) -> ConsistencyProof:
        """Return the proof that the published checkpoint and `since` are of one tree.

        See :meth:`Client.consistency`.
        """
        return await self._run(reads.consistency(self._session, since))

    async def checkpoint(self) -> VerifiedCheckpoint:
        """Return the published checkpoint: see :meth:`Client.checkpoint`."""
        return await self._run(reads.checkpoint(self._session))

    async def checkpoints(self, start: int = 0) -> AsyncIterator[VerifiedCheckpoint]:
        """Yield the published checkpoints of sizes >= `start`: see :meth:`Client.checkpoints`."""
        pages = reads.CheckpointPages(self._session, start)
        while page := await self._run(pages.next_page()):
            for signed in page:
                yield signed

    async def tile(self, level: int, index: int) -> list[bytes]:
        """Return the hashes of a tile: see :meth:`Client.tile`."""
        return await self._run(reads.tile(self._session, level, index))

    async def bundle(self, index: int) -> list[bytes]:
        """Return the leaves of an entry bundle: see :meth:`Client.bundle`."""
        return await self._run(reads.bundle(self._session, index))

    async def log_info(self) -> LogInfo:
        """Return what the server says about the log: see :meth:`Client.log_info`."""
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


async def lift(entries: Iterable[Entryish], batcher: Batcher) -> AsyncGenerator[list[PreparedEntry], None]:
    for batch in writes.batches(entries, batcher):
        yield batch


async def arriving(entries: AsyncIterable[Entryish], batcher: Batcher) -> AsyncGenerator[list[PreparedEntry], None]:
    """Yield what has arrived since the last batch, as batches; wait only when nothing has."""
    queue: asyncio.Queue[PreparedEntry | Exception | None] = asyncio.Queue(batcher.max_entries)
    reader = asyncio.create_task(_read(entries, queue))
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


async def _read(entries: AsyncIterable[Entryish], queue: asyncio.Queue[PreparedEntry | Exception | None]) -> None:
    try:
        async for entry in entries:
            await queue.put(PreparedEntry.of(entry))
    except Exception as error:  # noqa: BLE001 - raised again by the consumer, after what came before it was sent
        await queue.put(error)
    else:
        await queue.put(None)
