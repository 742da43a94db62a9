"""GET /search: which events have what a query asks for."""

from __future__ import annotations

import re

import orjson

from muniment.errors import FormatError, QueryError
from muniment.event import parse_time
from muniment.query import Query as Parsed
from muniment.query import parse_query
from muniment_server.access.callers import Caller
from muniment_server.errors import NotFound, Refused
from muniment_server.log import Log
from muniment_server.read.search import Asked, Search
from muniment_server.web.handlers.read import fresh_for
from muniment_server.web.messages import JSON, Answer, Request
from muniment_server.web.request import Query

_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ORDERS = {"newest": True, "oldest": False}


async def search(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /search: a page of events."""
    query = Query(request, ("q", "from", "to", "order", "limit", "cursor"))
    asked = Asked(
        text := query.text("q") or "",
        parsed_query(text),
        time_of(query, "from"),
        time_of(query, "to"),
        newest=_newest(query),
    )
    _, limit = query.page()
    found = await searchable(log).page(asked, limit, query.text("cursor"))
    value = {"hits": found.hits, "next": found.next, "complete_to": found.complete_to, "tree_size": found.size}
    return Answer(orjson.dumps(value), JSON, 200, fresh_for(log, caller))


def searchable(log: Log) -> Search:
    """Return what searches a log. Raises Refused when it cannot be searched."""
    if log.row.kind != "event":
        raise Refused("wrong_kind", "a raw log cannot be searched", "Its leaves mean nothing to the log.")
    if log.search is None:
        raise NotFound(
            "not_searchable", "this log has no search index", "The operator's setting `search` leaves it out."
        )
    return log.search


def parsed_query(text: str) -> Parsed:
    """Return the query in a text. Raises Refused."""
    try:
        return parse_query(text)
    except QueryError as error:
        hint = "docs/search.md has the grammar; `position` counts code points from 0."
        raise Refused("bad_query", error.detail, hint, position=error.position) from None


def time_of(query: Query, name: str) -> int | None:
    """Return a moment, or the beginning of a day in UTC, in a parameter; None when it is not given."""
    text = query.text(name)
    if text is None:
        return None
    try:
        return parse_time(f"{text}T00:00:00.000Z" if _DAY.fullmatch(text) else text)
    except FormatError:
        raise FormatError(f"{name} is a time like 2026-11-20T12:00:00.123Z or a day like 2026-11-20") from None


def _newest(query: Query) -> bool:
    order = query.text("order") or "newest"
    if order not in _ORDERS:
        raise FormatError("order is newest or oldest")
    return _ORDERS[order]
