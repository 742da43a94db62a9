"""The flow that follows a log: each entry once it is published, and proved like any other."""

from __future__ import annotations

from muniment._flows.reads import EntryPages, Session, checkpoint
from muniment._flows.results import Entry
from muniment._flows.steps import Flow, Sleep


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
