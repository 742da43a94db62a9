"""GET /search: which events have what a query asks for."""

from __future__ import annotations

import orjson

from muniment.errors import FormatError, QueryError
from muniment.query import Query as Parsed
from muniment.query import parse_query
from muniment_server.access.callers import Caller
from muniment_server.errors import NotFound, Refused
from muniment_server.log import Log
from muniment_server.read.search import Asked, Search
from muniment_server.web.handlers.read import fresh_for
from muniment_server.web.messages import JSON, Answer, Request
from muniment_server.web.request import Query, span_of

_ORDERS = {"newest": True, "oldest": False}


async def search(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /search: a page of events."""
    query = Query(request, ("q", "from", "to", "order", "limit", "cursor"))
    asked = Asked(
        text := query.text("q") or "",
        parsed_query(text),
        *span_of(query),
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


def _newest(query: Query) -> bool:
    order = query.text("order")
    order = "newest" if order is None else order
    if order not in _ORDERS:
        raise FormatError("order is newest or oldest")
    return _ORDERS[order]
