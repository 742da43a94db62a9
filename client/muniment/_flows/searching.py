"""The flow that searches: what the server finds, held against the query; with receipts, each hit is proved too.

Nothing proves that a server found all. What it shows must be what was asked for, each entry once and in order, and
with a receipt the event is the one in the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from muniment import strictjson
from muniment._flows import fields
from muniment._flows.proving import contradiction
from muniment._flows.reads import Session, verified_receipt
from muniment._flows.steps import MEBIBYTE, Flow, Request, json_of, send
from muniment.errors import EventRefused, FormatError, NotWhatWasSent, PayloadsClosed, Refused
from muniment.event import EventLeaf, format_time, parse_time
from muniment.hashing import LeafHash
from muniment.policy import VerifiedCheckpoint
from muniment.query import Facts, Query, parse_query
from muniment.receipt import Receipt, Verified
from muniment.receipts import ReceiptsReader, lines_of
from muniment.times import Moment, check_span, milliseconds

PAGE = 100
PAGE_LIMIT = 16 * MEBIBYTE
"""A page ends behind 4 MiB of events."""
BUNDLE_LIMIT = 96 * MEBIBYTE
"""More than the receipts of a page take: of 4 MiB of events with their salts and hashes, or of one event of 16 MiB."""
_Proved = tuple[Receipt, Verified]


@dataclass(frozen=True, slots=True)
class Hit:
    """An event that a search found, as the server says: that nothing else matches is not proved, by anything.

    `logged_at` is in milliseconds since 1970 UTC. Where a `receipt` was asked for, it is verified, and proves all
    that stands here.
    """

    index: int
    leaf_hash: LeafHash
    logged_at: int
    event: dict[str, Any]
    receipt: Receipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the hit as a JSON value, without its receipt."""
        when = format_time(self.logged_at)
        return {"index": self.index, "leaf_hash": self.leaf_hash.hex(), "logged_at": when, "event": self.event}


class HitPages:
    """The hits of a query, page by page: newest or oldest first, of times [since, until), at most `limit` of them.

    `complete_to` and `tree_size` are None until the first page has come; `ended` says that there is no other. With
    `receipts` each hit has one, all at one published checkpoint.
    """

    def __init__(
        self,
        session: Session,
        query: str,
        times: tuple[Moment | None, Moment | None],
        *,
        newest: bool,
        limit: int | None,
        receipts: bool,
    ) -> None:
        self._session = session
        self._query = parse_query(query)
        self._since, self._until = (None if time is None else milliseconds(time) for time in times)
        check_span(self._since, self._until)
        self._newest = newest
        self._left = limit
        self._receipts = receipts
        self._asked: dict[str, str | int] = {"q": query, "order": "newest" if newest else "oldest"}
        for name, moment in (("from", self._since), ("to", self._until)):
            self._asked |= {} if moment is None else {name: format_time(moment)}
        self._pages = 0
        self.ended = limit == 0
        self._last: Hit | None = None
        self._head: VerifiedCheckpoint | None = None
        self.complete_to: int | None = None
        self.tree_size: int | None = None

    def next_page(self) -> Flow[list[Hit]]:
        """Return the next hits. There may be none although it has not `ended`: a server reads so much for one page."""
        page = yield from self._ask()
        return (yield from self._proved(page)) if self._receipts else page

    def _ask(self) -> Flow[list[Hit]]:
        wanted = PAGE if self._left is None else min(PAGE, self._left)
        query = self._asked | {"limit": wanted}
        request = Request("GET", "/search", query, headers={"Accept": "application/json"}, limit=PAGE_LIMIT)
        answer = json_of((yield from send(request, self._session.retries)))
        self._check_extent(answer)
        rows = fields.objects(answer, "hits")
        if len(rows) > wanted:
            raise FormatError(f"the server answers {len(rows)} hits where {wanted} were asked for")
        page = [self._hit(row) for row in rows]
        self._left = None if self._left is None else self._left - len(page)
        self._follow(fields.optional_text(answer, "next"))
        return page

    def _check_extent(self, answer: dict[str, Any]) -> None:
        complete_to, size = fields.integer(answer, "complete_to"), fields.integer(answer, "tree_size")
        if self.complete_to is None:
            if complete_to > size:
                raise FormatError("the server says that more was searched than the log has")
            self.complete_to, self.tree_size = complete_to, size
        elif complete_to != self.complete_to:
            raise FormatError("what a search covers must stay the same from page to page")

    def _follow(self, cursor: str | None) -> None:
        """Take the cursor of the next page. Each page is some entries further, so there are no more of them than those.

        A server whose cursors lead nowhere would be asked for ever.
        """
        self._pages += 1
        self.ended = cursor is None or self._left == 0
        if cursor is not None:
            if cursor == self._asked.get("cursor") or self._pages > (self.complete_to or 0):
                raise FormatError("the cursors of this search lead nowhere")
            self._asked["cursor"] = cursor

    # --- one hit ------------------------------------------------------------------------------------------------------

    def _hit(self, row: dict[str, Any]) -> Hit:
        hit = Hit(
            fields.integer(row, "index"),
            LeafHash(fields.digest(row, "leaf_hash")),
            parse_time(fields.text(row, "logged_at")),
            fields.json_object(row, "event"),
        )
        self._check_place(hit)
        if not may_match(self._query, _event(hit)):
            raise NotWhatWasSent(f"the server answers with entry {hit.index}, which is not what the query asks for")
        self._last = hit
        return hit

    def _check_place(self, hit: Hit) -> None:
        if hit.index >= (self.complete_to or 0):
            raise FormatError(f"entry {hit.index} is beyond what was searched")
        if self._last is not None:
            low, high = (hit, self._last) if self._newest else (self._last, hit)
            if not (low.index < high.index and low.logged_at <= high.logged_at):
                raise FormatError(f"the hits are not in order at entry {hit.index}")
        early = self._since is not None and hit.logged_at < self._since
        late = self._until is not None and hit.logged_at >= self._until
        if early or late:
            raise NotWhatWasSent(f"entry {hit.index} was logged at another time than was asked for")

    # --- its receipt --------------------------------------------------------------------------------------------------

    def _proved(self, page: list[Hit]) -> Flow[list[Hit]]:
        """Return the hits of a page, each with its receipt: one request for all of them."""
        if not page:
            return []
        if self._head is None:
            self._head = yield from self._published(page[0])
        found = yield from self._bundle(page, self._head)
        return [_with_receipt(hit, found.get(hit.index), self._head) for hit in page]

    def _bundle(self, page: list[Hit], head: VerifiedCheckpoint) -> Flow[dict[int, _Proved]]:
        """Return what the log proves of the hits from the first to the last of a page, by index.

        Raises PayloadsClosed when they may not be read any more: since the page was sent, a key was made or a scope was
        taken away.
        """
        indices = [hit.index for hit in page]
        ends = {"start": min(indices), "stop": max(indices) + 1, "tree_size": head.checkpoint.size}
        query = {"q": self._asked["q"], "format": "receipts", **ends}
        try:
            answer = yield from send(Request("GET", "/export", query, limit=BUNDLE_LIMIT), self._session.retries)
        except Refused as refused:
            if refused.code == "payloads_closed":
                raise PayloadsClosed(page[0].index) from refused
            raise
        reader = ReceiptsReader(lines_of(BytesIO(answer.body)), self._session.trust.policy)
        self._session.trust.check_origin(reader.head.origin)  # two logs do not contradict each other
        if (reader.head.size, reader.head.root) != (head.checkpoint.size, head.checkpoint.root):
            raise (
                contradiction(reader.signed, head)
                if reader.head.size == head.checkpoint.size
                else NotWhatWasSent(
                    f"asked for receipts at size {head.checkpoint.size}, got them at size {reader.head.size}"
                )
            )
        return {receipt.index: (receipt, verified) for receipt, verified in reader}

    def _published(self, first: Hit) -> Flow[VerifiedCheckpoint]:
        """Return the latest published checkpoint, once it has all hits: the first is the newest, or none is known."""
        newest = first.index if self._newest else (self.complete_to or 0) - 1
        receipt, _ = yield from verified_receipt(self._session, newest, None)
        return self._session.trust.policy.verify(receipt.checkpoint)


def _with_receipt(hit: Hit, proved: _Proved | None, head: VerifiedCheckpoint) -> Hit:
    """Return a hit with its receipt.

    Raises NotWhatWasSent when that is of another event than was shown, and PayloadsClosed when it opens nothing.
    """
    if proved is None or not _is_same_leaf(hit, *proved):
        raise _another(hit)
    receipt, verified = proved
    if not verified.opened:
        raise PayloadsClosed(hit.index)
    if not verified.complete or strictjson.canonical(verified.opened) != strictjson.canonical(hit.event):
        raise _another(hit)
    # By now the note may have more signatures: another text, and a bundle has one.
    return replace(hit, receipt=replace(receipt, checkpoint=head.note))


def _is_same_leaf(hit: Hit, receipt: Receipt, verified: Verified) -> bool:
    timely = isinstance(verified.entry, EventLeaf) and verified.entry.logged_at == hit.logged_at
    return timely and receipt.leaf_hash == hit.leaf_hash


def _another(hit: Hit) -> NotWhatWasSent:
    return NotWhatWasSent(f"the event that was found at {hit.index} is not the one that its receipt proves")


def may_match(query: Query, event: dict[str, Any]) -> bool:
    """Tell whether a query finds an event, or may find it in a log that is searched by some of its members alone.

    Such a log does not see what the others say, and the answer does not say by which it is searched. So members of
    which a negated term holds are taken to be unseen; all other terms must hold of the rest.
    """
    negated = [term.test for term in query.terms if term.negated]
    seen = {name: value for name, value in event.items() if not _any(negated, {name: value})}
    facts = Facts(seen)
    return all(term.matches(facts) for term in query.terms if not term.negated)


def _any(tests: list[Any], event: dict[str, Any]) -> bool:
    facts = Facts(event)
    return any(test.matches(facts) for test in tests)


def _event(hit: Hit) -> dict[str, Any]:
    """Return the event of a hit. Raises FormatError when no event is so."""
    try:
        strictjson.canonical(hit.event)
    except EventRefused as refused:
        raise FormatError(f"what the server shows of entry {hit.index} is no event: {refused.detail}") from None
    return hit.event
