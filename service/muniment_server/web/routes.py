"""The table of routes: path, handler, and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from muniment_server.log import Log
from muniment_server.web import anchors, models, read, write
from muniment_server.web.ask import Answer, Ask
from muniment_server.web.request import Caller

Handler = Callable[[Ask, Log, Caller], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a log. `c2sp` routes answer plain text and have one URL each; the others are mounted under /v1 as well."""

    method: str
    path: str
    handler: Handler
    summary: str
    tag: str
    answers: dict[int, type[BaseModel] | str]
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    c2sp: bool = field(default=False)


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
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!#-\[\]-~]+$"},
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_EVENT = {"schema": {"type": "object", "minProperties": 1, "maxProperties": 256}}
_TEXT = "text/plain"
_OCTETS = "application/octet-stream"

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/entries",
        write.add_entry,
        "Append one entry; the answer is its receipt",
        "append",
        {201: models.ReceiptModel, 200: models.ReceiptModel},
        (400, 401, 403, 409, 413, 415, 422, 429, 503),
        (_KEY,),
        {"required": True, "content": {"application/json": _EVENT, _OCTETS: _BYTES}},
    ),
    Route(
        "POST",
        "/entries/batch",
        write.add_batch,
        "Append 1 to 10,000 entries, all or nothing",
        "append",
        {201: models.Batch, 200: models.Batch},
        (400, 401, 403, 409, 413, 415, 422, 429, 503),
        (_KEY, _query("receipts", "Answer with every receipt.", {"type": "boolean", "default": False})),
        {"required": True, "content": {"application/x-ndjson": _BYTES, _OCTETS: _BYTES}},
    ),
    Route(
        "POST",
        "/add",
        write.add_plain,
        "Append one leaf to a raw log; the answer is its decimal index",
        "append",
        {200: _TEXT},
        (400, 401, 403, 413, 415, 422, 429, 503),
        (),
        {"required": True, "content": {_OCTETS: _BYTES}},
        c2sp=True,
    ),
    Route(
        "GET",
        "/entries",
        read.list_entries,
        "List entries",
        "entries",
        {200: models.Entries},
        (400, 401, 403),
        (_START, _LIMIT),
    ),
    Route(
        "GET",
        "/entries/{index}",
        read.get_entry,
        "Get one entry",
        "entries",
        {200: models.Entry},
        (400, 401, 403, 404),
        (_INDEX,),
    ),
    Route(
        "GET",
        "/entries/{index}/receipt",
        read.get_receipt,
        "Get the receipt of an entry at a published checkpoint",
        "entries",
        {200: models.ReceiptModel},
        (400, 401, 403, 404),
        (
            _INDEX,
            _SIZE,
            _query(
                "anchored", "With the earliest confirmed anchor that covers it.", {"type": "boolean", "default": False}
            ),
        ),
    ),
    Route(
        "GET",
        "/proof/inclusion",
        read.prove_inclusion,
        "Prove that an entry is in the log",
        "proofs",
        {200: models.InclusionProof},
        (400, 401, 403, 404),
        (
            _query("index", "Index of the entry; or give leaf_hash.", _NUMBER),
            _query("leaf_hash", "Leaf hash in hex; or give index.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
            _SIZE,
        ),
    ),
    Route(
        "GET",
        "/proof/consistency",
        read.prove_consistency,
        "Prove that the log only grew",
        "proofs",
        {200: models.ConsistencyProof},
        (400, 401, 403, 404),
        (
            _query("first", "Size of the smaller tree.", _NUMBER | {"minimum": 1}, required=True),
            _query("second", "Size of the larger tree; default: the latest.", _NUMBER),
        ),
    ),
    Route(
        "GET",
        "/checkpoints",
        read.list_checkpoints,
        "List published checkpoints by size",
        "checkpoints",
        {200: models.Checkpoints},
        (400, 401, 403),
        (_START, _LIMIT),
    ),
    Route(
        "GET",
        "/anchors",
        anchors.list_anchors,
        "List anchors in Bitcoin by tree size",
        "anchors",
        {200: models.Anchors},
        (400, 401, 403),
        (_START, _LIMIT),
    ),
    Route(
        "GET",
        "/anchors/{size}",
        anchors.get_anchor,
        "Get one anchor, and what its state is worth",
        "anchors",
        {200: models.AnchorModel},
        (400, 401, 403, 404),
        (_ANCHOR,),
    ),
    Route(
        "GET",
        "/anchors/{size}/checkpoint",
        anchors.get_anchored_checkpoint,
        "The anchored bytes of a checkpoint, which never change",
        "anchors",
        {200: _TEXT},
        (400, 401, 403, 404),
        (_ANCHOR,),
    ),
    Route(
        "GET",
        "/anchors/{size}/checkpoint.ots",
        anchors.get_proof,
        "The OpenTimestamps proof of these bytes, as it is by now",
        "anchors",
        {200: _OCTETS},
        (400, 401, 403, 404),
        (_ANCHOR,),
    ),
    Route("GET", "/log", read.get_log, "What this log is", "about", {200: models.LogInfo}, (400, 401, 403)),
    Route(
        "GET",
        "/checkpoint",
        read.get_checkpoint,
        "The latest published checkpoint (C2SP)",
        "c2sp",
        {200: _TEXT},
        (401, 403, 404),
        c2sp=True,
    ),
    Route(
        "GET",
        "/tile/{path:path}",
        read.get_tile,
        "A hash tile <L>/<N>[.p/<W>] or an entry bundle entries/<N>[.p/<W>] (C2SP)",
        "c2sp",
        {200: _OCTETS},
        (401, 403, 404),
        (
            {
                "name": "path",
                "in": "path",
                "required": True,
                "description": "The tile's one canonical path.",
                "schema": {"type": "string", "pattern": r"^([0-9]+|entries)/(x[0-9]{3}/)*[0-9]{3}(\.p/[0-9]+)?$"},
            },
        ),
        c2sp=True,
    ),
)
