"""Events: JSON objects whose members can be opened or erased one by one. Specified in docs/spec/event.md.

Each top-level member becomes a *disclosure* (as in RFC 9901): base64url of the canonical JSON array [salt, name,
value]. The *commitment object* maps each name to the digest of its disclosure, and the *leaf* holds one hash of the
commitment object and the time of logging. So a leaf is small, says nothing but the time, and the tree survives the
erasure of anything it commits to.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from muniment import strictjson
from muniment.encoding import b64url, parse_b64url
from muniment.errors import BadDisclosure, EventRefused, FormatError

EVENT_TYPE = "muniment/event@v1"
GENESIS_TYPE = "muniment/genesis@v1"
ANCHOR_TYPE = "muniment/anchor@v1"
RESERVED_PREFIX = "muniment/"
"""Leaves whose `typ` starts so are made by the log itself."""

MAX_MEMBERS = 256
SEED_SIZE = 32

_WORDS = {b"true": True, b"false": False, b"null": None}
# A bundle of a million events has several millions of these, and nearly all of them have nothing to be careful with: no
# escape, no other letter than ASCII, no number that some readers round. What is taken here is canonical JSON as it is.
_PLAIN_DISCLOSURE = re.compile(
    rb'\["([ !#-\[\]-~]*)","([ !#-\[\]-~]*)",("[ !#-\[\]-~]*"|0|-?[1-9][0-9]{0,14}|true|false|null)\]'
)
_DIGEST = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # 256 bits, and two that must be 0
_EVENT_LEAF = re.compile(
    rb'\{"commitment":"(%b)","logged_at":"([0-9T:.Z-]{24})","typ":"muniment/event@v1"\}' % _DIGEST.pattern.encode()
)
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"
)  # newer Pythons take hour 24


# Of a JSON object, after white space. Zero bytes and the last three are UTF-16 and UTF-32, which some readers detect.
_STARTS = b"{ \t\r\n\xef\x00\xfe\xff"


def parse_event(data: bytes) -> dict[str, Any]:
    """Return the event in `data`: a non-empty JSON object of at most 256 members, strict I-JSON.

    Raises EventRefused.
    """
    return check_event(strictjson.parse(data))


def check_event(value: Any) -> dict[str, Any]:
    """Return `value` when it is an object that can be an event. Raises EventRefused."""
    if not isinstance(value, dict):
        raise EventRefused("not_an_object", "an event is a JSON object")
    if not value:
        raise EventRefused("empty_event", "an event has at least one member")
    if len(value) > MAX_MEMBERS:
        raise EventRefused("too_many_members", f"an event has at most {MAX_MEMBERS} members, this one {len(value)}")
    return value


def canonical_event(event: dict[str, Any]) -> bytes:
    """Return the canonical form of an event given as Python values. Raises EventRefused when it has none."""
    plain = strictjson.canonical_plain(event)
    if plain is not None:
        check_event(event)
        return plain
    # Through the bytes: tuples, subclasses and duplicate names after str() end up as what the log would read.
    return strictjson.canonical(parse_event(strictjson.canonical(event)))


def canonical_text(data: bytes) -> bytes:
    """Return the canonical form of the event in `data`. Raises EventRefused as :func:`parse_event`."""
    value, form = strictjson.parse_to_canonical(data)
    check_event(value)
    return form


# --- disclosures and commitment ---------------------------------------------------------------------------------------


def salt_of(seed: bytes, name: str) -> str:
    """Return base64url(HMAC-SHA-256(seed, name)[:16]): 22 characters, unguessable without the seed."""
    return b64url(hmac.digest(seed, name.encode(), "sha256")[:16])


def disclose(seed: bytes, event: dict[str, Any]) -> list[str]:
    """Return the disclosure of every member, in canonical member order. Requires 32 bytes of seed."""
    if len(seed) != SEED_SIZE:
        raise AssertionError(f"a seed has {SEED_SIZE} bytes")
    names = sorted(event, key=lambda name: name.encode("utf-16-be"))
    return [b64url(strictjson.canonical([salt_of(seed, name), name, event[name]])) for name in names]


def digest_of(disclosure: str) -> str:
    """Return base64url(SHA-256(ascii(disclosure))): 43 characters."""
    return b64url(sha256(disclosure.encode("ascii")).digest())


def _plain_value(text: bytes) -> Any:
    """Return the value of what _PLAIN_DISCLOSURE takes for one."""
    if text[:1] == b'"':
        return text[1:-1].decode()
    return _WORDS[text] if text in _WORDS else int(text)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """An opened member."""

    salt: str
    name: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Disclosure:
        """Return the member that `text` opens. Raises FormatError unless it is a canonical [salt, name, value]."""
        data = parse_b64url(text, "disclosure")
        if plain := _PLAIN_DISCLOSURE.fullmatch(data):
            return cls(plain[1].decode(), plain[2].decode(), _plain_value(plain[3]))
        value = strictjson.parse_canonical(data)
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(part, str) for part in value[:2]):
            raise FormatError("disclosure is not [salt, name, value]")
        return cls(*value)


@dataclass(frozen=True, slots=True)
class Commitment:
    """The commitment object: each member's name and the digest of its disclosure."""

    members: dict[str, str]

    @classmethod
    def to(cls, disclosures: list[str]) -> Commitment:
        """Return the commitment to these disclosures, which must name different members."""
        members = {Disclosure.parse(text).name: digest_of(text) for text in disclosures}
        if len(members) != len(disclosures):
            raise AssertionError("two disclosures of one member")
        return cls(members)

    @classmethod
    def parse(cls, value: Any) -> Commitment:
        """Return the commitment in a JSON value. Raises FormatError."""
        if not isinstance(value, dict) or set(value) != {"alg", "members"} or value["alg"] != "sha-256":
            raise FormatError('a commitment is {"alg":"sha-256","members":{...}}')
        members = value["members"]
        if not isinstance(members, dict) or not 1 <= len(members) <= MAX_MEMBERS:
            raise FormatError(f"a commitment has 1 to {MAX_MEMBERS} members")
        for name, digest in members.items():
            if not isinstance(digest, str):
                raise FormatError(f"digest of member {name!r} is not text")
            if not _DIGEST.fullmatch(digest):
                parse_b64url(digest, "member digest", 32)
                raise AssertionError("two opinions about a digest")
        return cls(members)

    def value(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {"alg": "sha-256", "members": self.members}

    def digest(self) -> str:
        """Return base64url(SHA-256(JCS(commitment object))), the leaf's `commitment`."""
        return b64url(sha256(strictjson.canonical(self.value())).digest())

    def open(self, disclosures: list[str]) -> dict[str, Any]:
        """Return the members that `disclosures` open. Raises BadDisclosure when one does not match, or opens twice."""
        opened: dict[str, Any] = {}
        for text in disclosures:
            member = Disclosure.parse(text)
            if self.members.get(member.name) != digest_of(text):
                raise BadDisclosure(f"disclosure of {member.name!r} does not match the commitment")
            if member.name in opened:
                raise BadDisclosure(f"member {member.name!r} is disclosed twice")
            opened[member.name] = member.value
        return opened


# --- leaves -----------------------------------------------------------------------------------------------------------


def format_time(milliseconds: int) -> str:
    """Return a time, in milliseconds since 1970 UTC, as its 24 characters ``2026-11-20T12:00:00.123Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    # Not strftime: its %Y has no leading zeros on some systems.
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest:03}Z"


@lru_cache(maxsize=64)
def parse_time(text: str) -> int:
    """Return milliseconds since 1970 UTC. Raises FormatError on any other spelling than :func:`format_time` makes."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError  # noqa: TRY301 - one message for all that is wrong with a time
        moment = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
    except ValueError:
        raise FormatError(f"not a time like 2026-11-20T12:00:00.123Z: {text[:40]!r}") from None
    return int(moment.timestamp()) * 1000 + int(text[20:23])


def event_leaf(commitment_digest: str, logged_at: str) -> bytes:
    """Return the leaf of an event: its JCS bytes, 125 of them."""
    return f'{{"commitment":"{commitment_digest}","logged_at":"{logged_at}","typ":"{EVENT_TYPE}"}}'.encode()


def genesis_leaf(origin: str, kind: str, vkeys: list[str], logged_at: str) -> bytes:
    """Return the leaf at index 0 of every log. Information for people, never a source of trust."""
    return strictjson.canonical(
        {"kind": kind, "logged_at": logged_at, "origin": origin, "typ": GENESIS_TYPE, "vkeys": vkeys}
    )


def anchor_leaf(tree_size: int, digest: bytes, block: dict[str, Any], logged_at: str) -> bytes:
    """Return the leaf that records a confirmed anchor: its checkpoint, and its block.

    `digest` is the SHA-256 of the stamped checkpoint, which is of `tree_size`. `block` has the members ``hash`` (hex,
    as people see it), ``height`` and ``time`` (Unix seconds, by the header).
    """
    anchor = {"block": block, "checkpoint_sha256": digest.hex(), "tree_size": tree_size}
    return strictjson.canonical({"anchor": anchor, "logged_at": logged_at, "typ": ANCHOR_TYPE})


@dataclass(frozen=True, slots=True)
class EventLeaf:
    """The content of an event's leaf: the digest of its commitment object, and when it was logged (milliseconds)."""

    commitment: str
    logged_at: int


@dataclass(frozen=True, slots=True)
class OwnLeaf:
    """The content of an entry the log made itself, such as its genesis."""

    typ: str
    value: dict[str, Any]


def parse_leaf(leaf: bytes) -> EventLeaf | OwnLeaf | None:
    """Return what a leaf says when the log's own formats define it, else None: its bytes are the submitter's.

    Raises FormatError when the leaf claims one of our types and is not exactly what that type makes.
    """
    event = _EVENT_LEAF.fullmatch(leaf)
    if event is not None:
        return EventLeaf(event[1].decode(), parse_time(event[2].decode()))
    if not may_be_reserved(leaf):
        return None
    try:
        value = strictjson.parse(leaf)
        canonical = strictjson.canonical(value)
    except EventRefused:
        return None  # our own leaves are canonical JSON, so this is not one
    if not isinstance(value, dict) or not str(value.get("typ", "")).startswith(RESERVED_PREFIX):
        return None
    if canonical != leaf:
        raise FormatError("a leaf of a reserved type is not canonical JSON")
    if value["typ"] != EVENT_TYPE:
        return OwnLeaf(value["typ"], value)
    if set(value) != {"commitment", "logged_at", "typ"} or not all(isinstance(part, str) for part in value.values()):
        raise FormatError("an event leaf has exactly commitment, logged_at and typ")
    parse_b64url(value["commitment"], "commitment digest", 32)
    return EventLeaf(value["commitment"], parse_time(value["logged_at"]))


def may_be_reserved(leaf: bytes) -> bool:
    """Tell whether a leaf must be looked at more closely: cheap, and never False for a leaf of a reserved type."""
    return leaf[:1] in _STARTS and (b"muniment/" in leaf or b"\\" in leaf or b"\x00" in leaf[:4])


def may_any_be_reserved(leaves: Iterable[bytes]) -> bool:
    """Tell whether :func:`may_be_reserved` is True for one of these leaves.

    It is called only for those that look like JSON. Requires leaves of one byte or more.
    """
    return any([leaf[0] in _STARTS and may_be_reserved(leaf) for leaf in leaves])


def claims_reserved_type(leaf: bytes) -> bool:
    """Tell whether a JSON reader, however lenient, could take `leaf` for one of the log's own entries.

    Used to refuse submissions: a `typ`, in capitals too, that starts with ``muniment/`` anywhere
    among duplicate names counts.
    """
    if not may_be_reserved(leaf):
        return False
    try:
        found = strictjson.lenient_members(leaf)
    except EventRefused as refusal:
        return refusal.code == "too_deep"  # a reader with a larger stack might find a reserved type
    return any(
        name.casefold() == "typ" and isinstance(value, str) and value.startswith(RESERVED_PREFIX)
        for name, value in found
    )
