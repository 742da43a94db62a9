"""Strict I-JSON (RFC 7493) in, RFC 8785 canonical JSON out.

``json.loads`` keeps the last of two equal names, takes NaN, turns 1e400 into infinity and lets lone
surrogates through. Whatever is hashed must mean one thing to every reader, so all of that is refused here,
with a JSON pointer to the place.

Both directions have a short way for what is plain: names in ASCII, no numbers with a point. The standard
library's encoder then writes the RFC 8785 form, and a text that equals what it writes has no surprises. Tests
hold the two ways together.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, NamedTuple

import rfc8785

from muniment.errors import EventRefused, FormatError

MAX_DEPTH = 32
"""Deepest nesting; the outermost value is at depth 1."""
MAX_NUMBER = 2**53 - 1
"""Largest magnitude of a number, however spelled: what every JSON reader can hold exactly."""

NONCHARACTERS = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)) + "]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ZERO = re.compile("-?[0.]*[1-9]")


class _Pairs(NamedTuple):
    """A JSON object before its names are known to be different."""

    pairs: list[tuple[str, Any]]


class _Number(NamedTuple):
    literal: str
    is_float: bool


class _Constant(NamedTuple):
    literal: str


def _decoder(*, strict: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_Pairs,
        parse_int=lambda literal: _Number(literal, is_float=False),
        parse_float=lambda literal: _Number(literal, is_float=True),
        parse_constant=_Constant,
        strict=strict,
    )


def _encoder(*, sort_keys: bool, separators: tuple[str, str]) -> json.JSONEncoder:
    return json.JSONEncoder(
        ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=sort_keys, separators=separators
    )


_PLAIN = _encoder(sort_keys=True, separators=(",", ":"))
_AS_OTHERS_WRITE = (
    _encoder(sort_keys=False, separators=(",", ":")),
    _encoder(sort_keys=False, separators=(", ", ": ")),
)
"""What most programs write: members in their own order, without spaces or with one after each comma and colon."""
_DECODER = _decoder(strict=True)
_LENIENT = _decoder(strict=False)


def parse(data: bytes) -> Any:
    """Return the JSON value in `data`. Raises EventRefused with a code and the JSON pointer of what is wrong.

    Codes: invalid_utf8, invalid_json, duplicate_name, invalid_number, number_range, lone_surrogate, noncharacter,
    too_deep.
    """
    plain = _parse_plain(data, _AS_OTHERS_WRITE)
    return _parse_strictly(data) if plain is None else plain[0]


def parse_to_canonical(data: bytes) -> tuple[Any, bytes]:
    """Return the JSON value in `data` and its RFC 8785 form. Raises EventRefused as :func:`parse`."""
    plain = _parse_plain(data, _AS_OTHERS_WRITE)
    if plain is not None:
        return plain
    value = _parse_strictly(data)
    return value, canonical(value)


def _parse_strictly(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EventRefused("invalid_utf8", f"not UTF-8 at byte {error.start}") from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise EventRefused("too_deep", f"nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise EventRefused(
            "invalid_json", f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos}"
        ) from None
    return _checked(value, "", 1)


def parse_canonical(data: bytes) -> Any:
    """Return the JSON value in `data`, whose RFC 8785 form `data` must be.

    Raises EventRefused as :func:`parse`, and FormatError.
    """
    plain = _parse_plain(data)
    if plain is not None:
        return plain[0]
    value = parse(data)
    if canonical(value) != data:
        raise FormatError("not canonical JSON")
    return value


def _parse_plain(data: bytes, others: tuple[json.JSONEncoder, ...] = ()) -> tuple[Any, bytes] | None:
    """Return value and canonical form of an ASCII text that is plain and in canonical form already; None for any other.

    `others` write what is taken as well.
    """
    if not data.isascii():
        return None
    try:
        text = data.decode("ascii")
        value = json.loads(text)
        if not _is_plain(value, 1):
            return None
        # Equal to what an encoder makes of it: no name twice, no number spelled otherwise.
        form = _PLAIN.encode(value)
        return (value, form.encode()) if form == text or any(e.encode(value) == text for e in others) else None
    except (ValueError, RecursionError):
        return None


def _is_plain(value: Any, depth: int) -> bool:
    kind: type = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-MAX_NUMBER <= value <= MAX_NUMBER)
    if depth > MAX_DEPTH:
        return False
    if kind is dict:
        return all(
            [
                type(name) is str and name.isascii() and (type(item) is str or _is_plain(item, depth + 1))
                for name, item in value.items()
            ]
        )
    return kind is list and all([type(item) is str or _is_plain(item, depth + 1) for item in value])


def _checked(value: Any, pointer: str, depth: int) -> Any:
    if isinstance(value, _Number):
        return _number(value, pointer)
    if isinstance(value, str):
        return _string(value, pointer)
    if isinstance(value, _Constant):
        raise EventRefused("invalid_number", f"{value.literal} is not JSON", pointer)
    if isinstance(value, _Pairs | list) and depth > MAX_DEPTH:
        raise EventRefused("too_deep", f"nested deeper than {MAX_DEPTH}", pointer)
    if isinstance(value, _Pairs):
        return _object(value, pointer, depth)
    if isinstance(value, list):
        return [_checked(item, f"{pointer}/{at}", depth + 1) for at, item in enumerate(value)]
    return value  # true, false, null


def _object(value: _Pairs, pointer: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.pairs:
        below = f"{pointer}/{escape(name)}"
        _string(name, below)
        if name in found:
            raise EventRefused("duplicate_name", "the name occurs twice", below)
        found[name] = _checked(item, below, depth + 1)
    return found


def _string(value: str, pointer: str) -> str:
    if value.isascii():
        return value
    if _SURROGATE.search(value):
        raise EventRefused("lone_surrogate", "half of a UTF-16 pair", _SURROGATE.sub("\ufffd", pointer))
    if NONCHARACTERS.search(value):
        raise EventRefused("noncharacter", "a code point that Unicode reserves as no character", pointer)
    return value


def _number(value: _Number, pointer: str) -> int | float:
    literal, is_float = value
    if not is_float and len(literal) <= 15:
        return int(literal)
    double = float(literal)  # infinite when out of range, never an error
    # Next to the limit a literal beyond it may round to the limit. Comparing is exact; abs() would round
    # to the caller's context.
    if abs(double) > MAX_NUMBER or (abs(double) == MAX_NUMBER and Decimal(literal).copy_abs() > MAX_NUMBER):
        raise EventRefused(
            "number_range",
            "a number beyond 2^53-1 is not the same to every reader: send it as a string",
            pointer,
        )
    if not is_float:
        return int(literal)
    if not double and _NOT_ZERO.match(literal):
        raise EventRefused("number_range", "a number so small that it becomes 0", pointer)
    return double


def escape(name: str) -> str:
    """Return `name` as one step of a JSON pointer (RFC 6901 section 3)."""
    return name.replace("~", "~0").replace("/", "~1")


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form of a value.

    Raises EventRefused when it has none (a set, NaN, an integer beyond 2^53-1, a name that is no string). The
    limits of :func:`parse` are not repeated here: values that did not come from it go through it afterwards,
    as in `canonical_event`.
    """
    try:
        return _PLAIN.encode(value).encode() if _is_plain(value, 1) else rfc8785.dumps(value)
    except RecursionError:
        raise EventRefused("too_deep", f"nested deeper than {MAX_DEPTH}") from None
    except (rfc8785.CanonicalizationError, UnicodeError, TypeError) as error:
        raise EventRefused("invalid_json", f"has no canonical JSON form: {error}") from error


def canonical_plain(value: Any) -> bytes | None:
    """Return the RFC 8785 form of a value that is plain and all in ASCII; None for any other.

    :func:`parse` takes what it returns.
    """
    try:
        text = _PLAIN.encode(value) if _is_plain(value, 1) else "\x80"
    except RecursionError:  # a nesting without end
        return None
    return text.encode() if text.isascii() else None


def lenient_members(data: bytes) -> list[tuple[str, Any]]:
    """Return the top-level (name, value) pairs of a JSON object, duplicates included; none for another JSON value.

    As lenient as common readers are (a byte order mark, UTF-16, NaN, big numbers, control characters, anything
    after the object): for recognising, never for accepting. Raises EventRefused: invalid_json, or too_deep, where
    other readers may see more.
    """
    try:
        value, _ = _LENIENT.raw_decode(data.decode(json.detect_encoding(data), "replace").strip())
    except RecursionError:
        raise EventRefused("too_deep", "nested too deep to look at") from None
    except ValueError:
        raise EventRefused("invalid_json", "not JSON") from None
    return value.pairs if isinstance(value, _Pairs) else []
