"""The receipts of many entries, all at one checkpoint: entries page by page, and their proofs from the tiles."""

from __future__ import annotations

from muniment._flows import reads
from muniment._flows.reads import EntryPages, Session
from muniment._flows.results import Entry
from muniment._flows.steps import Flow
from muniment.errors import Behind
from muniment.policy import VerifiedCheckpoint
from muniment.receipt import Receipt


class ReceiptPages:
    """The receipts of the entries [start, stop) at one published checkpoint, page by page.

    `at` is the note of an older one, which is proved to be of the tree first; by default the latest is taken. Each leaf
    and each proof is of the authenticated tiles, and what is opened matches its leaf: every receipt verifies.
    """

    def __init__(self, session: Session, start: int, stop: int | None, at: str | None) -> None:
        self._session = session
        self._start = start
        self._stop = stop
        self._note = at
        self._entries: EntryPages | None = None

    def head(self) -> Flow[VerifiedCheckpoint]:
        """Return the checkpoint of all these receipts."""
        if self._entries is None:
            found = yield from self._checkpoint()
            self._entries = EntryPages(self._session, self._start, self._stop, found)
        if self._entries.head is None:
            raise AssertionError("no pages without a head")
        return self._entries.head

    def _checkpoint(self) -> Flow[VerifiedCheckpoint]:
        if self._note is None:
            return (yield from reads.checkpoint(self._session))
        proof = yield from reads.consistency(self._session, self._note)
        found = self._session.trust.policy.verify(self._note)
        if proof.older.checkpoint.size < found.checkpoint.size:
            raise Behind(proof.older.checkpoint.size, found.checkpoint.size, (proof.older.note, found.note))
        return found

    def next_page(self) -> Flow[list[Receipt]]:
        """Return the next page; an empty one is the end."""
        head = yield from self.head()
        page = [] if self._entries is None else (yield from self._entries.next_page())
        if not page:
            return []
        low, high = page[0].index, page[-1].index + 1
        proofs = yield from self._session.tiles.inclusions(head.checkpoint, low, high)
        return [_receipt(entry, proof, head) for entry, proof in zip(page, proofs, strict=True)]


def _receipt(entry: Entry, proof: tuple[bytes, ...], head: VerifiedCheckpoint) -> Receipt:
    return Receipt(
        head.checkpoint.origin,
        entry.index,
        entry.leaf,
        head.checkpoint.size,
        proof,
        head.note,
        entry.commitment,
        entry.disclosures,
    )
