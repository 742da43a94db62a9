"""Whether the client of a connection goes on reading its answers, and answers that are sent as it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect

from muniment_server.telemetry import get_logger
from muniment_server.web.http.refusals import MIN_RATE
from muniment_server.web.http.wire import in_kernel
from muniment_server.web.messages import Pieces
from muniment_server.web.room import Budget

_FOREVER = float("inf")


class Unread:
    """What waits to be read on one connection, and since when."""

    __slots__ = ("_descriptor", "_grace", "_left", "_transport", "by")

    def __init__(self, transport: Any, grace: float) -> None:
        self._transport = transport
        self._descriptor = -1
        self._grace = grace
        self._left = 0  # bytes at the last check, those in the kernel too
        self.by = _FOREVER  # when more of them must have left

    def is_late(self, now: float) -> bool:
        """Tell whether the client has stopped reading, or reads less than MIN_RATE. Call this about once a second."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent:
            self._left, self.by = 0, _FOREVER
            return False
        if self._descriptor < 0:
            self._descriptor = self._transport.get_extra_info("socket").fileno()
        unsent += in_kernel(self._descriptor)
        if not self._left:
            self.by = now + self._grace
        else:
            read = max(0, self._left - unsent)
            self.by = min(self.by + read / MIN_RATE, now + self._grace)
        self._left = unsent
        return now > self.by


async def send_pieces(transport: Any, drain: Callable[[], Awaitable[None]], pieces: Pieces, budget: Budget) -> bool:
    """Send pieces, each when the one before was read. Returns False where the rest of them cannot be had."""
    try:
        async with aclosing(pieces.pieces(budget)) as found:
            async for piece in found:
                if transport.is_closing():
                    break
                transport.write(piece)
                await drain()
    except ClientDisconnect:
        return False
    except Exception as error:  # noqa: BLE001 - whatever it was, the length of the answer is already said
        get_logger().warning("an answer was cut off", error=f"{type(error).__name__}: {error}")
        return False
    finally:
        budget.give_back()
    return True
