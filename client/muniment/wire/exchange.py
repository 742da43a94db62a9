"""What one exchange may take: until when, and how many bytes may arrive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Self

HEAD = 256 * 1024
"""Bytes that may arrive before the body: header fields, which httpcore stops at about 100 KiB, and 1xx answers."""


class TooMuch(Exception):
    """More arrived, or something else, than was asked for. Asking again makes it no better."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time, by the clock that never goes back."""

    at: float

    @classmethod
    def within(cls, seconds: float) -> Self:
        """Return the deadline that many seconds from now."""
        return cls(monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds until then, 0 when it is over."""
        return max(0.0, self.at - monotonic())


class Exchange:
    """One request and its answer, of at most `limit` bytes of body. Belongs to the thread or task that asks."""

    def __init__(self, limit: int, deadline: Deadline) -> None:
        self._deadline = deadline
        self._limit = limit
        self._room = HEAD

    def left(self) -> float:
        """Return the seconds left, which are some. Raises TimeoutError."""
        left = self._deadline.left()
        if not left:
            raise TimeoutError("the time is over")
        return left

    def answered(self) -> None:
        """Make room for the body: twice what it may have, for whatever frames it."""
        self._room += 2 * self._limit

    def received(self, count: int) -> None:
        """Count bytes that arrived. Raises TooMuch."""
        self._room -= count
        if self._room < 0:
            raise TooMuch("what arrived is larger than any answer that was asked for")


_CURRENT: ContextVar[Exchange | None] = ContextVar("muniment_exchange", default=None)


@contextmanager
def taking(limit: int, seconds: float) -> Iterator[Exchange]:
    """Hold the streams that this thread or task uses to the bounds of a new exchange."""
    exchange = Exchange(limit, Deadline.within(seconds))
    token = _CURRENT.set(exchange)
    try:
        yield exchange
    finally:
        _CURRENT.reset(token)


def seconds_left(asked: float | None) -> float | None:
    """Return the seconds that the current exchange has left; without one, what is asked for. Raises TimeoutError."""
    exchange = _CURRENT.get()
    return asked if exchange is None else exchange.left()


def received(count: int) -> None:
    """Count bytes that arrived for the current exchange. Raises TooMuch."""
    exchange = _CURRENT.get()
    if exchange is not None:
        exchange.received(count)
