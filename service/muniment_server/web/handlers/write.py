"""Routes that append."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice

import orjson

from muniment.errors import FormatError
from muniment.receipt import Receipt
from muniment.tiles import MAX_ENTRY, iter_bundle
from muniment_server.access.callers import Caller
from muniment_server.errors import Refused
from muniment_server.log import Log
from muniment_server.read.flow import Flow, run
from muniment_server.web.messages import JSON, TEXT, Answer, Request, budget_of
from muniment_server.web.request import Query, idempotency_key, media_type, read_body, too_large, wants_text
from muniment_server.web.room import LARGE, busy
from muniment_server.write.admission import SubmittedDraft, draft_event, draft_plain, draft_raw
from muniment_server.write.array import elements
from muniment_server.write.submission import Outcome, Submission

_JSON = ("application/json", "text/json")
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")

# Raw drafts, drafts of events, and leaves that are made before others have a turn: a third of a millisecond each.
_BREATH, _BREATH_EVENTS, _BREATH_LEAVES = 100, 10, 500
_BREATH_BYTES = 262_144
_ANSWER = 2
"""Bytes of receipts for each byte of what they are of, and"""
_RECEIPT = 1600
"""for each of them, at about the most."""


def check_entry(request: Request, log: Log) -> int:
    """Check a POST /entries before its body is looked at.

    Returns how many bytes the body may have. Raises Refused, FormatError.
    """
    if log.row.kind == "raw":
        return MAX_ENTRY
    _expect_type(request, _JSON, 'curl --json \'{"actor":"alice","action":"test"}\'')
    return log.settings.max_event_bytes


def entry_submission(request: Request, log: Log, caller: Caller, body: bytes) -> Submission:
    """Return what the body of a POST /entries submits. Raises Refused."""
    if log.row.kind == "raw":
        return Submission([draft_raw(body)], caller.name)
    return Submission([draft_event(body)], caller.name, idempotency_key(request))


async def add_entry(request: Request, log: Log, caller: Caller) -> Answer:
    """POST /entries: one entry in, its receipt out."""
    limit = check_entry(request, log)
    log.writer.check_room()
    body = await (_raw_body(request, caller) if log.row.kind == "raw" else read_body(request, limit, caller))
    _need_room(request, _ANSWER * len(body))
    submission = entry_submission(request, log, caller, body)
    return await run(entry(request, log, submission, await log.append(submission)))


def entry(request: Request, log: Log, submission: Submission, outcome: Outcome) -> Flow[Answer]:
    """Answer a POST /entries with the receipt of its entry, in the form the caller asked for."""
    if not wants_text(request) and (answer := entry_now(request, log, submission, outcome)):
        return answer
    receipt = yield from log.receipts.of_append(submission, outcome)
    return _entry(request, outcome, *form_of(request, receipt))


def entry_now(request: Request, log: Log, submission: Submission, outcome: Outcome) -> Answer | None:
    """As :func:`entry`, in JSON, of a new entry; None of one that needs the database.

    No generator: see :meth:`Files.file_now`.
    """
    receipt = log.receipts.of_append_now(submission, outcome)
    return None if receipt is None else _entry(request, outcome, receipt, JSON)


def _entry(request: Request, outcome: Outcome, receipt: bytes, media_type: str) -> Answer:
    path = request.raw_path.rpartition(b"/entries")[0]
    fields = b"%blocation: %b/entries/%d\r\n" % (_FIELDS[outcome.replayed], path, outcome.indices[0])
    return Answer(receipt, media_type, 201 if outcome.new else 200, fields)


async def _raw_body(request: Request, caller: Caller) -> bytes:
    try:
        return await read_body(request, MAX_ENTRY, caller)
    except Refused as error:
        if error.code != "body_too_large":
            raise
        raise Refused(
            "entry_too_large",
            f"an entry has at most {MAX_ENTRY} bytes",
            "Log a digest of the document, and keep the document yourself.",
        ) from None


def _need_room(request: Request, size: int) -> None:
    """Raise Refused where an answer of about `size` bytes has no place.

    This comes before its entries are in the log: after that the answer must be sent.
    """
    budget = budget_of(request)
    if size > LARGE and not budget.cover(min(size, budget.rooms.answers.most // 2)):
        raise busy()


def _is_json(found: str) -> bool:
    return found in _JSON or found.endswith("+json")


def _expect_type(request: Request, allowed: Sequence[str], example: str) -> None:
    found = media_type(request)
    if found not in allowed and not (allowed is _JSON and _is_json(found)):
        raise Refused(
            "unsupported_media_type",
            f"the content type is {found[:80] or 'missing'!r}, not {allowed[0]}"
            f"{' or, for an array, application/json' if allowed is _NDJSON else ''}",
            f"With curl: {example} URL. With others: Content-Type: {allowed[0]}.",
        )


# By whether an Idempotency-Key led to an earlier entry.
_FIELDS = {False: b"cache-control: no-store\r\n", True: b"cache-control: no-store\r\nidempotency-replayed: true\r\n"}


def form_of(request: Request, receipt: Receipt) -> tuple[bytes, str]:
    """Return a receipt in the form the caller asked for, and its media type: JSON, or tlog-proof text."""
    if wants_text(request):
        return receipt.to_tlog_proof().encode(), TEXT
    return orjson.dumps(receipt.to_json()), JSON


async def add_batch(request: Request, log: Log, caller: Caller) -> Answer:
    """POST /entries/batch: many entries in, all or nothing."""
    with_receipts = Query(request, ("receipts",)).flag("receipts")
    log.writer.check_room()
    make = _raw_drafts if log.row.kind == "raw" else _drafts_of_type(request)
    body = await read_body(request, log.settings.max_batch_bytes, caller, batch=True)
    # One at a time: drafts take ten times the memory of the body, and reads would wait for a step of each of them.
    async with log.drafting:
        log.writer.check_room()  # by now others may have taken it
        drafts = await make(body, log)
    if with_receipts:
        _need_room(request, _ANSWER * len(body) + _RECEIPT * len(drafts))
    del body  # the drafts have copies, and may wait for their turn
    # Equal leaves of a raw log are equal entries: nothing to remember.
    key = None if log.row.kind == "raw" else idempotency_key(request)
    submission = Submission(drafts, caller.name, key)
    return await _batch(log, submission, await log.append(submission), with_receipts=with_receipts)


async def _batch(log: Log, submission: Submission, outcome: Outcome, *, with_receipts: bool) -> Answer:
    """Answer a POST /entries/batch."""
    body = orjson.dumps(
        {"indices": ranges(outcome.indices), "count": len(outcome.indices), "checkpoint": outcome.signed.note}
    )
    if with_receipts:
        text = bytearray(body[:-1] + b',"receipts":')
        await log.receipts.write(submission, outcome, text)
        text += b"}"
        body = bytes(text)
    return Answer(body, JSON, 201 if outcome.new else 200, _FIELDS[outcome.replayed])


def _check_count(count: int, limit: int) -> None:
    if not count:
        raise Refused(
            "empty_batch", "a batch has at least one entry", "Send one event a line, or one entry in the bundle."
        )
    if count > limit:
        raise Refused("too_many_entries", f"a batch has at most {limit} entries", "Send several batches.")


def _drafts_of_type(request: Request) -> Callable[[bytes, Log], Awaitable[list[SubmittedDraft]]]:
    """Return what makes drafts of a batch of events by its content type: one event a line, or a JSON array."""
    if _is_json(media_type(request)):
        return _array_drafts
    _expect_type(request, _NDJSON, "curl -H 'Content-Type: application/x-ndjson' --data-binary @events.jsonl")
    return _line_drafts


async def _line_drafts(body: bytes, log: Log) -> list[SubmittedDraft]:
    text = body.removesuffix(b"\n")
    _check_count(
        text.count(b"\n") + 1 if body else 0, log.settings.max_batch_entries
    )  # before 16 million newlines become a list
    return await _event_drafts(text.split(b"\n"), log)


async def _array_drafts(body: bytes, log: Log) -> list[SubmittedDraft]:
    drafts = await _event_drafts(elements(body, log.settings.max_event_bytes), log)
    _check_count(len(drafts), log.settings.max_batch_entries)
    return drafts


async def _event_drafts(lines: Iterable[bytes], log: Log) -> list[SubmittedDraft]:
    drafts: list[SubmittedDraft] = []
    for number, line in enumerate(lines, 1):
        _check_count(number, log.settings.max_batch_entries)
        if not number % _BREATH_EVENTS:
            await asyncio.sleep(0)  # ten thousand drafts take a while: let others be answered in between
        try:
            if len(line) > log.settings.max_event_bytes:
                raise too_large(log.settings.max_event_bytes)
            drafts.append(draft_event(line))
        except Refused as error:
            raise _at(error, number) from None
    return drafts


async def _raw_drafts(body: bytes, log: Log) -> list[SubmittedDraft]:
    leaves = await _leaves(body, log.settings.max_batch_entries)
    drafts: list[SubmittedDraft] = []
    step = min(_BREATH, 1 + _BREATH_BYTES * len(leaves) // len(body))
    for start in range(0, len(leaves), step):
        await asyncio.sleep(0)  # ten thousand drafts take a while: let others be answered in between
        part = leaves[start : start + step]
        try:
            drafts.extend(draft_plain(part) or map(draft_raw, part))
        except Refused as error:  # those before it are in the list already
            raise _at(error, len(drafts) + 1) from None
    return drafts


async def _leaves(body: bytes, limit: int) -> list[bytes]:
    """Return the entries of a bundle, 1 to `limit` of them.

    Raises Refused: of five million entries, once it has met too many.
    """
    leaves: list[bytes] = []
    bundle = iter_bundle(body)
    try:
        while part := list(islice(bundle, _BREATH_LEAVES)):
            leaves += part
            if len(leaves) > limit:
                break
            await asyncio.sleep(0)
    except FormatError as error:
        hint = "Send each entry as its length (two bytes, big-endian) and its bytes, as in a C2SP entry bundle."
        raise Refused("invalid_bundle", str(error), hint) from None
    _check_count(len(leaves), limit)
    return leaves


def _at(error: Refused, number: int) -> Refused:
    detail = f"entry {number} of the batch: {error.detail}"
    return Refused(error.code, detail, error.hint, **error.extra, line=number)


def ranges(indices: Iterable[int]) -> list[list[int]]:
    """Return indices as half-open ranges [low, high), in their order: one after the other they give every index."""
    found: list[list[int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return found


def check_plain(log: Log) -> int:
    """Check a POST /add before its body is looked at. Returns how many bytes that may have. Raises Refused."""
    if log.row.kind != "raw":
        raise Refused("wrong_kind", "POST /add is for raw logs", "Send events to POST /entries.")
    return MAX_ENTRY


async def add_plain(request: Request, log: Log, caller: Caller) -> Answer:
    """POST /add on raw logs: the body is the leaf, the answer is its index and nothing else."""
    check_plain(log)
    log.writer.check_room()
    body = await _raw_body(request, caller)
    return plain(await log.append(Submission([draft_raw(body)], caller.name)))


def plain(outcome: Outcome) -> Answer:
    """Answer a POST /add with the index of its entry."""
    return Answer(b"%d" % outcome.indices[0], TEXT, 200, _FIELDS[outcome.replayed])
