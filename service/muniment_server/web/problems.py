"""One table from what went wrong to an HTTP answer, and the catalogue of error codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from starlette.responses import PlainTextResponse, Response

from muniment.errors import FormatError
from muniment_server.errors import Behind, Corrupt, NotFound, Refused, Replaced, StoreError
from muniment_server.telemetry import get_logger


class Code(NamedTuple):
    """What an error code is in HTTP: its status, and the title of its problem document."""

    status: int
    title: str


_CODES = {
    "anchor_queued": (404, "No calendar has this anchor yet"),
    "bad_cursor": (400, "The cursor is not of this search"),
    "bad_parameter": (400, "A parameter in the path or query is not spelled as it must be"),
    "bad_query": (400, "The query is none"),
    "body_too_large": (413, "The request body is larger than this route takes"),
    "busy": (503, "The server holds as much for its clients as it can"),
    "clock": (503, "The writer's clock is wrong"),
    "content_encoding": (415, "The body is compressed"),
    "damaged": (503, "The database lacks something a signed head covers"),
    "database_behind": (503, "The database is an old copy"),
    "database_damaged": (503, "The database does not hash to its root"),
    "database_replaced": (503, "The database's files were replaced under the server"),
    "database_unavailable": (503, "The database does not answer"),
    "disk_low": (503, "The disk is nearly full"),
    "duplicate_name": (422, "A name occurs twice in an object"),
    "empty_batch": (422, "A batch has at least one entry"),
    "empty_entry": (422, "An entry has at least one byte"),
    "empty_event": (422, "An event has at least one member"),
    "entry_too_large": (413, "The entry does not fit"),
    "forbidden": (403, "The API key may not do this"),
    "framing_too_large": (400, "The body comes with too many bytes that are no part of it"),
    "guard_evidence": (503, "A checkpoint given as evidence is not this log's"),
    "guard_foreign": (503, "The guard belongs to another log"),
    "guard_locked": (503, "Another process holds the lock of the guard file"),
    "guard_missing": (503, "The guard file is missing"),
    "guard_replaced": (503, "The guard file is an older copy"),
    "guard_root": (503, "The guard remembers another history"),
    "guard_unreadable": (503, "The guard file cannot be read"),
    "guard_unwritable": (503, "The guard file cannot be written"),
    "headers_too_large": (431, "The header fields of the request are too large"),
    "http_version": (505, "This version of HTTP is not spoken"),
    "idempotency_key_invalid": (400, "The Idempotency-Key is not usable"),
    "idempotency_mismatch": (422, "The Idempotency-Key was used for another body"),
    "idempotency_running": (409, "A request with this Idempotency-Key is being processed"),
    "index_missing": (503, "The search index is being made"),
    "internal": (500, "The server met a bug"),
    "invalid_bundle": (422, "The body is not an entry bundle"),
    "invalid_json": (422, "The body is not JSON"),
    "invalid_number": (422, "A number is not JSON"),
    "invalid_receipt": (422, "The body is not a receipt"),
    "invalid_request": (400, "The request is malformed"),
    "invalid_utf8": (422, "The body is not UTF-8"),
    "key_unreadable": (503, "The signing key cannot be read"),
    "lone_surrogate": (422, "A text holds half of a character"),
    "method_not_allowed": (405, "This resource does not take this method"),
    "no_anchor": (404, "There is no such anchor (yet)"),
    "no_checkpoint": (404, "There is no published checkpoint of this size"),
    "no_entry": (404, "There is no such entry"),
    "no_such_size": (404, "The log is not that large"),
    "noncharacter": (422, "A text holds a code point that is no character"),
    "not_an_object": (422, "An event is a JSON object"),
    "not_found": (404, "There is no such resource"),
    "not_published_yet": (404, "No published checkpoint covers the entry yet"),
    "not_searchable": (404, "This log cannot be searched"),
    "number_range": (422, "A number is out of range"),
    "outcome_unknown": (503, "The entry may or may not have been stored"),
    "overloaded": (429, "Too many entries are waiting"),
    "payloads_closed": (403, "This caller may not read what events say"),
    "read_only": (503, "This server does not write the log"),
    "request_timeout": (408, "The request did not arrive in time"),
    "reserved_leaf": (422, "The leaf looks like one of the log's own entries"),
    "shutting_down": (503, "The server is shutting down"),
    "signature": (503, "A signature did not verify"),
    "sizes_reversed": (400, "The first size is larger than the second"),
    "too_deep": (422, "The JSON is nested too deep"),
    "too_many_connections": (503, "The server has too many connections"),
    "too_many_entries": (413, "The batch has too many entries"),
    "too_many_members": (422, "The event has too many members"),
    "transfer_coding": (501, "The body comes in a transfer coding that is not undone"),
    "unauthorized": (401, "An API key is needed, or the one given is not valid"),
    "unknown_log": (404, "There is no such log"),
    "unknown_member": (404, "The entry has no such member"),
    "unsupported_media_type": (415, "The body has a content type this route does not take"),
    "url_too_long": (414, "The URL is too long"),
    "witness_ahead": (503, "Others have seen more of this log than the database holds"),
    "witness_root": (503, "Others have seen another history of this log"),
    "wrong_kind": (422, "This route is for another kind of log"),
}
CODES = {code: Code(*found) for code, found in _CODES.items()}
"""Every error code. docs/api.md lists them from here."""


def problem(code: str, detail: str, hint: str, status: int | None = None, **extra: Any) -> Response:
    """Return an RFC 9457 problem document with our `code` and `hint`; `retry_after` (seconds) becomes a header too.

    `status` is given where it is not the one of the code.
    """
    status = status or CODES[code].status
    body = {
        "type": f"urn:muniment:error:{code}",
        "title": CODES[code].title,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
        **extra,
    }
    headers = {"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"}
    if "retry_after" in extra:
        headers["Retry-After"] = str(extra["retry_after"])
        headers["Access-Control-Expose-Headers"] = "Retry-After"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="muniment"'
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


_CODES_OF = (
    (Corrupt, "damaged"),
    (Behind, "database_behind"),
    (Replaced, "database_replaced"),
    (StoreError, "database_unavailable"),
    (FormatError, "bad_parameter"),
)


def code_of(error: Exception) -> str:
    """Return the code that an error of a handler is answered with."""
    if isinstance(error, Refused):
        return error.code
    return next((code for kind, code in _CODES_OF if isinstance(error, kind)), "internal")


def answer(error: Exception) -> Response:
    """Return the problem document for an error of a handler."""
    match error:
        case Refused():
            return problem(error.code, error.detail, error.hint, **error.extra)
        case FormatError():
            return problem(code_of(error), str(error), "See the API documentation at /docs.")
        case StoreError():
            return _of_store(error)
    get_logger().error("unexpected error", exc_info=error)
    return problem("internal", "unexpected error", "The server's log has the details; please report them.")


def _of_store(error: StoreError) -> Response:
    match error:
        case Corrupt():
            get_logger().error("database damaged", detail=str(error))
            return problem(code_of(error), "stored data is missing", "The operator must run `muniment-server fsck`.")
        case Behind():
            get_logger().error("database behind", detail=str(error))
            hint = "Retry later: this server shows nothing smaller than what it has shown before."
            return problem(code_of(error), "the database is an older copy", hint, retry_after=5)
        case Replaced():
            hint = "The operator must act, and not stop the server yet: see docs/incidents.md."
            return problem(code_of(error), "the database was replaced under the server", hint, retry_after=30)
    return problem(code_of(error), "the database does not answer", "Retry later.", retry_after=1)


def plain(error: Exception) -> Response:
    """Return the same as :func:`answer`, as C2SP clients expect it: the status and a line of text."""
    full = answer(error)
    status = 404 if isinstance(error, FormatError) else full.status_code
    text = "not found\n" if status == 404 else f"{orjson.loads(full.body)['detail']}\n"
    headers = {name: value for name, value in full.headers.items() if name in ("retry-after", "www-authenticate")}
    return PlainTextResponse(text, status, {**headers, "Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"})


def nowhere(path: str) -> Response:
    """Return the answer for a path that no route takes; as C2SP clients expect it where one of them may have asked."""
    file = path.endswith(("/checkpoint", "/add")) and "/anchors/" not in path
    if file or "/tile/" in path:
        return plain(NotFound("not_found", "no such file", "The latest checkpoint says which tiles there are."))
    return problem("not_found", f"there is no {path[:200]!r} here", "GET /docs lists every resource.")


def no_route(path: str, methods: Sequence[str], *, c2sp: bool) -> Response:
    """Return the answer for a path, or a method of a path, that no route takes.

    `methods` are those that the path has, and `c2sp` whether its routes are C2SP's.
    """
    if not methods:
        return nowhere(path)
    allowed = ", ".join(methods)
    error = Refused("method_not_allowed", f"this resource takes {allowed}", "Use one of these methods.")
    found = (plain if c2sp else answer)(error)
    found.headers["Allow"] = allowed
    return found
