"""GET /checkpoints/stream: published checkpoints as Server-Sent Events. A reader that was cut off goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from muniment.encoding import MAX_SIZE, parse_decimal
from muniment.errors import FormatError
from muniment.sse import MEDIA_TYPE
from muniment_server.access.callers import Caller
from muniment_server.log import Log
from muniment_server.read.feed import Write
from muniment_server.web.handlers.read import fresh
from muniment_server.web.messages import Answer, Request
from muniment_server.web.room import Budget

_AS_IT_COMES = b"x-accel-buffering: no\r\n"
"""Otherwise nginx, and what does as it does, keeps events back until it has many."""
_KEYED_SECONDS = 60.0
"""After so long a stream of a log that is not public ends.

Its reader goes on with a new request, and is asked for its key again: it may have been revoked.
"""


async def stream(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /checkpoints/stream: the latest checkpoint, or those after Last-Event-ID, and each that is published."""
    after = _after(request)
    latest = await log.heads.published()
    body = _Stream(log, latest.size - 1 if after is None else after)
    return Answer(b"", MEDIA_TYPE, 200, fresh(log) + _AS_IT_COMES, body)


def _after(request: Request) -> int | None:
    """Return the size in Last-Event-ID, None where there is none. Raises FormatError."""
    values = request.values(b"last-event-id")
    if len(values) > 1:
        raise FormatError("Last-Event-ID is given twice")
    return min(parse_decimal(values[0], "Last-Event-ID"), MAX_SIZE - 1) if values else None


class _Stream:
    """The body of a stream. Its client gets every checkpoint published after that of a size."""

    length = None

    def __init__(self, log: Log, after: int) -> None:
        self._log = log
        self._after = after

    async def pieces(self, budget: Budget) -> AsyncGenerator[bytes]:
        """Yield events, until the client leaves or the server ends."""
        timers: list[asyncio.TimerHandle] = []

        def begin(end: Callable[[], None]) -> Write | None:
            if not self._log.row.public:
                timers.append(asyncio.get_running_loop().call_later(_KEYED_SECONDS, end))
            return budget.endless(end)

        try:
            async with aclosing(self._log.heads.feed.stream(self._after, begin)) as events:
                async for piece in events:
                    yield piece
        finally:
            for timer in timers:
                timer.cancel()
