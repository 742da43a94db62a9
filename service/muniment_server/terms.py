"""Terms of the search index: bytes by which an entry may be found, made of its payload and of a query alike.

An index finds candidates, and each is compared with its payload (:meth:`muniment.query.Query.matches`). So a term may
stand for more than its value, as where long ones are cut or two names have one number, and never for less: whatever
matches has all terms of the query.

    "v" name kind value     a scalar; kind "b": true, false, null; "n": a number, 8 bytes in its order; "s": a string
    "w" word 0xff name      a word of a member, which is named by its first name alone
    "c"                     an entry with too many terms: a candidate of every query
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from muniment.query import Compare, Equal, Path, Prefix, Present, Query, Words, indexed_words, is_digits, scalars
from muniment.strictjson import canonical

MOST_TERMS = 1000
"""Of one entry. More would hold SQLite's write lock too long."""
CROWDED = b"c"
_NAME = 5
"""Bytes of a name's number. Equal numbers of two names cost time, and nothing else."""
_LONGEST = 64
_CUT = 48
"""A longer value is kept as so many of its bytes and a hash."""
_TEXT = (32, 20)
"""The same of one with a space. It is found by its words: whole ones would be half of an index."""
_SIGN = 1 << 63


class Range(NamedTuple):
    """The keys [first, last)."""

    first: bytes
    last: bytes


Group = tuple[Range, ...]
"""What matches has a term in one of these ranges."""
Members = frozenset[str] | None
"""Names of the members by which a log is searched; None: all."""


def mark_of(members: Members) -> bytes:
    """Return four bytes that tell an index with these members from one with others."""
    return sha256(orjson.dumps(None if members is None else sorted(members))).digest()[:4]


def new_generation(members: Members) -> bytes:
    """Return a generation for an index with these members."""
    return secrets.token_bytes(12) + mark_of(members)


def searched(event: Mapping[str, Any], members: Members) -> Mapping[str, Any]:
    """Return what of an event is searched."""
    return event if members is None else {name: value for name, value in event.items() if name in members}


def terms_of(payload: bytes, members: Members = None) -> set[bytes]:
    """Return the terms of an event in canonical form."""
    terms: set[bytes] = set()
    for name, member in searched(orjson.loads(payload), members).items():
        mark, where = _mark(name), (name,)
        for path, value in scalars(member, where) if isinstance(member, dict | list) else ((where, member),):
            terms.add(_values_of(path) + _scalar(value))
            if isinstance(value, str):
                terms.update([b"w" + _cut(word.encode()) + mark for word in indexed_words(value)])
            if len(terms) > MOST_TERMS:
                return {CROWDED}
    return terms


@lru_cache(4096)
def _mark(name: str) -> bytes:
    return b"\xff" + _name((name,))


def groups_of(query: Query) -> list[Group]:
    """Return what has to be found of an entry for it to match; nothing where the index says nothing."""
    return [group for term in query.terms if not term.negated for group in _groups(term.test)]


def _groups(test: Equal | Prefix | Present | Compare | Words) -> Iterator[Group]:
    match test:
        case Words(words):
            wanted = [word for word in words if not is_digits(word)] or words
            yield from ((_from(b"w" + _cut(word.encode()) + b"\xff", _NAME),) for word in wanted)
        case Equal(path, text, other):
            values = [text] if other is None else [text, orjson.loads(other)]
            yield tuple(_point(_values_of(path) + _scalar(value)) for value in values)
        case Prefix(path, text):
            yield _begins(_values_of(path) + b"s", text.encode())
        case Present(path):
            yield (Range(_values_of(path) + b"b", _values_of(path) + b"t"),)
        case Compare(path, order, number):
            yield (_compared(_values_of(path), order, _scalar(number)),)


def _begins(values: bytes, start: bytes) -> Group:
    """Return the strings that begin so: those that stand there so far, and those that were cut before."""
    whole, (_, cut) = _from(values + start[:_CUT], _LONGEST), _TEXT
    return (whole,) if len(start) <= cut else (whole, _from(values + start[:cut] + b"\xff", _LONGEST))


def _compared(values: bytes, order: str, number: bytes) -> Range:
    """Return the numbers above or below one, which is itself a number as it stands in a key."""
    border = values + (number + b"\0" if order in (">", "<=") else number)
    return Range(border, values + b"o") if order.startswith(">") else Range(values + b"n", border)


@lru_cache(4096)
def _values_of(path: Path) -> bytes:
    return b"v" + _name(path)


@lru_cache(4096)
def _name(path: Path) -> bytes:
    return sha256(orjson.dumps(path)).digest()[:_NAME]


def _scalar(value: Any) -> bytes:
    if isinstance(value, str):
        return b"s" + (_cut(value.encode(), *_TEXT) if " " in value else _cut(value.encode()))
    if value is None or isinstance(value, bool):
        return b"b" + canonical(value)
    bits = int.from_bytes(struct.pack(">d", value + 0.0), "big")  # -0.0 becomes 0.0
    # All bits of a negative number are turned round, so that bytes have the order of numbers.
    return b"n" + (bits ^ (2 * _SIGN - 1 if bits & _SIGN else _SIGN)).to_bytes(8, "big")


def _cut(data: bytes, longest: int = _LONGEST, cut: int = _CUT) -> bytes:
    """Return a value as it stands in a key; 0xff is in no UTF-8."""
    return data if len(data) <= longest else data[:cut] + b"\xff" + sha256(data).digest()[: longest - cut - 1]


def _point(key: bytes) -> Range:
    return Range(key, key + b"\0")


def _from(start: bytes, longest: int) -> Range:
    """Return the keys that begin so, and have at most `longest` bytes behind it."""
    return Range(start, start + (longest + 1) * b"\xff")
