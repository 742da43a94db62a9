"""What a Muniment log answers beside the routes of C2SP: what its events say, for rules with a query, and its delay."""

from __future__ import annotations

from typing import Any

from muniment._flows import fields
from muniment._flows.reads import PAGE_LIMIT
from muniment._flows.results import Entry
from muniment._flows.steps import Flow, Request, json_of, send
from muniment.encoding import parse_b64
from muniment.errors import BadDisclosure, BadProof, FormatError, Refused, Unreachable
from muniment.monitor.owntree import OwnTree
from muniment.monitor.reading import Mismatch, leaf_hashes
from muniment.monitor.source import RETRIES
from muniment.tiles import TILE_WIDTH


def publish_delay() -> Flow[int | None]:
    """Return in how many milliseconds the log says that it publishes. Its word: None when it says nothing usable."""
    try:
        answer = yield from send(Request("GET", "/log"), RETRIES)
    except (Refused, Unreachable):  # a mirror of its files
        return None
    try:
        return int(fields.number(json_of(answer), "publish_interval_seconds") * 1000)
    except (FormatError, Unreachable):  # what answers is no server of ours
        return None


def events_of_bundle(tree: OwnTree, index: int) -> Flow[list[tuple[int, dict[str, Any]]]]:
    """Return the events in a bundle with their indices, as far as the log opens them to this caller.

    Each is compared with the tree that was read. Raises Mismatch, or what sending does.
    """
    start, stop = index * TILE_WIDTH, min((index + 1) * TILE_WIDTH, tree.size)
    rows: list[dict[str, Any]] = []
    try:
        while start + len(rows) < stop:
            rows += yield from _page(start + len(rows), stop)
        leaves = [parse_b64(fields.text(row, "leaf"), "leaf") for row in rows]
        hashes = leaf_hashes(leaves)
        if stop - start == TILE_WIDTH:
            tree.check_bundle(index, hashes)
        elif hashes != tree.tail:
            raise BadProof(f"the entries from {start} on are not those that were read")  # noqa: TRY301 - one message
        opened = [Entry.open(at, leaf, row) for at, (leaf, row) in enumerate(zip(leaves, rows, strict=True), start)]
    except (FormatError, BadProof, BadDisclosure) as error:
        raise Mismatch(f"what events say: {error}", start) from error
    return [(entry.index, entry.event) for entry in opened if entry.event is not None]


def _page(start: int, stop: int) -> Flow[list[dict[str, Any]]]:
    request = Request("GET", "/entries", {"start": start, "limit": stop - start}, limit=PAGE_LIMIT)
    answer = json_of((yield from send(request, RETRIES)))
    rows = fields.objects(answer, "entries")[: stop - start]
    if not rows or [fields.integer(row, "index") for row in rows] != list(range(start, start + len(rows))):
        raise FormatError(f"the page from index {start} is empty or has gaps")
    return rows
