"""A second search, written from docs/search.md and from nothing else: it may disagree with ours, and then one of them is wrong.

It takes queries that are right, as it does not say what is wrong with others. Every event is looked at for every query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space: what Unicode calls so."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}

Path = tuple[str, ...]


# --- words ------------------------------------------------------------------------------------------------------------


_CUTTING = (
    *((0x061C, 0x061C), (0x1680, 0x1680), (0x2000, 0x206F), (0x2E00, 0x2E7F), (0x3000, 0x3003), (0x3008, 0x3020)),
    *((0x3030, 0x3030), (0xFEFF, 0xFEFF), (0xFF00, 0xFF65)),
)
"""Punctuation of other scripts, and what is invisible."""


def words(text: str) -> list[str]:
    """What is left when a text in small letters is cut; some may be empty."""
    return "".join(" " if _cuts(c) else c for c in text.casefold()).split(" ")


def _cuts(c: str) -> bool:
    if c < "\u0100":
        return not (c.isalpha() or c in "0123456789")
    return any(low <= ord(c) <= high for low, high in _CUTTING) and not (c >= "\uff00" and c.isalnum())


def of_digits(word: str) -> bool:
    return bool(word) and all("0" <= c <= "9" for c in word)


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass
class Looked:
    """An event, taken apart once."""

    event: dict[str, Any]
    values: dict[Path, list[Any]] = field(default_factory=dict)
    all_words: list[set[str]] = field(default_factory=list)
    spaced_words: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, member in self.event.items():
            every: set[str] = set()
            spaced: set[str] = set()
            for path, value in _walk((name,), member):
                self.values.setdefault(path, []).append(value)
                if isinstance(value, str):
                    found = set(words(value)) - {""}
                    every |= found
                    if any(c in WHITE for c in value):
                        spaced |= found
            self.all_words.append(every)
            self.spaced_words.append(spaced)


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk((*path, name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(path, inner)
    else:
        yield path, value


# --- queries ----------------------------------------------------------------------------------------------------------

Asks = Callable[[Looked], bool]
Piece = tuple[Literal["string", "bare"], str]


def evaluator(query: str) -> Asks:
    """Return what tells whether an event is found."""
    terms = [_asks(pieces) for pieces in _terms(query)]
    return lambda event: all(term(event) for term in terms)


def _terms(query: str) -> Iterator[list[Piece]]:
    """Yield the pieces of each term: strings, and what stands between them."""
    pieces: list[Piece] = []
    at = 0
    while at < len(query):
        if query[at] in WHITE:
            if pieces:
                yield pieces
            pieces, at = [], at + 1
        elif query[at] == '"':
            string = _STRING.match(query, at)
            assert string, query
            pieces.append(("string", json.loads(string[0], strict=False)))
            at = string.end()
        else:
            end = at
            while end < len(query) and query[end] not in WHITE and query[end] != '"':
                end += 1
            pieces.append(("bare", query[at:end]))
            at = end
    if pieces:
        yield pieces


def _asks(pieces: list[Piece]) -> Asks:
    if pieces[0][0] == "bare" and pieces[0][1].startswith("-"):
        rest = pieces[0][1][1:]
        inner = _positive([("bare", rest), *pieces[1:]] if rest else pieces[1:])
        return lambda event: not inner(event)
    return _positive(pieces)


def _positive(pieces: list[Piece]) -> Asks:
    path: list[str] = []
    for at, (kind, text) in enumerate(pieces):
        if kind == "string":
            path.append(text)
            continue
        before, colon, after = text.partition(":")
        path += [name for name in before.split(".") if name]
        if colon:
            value = [("bare", after)] if after else pieces[at + 1 :]
            assert len(value) == 1, pieces
            return _value(tuple(path), *value[0])
    assert len(pieces) == 1, pieces
    return _word(pieces[0][1])


def _word(text: str) -> Asks:
    wanted = set(words(text)) - {""}
    assert wanted
    if all(map(of_digits, wanted)):
        return lambda event: any(wanted <= member for member in event.spaced_words)
    return lambda event: any(wanted <= member for member in event.all_words)


def _value(path: Path, kind: str, text: str) -> Asks:
    if kind == "string":
        return lambda event: any(type(value) is str and value == text for value in event.values.get(path, ()))
    if text == "*":
        return lambda event: path in event.values
    for sign, holds in _OPERATORS.items():
        if text.startswith(sign):
            border = float(text.removeprefix(sign))
            return lambda event: any(
                type(value) in (int, float) and holds(value, border) for value in event.values.get(path, ())
            )
    if text.endswith("*"):
        begin = text[:-1]
        return lambda event: any(type(value) is str and value.startswith(begin) for value in event.values.get(path, ()))
    return lambda event: any(_says(text, value) for value in event.values.get(path, ()))


def _says(text: str, value: Any) -> bool:
    """A bare value is a text that is exactly so, and the number, true, false or null that it says."""
    if isinstance(value, str):
        return value == text
    if value is None or isinstance(value, bool):
        return text == {None: "null", True: "true", False: "false"}[value]
    return bool(_NUMBER.fullmatch(text)) and float(text) == value and _possible(text)


def _possible(number: str) -> bool:
    """Tell whether an event may have a number: it is not beyond 2^53-1, nor so small that it becomes 0."""
    double = float(number)
    if not double:
        return not any(c in "123456789" for c in re.split("[eE]", number)[0])
    return abs(double) < 2**53 - 1 or (abs(double) == 2**53 - 1 and Decimal(number).copy_abs() == 2**53 - 1)
