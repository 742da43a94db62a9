"""From bytes that a caller posted to drafts the sequencer can stamp, or a refusal. Pure: nothing waits or writes.

:mod:`muniment.event` defines canonical form and commitment. Here is a faster way to the same bytes, for the common case
of plain text, small integers and no surprises. Everything else takes the strict way. Tests hold the two together byte
for byte.
"""

from __future__ import annotations

import json
import os
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from muniment import event as definition
from muniment import strictjson
from muniment.errors import EventRefused
from muniment.hashing import LeafHash, leaf_hash
from muniment.tiles import MAX_ENTRY
from muniment_server.errors import Refused

_SAFE_INTEGER = 2**53 - 1
_SPACED = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(", ", ": "))
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_URLSAFE = bytes.maketrans(b"+/", b"-_")


class RawDraft(NamedTuple):
    """A raw entry: the leaf as it was posted."""

    leaf: bytes
    hash: LeafHash


class EventDraft(NamedTuple):
    """An event, all but its time: canonical payload, seed, disclosures in canonical member order, and their commitment.

    `disclosed` is the JSON array of the disclosures, `opening` the commitment object in canonical form, and
    `commitment` its digest.
    """

    payload: bytes
    seed: bytes
    disclosed: bytes
    opening: bytes
    commitment: str

    @property
    def disclosures(self) -> list[str]:
        """The disclosure of each member.

        Read from `disclosed`: the queue holds thousands of events, and a text each takes more memory.
        """
        found: list[str] = orjson.loads(self.disclosed)
        return found

    @property
    def members(self) -> dict[str, str]:
        """The digest of each member, likewise from `opening`."""
        found: dict[str, str] = orjson.loads(self.opening)["members"]
        return found

    def leaf(self, logged_at: str) -> bytes:
        """Return the leaf as of `logged_at` (24 characters)."""
        return definition.event_leaf(self.commitment, logged_at)


SubmittedDraft = RawDraft | EventDraft


def draft_raw(leaf: bytes) -> RawDraft:
    """Return the draft of a raw entry. Raises Refused."""
    if not 0 < len(leaf) <= MAX_ENTRY:
        raise _wrong_size(len(leaf))
    if definition.claims_reserved_type(leaf):
        raise Refused(
            "reserved_leaf",
            "a JSON object whose typ starts with muniment/ is one of the log's own entries",
            "Choose another value for typ.",
        )
    return RawDraft(leaf, leaf_hash(leaf))


def draft_plain(leaves: Sequence[bytes]) -> list[RawDraft] | None:
    """Return what :func:`draft_raw` makes of each of these leaves, one or more.

    None when one of them needs a closer look.
    """
    longest, shortest = max(map(len, leaves)), min(map(len, leaves))
    if not shortest or longest > MAX_ENTRY or definition.may_any_be_reserved(leaves):
        return None
    hashes = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    return list(map(RawDraft._make, zip(leaves, hashes, strict=True)))


def _wrong_size(size: int) -> Refused:
    if not size:
        hint = "Send the bytes to log as the request body."
        return Refused("empty_entry", "an entry has at least one byte", hint)
    detail = f"an entry has at most {MAX_ENTRY} bytes, this one {size}"
    hint = "Log a digest of the document, and keep the document yourself."
    return Refused("entry_too_large", detail, hint)


def draft_event(body: bytes) -> EventDraft:
    """Return the draft of an event. Raises Refused with the JSON pointer of what is wrong."""
    seed = os.urandom(definition.SEED_SIZE)
    try:
        fast = _plain_event(body)
        if fast is not None:
            return _commit(*fast, seed, _fast_canonical)
        strict = definition.parse_event(body)
    except EventRefused as error:
        raise Refused(error.code, error.detail, _HINTS[error.code], pointer=error.pointer) from None
    return commit(strict, strictjson.canonical(strict), seed)


def canonicalize(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return an event and its canonical form. Raises EventRefused exactly when muniment.event.parse_event does."""
    fast = _plain_event(body)
    if fast is not None:
        return fast
    strict = definition.parse_event(body)
    return strict, strictjson.canonical(strict)


def _plain_event(body: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Return the event in a body without any surprise, and its canonical form.

    None for every other body, which the strict way looks at. Canonical form is then what orjson makes of it: names are
    ASCII, so that both sort them alike, and there are no floats.
    """
    if not _is_simple(body):
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(value) is not dict or not value or len(value) > definition.MAX_MEMBERS or not _is_plain(value, 1):
        return None
    # No shorter than the input, or what Python and others write by default: then nothing was dropped, so no name
    # occurred twice.
    payload = _fast_canonical(value)
    text = body.strip(b" \t\r\n")
    if len(payload) != len(text) and _SPACED.encode(value) != text.decode():
        return None
    return value, _compact(payload)


def _is_simple(text: bytes) -> bool:
    """Tell whether two readers of a JSON text cannot disagree about its characters, nor escape them differently."""
    return text.isascii() and b"\\" not in text


def _is_plain(value: Any, depth: int) -> bool:
    kind: type = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-_SAFE_INTEGER <= value <= _SAFE_INTEGER)
    if depth > strictjson.MAX_DEPTH:
        return False
    if kind is dict:
        return all([type(item) is str or _is_plain(item, depth + 1) for item in value.values()])
    if kind is list:
        return all([type(item) is str or _is_plain(item, depth + 1) for item in value])
    return False


def commit(value: dict[str, Any], payload: bytes, seed: bytes) -> EventDraft:
    """Return the draft of an event with this seed, given its canonical form.

    Byte for byte what muniment.event makes of it.
    """
    # Text is no obstacle: RFC 8785 and orjson escape the same characters. They sort names differently beyond ASCII.
    plain = _is_plain(value, 1) and (payload.isascii() or _are_names_ascii(value))
    return _commit(value, payload, seed, _fast_canonical if plain else strictjson.canonical)


def _are_names_ascii(value: Any) -> bool:
    if type(value) is dict:
        return all([name.isascii() for name in value]) and all(map(_are_names_ascii, value.values()))
    return type(value) is not list or all(map(_are_names_ascii, value))


def _fast_canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _compact(text: bytes) -> bytes:
    """Return a copy that takes no more memory than its bytes.

    What orjson returns holds 4 kB, and a queue has thousands of them.
    """
    return b"%b" % text


def _commit(value: dict[str, Any], payload: bytes, seed: bytes, canonical: Callable[[Any], bytes]) -> EventDraft:
    names = sorted(value) if payload.isascii() else sorted(value, key=lambda name: name.encode("utf-16-be"))
    # HMAC-SHA-256 by hand (RFC 2104): the library sets up its machinery anew for each call, eight times the cost of the
    # hashing.
    block = seed.ljust(64, b"\0")
    inner_key, outer_key = block.translate(_INNER), block.translate(_OUTER)
    disclosures: list[bytes] = []
    members: dict[str, str] = {}
    for name in names:
        inner = sha256(inner_key + name.encode()).digest()
        salt = b2a_base64(sha256(outer_key + inner).digest()[:16]).translate(_URLSAFE)[:22].decode()
        text = b2a_base64(canonical([salt, name, value[name]]), newline=False).translate(_URLSAFE).rstrip(b"=")
        disclosures.append(text)
        members[name] = b2a_base64(sha256(text).digest()).translate(_URLSAFE)[:43].decode()
    opening = _compact(canonical({"alg": "sha-256", "members": members}))
    digest = b2a_base64(sha256(opening).digest()).translate(_URLSAFE)[:43].decode()
    return EventDraft(payload, seed, b'["%b"]' % b'","'.join(disclosures), opening, digest)


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
