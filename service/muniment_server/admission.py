"""From bytes somebody posted to drafts the sequencer can stamp, or a refusal. Pure: nothing here waits or writes.

:mod:`muniment.event` defines canonical form and commitment; here is a faster way to the same bytes, for the common case of plain
text, small integers and no surprises. Everything else takes the strict way. Tests hold the two together byte for byte.
"""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from muniment import event as definition
from muniment import strictjson
from muniment.errors import EventRefused
from muniment.hashing import LeafHash, leaf_hash
from muniment.tiles import MAX_ENTRY

_SAFE_INTEGER = 2**53 - 1
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
# What may make two readers disagree, or escape differently in canonical form: then the strict way decides.
_NOT_PLAIN = re.compile(rb"[^\x20-\x7e]|\\")


class Refused(Exception):
    """A submission that no log takes: `status` is the HTTP status, `code` is stable, `hint` says what to do."""

    def __init__(self, status: int, code: str, detail: str, hint: str, **extra: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.hint = hint
        self.extra = extra


@dataclass(frozen=True, slots=True)
class RawDraft:
    """A raw entry: the leaf as it was posted."""

    leaf: bytes
    hash: LeafHash


@dataclass(frozen=True, slots=True)
class EventDraft:
    """An event, all but its time: canonical payload, seed, disclosures in canonical member order, and their commitment."""

    payload: bytes
    seed: bytes
    disclosures: list[str]
    members: dict[str, str]
    commitment: str

    def leaf(self, logged_at: str) -> bytes:
        """Return the leaf as of `logged_at` (24 characters)."""
        return definition.event_leaf(self.commitment, logged_at)


Draft = RawDraft | EventDraft


def draft_raw(leaf: bytes) -> RawDraft:
    """Return the draft of a raw entry. Raises Refused."""
    if not leaf:
        raise Refused(
            422, "empty_entry", "an entry has at least one byte", "Send the bytes to log as the request body."
        )
    if len(leaf) > MAX_ENTRY:
        raise Refused(
            413,
            "entry_too_large",
            f"an entry has at most {MAX_ENTRY} bytes, this one {len(leaf)}",
            "Log a digest of the document, and keep the document yourself.",
        )
    if definition.claims_reserved_type(leaf):
        raise Refused(
            422,
            "reserved_leaf",
            "a JSON object whose typ starts with muniment/ is one of the log's own entries",
            "Choose another value for typ.",
        )
    return RawDraft(leaf, leaf_hash(leaf))


def draft_event(body: bytes) -> EventDraft:
    """Return the draft of an event. Raises Refused with the JSON pointer of what is wrong."""
    try:
        value, payload = canonicalize(body)
    except EventRefused as error:
        raise Refused(422, error.code, error.detail, _HINTS[error.code], pointer=error.pointer) from None
    return commit(value, payload, os.urandom(definition.SEED_SIZE))


def canonicalize(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return an event and its canonical form. Raises EventRefused exactly when muniment.event.parse_event does."""
    if not _NOT_PLAIN.search(body):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if type(value) is dict and _is_plain(value, 1):
            payload = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
            # No shorter than the input: then nothing was dropped, so no name occurred twice.
            if value and len(value) <= definition.MAX_MEMBERS and len(payload) == len(body):
                return value, payload
    strict = definition.parse_event(body)
    return strict, strictjson.canonical(strict)


def _is_plain(value: Any, depth: int) -> bool:
    kind: type = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-_SAFE_INTEGER <= value <= _SAFE_INTEGER)
    if depth > strictjson.MAX_DEPTH:
        return False
    if kind is dict:
        return all([_is_plain(item, depth + 1) for item in value.values()])
    if kind is list:
        return all([_is_plain(item, depth + 1) for item in value])
    return False


def commit(value: dict[str, Any], payload: bytes, seed: bytes) -> EventDraft:
    """Return the draft of an event with this seed. Byte for byte what muniment.event makes of it."""
    names = sorted(value) if payload.isascii() else sorted(value, key=lambda name: name.encode("utf-16-be"))
    # HMAC-SHA-256 by hand (RFC 2104): the library sets up its machinery anew for each call, eight times the cost of the hashing.
    block = seed.ljust(64, b"\0")
    inner_key, outer_key = block.translate(_INNER), block.translate(_OUTER)
    disclosures: list[str] = []
    members: dict[str, str] = {}
    for name in names:
        inner = sha256(inner_key + name.encode()).digest()
        salt = urlsafe_b64encode(sha256(outer_key + inner).digest()[:16])[:22].decode()
        text = urlsafe_b64encode(_canonical([salt, name, value[name]])).rstrip(b"=")
        disclosures.append(text.decode())
        members[name] = urlsafe_b64encode(sha256(text).digest())[:43].decode()
    body = _canonical({"alg": "sha-256", "members": members})
    return EventDraft(payload, seed, disclosures, members, urlsafe_b64encode(sha256(body).digest())[:43].decode())


def _canonical(value: Any) -> bytes:
    # Names are sorted by UTF-16 units in canonical JSON and by code points in orjson, and floats differ: the two agree on
    # ASCII text without floats.
    if _is_plain(value, 0):
        fast = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        if fast.isascii():
            return fast
    return strictjson.canonical(value)


_HINTS = {
    "invalid_utf8": "Encode the event as UTF-8.",
    "invalid_json": 'Send one JSON object, for example with `curl --json \'{"action":"test"}\' URL/entries`.',
    "not_an_object": "Wrap the value in an object with named members.",
    "empty_event": "Give the event at least one member.",
    "too_many_members": "Nest some of the members in an object.",
    "duplicate_name": "Give each member of an object its own name.",
    "invalid_number": "Leave the member out, or send null or text.",
    "number_range": "Send large or precise numbers as text.",
    "lone_surrogate": "Repair the text: it holds half of a character.",
    "noncharacter": "Remove the code point: Unicode reserves it for no character.",
    "too_deep": "Flatten the event, or send the deep part as text.",
}
