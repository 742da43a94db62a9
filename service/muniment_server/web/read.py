"""Routes that read: entries, receipts, proofs, checkpoints, and the C2SP files."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from muniment.encoding import parse_b64, parse_decimal, parse_hex
from muniment.errors import FormatError
from muniment.event import MAX_MEMBERS, format_time
from muniment.hashing import HASH_SIZE
from muniment.tiles import MAX_ENTRY, Tile, parse_tile_path
from muniment_server.admission import Refused
from muniment_server.log import Log, NotThere, Proof
from muniment_server.web.request import Caller, Query
from muniment_server.web.write import receipt_response

_IMMUTABLE = "public, max-age=604800, immutable"


def _json(log: Log, value: Any) -> Response:
    return Response(orjson.dumps(value), 200, _cors(log) | {"Cache-Control": "no-cache"}, media_type="application/json")


def _cors(log: Log) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": "*"} if log.row.public else {}


def check_readable(log: Log, caller: Caller) -> None:
    """Raise Refused unless the caller may read checkpoint, tiles and proofs of this log."""
    if not log.row.public:
        caller.need("read")


def _may_open(log: Log, caller: Caller) -> bool:
    """Tell whether the caller may see payloads. A raw leaf is its own payload: whoever may read the log may read it."""
    return log.row.kind == "event" and "read" in caller.scopes


def _index(request: Request) -> int:
    return parse_decimal(request.path_params["index"], "index")


# --- entries and receipts -----------------------------------------------------------------------------------------------


async def get_entry(request: Request, log: Log, caller: Caller) -> Response:
    """GET /entries/{index}: one entry, with what of its payload the caller may see."""
    check_readable(log, caller)
    Query(request, ())
    return _json(log, await log.entry(_index(request), secrets=_may_open(log, caller)))


async def list_entries(request: Request, log: Log, caller: Caller) -> Response:
    """GET /entries: a page of entries."""
    check_readable(log, caller)
    start, limit = Query(request, ("start", "limit")).page()
    entries, size = await log.entries(start, limit, secrets=_may_open(log, caller))
    following = start + len(entries)
    return _json(
        log, {"entries": entries, "next": following if entries and following < size else None, "tree_size": size}
    )


async def get_receipt(request: Request, log: Log, caller: Caller) -> Response:
    """GET /entries/{index}/receipt: a receipt at a published checkpoint."""
    check_readable(log, caller)
    size = Query(request, ("tree_size",)).number("tree_size")
    receipt = await log.receipt(_index(request), size, secrets=_may_open(log, caller))
    return receipt_response(request, receipt, 200, _cors(log) | {"Cache-Control": "no-cache", "Vary": "Accept"})


# --- proofs -------------------------------------------------------------------------------------------------------------


async def prove_inclusion(request: Request, log: Log, caller: Caller) -> Response:
    """GET /proof/inclusion: of an entry named by index or leaf hash, in a tree of any size."""
    check_readable(log, caller)
    query = Query(request, ("index", "leaf_hash", "tree_size"))
    index, wanted = query.number("index"), query.text("leaf_hash")
    if (index is None) == (wanted is None):
        raise FormatError("give either index or leaf_hash")
    if index is None:
        index = await log.find(parse_hex(wanted or "", HASH_SIZE, "leaf_hash"))
    proof = await log.prove_inclusion(index, query.number("tree_size"))
    leaf = (await log.entry(index, secrets=False))["leaf_hash"]
    log.note(
        "proof", kind="inclusion", first=index, leaf_hash=leaf, second=proof.size, hashes=proof.hashes, root=proof.root
    )
    return _json(log, {"index": index, "leaf_hash": leaf, "tree_size": proof.size} | _proof(log, proof))


async def prove_consistency(request: Request, log: Log, caller: Caller) -> Response:
    """GET /proof/consistency: that one tree extends another."""
    check_readable(log, caller)
    query = Query(request, ("first", "second"))
    first = query.number("first")
    if not first:
        raise FormatError("first is the size of the smaller tree, at least 1: everything extends the empty tree")
    proof = await log.prove_consistency(first, query.number("second"))
    log.note("proof", kind="consistency", first=first, second=proof.size, hashes=proof.hashes, root=proof.root)
    return _json(log, {"first": first, "second": proof.size} | _proof(log, proof))


def _proof(log: Log, proof: Proof) -> dict[str, Any]:
    return {
        "origin": log.row.origin,
        "root": proof.root.hex(),
        "hashes": [value.hex() for value in proof.hashes],
        "checkpoint": proof.signed.note,
        "consistency": {
            "first": proof.size,
            "second": proof.signed.size,
            "hashes": [value.hex() for value in proof.tie],
        },
    }


# --- checkpoints and C2SP -----------------------------------------------------------------------------------------------


async def list_checkpoints(request: Request, log: Log, caller: Caller) -> Response:
    """GET /checkpoints: the signed tree heads that were published, by size."""
    check_readable(log, caller)
    start, limit = Query(request, ("start", "limit")).page()
    found = await log.checkpoints(start, limit + 1)
    page = [
        {"size": one.size, "checkpoint": one.note, "published_at": format_time(one.published_at)}
        for one in found[:limit]
    ]
    return _json(log, {"checkpoints": page, "next": found[limit].size if len(found) > limit else None})


async def get_checkpoint(request: Request, log: Log, caller: Caller) -> Response:
    """GET /checkpoint: the latest published checkpoint, never smaller than before."""
    check_readable(log, caller)
    since = time.monotonic_ns()
    found = await log.published()
    note = found.note
    log.note("served", size=found.size, since=since)
    tag = f'"{sha256(note.encode()).hexdigest()[:32]}"'
    headers = _cors(log) | {"Cache-Control": "no-cache", "ETag": tag}
    if any(tag in value or value.strip() == "*" for value in request.headers.getlist("if-none-match")):
        return Response(None, 304, headers)
    return PlainTextResponse(note, 200, headers)


async def get_tile(request: Request, log: Log, caller: Caller) -> Response:
    """GET /tile/...: a hash tile or an entry bundle. Whatever is not there is exactly 404."""
    check_readable(log, caller)
    if b"%" in request.scope.get("raw_path", b"") or request.scope["query_string"]:
        raise FormatError("a tile has one URL, without escapes and query")
    wanted = parse_tile_path(request.path_params["path"])
    data = await (log.tile(wanted) if isinstance(wanted, Tile) else log.bundle(wanted))
    if data is None:
        raise NotThere("not_found", "no such tile", "The latest checkpoint says which tiles there are.")
    headers = _cors(log) | {"Cache-Control": _IMMUTABLE if log.row.public else "private, max-age=604800, immutable"}
    return Response(data, 200, headers, media_type="application/octet-stream")


# --- about the log ------------------------------------------------------------------------------------------------------


async def get_log(request: Request, log: Log, caller: Caller) -> Response:
    """GET /log: what this log is."""
    check_readable(log, caller)
    Query(request, ())
    genesis = await log.entry(0, secrets=False)
    settings = log.settings
    value = {
        "origin": log.row.origin,
        "name": log.row.name,
        "kind": log.row.kind,
        "vkeys": orjson.loads(parse_b64(genesis["leaf"]))["vkeys"],
        "tree_size": (await log.published()).size,
        "public": log.row.public,
        "open": log.row.open or log.row.kind == "raw",
        "limits": {
            "max_entry_bytes": MAX_ENTRY if log.row.kind == "raw" else settings.max_event_bytes,
            "max_batch_entries": settings.max_batch_entries,
            "max_batch_bytes": settings.max_batch_bytes,
            "max_members": MAX_MEMBERS,
        },
        "publish_interval_seconds": settings.publish_interval,
        "idempotency_ttl_seconds": settings.idempotency_ttl,
    }
    return _json(log, value)


def refuse_unknown_log(name: str) -> Refused:
    """Return the refusal of a log this server does not have."""
    return Refused(404, "unknown_log", f"there is no log {name[:63]!r}", "`muniment-server log list` names the logs.")
