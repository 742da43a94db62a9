"""Routes that append."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from muniment.errors import FormatError
from muniment.receipt import Receipt
from muniment.tiles import MAX_ENTRY, decode_bundle
from muniment_server.admission import Draft, Refused, draft_event, draft_raw
from muniment_server.log import Log
from muniment_server.submission import Outcome, Submission
from muniment_server.web.request import Caller, Query, idempotency_key, media_type, read_body, too_large, wants_text

_JSON = ("application/json", "text/json")
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")


_BREATH = 200
_BREATH_BYTES = 262_144


async def add_entry(request: Request, log: Log, caller: Caller) -> Response:
    """POST /entries: one entry in, its receipt out."""
    caller.need("append")
    Query(request, ())
    if log.row.kind == "raw":
        submission = Submission([draft_raw(await _raw_body(request))], caller.name)
    else:
        _expect_type(request, _JSON, 'curl --json \'{"actor":"alice","action":"test"}\'')
        body = await read_body(request, log.settings.max_event_bytes)
        submission = Submission([draft_event(body)], caller.name, idempotency_key(request))
    outcome = await log.append(submission)
    receipt = (await log.receipts(submission, outcome))[0]
    headers = _headers(outcome) | {"Location": f"{_prefix(request)}/entries/{receipt.index}"}
    return receipt_response(request, receipt, 201 if outcome.new else 200, headers)


async def _raw_body(request: Request) -> bytes:
    try:
        return await read_body(request, MAX_ENTRY)
    except Refused as error:
        if error.code != "body_too_large":
            raise
        raise Refused(
            413,
            "entry_too_large",
            f"an entry has at most {MAX_ENTRY} bytes",
            "Log a digest of the document, and keep the document yourself.",
        ) from None


def _expect_type(request: Request, allowed: Sequence[str], example: str) -> None:
    found = media_type(request)
    if found not in allowed and not (allowed is _JSON and found.endswith("+json")):
        raise Refused(
            415,
            "unsupported_media_type",
            f"the content type is {found[:80] or 'missing'!r}, not {allowed[0]}",
            f"With curl: {example} URL. With others: Content-Type: {allowed[0]}.",
        )


def _headers(outcome: Outcome) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    return headers


def _prefix(request: Request) -> str:
    return str(request.url.path).rsplit("/entries", 1)[0]


def receipt_response(request: Request, receipt: Receipt, status: int, headers: dict[str, str]) -> Response:
    """Return a receipt in the form the caller asked for: JSON, or tlog-proof text."""
    if wants_text(request):
        return PlainTextResponse(receipt.to_tlog_proof(), status, headers)
    return Response(orjson.dumps(receipt.to_json()), status, headers, media_type="application/json")


async def add_batch(request: Request, log: Log, caller: Caller) -> Response:
    """POST /entries/batch: many entries in, all or nothing."""
    caller.need("append")
    with_receipts = Query(request, ("receipts",)).flag("receipts")
    settings = log.settings
    if log.row.kind == "raw":
        drafts: list[Draft] = await _raw_drafts(
            await read_body(request, settings.max_batch_bytes), settings.max_batch_entries
        )
        key = None  # equal leaves are equal entries: nothing to remember
    else:
        _expect_type(request, _NDJSON, "curl -H 'Content-Type: application/x-ndjson' --data-binary @events.jsonl")
        drafts = await _event_drafts(
            await read_body(request, settings.max_batch_bytes), settings.max_batch_entries, log
        )
        key = idempotency_key(request)
    submission = Submission(drafts, caller.name, key)
    outcome = await log.append(submission)
    body = {"indices": ranges(outcome.indices), "count": len(outcome.indices), "checkpoint": outcome.signed.note}
    if with_receipts:
        body["receipts"] = [receipt.to_json() for receipt in await log.receipts(submission, outcome)]
    return Response(orjson.dumps(body), 201 if outcome.new else 200, _headers(outcome), media_type="application/json")


def _check_count(count: int, limit: int) -> None:
    if not count:
        raise Refused(
            422, "empty_batch", "a batch has at least one entry", "Send one event a line, or one entry in the bundle."
        )
    if count > limit:
        raise Refused(413, "too_many_entries", f"a batch has at most {limit} entries", "Send several batches.")


async def _event_drafts(body: bytes, limit: int, log: Log) -> list[Draft]:
    text = body.removesuffix(b"\n")
    _check_count(text.count(b"\n") + 1 if body else 0, limit)  # before 16 million newlines become a list
    lines = text.split(b"\n")
    drafts: list[Draft] = []
    for number, line in enumerate(lines, 1):
        if not number % _BREATH:
            await asyncio.sleep(0)  # ten thousand drafts take a while: let others be answered in between
        try:
            if len(line) > log.settings.max_event_bytes:
                raise too_large(log.settings.max_event_bytes)
            drafts.append(draft_event(line))
        except Refused as error:
            raise _at(error, number) from None
    return drafts


async def _raw_drafts(body: bytes, limit: int) -> list[Draft]:
    _check_count(_count_entries(body, limit + 1), limit)
    try:
        leaves = decode_bundle(body)
    except FormatError as error:
        hint = "Send each entry as its length (two bytes, big-endian) and its bytes, as in a C2SP entry bundle."
        raise Refused(422, "invalid_bundle", str(error), hint) from None
    drafts: list[Draft] = []
    size = 0
    for number, leaf in enumerate(leaves, 1):
        size += len(leaf)
        if size > _BREATH_BYTES:
            await asyncio.sleep(0)
            size = 0
        try:
            drafts.append(draft_raw(leaf))
        except Refused as error:
            raise _at(error, number) from None
    return drafts


def _count_entries(body: bytes, limit: int) -> int:
    """Count the entries of a bundle, as far as `limit`: five million leaves of one byte must not take seconds to refuse."""
    count = at = 0
    while at < len(body) and count < limit:
        at += 2 + int.from_bytes(body[at : at + 2], "big")
        count += 1
    return count


def _at(error: Refused, number: int) -> Refused:
    detail = f"entry {number} of the batch: {error.detail}"
    return Refused(error.status, error.code, detail, error.hint, **error.extra, line=number)


def ranges(indices: Iterable[int]) -> list[list[int]]:
    """Return indices as half-open ranges [low, high), in their order: one after the other they give every index."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return found


async def add_plain(request: Request, log: Log, caller: Caller) -> Response:
    """POST /add on raw logs: the body is the leaf, the answer is its index and nothing else."""
    caller.need("append")
    if log.row.kind != "raw":
        raise Refused(422, "wrong_kind", "POST /add is for raw logs", "Send events to POST /entries.")
    outcome = await log.append(Submission([draft_raw(await _raw_body(request))], caller.name))
    return PlainTextResponse(str(outcome.indices[0]), 200, _headers(outcome))
