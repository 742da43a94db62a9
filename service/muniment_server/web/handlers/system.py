"""Routes of the instance rather than of one log: health, readiness, verification, documentation."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import orjson

from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.verify import failure_json, verify_receipt
from muniment_server import __version__
from muniment_server.access.callers import Caller
from muniment_server.errors import NotFound, Refused, StoreError
from muniment_server.log import Log
from muniment_server.web import pages
from muniment_server.web.cors import ANY
from muniment_server.web.handlers.read import vkeys_of
from muniment_server.web.messages import JSON, Answer, Request
from muniment_server.web.problems import code_of
from muniment_server.web.request import prefers_html, read_body

if TYPE_CHECKING:
    from muniment_server.web.service import Service

HTML = "text/html; charset=utf-8"

MAX_RECEIPT = 1_048_576


_NO_STORE, _CHECK_AGAIN = b"cache-control: no-store\r\n", b"cache-control: no-cache\r\n"
_HOME = _CHECK_AGAIN + b"vary: Accept\r\n"
_NO_SCRIPTS = b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'\r\n"


async def version(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /version: which release this is."""
    return Answer(orjson.dumps({"name": "muniment-server", "version": __version__}), JSON, 200, ANY + _NO_STORE)


async def list_logs(request: Request, service: Service, _caller: Caller) -> Answer:
    """GET /logs: the logs that the caller may see, by name. Of others it does not tell whether there are any."""
    logs, all_public = await _seen(request, service)
    body = orjson.dumps({"logs": [await _about(log) for log in logs]})
    return Answer(body, JSON, 200, (ANY if all_public else b"") + _CHECK_AGAIN)


async def _seen(request: Request, service: Service) -> tuple[list[Log], bool]:
    """Return the logs that the caller may see, by name, and whether all callers may see them."""
    logs = {log.row.name: log for log in service.registry.logs()}
    rows = await service.access.visible(request.headers, [log.row for log in logs.values()])
    return [logs[name] for name in sorted(row.name for row in rows)], all(row.public for row in rows)


async def _about(log: Log) -> dict[str, Any]:
    row = log.row
    return {
        "name": row.name,
        "origin": row.origin,
        "kind": row.kind,
        "public": row.public,
        "vkeys": await vkeys_of(log),
        "tree_size": (await log.heads.published()).size,
    }


async def healthz(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /healthz: the process runs."""
    return Answer(b'{"status":"ok"}', JSON, 200, _NO_STORE)


async def readyz(request: Request, service: Service, _caller: Caller) -> Answer:
    """GET /readyz: 200 when reads work; whether each log takes entries stands in the body, and why not.

    It names the logs that the caller may see. A log that is not named counts all the same.
    """
    writes: dict[str, bool] = {}
    problems: dict[str, str] = {}
    keys = await _problem_of(service.access.check())
    reads = True
    for log in service.registry.logs():
        name = log.row.name
        unread = await _problem_of(log.heads.published())
        reads = reads and unread is None
        # The sentence that goes with a code names files of this machine: it is in the server's log.
        problem = log.writer.obstacle or unread or (keys if log.sequencer else None)
        writes[name] = log.sequencer is not None and problem is None
        if problem:
            problems[name] = problem
    shown = await _names_shown(request, service)
    writes = {name: found for name, found in writes.items() if name in shown}
    problems = {name: found for name, found in problems.items() if name in shown}
    body = orjson.dumps({"reads": reads, "writes": writes, "problems": problems})
    return Answer(body, JSON, 200 if reads else 503, _NO_STORE)


async def _names_shown(request: Request, service: Service) -> set[str]:
    """Return the names of the logs that the caller may see; of the public ones where no key can be looked up."""
    rows = [log.row for log in service.registry.logs()]
    try:
        return {row.name for row in await service.access.visible(request.headers, rows)}
    except (Refused, StoreError):  # a check of readiness is answered whatever it brings along
        return {row.name for row in rows if row.public}


async def _problem_of(read: Awaitable[object]) -> str | None:
    """Return the code that a read fails with, or None."""
    try:
        await read
    except (StoreError, NotFound) as error:
        return code_of(error)
    return None


async def verify(request: Request, service: Service, _caller: Caller) -> Answer:
    """POST /verify: check a receipt of one of this instance's logs."""
    body = await read_body(request, MAX_RECEIPT)
    try:
        receipt = Receipt.parse(body)
    except FormatError as error:
        raise Refused(
            "invalid_receipt", str(error), "Send a receipt: the answer of POST /entries, or C2SP tlog-proof text."
        ) from None
    policy = await asyncio.to_thread(Policy.read, service.settings.policy)
    try:
        verdict = verify_receipt(receipt, policy).to_json()
    except (FormatError, VerificationError) as error:
        verdict = failure_json(error)
    verdict["note"] = "A convenience, not evidence: you are asking the operator. Run `muniment verify` yourself."
    return Answer(orjson.dumps(verdict), JSON, 200, _NO_STORE)


async def home(request: Request, service: Service, _caller: Caller) -> Answer:
    """GET /: what this server is, and where to go on: a page for browsers, JSON for others."""
    logs, _ = await _seen(request, service)
    if not prefers_html(request.value(b"accept") or ""):
        body = {"name": "muniment-server", "version": __version__, **pages.LINKS}
        return Answer(orjson.dumps(body), JSON, 200, ANY + _HOME)
    heads = [(log.row.name, log.row.origin, (await log.heads.published()).note) for log in logs]
    return Answer(pages.home(heads), HTML, 200, _HOME + _NO_SCRIPTS)


async def docs(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /docs: the OpenAPI document as one page, without scripts."""
    return Answer(_docs_page(), HTML, 200, _NO_SCRIPTS)


async def openapi(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /openapi.json: the document."""
    return Answer(_document(), JSON, 200, ANY)


@functools.cache
def _document() -> bytes:
    from muniment_server.web.openapi import document  # noqa: PLC0415 - it is made from the routes, of which this is one

    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


@functools.cache
def _docs_page() -> bytes:
    """Return the page. To make it takes as long as a hundred answers, and anyone may ask."""
    return pages.docs(orjson.loads(_document()))
