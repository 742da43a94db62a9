"""The commitment of a stored payload, recomputed: a shorter way for what nearly all events are, else that of admission.

The short way takes plain text, small integers and moderate depth, and builds nothing but hashes. Tests hold it against
:mod:`muniment.event` byte for byte.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from hashlib import sha256
from typing import Any

import orjson

from muniment.event import MAX_MEMBERS
from muniment.strictjson import MAX_DEPTH
from muniment_server.write.admission import canonicalize, commit

# What may be spelled in two ways, sort in two ways, or be out of range. It may say so of harmless text: then it only
# takes longer.
_NOT_PLAIN = re.compile(rb"[^\x20-\x7e]|\\|[0-9][.eE]|[0-9]{16}")
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))
_URL = bytes.maketrans(b"+/", b"-_")
_SORTED = orjson.OPT_SORT_KEYS


def commitment_of(payload: bytes, seed: bytes) -> str | None:
    """Return the commitment of an event, or None when `payload` is not its canonical form.

    Raises EventRefused when it is no event.
    """
    if not _NOT_PLAIN.search(payload) and payload.count(b"{") + payload.count(b"[") <= MAX_DEPTH:
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError:
            value = None
        if type(value) is dict and 0 < len(value) <= MAX_MEMBERS and orjson.dumps(value, option=_SORTED) == payload:
            return _plain(value, seed)
    value, canonical = canonicalize(payload)
    return commit(value, canonical, seed).commitment if canonical == payload else None


def _plain(value: dict[str, Any], seed: bytes) -> str:
    block = seed.ljust(64, b"\0")  # HMAC by hand (RFC 2104), as in admission.commit
    inner_key, outer_key = block.translate(_INNER), block.translate(_OUTER)
    members: dict[str, str] = {}
    for name, item in value.items():  # in canonical order, as the payload is
        salt = sha256(outer_key + sha256(inner_key + name.encode()).digest()).digest()[:16]
        text = b2a_base64(salt, newline=False).translate(_URL)[:22].decode()
        opened = b2a_base64(orjson.dumps([text, name, item], option=_SORTED), newline=False).translate(_URL)
        digest = sha256(opened.rstrip(b"=")).digest()
        members[name] = b2a_base64(digest, newline=False).translate(_URL)[:43].decode()
    body = sha256(orjson.dumps({"alg": "sha-256", "members": members})).digest()
    return b2a_base64(body, newline=False).translate(_URL)[:43].decode()
