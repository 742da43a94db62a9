"""A request that is answered without the application, as uvicorn sees it."""

from __future__ import annotations


class _NoReceiver:
    """Stands for the event on which an ASGI application waits for a client."""

    def set(self) -> None:
        """Wake no task."""


class Short:
    """Like uvicorn's own cycle of a request, as far as it looks at those."""

    __slots__ = ("disconnected", "keep_alive", "more_body", "response_complete")
    message_event = _NoReceiver()
    response_started = False
    waiting_for_100_continue = False

    def __init__(self) -> None:
        self.disconnected = False
        self.keep_alive = True
        self.more_body = True
        self.response_complete = False
