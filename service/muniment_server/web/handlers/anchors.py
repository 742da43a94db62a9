"""Routes of anchors: their list, and the pair of files that the stock OpenTimestamps client verifies."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from muniment.anchor.header import display
from muniment.encoding import parse_decimal
from muniment.event import format_time
from muniment_server.access.callers import Caller
from muniment_server.errors import NotFound
from muniment_server.follow.anchors.states import EXPLANATIONS, is_degraded
from muniment_server.log import Log
from muniment_server.storage.anchors import AnchorRow, CalendarRow
from muniment_server.web.handlers.read import for_good, json_answer, tagged
from muniment_server.web.messages import OCTETS, TEXT, Answer, Request
from muniment_server.web.request import Query


async def list_anchors(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /anchors: a page of anchors, by the tree size of what is anchored."""
    start, limit = Query(request, ("start", "limit")).page()
    found, calendars = await log.anchors.page(start, limit + 1)
    page = [anchor_value(row, calendars[row.tree_size], log.settings.anchor_held) for row in found[:limit]]
    return json_answer(log, {"anchors": page, "next": found[limit].tree_size if len(found) > limit else None})


async def get_anchor(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /anchors/{size}: one anchor."""
    row = await _anchor(request, log)
    _, calendars = await log.anchors.page(row.tree_size, 1)
    return json_answer(log, anchor_value(row, calendars[row.tree_size], log.settings.anchor_held))


async def get_anchored_checkpoint(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /anchors/{size}/checkpoint: the frozen bytes, exactly as they were anchored."""
    row = await _anchor(request, log)
    return Answer(row.checkpoint, TEXT, 200, for_good(log))


async def get_proof(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /anchors/{size}/checkpoint.ots: the proof, which grows until every calendar has answered."""
    row = await _anchor(request, log)
    if row.ots is None:
        hint = f"This anchor is {row.state}: {EXPLANATIONS[row.state]}."
        raise NotFound("anchor_queued", f"no calendar has the checkpoint of size {row.tree_size} yet", hint)
    tag = f'"{sha256(row.ots).hexdigest()[:32]}"'
    fields = tagged(log, tag)
    if any(tag in value or value.strip() == "*" for value in request.values(b"if-none-match")):
        return Answer(b"", OCTETS, 304, fields)
    return Answer(row.ots, OCTETS, 200, fields)


async def _anchor(request: Request, log: Log) -> AnchorRow:
    size = parse_decimal(request.params["size"], "size")
    found, _ = await log.anchors.page(size, 1)
    if found and found[0].tree_size == size:
        return found[0]
    hint = f"The next anchored size is {found[0].tree_size}." if found else "GET /anchors lists them."
    extra = {"next_size": found[0].tree_size} if found else {}
    raise NotFound("no_anchor", f"the checkpoint of size {size} is not anchored", hint, **extra)


def anchor_value(row: AnchorRow, calendars: Sequence[CalendarRow], held: int) -> dict[str, Any]:
    """Return the JSON value of an anchor. `held` is how many calendars should hold it."""
    block = None
    if row.height is not None and row.block_hash is not None:
        block = {"height": row.height, "hash": display(row.block_hash), "time": row.block_time}
    return {
        "tree_size": row.tree_size,
        "root": row.root.hex(),
        "digest": row.digest.hex(),
        "state": row.state,
        "explanation": EXPLANATIONS[row.state],
        "degraded": is_degraded(row, calendars, held),
        "created_at": format_time(row.created_at),
        "submitted_at": _time(row.submitted_at),
        "confirmed_at": _time(row.confirmed_at),
        "block": block,
        "calendars": [_calendar(one) for one in calendars],
    }


def _calendar(row: CalendarRow) -> dict[str, Any]:
    return {"url": row.url, "state": row.state, "attempts": row.attempts, "last_reason": row.last_reason}


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_time(milliseconds)
