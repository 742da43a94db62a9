"""Routes that read: entries, receipts, proofs, checkpoints, and the C2SP files."""

from __future__ import annotations

import time
from binascii import hexlify
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import orjson

from muniment.encoding import MAX_SIZE, parse_b64, parse_decimal, parse_hex
from muniment.errors import BadDisclosure, FormatError, UnknownMember
from muniment.event import MAX_MEMBERS, format_time
from muniment.hashing import HASH_SIZE
from muniment.receipt import Receipt
from muniment.tiles import MAX_ENTRY, TILE_WIDTH, Bundle, Tile, parse_tile_path
from muniment_server.access.callers import READ, Caller
from muniment_server.errors import Corrupt, NotFound, Refused
from muniment_server.log import Log
from muniment_server.read.coverage import Covered
from muniment_server.read.flow import Call, Flow, run
from muniment_server.read.proofs import Proof
from muniment_server.web.cors import ANY
from muniment_server.web.handlers.large import WHOLE, LargeBundle, page_of
from muniment_server.web.handlers.write import form_of
from muniment_server.web.messages import JSON, OCTETS, TEXT, Answer, Request, budget_of
from muniment_server.web.request import Query, span_of, takes_gzip, wants_text
from muniment_server.write.receipts import hex_list
from muniment_server.write.submission import Signed

_CHECK_AGAIN = b"cache-control: no-cache\r\n"
# By whether a log is public: any page may read that, and any cache keep it.
_FRESH = {True: ANY + _CHECK_AGAIN, False: _CHECK_AGAIN}
_VARY, _GZIP = b"vary: Accept-Encoding\r\n", b"content-encoding: gzip\r\n"
_ZIPPED = (512, 256 * 1024)
"""Bytes of the smallest bundle that gets smaller, and of the largest that does so in milliseconds."""
_FOR_GOOD = {
    True: ANY + b"cache-control: public, max-age=604800, immutable\r\n",
    False: b"cache-control: private, max-age=604800, immutable\r\n",
}


def json_answer(log: Log, value: Any) -> Answer:
    """Return an answer that a cache has to ask for again."""
    return Answer(orjson.dumps(value), JSON, 200, fresh(log))


def fresh(log: Log) -> bytes:
    """Return the header fields of an answer that may be another one next time."""
    return _FRESH[log.row.public]


def for_good(log: Log) -> bytes:
    """Return the header fields of an answer that never changes."""
    return _FOR_GOOD[log.row.public]


def tagged(log: Log, tag: str) -> bytes:
    """Return the header fields of an answer that `tag` tells from a later one."""
    exposed = b"access-control-expose-headers: ETag\r\n" if log.row.public else b""
    return fresh(log) + exposed + b"etag: %b\r\n" % tag.encode()


def _may_open(log: Log, caller: Caller) -> bool:
    """Tell whether the caller may see payloads. A raw leaf is its own payload: every reader of the log may read it."""
    return log.row.kind == "event" and READ in caller.permissions


def fresh_for(log: Log, caller: Caller) -> bytes:
    """As :func:`fresh`, of an answer with payloads if the caller may see them: pages may read those of open logs."""
    return _FRESH[log.row.public and (log.row.open or not _may_open(log, caller))]


def _index(request: Request) -> int:
    return parse_decimal(request.params["index"], "index")


# --- entries and receipts ---------------------------------------------------------------------------------------------


async def get_entry(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /entries/{index}: one entry, with what of its payload the caller may see."""
    value = await log.entries.one(_index(request), with_payload=_may_open(log, caller))
    return Answer(orjson.dumps(value), JSON, 200, fresh_for(log, caller))


async def list_entries(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /entries: a page of entries."""
    start, limit = Query(request, ("start", "limit")).page()
    text, following, size = await page_of(log, start, limit, budget_of(request), with_payload=_may_open(log, caller))
    after = b"%d" % following if start < following < size else b"null"
    return Answer(b'{"entries":%b,"next":%b,"tree_size":%d}' % (text, after, size), JSON, 200, fresh_for(log, caller))


async def get_receipt(request: Request, log: Log, caller: Caller) -> Answer:
    """GET /entries/{index}/receipt: a receipt at a published checkpoint."""
    query = Query(request, ("tree_size", "anchored", "members"), repeated=("members",))
    size, anchored, members = query.number("tree_size"), query.flag("anchored"), query.names("members")
    if (anchored or members is not None) and wants_text(request):
        raise FormatError("anchors and members have no place in tlog-proof text: ask for JSON")
    receipt = await log.receipts.published(_index(request), size, with_payload=_may_open(log, caller))
    if members is not None:
        receipt = _only(receipt, members, closed=log.row.kind == "event" and READ not in caller.permissions)
    if anchored:
        receipt = replace(receipt, anchors=(await log.anchors.covering(_index(request)),))
    return Answer(*form_of(request, receipt), 200, fresh_for(log, caller) + b"vary: Accept\r\n")


def _only(receipt: Receipt, members: set[str], *, closed: bool) -> Receipt:
    """Return a receipt that opens these members and no others. Raises Refused.

    `closed` says that the caller may not see payloads. Such a caller gets what it gets without `members`: whether the
    event has them is part of the payload.
    """
    if closed:
        return receipt
    try:
        return receipt.disclose(members)
    except UnknownMember as error:
        raise Refused("unknown_member", str(error), 'Names are exact; one with a comma is written "a,b".') from error
    except BadDisclosure as error:
        raise Corrupt(f"the payload of entry {receipt.index} is not what its leaf commits to") from error


# --- proofs -----------------------------------------------------------------------------------------------------------


async def prove_inclusion(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /proof/inclusion: of an entry named by index or leaf hash, in a tree of any size."""
    query = Query(request, ("index", "leaf_hash", "tree_size"))
    index, wanted, size = query.number("index"), query.text("leaf_hash"), query.number("tree_size")
    if (index is None) == (wanted is None):
        raise FormatError("give either index or leaf_hash")
    if index is None:
        index = await log.entries.find(parse_hex(wanted or "", HASH_SIZE, "leaf_hash"))
    return await run(inclusion(log, index, size))


def inclusion(log: Log, index: int, size: int | None = None) -> Flow[Answer]:
    """Answer with the inclusion proof of an entry, by default in the latest tree."""
    return _inclusion(log, index, (yield from log.proofs.inclusion(index, size)))


def inclusion_now(log: Log, index: int) -> Answer | None:
    """As :func:`inclusion` in the latest tree, when everything needed is in memory; else None.

    No generator: see :meth:`Files.file_now`.
    """
    proof = log.proofs.inclusion_now(index)
    return None if proof is None else _inclusion(log, index, proof)


def _inclusion(log: Log, index: int, proof: Proof) -> Answer:
    leaf = hexlify(proof.leaf_hash)
    if log.traced:
        log.note(
            "proof",
            kind="inclusion",
            first=index,
            leaf_hash=leaf.decode(),
            second=proof.size,
            hashes=proof.hashes,
            root=proof.root,
        )
    before, after = _frame(log, proof)
    body = b'{"index":%d,"leaf_hash":"%b",%b%b%b' % (index, leaf, before, hex_list(proof.hashes), after)
    return Answer(body, JSON, 200, fresh(log))


_frames: dict[int, tuple[Signed, bytes, bytes]] = {}
"""By log, what stands around the hashes of proofs at its latest signed head.

Each is kept with the very object of its head, so none serves another.
"""


def _frame(log: Log, proof: Proof) -> tuple[bytes, bytes]:
    """Return what stands around the hashes of an inclusion proof.

    Proofs at the signed head, which are most, share it.
    """
    kept = _frames.get(log.row.log_id)
    if kept is not None and kept[0] is proof.signed and proof.size == proof.signed.size:
        return kept[1], kept[2]
    mark = b'"hashes":['
    text = orjson.dumps({"tree_size": proof.size} | _proof(log, proof._replace(hashes=[])))
    at = text.index(mark) + len(mark)
    before, after = text[1:at], text[at:]
    if proof.size == proof.signed.size:
        _frames[log.row.log_id] = (proof.signed, before, after)
    return before, after


async def prove_consistency(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /proof/consistency: that one tree extends another."""
    query = Query(request, ("first", "second"))
    first = query.number("first")
    if not first:
        raise FormatError("first is the size of the smaller tree, at least 1: everything extends the empty tree")
    proof = await run(log.proofs.consistency(first, query.number("second")))
    log.note("proof", kind="consistency", first=first, second=proof.size, hashes=proof.hashes, root=proof.root)
    return json_answer(log, {"first": first, "second": proof.size} | _proof(log, proof))


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


# --- checkpoints and C2SP ---------------------------------------------------------------------------------------------


async def list_checkpoints(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /checkpoints: the signed tree heads that were published, by size, from a time to before another."""
    query = Query(request, ("start", "limit", "order", "from", "to"))
    newest, (start, limit) = _newest_first(query), query.page()
    first, behind = await _sizes(log, *span_of(query))
    if newest:
        at = min(behind - 1, MAX_SIZE if query.number("start") is None else start)
        found = await log.heads.checkpoints(at, limit + 1, newest=True) if at >= first else []
    else:
        found = await log.heads.checkpoints(max(start, first), limit + 1)
    found = [one for one in found if first <= one.size < behind]
    page = [
        {"size": one.size, "checkpoint": one.note, "published_at": format_time(one.published_at)}
        for one in found[:limit]
    ]
    return json_answer(log, {"checkpoints": page, "next": found[limit].size if len(found) > limit else None})


def _newest_first(query: Query) -> bool:
    order = query.text("order")
    if order not in (None, "asc", "desc"):
        raise FormatError("order is asc or desc")
    return order == "desc"


async def _sizes(log: Log, since: int | None, until: int | None) -> tuple[int, int]:
    """Return the sizes [first, behind) of what was published in a span of time."""
    first = 0 if since is None else await log.heads.border(since)
    return first, MAX_SIZE + 1 if until is None else await log.heads.border(until)


async def get_checkpoint(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /checkpoint: the latest published checkpoint, never smaller than before."""
    since = time.monotonic_ns()
    found = await log.heads.published()
    note = found.note
    log.note("served", size=found.size, since=since)
    tag = f'"{sha256(note.encode()).hexdigest()[:32]}"'
    fields = tagged(log, tag)
    if any(tag in value or value.strip() == "*" for value in request.values(b"if-none-match")):
        return Answer(b"", TEXT, 304, fields)
    return Answer(note.encode(), TEXT, 200, fields)


async def get_tile(request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /tile/...: a hash tile or an entry bundle. Whatever is not there is exactly 404."""
    if b"%" in request.raw_path:
        raise FormatError("a tile has one URL, without escapes")
    wanted = parse_tile_path(request.params["path"])
    return await run(file(log, wanted, budget_of(request).turn(), gzip=takes_gzip(request.headers)))


def file(
    log: Log, wanted: Tile | Bundle, turn: AbstractAsyncContextManager[None], *, gzip: bool = False
) -> Flow[Answer]:
    """Answer with a tile or bundle; with a large bundle in pieces. Raises NotFound.

    What may be large is read in a `turn`. With `gzip` the caller takes a bundle so, and a full one is sent and kept so:
    hashes do not get smaller, and the other bundles have as many widths as the log has sizes.
    """
    full = wanted if gzip and isinstance(wanted, Bundle) and wanted.width == TILE_WIDTH else None
    if full and (answer := file_now(log, full, gzip=True)):
        return answer
    found = yield from log.files.file(wanted, WHOLE, turn)
    if found is None:
        raise NotFound("not_found", "no such tile", "The latest checkpoint says which tiles there are.")
    if isinstance(found, int):
        return Answer(b"", OCTETS, 200, for_good(log) + _VARY, LargeBundle.of(log, wanted, found))
    if full and _ZIPPED[0] <= len(found) <= _ZIPPED[1]:
        return _gzipped(log, (yield Call(partial(log.files.gzip, full, found))))
    return _file(log, wanted, found)


def file_now(log: Log, wanted: Tile | Bundle, *, gzip: bool = False) -> Answer | None:
    """As :func:`file`, when the file is in memory as it is to be sent; else None."""
    if gzip and isinstance(wanted, Bundle) and wanted.width == TILE_WIDTH:
        zipped = log.files.gzipped_now(wanted)
        return None if zipped is None else _gzipped(log, zipped)
    data = log.files.file_now(wanted)
    return None if data is None else _file(log, wanted, data)


def _file(log: Log, wanted: Tile | Bundle, data: bytes) -> Answer:
    return Answer(data, OCTETS, 200, for_good(log) if isinstance(wanted, Tile) else for_good(log) + _VARY)


def _gzipped(log: Log, data: bytes) -> Answer:
    return Answer(data, OCTETS, 200, for_good(log) + _VARY + _GZIP)


# --- about the log ----------------------------------------------------------------------------------------------------


async def get_coverage(_request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /log/coverage: what no published checkpoint, and no confirmed anchor, covers yet."""
    found, now = await log.coverage.now(), time.time_ns() // 1_000_000
    value: dict[str, Any] = {by: _covered(one, now) for by, one in found.items()}
    return json_answer(log, {"tree_size": max(one.size for one in found.values())} | value)


def _covered(found: Covered, now: int) -> dict[str, Any]:
    return {
        "tree_size": found.tree_size,
        "uncovered": max(0, found.size - found.tree_size),
        "since": None if found.since is None else format_time(found.since),
        "age_seconds": 0.0 if found.since is None else max(0, now - found.since) / 1000,
        "exact": found.exact,
    }


async def vkeys_of(log: Log) -> list[str]:
    """Return the keys that the log's first entry names."""
    genesis = await log.entries.one(0, with_payload=False)
    found: list[str] = orjson.loads(parse_b64(genesis["leaf"]))["vkeys"]
    return found


async def get_log(_request: Request, log: Log, _caller: Caller) -> Answer:
    """GET /log: what this log is."""
    settings = log.settings
    value = {
        "origin": log.row.origin,
        "name": log.row.name,
        "kind": log.row.kind,
        "vkeys": await vkeys_of(log),
        "tree_size": (await log.heads.published()).size,
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
    return json_answer(log, value)
