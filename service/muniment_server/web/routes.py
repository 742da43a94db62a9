"""The table of routes: path, handler, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from muniment_server.access.callers import APPEND, OPEN, READ, VIEW
from muniment_server.web import models
from muniment_server.web.handlers import anchors, export, feed, read, search, system, write
from muniment_server.web.messages import Answer

Handler = Callable[..., Awaitable[Answer]]
"""Gets the request, the log (of a route of the instance: what all routes share) and the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route. `on` says whether it is of a "log" or of the "instance".

    `needs` is the permission without which its handler does not run, whichever way a request came in. `c2sp` routes
    answer plain text and have one URL each; the others of a log are under /v1 as well (`v1`). `tagged` answers have
    an ETag; `hidden` routes are not in the OpenAPI document.
    """

    method: str
    path: str
    handler: Handler
    needs: str
    on: str = "log"
    summary: str
    tag: str
    answers: dict[int, type[BaseModel] | str]
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    c2sp: bool = False
    v1: bool = True
    tagged: bool = False
    hidden: bool = False

    @property
    def asks(self) -> bool:
        """Whether the route knows any query parameter."""
        return any(parameter["in"] == "query" for parameter in self.parameters)


def _query(name: str, description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "required": required, "schema": schema}


_NUMBER = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**63 - 1}
_INDEX = {
    "name": "index",
    "in": "path",
    "required": True,
    "description": "Index of the entry, from 0.",
    "schema": _NUMBER,
}
_ANCHOR = {
    "name": "size",
    "in": "path",
    "required": True,
    "description": "Tree size of the anchored checkpoint.",
    "schema": _NUMBER,
}
_NAME = r'([^,"][^,]*|"([^"\\\x00-\x1f]|\\(["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
"""As :mod:`muniment.names` reads it."""
_SIZE = _query("tree_size", "Size of the tree; default: the latest.", _NUMBER)
_START = _query("start", "First to return.", _NUMBER)
_LIMIT = _query(
    "limit", "How many to return; default 100.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
)
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Repeats with the same key and body answer with the same entry (event logs).",
    "schema": {"type": "string", "pattern": r'^("[ !#-\[\]-~]{1,255}"|[!#-\[\]-~]{1,255})$'},
}
_TIME = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9:]{8}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2}))?$",
}
_QUERY = {"type": "string", "maxLength": 4096}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_EVENT = {"schema": {"type": "object", "minProperties": 1, "maxProperties": 256}}
_EVENTS = {"schema": {"type": "array", "minItems": 1, "items": _EVENT["schema"]}}
_TEXT = "text/plain"
_OCTETS = "application/octet-stream"
_LINES = "application/x-ndjson"
_EVENTS_OF_SERVER = "text/event-stream"
_LAST_EVENT = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Size of the last checkpoint seen: those after it come first. Default: the latest one comes.",
    "schema": {"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$"},
}

ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/entries",
        handler=write.add_entry,
        needs=APPEND,
        summary="Append one entry; the answer is its receipt",
        tag="append",
        answers={201: models.ReceiptModel, 200: models.ReceiptModel},
        errors=(400, 401, 403, 409, 413, 415, 422, 429, 503),
        parameters=(_KEY,),
        body={"required": True, "content": {"application/json": _EVENT, _OCTETS: _BYTES}},
    ),
    Route(
        method="POST",
        path="/entries/batch",
        handler=write.add_batch,
        needs=APPEND,
        summary="Append 1 to 10,000 entries, all or nothing: one event a line, a JSON array, or a bundle",
        tag="append",
        answers={201: models.Batch, 200: models.Batch},
        errors=(400, 401, 403, 409, 413, 415, 422, 429, 503),
        parameters=(_KEY, _query("receipts", "Answer with every receipt.", {"type": "boolean", "default": False})),
        body={
            "required": True,
            "content": {"application/x-ndjson": _BYTES, "application/json": _EVENTS, _OCTETS: _BYTES},
        },
    ),
    Route(
        method="POST",
        path="/add",
        handler=write.add_plain,
        needs=APPEND,
        summary="Append one leaf to a raw log; the answer is its decimal index",
        tag="append",
        answers={200: _TEXT},
        errors=(400, 401, 403, 413, 415, 422, 429, 503),
        body={"required": True, "content": {_OCTETS: _BYTES}},
        c2sp=True,
        v1=False,
    ),
    Route(
        method="GET",
        path="/entries",
        handler=read.list_entries,
        needs=VIEW,
        summary="List entries",
        tag="entries",
        answers={200: models.Entries},
        errors=(400, 401, 403),
        parameters=(_START, _LIMIT),
    ),
    Route(
        method="GET",
        path="/export",
        handler=export.export,
        needs=VIEW,
        summary="Export entries, or the hits of a search, oldest first, as a stream that can be gone on with",
        tag="entries",
        answers={200: _LINES},
        errors=(400, 401, 403, 404, 414, 422, 503),
        parameters=(
            _query("q", "Only events that this query finds: see docs/search.md.", _QUERY),
            _query("from", "Only entries logged at this time or later: a time, or a day in UTC.", _TIME),
            _query("to", "Only entries logged before this time.", _TIME),
            _query("start", "First entry.", _NUMBER),
            _query("stop", "Index behind the last entry; default: all of the tree.", _NUMBER),
            _query(
                "format",
                "jsonl: an object a line. csv: a table. receipts: a bundle of receipts, the evidence.",
                {"enum": ["jsonl", "csv", "receipts"], "default": "jsonl"},
            ),
            _query(
                "tree_size", "Size of the published tree; default: the latest, as Muniment-Tree-Size says.", _NUMBER
            ),
            _query("after", "To go on: the index in the last whole line; needs tree_size.", _NUMBER),
            _query("count", "To go on with receipts: how many entries came before.", _NUMBER),
            _query("leaves_only", "Without what events say.", {"type": "boolean", "default": False}),
        ),
    ),
    Route(
        method="GET",
        path="/search",
        handler=search.search,
        needs=READ,
        summary="Find events",
        tag="entries",
        answers={200: models.Hits},
        errors=(400, 401, 403, 404, 414, 422, 503),
        parameters=(
            _query("q", "The query: see docs/search.md; default: every event.", _QUERY),
            _query("from", "Only entries logged at this time or later: a time, or a day in UTC.", _TIME),
            _query("to", "Only entries logged before this time.", _TIME),
            _query(
                "order",
                "Which hits come first: newest, the default, or oldest.",
                {"enum": ["newest", "oldest"], "default": "newest"},
            ),
            _LIMIT,
            _query("cursor", "`next` of the page before, with the same other parameters.", {"type": "string"}),
        ),
    ),
    Route(
        method="GET",
        path="/entries/{index}",
        handler=read.get_entry,
        needs=VIEW,
        summary="Get one entry",
        tag="entries",
        answers={200: models.Entry},
        errors=(400, 401, 403, 404),
        parameters=(_INDEX,),
    ),
    Route(
        method="GET",
        path="/entries/{index}/receipt",
        handler=read.get_receipt,
        needs=VIEW,
        summary="Get the receipt of an entry at a published checkpoint",
        tag="entries",
        answers={200: models.ReceiptModel},
        errors=(400, 401, 403, 404),
        parameters=(
            _INDEX,
            _SIZE,
            _query(
                "anchored", "With the earliest confirmed anchor that covers it.", {"type": "boolean", "default": False}
            ),
            _query(
                "members",
                "Open these members of the event and no others: names with commas between them; one that holds a comma"
                " is a JSON string. May be repeated; empty opens none.",
                {"type": "string", "pattern": f"^({_NAME}(,{_NAME})*)?(?![\\s\\S])"},
            ),
        ),
    ),
    Route(
        method="GET",
        path="/proof/inclusion",
        handler=read.prove_inclusion,
        needs=VIEW,
        summary="Prove that an entry is in the log",
        tag="proofs",
        answers={200: models.InclusionProof},
        errors=(400, 401, 403, 404),
        parameters=(
            _query("index", "Index of the entry; or give leaf_hash.", _NUMBER),
            _query("leaf_hash", "Leaf hash in hex; or give index.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
            _SIZE,
        ),
    ),
    Route(
        method="GET",
        path="/proof/consistency",
        handler=read.prove_consistency,
        needs=VIEW,
        summary="Prove that the log only grew",
        tag="proofs",
        answers={200: models.ConsistencyProof},
        errors=(400, 401, 403, 404),
        parameters=(
            _query("first", "Size of the smaller tree.", _NUMBER | {"minimum": 1}, required=True),
            _query("second", "Size of the larger tree; default: the latest.", _NUMBER),
        ),
    ),
    Route(
        method="GET",
        path="/checkpoints",
        handler=read.list_checkpoints,
        needs=VIEW,
        summary="List published checkpoints by size",
        tag="checkpoints",
        answers={200: models.Checkpoints},
        errors=(400, 401, 403),
        parameters=(
            _query("start", "Size of the first to return.", _NUMBER),
            _LIMIT,
            _query("order", "asc: the smallest first; desc: the largest.", {"enum": ["asc", "desc"], "default": "asc"}),
            _query("from", "Only those published at this time or later: a time, or a day in UTC.", _TIME),
            _query("to", "Only those published before this time.", _TIME),
        ),
    ),
    Route(
        method="GET",
        path="/checkpoints/stream",
        handler=feed.stream,
        needs=VIEW,
        summary="Follow the log: checkpoints as they are published, as Server-Sent Events",
        tag="checkpoints",
        answers={200: _EVENTS_OF_SERVER},
        errors=(400, 401, 403),
        parameters=(_LAST_EVENT,),
    ),
    Route(
        method="GET",
        path="/anchors",
        handler=anchors.list_anchors,
        needs=VIEW,
        summary="List anchors in Bitcoin by tree size",
        tag="anchors",
        answers={200: models.Anchors},
        errors=(400, 401, 403),
        parameters=(_START, _LIMIT),
    ),
    Route(
        method="GET",
        path="/anchors/{size}",
        handler=anchors.get_anchor,
        needs=VIEW,
        summary="Get one anchor, and what its state is worth",
        tag="anchors",
        answers={200: models.AnchorModel},
        errors=(400, 401, 403, 404),
        parameters=(_ANCHOR,),
    ),
    Route(
        method="GET",
        path="/anchors/{size}/checkpoint",
        handler=anchors.get_anchored_checkpoint,
        needs=VIEW,
        summary="The anchored bytes of a checkpoint, which never change",
        tag="anchors",
        answers={200: _TEXT},
        errors=(400, 401, 403, 404),
        parameters=(_ANCHOR,),
    ),
    Route(
        method="GET",
        path="/anchors/{size}/checkpoint.ots",
        handler=anchors.get_proof,
        needs=VIEW,
        summary="The OpenTimestamps proof of these bytes, as it is by now",
        tag="anchors",
        answers={200: _OCTETS},
        errors=(400, 401, 403, 404),
        parameters=(_ANCHOR,),
        tagged=True,
    ),
    Route(
        method="GET",
        path="/log",
        handler=read.get_log,
        needs=VIEW,
        summary="What this log is",
        tag="about",
        answers={200: models.LogInfo},
        errors=(400, 401, 403),
    ),
    Route(
        method="GET",
        path="/log/coverage",
        handler=read.get_coverage,
        needs=VIEW,
        summary="Which entries no published checkpoint, and no confirmed anchor, covers yet",
        tag="about",
        answers={200: models.Coverage},
        errors=(400, 401, 403, 404),
    ),
    Route(
        method="GET",
        path="/checkpoint",
        handler=read.get_checkpoint,
        needs=VIEW,
        summary="The latest published checkpoint (C2SP)",
        tag="c2sp",
        answers={200: _TEXT},
        errors=(401, 403, 404),
        c2sp=True,
        v1=False,
        tagged=True,
    ),
    Route(
        method="GET",
        path="/tile/{path:path}",
        handler=read.get_tile,
        needs=VIEW,
        summary="A hash tile <L>/<N>[.p/<W>] or an entry bundle entries/<N>[.p/<W>] (C2SP)",
        tag="c2sp",
        answers={200: _OCTETS},
        errors=(401, 403, 404),
        parameters=(
            {
                "name": "path",
                "in": "path",
                "required": True,
                "description": "The tile's one canonical path.",
                "schema": {"type": "string", "pattern": r"^([0-9]+|entries)/(x[0-9]{3}/)*[0-9]{3}(\.p/[0-9]+)?$"},
            },
        ),
        c2sp=True,
        v1=False,
    ),
    Route(
        method="GET",
        path="/healthz",
        handler=system.healthz,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="The process runs",
        tag="about",
        answers={200: models.Health},
        errors=(400,),
    ),
    Route(
        method="GET",
        path="/readyz",
        handler=system.readyz,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="Reads work; which logs take entries",
        tag="about",
        answers={200: models.Readiness, 503: models.Readiness},
        errors=(400,),
    ),
    Route(
        method="GET",
        path="/logs",
        handler=system.list_logs,
        needs=OPEN,
        on="instance",
        summary="List the logs that the caller may see",
        tag="about",
        answers={200: models.Logs},
        errors=(400, 401),
    ),
    Route(
        method="GET",
        path="/version",
        handler=system.version,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="Which release of the server this is",
        tag="about",
        answers={200: models.Version},
        errors=(400,),
    ),
    Route(
        method="POST",
        path="/verify",
        handler=system.verify,
        needs=OPEN,
        on="instance",
        summary="Check a receipt (a convenience, not evidence)",
        tag="proofs",
        answers={200: models.Verdict},
        errors=(400, 413, 415, 422),
        body={"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    ),
    Route(
        method="GET",
        path="/",
        handler=system.home,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="What this server is",
        tag="about",
        answers={200: "text/html"},
        hidden=True,
    ),
    Route(
        method="GET",
        path="/docs",
        handler=system.docs,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="The OpenAPI document as a page",
        tag="about",
        answers={200: "text/html"},
        hidden=True,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=system.openapi,
        needs=OPEN,
        on="instance",
        v1=False,
        summary="The OpenAPI document",
        tag="about",
        answers={200: "application/json"},
        hidden=True,
    ),
)
