"""What the server parses, and what the client parses of the server's answers and of its own memory.

The oracles are those of :mod:`tests.fuzz.targets`: only the declared errors escape, and what was accepted has one spelling.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.requests import Request as AsgiRequest

from muniment import state, strictjson
from muniment._flows.results import Entry, LogInfo
from muniment._flows.steps import Response, json_of
from muniment.encoding import b64url
from muniment.errors import EventRefused, FormatError, Unreachable, VerificationError
from muniment.event import Commitment, Disclosure, event_leaf, parse_event
from muniment.hashing import EMPTY_ROOT
from muniment.tiles import encode_bundle
from muniment_server import settings
from muniment_server.errors import Refused, SettingsError
from muniment_server.settings import PREFIX, Settings, read_settings
from muniment_server.web import request as web
from muniment_server.web.handlers import write
from muniment_server.web.messages import Request
from muniment_server.web.problems import CODES
from muniment_server.web.room import Rooms, budget_for
from muniment_server.write.admission import EventDraft, canonicalize, commit
from muniment_server.write.guard import Guarded
from tests.fuzz.target import expect, fuzzed
from tests.fuzz.targets import _JSON_SEEDS, _JSON_WORDS, LOG, _text

# --- of the client ------------------------------------------------------------------------------------------------------


_LIMITS = SimpleNamespace(settings=SimpleNamespace(max_event_bytes=2_000, max_batch_entries=20))


@fuzzed("disclosure", [text for entry in LOG.entries[1:] for text in entry.disclosures or ()], [b"WyJ", b"Il0", b"LCI"])
def _disclosure(data: bytes) -> None:
    found = Disclosure.parse(_text(data))
    spelled = b64url(strictjson.canonical([found.salt, found.name, found.value]))
    expect(spelled == _text(data), "a disclosure has two spellings")
    commitment = Commitment.to([spelled])
    expect(commitment.open([spelled]) == {found.name: found.value}, "a member opens as something else")


_STATE = {"typ": state.STATE_TYPE, "checkpoints": {"log.example/sample": LOG.checkpoint(5), "é": ""}}


@fuzzed("state", [json.dumps(_STATE), json.dumps(_STATE, indent=1, ensure_ascii=False)], [*_JSON_WORDS, b'"typ"'])
def _state(data: bytes) -> None:
    notes = state._parse(data)
    if notes is None:
        raise FormatError("damaged")
    expect(state._parse(state._format(notes)) == notes, "a memory does not survive writing")


_INFO = {
    "origin": "log.example/sample", "name": "default", "kind": "event", "vkeys": ["a"], "tree_size": 5, "public": True, "open": False,
    "limits": {"max_entry_bytes": 65536, "max_batch_entries": 10, "max_batch_bytes": 1},
    "publish_interval_seconds": 1.0, "idempotency_ttl_seconds": 86400,
}  # fmt: skip
_ROW = {"commitment": LOG.entries[1].commitment.value(), "disclosures": list(LOG.entries[1].disclosures or ())}  # type: ignore[union-attr]


@fuzzed(
    "answer",
    [json.dumps(_INFO), json.dumps(_ROW)],
    [*_JSON_WORDS, b'"limits"', b'"commitment"'],
    (FormatError, VerificationError, Unreachable),
)
def _answer(data: bytes) -> None:
    value = json_of(Response(200, {"content-type": "application/json"}, data))
    if "commitment" not in value:
        info = LogInfo.from_json(value)
        expect(info.kind in ("event", "raw"), "no such kind")
        expect(abs(info.idempotency_ttl_seconds) < 2**64, "a number that is none")
        return
    entry = Entry.open(1, LOG.entries[1].leaf, value)
    event = LOG.entries[1].event or {}
    expect(entry.event == {name: event[name] for name in entry.event or ()}, "a member opened that was never committed")
    closed = ("*",) if value["commitment"] is None else tuple(sorted(set(event) - set(entry.event or ())))
    expect(entry.hidden == closed, "hidden members are not all named")


# --- files of the server ------------------------------------------------------------------------------------------------

_SLOT = Guarded("ab" * 16, 7, "log.example/é", b"\x01\x02\x03\x04", 300, EMPTY_ROOT).encode()


@fuzzed("guard-slot", [_SLOT, _SLOT.rstrip(b"\0"), bytes(1024)], [b"muniment-guard v2\n", b"\0" * 32])
def _guard_slot(data: bytes) -> None:
    expect(Guarded.decode(data).encode() == data, "a guard slot has two spellings")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="muniment-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def _settled(found: Settings) -> None:
    again = Settings.model_validate(found.model_dump())
    expect(again == found, "settings do not survive their own check")
    expect(0 <= found.port <= 65535 and 0 < found.publish_interval <= 60, "a setting is out of its range")


@fuzzed(
    "settings-file",
    [
        'port = 8080\nhost = "127.0.0.1"\nread_only = true\npublish_interval = 0.5\n',
        'database = "postgresql://u@h/n"\n',
    ],
    [b"= ", b"[a]\n", b'"""', b"1979-05-27", b"\\u0000", *(name.encode() for name in Settings.model_fields)],
    (SettingsError,),
)
def _settings_file(data: bytes) -> None:
    path = Path(_folder().name, settings.FILE)
    path.write_bytes(data)
    _settled(read_settings({"data": _folder().name}, {}))


@fuzzed(
    "settings-env",
    [
        "port=8080\nhost=127.0.0.1\nread_only=true",
        "publish_interval=0.5\ncache_bytes=2000000\nlog_format=json",
        "guard_dir=/x",
    ],
    [b"=", b"true", b"inf", b"1e3", *(name.encode() for name in Settings.model_fields)],
    (SettingsError,),
)
def _settings_env(data: bytes) -> None:
    pairs = [line.partition("=") for line in _text(data).split("\n")]
    environment = {PREFIX + name.upper(): value for name, _, value in pairs}
    _settled(read_settings({"data": "/nonexistent"}, environment))


# --- requests -----------------------------------------------------------------------------------------------------------


def _request(query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"12345", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": headers or []}
    budget = budget_for(Rooms.of(Settings(data=Path("/nonexistent"))), scope)
    return Request.of(AsgiRequest(scope | {"path_params": {}}, receive), budget)


def _now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing but its turn."""
    try:
        while True:
            work.send(None)
    except StopIteration as stop:
        return stop.value


@fuzzed(
    "query",
    [
        "start=0&limit=100",
        "start=9223372036854775807",
        "index=3&tree_size=7",
        "receipts=true",
        "receipts=false&limit=1000",
        "",
    ],
    [b"&", b"%00", b"%", b"%2B", b"+", b";", b"start=", b"limit=", b"=", b"%ff", "\u0661".encode(), b"%D9%A1"],
)
def _query(data: bytes) -> None:
    query = web.Query(_request(data), ("start", "limit", "index", "tree_size", "receipts"))
    start, limit = query.page()
    expect(0 <= start < 2**63 and 1 <= limit <= 1000, "a page out of its range")
    for name in ("index", "tree_size", "start"):
        number = query.number(name)
        expect(number is None or str(number) == query.text(name), "a number has two spellings")
    expect(query.flag("receipts") is (query.text("receipts") == "true"), "a flag has two spellings")


@fuzzed(
    "headers",
    [
        "8e03978e-40d5-43e8-bc93-6894a57f9324",
        '"with space"',
        "5",
        "application/json; charset=utf-8",
        "text/plain, */*",
        "identity",
    ],
    [b'"', b";", b",", b"charset=", b"application/json", b"\xb2", b"gzip"],
    (Refused,),
)
def _headers(data: bytes) -> None:
    """Each value as each header; latin-1, as servers hand them over."""
    value = data[:300].replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    accepted = 0
    for name in (b"idempotency-key", b"content-type", b"accept", b"content-length", b"content-encoding"):
        request = _request(headers=[(name, value)])
        try:
            key = web.idempotency_key(request)
            web.media_type(request)
            web.wants_text(request)
            body = _now(web.read_body(request, 10))
        except Refused as refused:
            expect(400 <= CODES[refused.code].status < 500, "a header of the caller is not our fault")
            continue
        accepted += 1
        expect(key is None or (1 <= len(key) <= 255 and key.isascii() and key.isprintable()), "not a key")
        expect(body == b"12345", "another body")
    if accepted < 4:
        raise Refused("invalid_request", "", "")


# --- bodies -------------------------------------------------------------------------------------------------------------


@fuzzed("admission", [*_JSON_SEEDS, b'{"a":"b","c":{"d":[1,2,true,null]}}'], _JSON_WORDS)
def _admission(data: bytes) -> None:
    """The fast path of the server against the definition: the same events, the same bytes, the same refusals."""
    try:
        event = parse_event(data)
    except EventRefused as refused:
        try:
            canonicalize(data)
        except EventRefused as other:
            expect((other.code, other.pointer) == (refused.code, refused.pointer), "refused for another reason")
            raise
        raise AssertionError("the server takes what is no event") from None
    found, payload = canonicalize(data)
    expect(found == event and payload == strictjson.canonical(event), "another canonical form")
    draft = commit(found, payload, bytes(32))
    commitment = Commitment.to(draft.disclosures)
    expect(commitment.members == draft.members and commitment.digest() == draft.commitment, "another commitment")
    expect(commitment.open(draft.disclosures) == event, "the commitment opens as something else")


@fuzzed(
    "raw-batch",
    [encode_bundle([b"a", bytes(300)]), encode_bundle([b'{"typ":"x"}', b'{"typ":"muniment/x"}'])],
    [b"\x00\x00", b"\x00\x01", b"\xff\xff", b'{"typ":"muniment/x"}'],
    (Refused,),
)
def _raw_batch(data: bytes) -> None:
    drafts = _now(write._raw_drafts(data, _LIMITS))
    expect(encode_bundle([draft.leaf for draft in drafts]) == data, "a batch has two spellings")
    expect(1 <= len(drafts) <= 20, "so many entries")


@fuzzed(
    "event-batch",
    [b'{"a":1}\n{"b":2}\n', b"\n".join(_JSON_SEEDS[-3:])],
    [*_JSON_WORDS, b"\n", b"\n\n", b"\r\n"],
    (Refused,),
)
def _event_batch(data: bytes) -> None:
    drafts: list[EventDraft] = _now(write._line_drafts(data, _LIMITS))  # type: ignore[arg-type, assignment]
    lines = data.removesuffix(b"\n").split(b"\n")
    expect(len(lines) == len(drafts), "an entry more or less than lines")
    for line, draft in zip(lines, drafts, strict=True):
        expect(draft.payload == strictjson.canonical(parse_event(line)), "another event than the line's")
        expect(len(draft.leaf("2026-11-20T12:00:00.123Z")) == len(event_leaf("x" * 43, "y" * 24)), "another leaf")


@fuzzed(
    "event-array",
    [b'[{"a":1},{"b":[2,{"c":"],"}]}]', b"[" + b",".join(_JSON_SEEDS[-3:]) + b"]", b' [ {"a":"\\\\\\""} ] '],
    [*_JSON_WORDS, b",", b"[", b"]", b"}", b"{", b'"'],
    (Refused,),
)
def _event_array(data: bytes) -> None:
    drafts: list[EventDraft] = _now(write._array_drafts(data, _LIMITS))  # type: ignore[arg-type, assignment]
    found = json.loads(data)
    expect(isinstance(found, list) and len(found) == len(drafts), "another array than its reader's")
    for event, draft in zip(found, drafts, strict=True):
        expect(json.loads(draft.payload) == event, "another event than the element's")
