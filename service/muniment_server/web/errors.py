"""One table from what went wrong to an HTTP answer, and the catalogue of error codes."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match

from muniment.errors import FormatError
from muniment_server.read.heads import Behind, Damaged, NotThere
from muniment_server.storage import Replaced, StoreError
from muniment_server.telemetry import get_logger
from muniment_server.write.admission import Refused

CODES = {
    "anchor_queued": "No calendar has this anchor yet",
    "bad_parameter": "A parameter in the path or query is not spelled as it must be",
    "body_too_large": "The request body is larger than this route takes",
    "busy": "The server holds as much for its clients as it can",
    "clock": "The writer's clock is wrong",
    "content_encoding": "The body is compressed",
    "damaged": "The database lacks something a signed head covers",
    "database_behind": "The database is an old copy",
    "database_damaged": "The database does not hash to its root",
    "database_replaced": "The database's files were replaced under the server",
    "database_unavailable": "The database does not answer",
    "disk_low": "The disk is nearly full",
    "duplicate_name": "A name occurs twice in an object",
    "empty_batch": "A batch has at least one entry",
    "empty_entry": "An entry has at least one byte",
    "empty_event": "An event has at least one member",
    "entry_too_large": "The entry does not fit",
    "forbidden": "The API key may not do this",
    "framing_too_large": "The body comes with too many bytes that are no part of it",
    "guard_evidence": "A checkpoint given as evidence is not this log's",
    "guard_foreign": "The guard belongs to another log",
    "guard_locked": "Another process holds the lock of the guard file",
    "guard_missing": "The guard file is missing",
    "guard_replaced": "The guard file is an older copy",
    "guard_root": "The guard remembers another history",
    "guard_unreadable": "The guard file cannot be read",
    "guard_unwritable": "The guard file cannot be written",
    "headers_too_large": "The header fields of the request are too large",
    "idempotency_key_invalid": "The Idempotency-Key is not usable",
    "idempotency_mismatch": "The Idempotency-Key was used for another body",
    "idempotency_running": "A request with this Idempotency-Key is being processed",
    "internal": "The server met a bug",
    "invalid_bundle": "The body is not an entry bundle",
    "invalid_json": "The body is not JSON",
    "invalid_number": "A number is not JSON",
    "invalid_receipt": "The body is not a receipt",
    "invalid_request": "The request is malformed",
    "invalid_utf8": "The body is not UTF-8",
    "key_unreadable": "The signing key cannot be read",
    "lone_surrogate": "A text holds half of a character",
    "method_not_allowed": "This resource does not take this method",
    "no_anchor": "There is no such anchor (yet)",
    "no_checkpoint": "There is no published checkpoint of this size",
    "no_entry": "There is no such entry",
    "no_such_size": "The log is not that large",
    "noncharacter": "A text holds a code point that is no character",
    "not_an_object": "An event is a JSON object",
    "not_found": "There is no such resource",
    "not_published_yet": "No published checkpoint covers the entry yet",
    "number_range": "A number is out of range",
    "outcome_unknown": "The entry may or may not have been stored",
    "overloaded": "Too many entries are waiting",
    "read_only": "This server does not write the log",
    "request_timeout": "The request did not arrive in time",
    "reserved_leaf": "The leaf looks like one of the log's own entries",
    "shutting_down": "The server is shutting down",
    "signature": "A signature did not verify",
    "sizes_reversed": "The first size is larger than the second",
    "too_deep": "The JSON is nested too deep",
    "too_many_connections": "The server has too many connections",
    "too_many_entries": "The batch has too many entries",
    "too_many_members": "The event has too many members",
    "unauthorized": "An API key is needed, or the one given is not valid",
    "unknown_log": "There is no such log",
    "unsupported_media_type": "The body has a content type this route does not take",
    "url_too_long": "The URL is too long",
    "witness_ahead": "Others have seen more of this log than the database holds",
    "witness_root": "Others have seen another history of this log",
    "wrong_kind": "This route is for another kind of log",
}
"""Every error code, with its title. docs/api.md lists them from here."""


def problem(status: int, code: str, detail: str, hint: str, **extra: Any) -> Response:
    """Return an RFC 9457 problem document with our `code` and `hint`; `retry_after` (seconds) becomes a header too."""
    body = {
        "type": f"urn:muniment:error:{code}",
        "title": CODES[code],
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
        **extra,
    }
    headers = {"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"}
    if "retry_after" in extra:
        headers["Retry-After"] = str(extra["retry_after"])
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="muniment"'
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


def answer(error: Exception) -> Response:
    """Return the problem document for an error of a handler."""
    match error:
        case Refused():
            return problem(error.status, error.code, error.detail, error.hint, **error.extra)
        case NotThere():
            return problem(404, error.code, error.detail, error.hint, **error.extra)
        case FormatError():
            return problem(400, "bad_parameter", str(error), "See the API documentation at /docs.")
        case StoreError():
            return _of_store(error)
    get_logger().error("unexpected error", exc_info=error)
    return problem(500, "internal", "unexpected error", "The server's log has the details; please report them.")


def _of_store(error: StoreError) -> Response:
    match error:
        case Damaged():
            get_logger().error("database damaged", detail=str(error))
            return problem(503, "damaged", "stored data is missing", "The operator must run `muniment-server fsck`.")
        case Behind():
            get_logger().error("database behind", detail=str(error))
            hint = "Retry later: this server shows nothing smaller than what it has shown before."
            return problem(503, "database_behind", "the database is an older copy", hint, retry_after=5)
        case Replaced():
            hint = "The operator must restart the server on the right database."
            return problem(503, "database_replaced", "the database was replaced under the server", hint, retry_after=30)
    return problem(503, "database_unavailable", "the database does not answer", "Retry later.", retry_after=1)


def plain(error: Exception) -> Response:
    """Return the same as :func:`answer`, as C2SP clients expect it: the status and a line of text."""
    full = answer(error)
    status = 404 if isinstance(error, FormatError) else full.status_code
    text = "not found\n" if status == 404 else f"{orjson.loads(full.body)['detail']}\n"
    headers = {name: value for name, value in full.headers.items() if name in ("retry-after", "www-authenticate")}
    return PlainTextResponse(text, status, {**headers, "Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"})


def _allowed(request: Request) -> str:
    """Return every method of a path: two routes may share one, and the router names those of the first alone."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    literal = [route for route in matching if "{index}" not in route.path]  # "batch" is no index
    methods: set[str] = set().union(*(route.methods for route in literal or matching))
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def nowhere(path: str) -> Response:
    """Return the answer for a path that no route takes; as C2SP clients expect it where one of them may have asked."""
    if "/tile/" in path or path.endswith(("/checkpoint", "/add")):
        return plain(NotThere("not_found", "no such file", "The latest checkpoint says which tiles there are."))
    return problem(404, "not_found", f"there is no {path[:200]!r} here", "GET /docs lists every resource.")


async def not_found(request: Request, error: Exception) -> Response:
    """Answer a path or method that no route takes."""
    status = getattr(error, "status_code", 404)
    if status == 405:
        allowed = _allowed(request)
        found = problem(405, "method_not_allowed", f"this resource takes {allowed}", "Use one of these methods.")
        found.headers["Allow"] = allowed
        return found
    if status == 404:
        return nowhere(request.scope["path"])
    return problem(status, "invalid_request", str(getattr(error, "detail", "malformed request")), "See /docs.")
