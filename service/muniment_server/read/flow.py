"""Reads written once, for callers that wait and callers that do not: generators that yield what memory has not.

A *flow* looks into memory by itself, and yields a step only for what has to be read. :func:`run` awaits the steps. The
fast path of HTTP goes on where it is called back: of many reads that share one query none takes a task of its own then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

Told = Callable[[Any], None]
"""Called once, in the event loop, with what was found, or the exception that says what went wrong. Must not raise."""


class Call(NamedTuple):
    """A step: await this. Its outcome is what it returns or raises."""

    make: Callable[[], Awaitable[Any]]


class Ask(NamedTuple):
    """A step: start this, which calls back. Its outcome is what it tells, raised when that is an exception."""

    start: Callable[[Told], None]


Step = Call | Ask
Flow = Generator[Step, Any, T]


async def run(flow: Flow[T], step: Step | None = None) -> T:
    """Return what a flow returns, or raise what it raises. `step` is what it yielded last, if it has begun."""
    try:
        step = step or next(flow)
        while True:
            try:
                found = await (step.make() if isinstance(step, Call) else _told(step))
            except Exception as error:  # noqa: BLE001 - the flow decides what it means
                step = flow.throw(error)
            else:
                step = flow.send(found)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # the flow's own type


async def _told(step: Ask) -> Any:
    waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    # A caller that is cancelled must not hurt those that share its query.
    step.start(lambda found: None if waiting.done() else waiting.set_result(found))
    found = await waiting
    if isinstance(found, Exception):
        raise found
    return found
