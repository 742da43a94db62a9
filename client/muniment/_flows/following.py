"""The flows that follow a log: each entry, or each checkpoint, once it is published, and proved like any other."""

from __future__ import annotations

from muniment._flows.reads import CheckpointPages, EntryPages, Session, caught_up, checkpoint
from muniment._flows.results import Entry
from muniment._flows.steps import Flow, Request, Sleep
from muniment.errors import FormatError, Refused
from muniment.policy import VerifiedCheckpoint
from muniment.sse import MEDIA_TYPE, CheckpointEvent


class Following:
    """The entries from `start` on, page by page and without an end; by default those published from now on.

    `start` is the index of the next entry; None before the log was asked where it ends.
    """

    def __init__(self, session: Session, start: int | None, interval: float) -> None:
        self._session = session
        self._interval = interval
        self._pages: EntryPages | None = None
        self.start = start

    def next_page(self) -> Flow[list[Entry]]:
        """Return the next entries. When none are published yet, wait for `interval` seconds and return none.

        After an error it can be called again, and goes on where it was.
        """
        page = (yield from self._pages.next_page()) if self._pages else []
        if not page:
            self._pages = yield from self._published()
            page = (yield from self._pages.next_page()) if self._pages else []
        if page:
            self.start = page[-1].index + 1
        else:
            yield Sleep(self._interval)
        return page

    def _published(self) -> Flow[EntryPages | None]:
        """Return the pages of what is published beyond `start`, if anything is, all under one checkpoint."""
        signed = yield from checkpoint(self._session)
        size = signed.checkpoint.size
        if self.start is None:
            self.start = size
        if size <= self.start:
            return None
        pages = EntryPages(self._session, self.start, size)
        pages.head = signed
        return pages


class FollowingCheckpoints:
    """The published checkpoints of sizes >= `at`, without an end; from the latest on where that is None.

    A log that has a stream tells them as they are published. What it told before, or while there was no stream, is
    asked for: so is everything of a log that has none, as `streams` says once that is known.
    """

    def __init__(self, session: Session, start: int | None, interval: float) -> None:
        self._session = session
        self._interval = interval
        self._pages: CheckpointPages | None = None
        self._waits = False
        self.at = start
        self.streams = True

    def next_page(self) -> Flow[list[VerifiedCheckpoint]]:
        """Return the next checkpoints that are published already; none where all of those were returned.

        Called again after that, it waits for `interval` seconds first.
        """
        if self._waits:
            self._waits = False
            yield Sleep(self._interval)
        page = (yield from self._pages.next_page()) if self._pages else []
        if not page:
            page = yield from self._published()
        self._waits = not page
        if page:
            self.at = page[-1].checkpoint.size + 1
        return page

    def _published(self) -> Flow[list[VerifiedCheckpoint]]:
        """Return the first page of what is published from `at` on; the latest alone where the log has no pages."""
        self._pages = None
        latest = yield from checkpoint(self._session)
        at = latest.checkpoint.size if self.at is None else self.at
        if latest.checkpoint.size < at:
            return []
        pages = CheckpointPages(self._session, at)
        try:
            page = yield from pages.next_page()
        except Refused as refused:
            if refused.status != 404:
                raise
            return [latest]
        self._pages = pages
        return page

    def request(self) -> Request:
        """Return what asks for the stream of what comes next. Requires that something was returned before."""
        headers = {"Accept": MEDIA_TYPE} | ({} if self.at is None else {"Last-Event-ID": str(self.at - 1)})
        return Request("GET", "/checkpoints/stream", headers=headers)

    def told(self, event: CheckpointEvent) -> Flow[VerifiedCheckpoint | None]:
        """Return the checkpoint of an event of the stream, verified; None of one that was returned before."""
        if self.at is not None and event.size < self.at:
            return None
        trust = self._session.trust
        seen = yield from caught_up(self._session, lambda: trust.observe(event.note))
        if seen.checkpoint.size != event.size:
            raise FormatError(f"the stream says {event.size} of a checkpoint of size {seen.checkpoint.size}")
        self.at = event.size + 1
        return seen
