"""What a sequencer tells, as it happens, to the log that it belongs to."""

from __future__ import annotations

from typing import Protocol

from muniment_server.errors import ReadOnly


class Observer(Protocol):
    """Is told in the event loop. Must neither wait nor raise: a batch is in flight, and others wait for it."""

    def signed(self) -> None:
        """Take note that there is a new signed head. Not when a waiter is answered: it may have left."""

    def stored(self, seconds: float) -> None:
        """Take note that the database has stored a batch, and how long it took."""

    def refused(self, refusal: ReadOnly) -> None:
        """Take note that nothing is signed any more, and why. The same reason is told once."""

    def returned(self) -> None:
        """Take note that a look found all well, and that the last refusal is over."""

    def moved(self) -> None:
        """Take note that what was read of the log so far may have come from another database."""


class Unobserved:
    """The observer of a sequencer that works by itself."""

    def signed(self) -> None:
        """See Observer."""

    def stored(self, seconds: float) -> None:
        """See Observer."""

    def refused(self, refusal: ReadOnly) -> None:
        """See Observer."""

    def returned(self) -> None:
        """See Observer."""

    def moved(self) -> None:
        """See Observer."""
