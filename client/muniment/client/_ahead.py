"""Batches in order, the next on its way while the answer to the last is checked.

A batch is sent only once the log has answered the one before, so the log holds them in the order they were read,
whatever is lost or sent again. Checking an answer is as much work as making it: done while the log is busy with the
next batch, it costs no time. At any moment there is at most one answer being checked, one batch on its way, and one
that was read and waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import TypeVar

from muniment._flows.steps import Response
from muniment._flows.writes import PreparedEntry, told

T = TypeVar("T")
Batch = tuple[list[PreparedEntry], str]
"""Entries, and the Idempotency-Key they are sent under."""


def in_order(
    batches: Iterable[Batch],
    send: Callable[[list[PreparedEntry], str], Response],
    check: Callable[[list[PreparedEntry], Response], T],
) -> Iterator[T]:
    """Yield what `check` makes of the answer to each batch.

    `send` runs in a thread; `batches` is read and `check` runs in that of the caller. An error in reading comes after
    what was read before is checked. Once an answer fails its check nothing more is read.
    """
    source = iter(batches)
    under_way: _OnItsWay | None = None
    while True:
        following = _next(source)
        before, answer = under_way, under_way.answer() if under_way else None
        under_way = _OnItsWay(following, send) if isinstance(following, tuple) else None
        if before and answer:
            with told(before.key):
                checked = check(before.entries, answer)
            yield checked
        if isinstance(following, Exception):
            raise following
        if following is None:
            return


def _next(source: Iterator[Batch]) -> Batch | Exception | None:
    try:
        return next(source, None)
    except Exception as error:  # noqa: BLE001 - raised again after the receipts of what came before it
        return error


class _OnItsWay:
    """A batch that a thread is sending.

    A daemon that the caller waits for only when it wants the answer: Ctrl-C must not wait for a server that is down.
    What it leaves behind is what a kill leaves behind, a batch that may or may not be logged.
    """

    def __init__(self, batch: Batch, send: Callable[[list[PreparedEntry], str], Response]) -> None:
        self.entries, self.key = batch
        self._send = send
        self._outcome: Response | BaseException | None = None  # the thread's until it has ended
        self._thread = threading.Thread(target=self._run, name="muniment-send", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._send(self.entries, self.key)
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is wanted
            self._outcome = error

    def answer(self) -> Response:
        """Wait for the answer. Raises what sending raised."""
        self._thread.join()
        if isinstance(self._outcome, Response):
            return self._outcome
        raise self._outcome or AssertionError("a thread ended without an outcome")


# --- for asyncio ------------------------------------------------------------------------------------------------------

_UNDER_WAY = 2
"""Batches that were sent and whose receipts were not all taken: one being checked and one on its way."""

_Answered = tuple[Batch, Response]


async def in_order_async(
    batches: AsyncGenerator[Batch, None],
    send: Callable[[list[PreparedEntry], str], Awaitable[Response]],
    check: Callable[[list[PreparedEntry], Response], Awaitable[T]],
) -> AsyncGenerator[T, None]:
    """Yield what `check` makes of the answer to each batch, also while the source has nothing more.

    Closes `batches`.
    """
    answers: asyncio.Queue[_Answered | Exception | None] = asyncio.Queue()
    turns = asyncio.Semaphore(_UNDER_WAY)
    sender = asyncio.create_task(_send_all(batches, send, turns, answers))
    try:
        while (answered := unwrap(await answers.get())) is not None:
            (entries, key), answer = answered
            with told(key):
                checked = await check(entries, answer)
            yield checked
            turns.release()
    finally:
        sender.cancel()
        await asyncio.wait([sender])


async def _send_all(
    batches: AsyncGenerator[Batch, None],
    send: Callable[[list[PreparedEntry], str], Awaitable[Response]],
    turns: asyncio.Semaphore,
    answers: asyncio.Queue[_Answered | Exception | None],
) -> None:
    try:
        async with aclosing(batches):
            await turns.acquire()  # before reading, so that a batch is all that has arrived by its turn
            async for batch in batches:
                answers.put_nowait((batch, await send(*batch)))
                await turns.acquire()
    except Exception as error:  # noqa: BLE001 - raised again by the consumer, after what came before it was checked
        answers.put_nowait(error)
    else:
        answers.put_nowait(None)


def unwrap(item: T | Exception) -> T:
    """Return the item, or raise it."""
    if isinstance(item, Exception):
        raise item
    return item
