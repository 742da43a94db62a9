"""Routes of the instance rather than of one log: health, readiness, verification, documentation."""

from __future__ import annotations

import asyncio
import functools
import json
from html import escape
from typing import TYPE_CHECKING, Any

import orjson

from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.verify import failure_json, verify_receipt
from muniment_server.access.callers import Caller
from muniment_server.errors import NotFound, Refused, StoreError
from muniment_server.web.messages import JSON, Answer, Request
from muniment_server.web.request import Query, read_body

if TYPE_CHECKING:
    from muniment_server.web.service import Service

HTML = "text/html; charset=utf-8"

MAX_RECEIPT = 1_048_576


_NO_STORE = b"cache-control: no-store\r\n"


async def healthz(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /healthz: the process runs."""
    return Answer(b'{"status":"ok"}', JSON, 200, _NO_STORE)


async def readyz(_request: Request, service: Service, _caller: Caller) -> Answer:
    """GET /readyz: 200 when reads work; whether each log takes entries stands in the body."""
    writes: dict[str, bool] = {}
    problems: dict[str, str] = {}
    reads = True
    for log in service.registry.logs():
        name = log.row.name
        try:
            await log.heads.published()
        except (StoreError, NotFound) as error:
            reads, problems[name] = False, "database_unavailable" if isinstance(error, StoreError) else error.code
        refusal = log.refusal
        writes[name] = reads and log.sequencer is not None and refusal is None
        if refusal:
            problems[name] = refusal.code  # the sentence names files of this machine: it is in the server's log
    body = orjson.dumps({"reads": reads, "writes": writes, "problems": problems})
    return Answer(body, JSON, 200 if reads else 503, _NO_STORE)


async def verify(request: Request, service: Service, _caller: Caller) -> Answer:
    """POST /verify: check a receipt of one of this instance's logs."""
    Query(request, ())
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


async def docs(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /docs: the OpenAPI document as one page, without scripts."""
    return Answer(_docs_page(), HTML, 200)


async def openapi(_request: Request, _service: Service, _caller: Caller) -> Answer:
    """GET /openapi.json: the document."""
    return Answer(_document(), JSON, 200)


@functools.cache
def _document() -> bytes:
    from muniment_server.web.openapi import document  # noqa: PLC0415 - it is made from the routes, of which this is one

    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


@functools.cache
def _docs_page() -> bytes:
    """Return the page. To make it takes as long as a hundred answers, and anyone may ask."""
    document = orjson.loads(_document())
    rows = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
        f"{_parameters(operation)}<p>Answers: {escape(_answers(operation))}</p>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    style = "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}h2{margin-top:2rem}"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Muniment API</title><style>{style}</style>"
    intro = f"<h1>Muniment API</h1><p>{escape(document['info']['description'])} As a document: "
    link = '<a href="openapi.json">openapi.json</a>.</p>'
    return (head + intro + link + "".join(rows)).encode()


def _parameters(operation: dict[str, Any]) -> str:
    items = [
        f"<li><code>{escape(p['name'])}</code> ({p['in']}{', required' if p.get('required') else ''}): "
        f"{escape(p.get('description', ''))}</li>"
        for p in operation.get("parameters", [])
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _answers(operation: dict[str, Any]) -> str:
    return ", ".join(sorted(operation["responses"]))
