"""GET /export: entries, or the hits of a search, streamed. A download that was cut off goes on where it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from muniment.checkpoint import parse_checkpoint
from muniment.errors import FormatError
from muniment.note import parse_note
from muniment.receipts import Header
from muniment_server.access.callers import READ, Caller
from muniment_server.errors import NotFound, Refused
from muniment_server.log import Log
from muniment_server.read import export as forms
from muniment_server.read.search import Asked
from muniment_server.web.handlers.large import granted
from muniment_server.web.handlers.read import fresh_for
from muniment_server.web.handlers.search import parsed_query, searchable
from muniment_server.web.messages import Answer, Request
from muniment_server.web.request import Query, span_of
from muniment_server.web.room import Budget
from muniment_server.write.submission import Signed

_KNOWN = ("q", "from", "to", "start", "stop", "format", "tree_size", "after", "count", "leaves_only")
_FORMATS = ("jsonl", "csv", "receipts")
_FIRST, _MOST = 16, 256
"""Entries that are read at first, when nothing is known of their size, and at the most."""
_PIECE = 262_144
"""Bytes of a piece, about."""
_TREE_SIZE = b"access-control-expose-headers: Muniment-Tree-Size\r\nmuniment-tree-size: %d\r\n"
"""What a reader needs to go on with a download of rows: nothing in them says of which tree they are."""
_BREATH = 16
"""Entries that are made without letting others have a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The entries [start, stop) of one published tree, of which a download has those up to `after`, and `count`."""

    signed: Signed
    start: int
    stop: int
    after: int | None
    count: int

    @property
    def following(self) -> int:
        """The first index that is still to be sent."""
        return self.start if self.after is None else self.after + 1


async def export(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /export: entries of one published tree as rows, as a table, or as a bundle of receipts."""
    query = Query(request, _KNOWN)
    form = _form_of(query)
    closed = query.flag("leaves_only")
    asked = _asked(query)
    may_open = log.row.kind == "raw" or READ in caller.permissions
    if not may_open and (asked is not None or not closed):
        raise _closed()
    if asked is not None:
        await searchable(log).ready()
    place = await _place(query, log, form, asked)
    made = await _made(form, log, place, asked, leaves_only=closed)
    body = _Export(log, place, asked, made, with_payload=may_open and not closed)
    return Answer(b"", made.media_type, 200, fresh_for(log, caller) + _TREE_SIZE % place.signed.size, body)


def _form_of(query: Query) -> str:
    form = query.text("format")
    form = "jsonl" if form is None else form
    if form not in _FORMATS:
        raise FormatError("format is jsonl, csv or receipts")
    return form


def _asked(query: Query) -> Asked | None:
    """Return what is searched for; None when all entries are wanted."""
    text = query.text("q")
    return Asked(text, parsed_query(text), newest=False) if text is not None else None


def _closed() -> Refused:
    hint = "Send an API key with scope read, or ask for the leaves alone: leaves_only=true, without q."
    return Refused("payloads_closed", "this caller may not read what events say", hint)


# --- which entries ----------------------------------------------------------------------------------------------------


async def _place(query: Query, log: Log, form: str, asked: Asked | None) -> _Place:
    size, after = query.number("tree_size"), query.number("after")
    if after is not None and size is None:
        raise FormatError("after goes with tree_size, that of the answer which was cut off")
    published = await log.heads.published(size)
    signed = Signed(published.size, parse_checkpoint(parse_note(published.note).text).root, published.note)
    start, stop = await _range(query, log, signed.size)
    if after is not None and not start <= after < stop:
        raise FormatError(f"after is one of the entries from {start} to before {stop}, not {after}")
    count = _count(query, form, after)
    if form == "receipts" and asked is None and after is not None and count != after + 1 - start:
        raise FormatError(f"count is how many entries there are up to {after}: {after + 1 - start}, not {count}")
    return _Place(signed=signed, start=start, stop=stop, after=after, count=count)


def _count(query: Query, form: str, after: int | None) -> int:
    count = query.number("count")
    if (count is not None) != (form == "receipts" and after is not None):
        raise FormatError("count goes with after of a bundle of receipts, and says how many entries were had")
    return count or 0


async def _range(query: Query, log: Log, size: int) -> tuple[int, int]:
    """Return the first entry and the one behind the last. Raises FormatError or NotFound when there is none."""
    start, stop = query.number("start") or 0, query.number("stop")
    if stop is not None and start >= stop:
        raise FormatError("start is below stop, the index behind the last entry")
    if start >= size:
        hint = "Ask again in a second, or for an earlier entry: GET /checkpoint shows how far the log is."
        raise NotFound("not_published_yet", f"the published tree has {size} entries", hint, retry_after=1)
    since, until = span_of(query)
    if since is None and until is None:
        return start, min(size, size if stop is None else stop)
    if log.row.kind != "event":
        raise Refused("wrong_kind", "the entries of a raw log have no time", "Leave from and to out.")
    first = 0 if since is None else await log.entries.border(since, size)
    last = size if until is None else await log.entries.border(until, size)
    return max(start, first), min(last, size if stop is None else stop)


# --- the answer -------------------------------------------------------------------------------------------------------


async def _made(form: str, log: Log, place: _Place, asked: Asked | None, *, leaves_only: bool) -> forms.Form:
    if form != "receipts":
        return (forms.Csv if form == "csv" else forms.Jsonl)(leaves_only=leaves_only)
    # A search says nothing of what it does not find, so its bundle claims no range; nor can one without entries.
    whole = (place.start, place.stop) if asked is None and place.start < place.stop else None
    header = Header(log.row.origin, place.signed.note, whole)
    return forms.Receipts(header, await log.proofs.tree(place.signed))


class _Export:
    """The body of an export."""

    length = None

    def __init__(self, log: Log, place: _Place, asked: Asked | None, form: forms.Form, *, with_payload: bool) -> None:
        self._log = log
        self._place = place
        self._asked = asked
        self._form = form
        self._with_payload = with_payload

    async def pieces(self, budget: Budget) -> AsyncGenerator[bytes]:
        """Yield its bytes; of a download that goes on, those that are missing."""
        count = self._place.count
        if self._place.after is None and (begin := self._form.begin()):
            yield begin
        async with aclosing(self._batches(budget)) as batches:
            async for batch in batches:
                piece = await self._piece(batch)
                budget.cover(len(piece), must=True)
                count += len(batch)
                yield piece
        if end := self._form.end(count):
            yield end

    async def _piece(self, batch: list[forms.Found]) -> bytes:
        piece = bytearray()
        for number, one in enumerate(batch, 1):
            piece += await self._form.entry(one)
            if not number % _BREATH:
                await asyncio.sleep(0)
        return bytes(piece)

    def _batches(self, budget: Budget) -> AsyncGenerator[list[forms.Found]]:
        return self._entries(budget) if self._asked is None else self._hits(budget, self._asked)

    async def _entries(self, budget: Budget) -> AsyncGenerator[list[forms.Found]]:
        at, step, place = self._place.following, _FIRST, self._place
        while at < place.stop:
            await granted(budget)
            async with budget.turn():
                found = await forms.entries(
                    self._log.entries, at, min(at + step, place.stop), with_payload=self._with_payload
                )
            at += len(found)
            step = min(4 * step, _MOST, max(1, _PIECE * len(found) // forms.size_of(found)))
            yield found

    async def _hits(self, budget: Budget, asked: Asked) -> AsyncGenerator[list[forms.Found]]:
        found = forms.hits(searchable(self._log), asked, self._place.following, self._place.stop)
        async with aclosing(found) as batches:
            await granted(budget)
            async for batch in batches:
                yield batch if self._with_payload else [one._replace(payload=None, seed=None) for one in batch]
                await granted(budget)
