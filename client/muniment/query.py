"""The query grammar of search and export: one text in, a query that can be evaluated on one event.

``docs/search.md`` has the grammar and examples. What is found is defined by :meth:`Query.matches`: an index only says
on which events it is worth asking. So words are split here, by fixed classes of characters that no Unicode version
changes, and never by a database.
"""

from __future__ import annotations

import json
import json.decoder
import operator
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from json import JSONDecodeError
from typing import Any, Protocol

from muniment.errors import EventRefused, QueryError
from muniment.strictjson import canonical, parse

MAX_LENGTH = 4096
"""Code points of the longest query."""
MAX_TERMS = 64

# What Unicode calls White_Space. Python's \s also takes U+001C to U+001F.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# All but letters and digits in ASCII and Latin-1; then the blocks of punctuation, with invisible and bidi controls.
_NO_WORD = (
    r"\x00-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7"
    r"\u061c\u1680\u2000-\u206f\u2e00-\u2e7f\u3000-\u3003\u3008-\u3020\u3030\ufeff"
    r"\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_WORD = re.compile(f"[^{_NO_WORD}]+")
_SPACES = re.compile(f"[{_SPACE}]+")
_BARE = re.compile(f'[^{_SPACE}"]+')
_SEGMENT = re.compile(f'[^{_SPACE}".:]+')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_COMPARE = re.compile("[<>]=?")
_ORDERS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_SURROGATE = re.compile("[\ud800-\udfff]")

Split = Callable[[str], set[str]]
Path = tuple[str, ...]
"""Names from the event inwards. An array adds none: its elements are all at the path of the array."""


def scalars(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each text, number, boolean and null in a value, with its path."""
    if isinstance(value, dict):  # a Mapping too would be asked for ten times as long
        for name, inner in value.items():
            yield from scalars(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from scalars(inner, path)
    else:
        yield path, value


def words_of(text: str) -> set[str]:
    """Return the words of a text, casefolded."""
    return set(_WORD.findall(text.casefold()))


def indexed_words(text: str) -> set[str]:
    """Return the words by which a text is found: all if it has white space, else those that are not digits alone.

    Otherwise each time stamp, address and number of an invoice would be ten more terms that no reader looks for.
    """
    if text.isascii() and text.isalnum():  # one word, as most names and numbers are
        return set() if text.isdigit() else {text.lower()}
    return words_of(text) if _SPACES.search(text) else {word for word in words_of(text) if not is_digits(word)}


def is_digits(word: str) -> bool:
    """Tell whether a word has digits 0 to 9 alone."""
    return word.isdigit() and word.isascii()


# True is 1 in a set of Python's. A string is never among these.
_NAMES = {True: ("true",), False: ("false",), None: ("null",)}
_NAMED = (bool, type(None))


@lru_cache(1024)
def _plain(other: str) -> Any:
    """Return what stands for a number, boolean or null in canonical form among those of an event."""
    value = json.loads(other)
    return _NAMES[value] if type(value) in _NAMED else value


class Facts:
    """What an event says, taken apart once for all terms of a query: splitting a long text for each takes long."""

    def __init__(self, event: Mapping[str, Any]) -> None:
        self._event = event
        self._values: dict[str, dict[Path, list[Any]]] = {}  # by member, of those that were asked for
        self._texts: dict[str, list[tuple[str, str]]] = {}  # the same
        self._distinct: dict[Path, tuple[set[str], set[Any]]] = {}
        self._sorted: dict[Path, list[str]] = {}
        self._extremes: dict[Path, tuple[int | float, int | float] | None] = {}
        self._words: dict[tuple[str, Split], set[str]] = {}

    def at(self, path: Path) -> list[Any]:
        """Return the scalars at a path."""
        name = path[0]
        if name not in self._event:
            return []
        if name not in self._values:
            found: dict[Path, list[Any]] = {}
            for where, value in scalars(self._event[name], (name,)):
                found.setdefault(where, []).append(value)
            self._values[name] = found
        return self._values[name].get(path, [])

    def distinct(self, path: Path) -> tuple[set[str], set[Any]]:
        """Return the strings at a path, and the numbers, booleans and nulls, these as their names.

        An event may have thousands of values, and a query 64 terms about them.
        """
        if path not in self._distinct:
            values = self.at(path)
            others = {_NAMES.get(value, value) if type(value) in _NAMED else value for value in values}
            self._distinct[path] = ({v for v in values if isinstance(v, str)}, others)
        return self._distinct[path]

    def has_prefix(self, path: Path, start: str) -> bool:
        """Tell whether a string at a path begins so."""
        if path not in self._sorted:
            self._sorted[path] = sorted([value for value in self.at(path) if isinstance(value, str)])
        values = self._sorted[path]
        at = bisect_left(values, start)  # what begins so stands together, from here on
        return at < len(values) and values[at].startswith(start)

    def extremes(self, path: Path) -> tuple[int | float, int | float] | None:
        """Return the least and the greatest number at a path, None where there is none."""
        if path not in self._extremes:
            numbers = [value for value in self.at(path) if type(value) in (int, float)]
            self._extremes[path] = (min(numbers), max(numbers)) if numbers else None
        return self._extremes[path]

    def have_words(self, words: frozenset[str], split: Split) -> bool:
        """Tell whether one member has all these words among those that `split` finds in its strings."""
        for name in self._event:
            texts = self._texts_of(name)
            # Most texts do not even hold the letters, and to split one takes twenty times as long as to find that out.
            if all([any([word in folded for _, folded in texts]) for word in words]):
                if (name, split) not in self._words:
                    self._words[name, split] = set[str]().union(*(split(text) for text, _ in texts))
                if words <= self._words[name, split]:
                    return True
        return False

    def _texts_of(self, name: str) -> list[tuple[str, str]]:
        """Return the strings of a member, each with its letters in one case beside it."""
        if name not in self._texts:
            member = self._event[name]
            texts = [member] if isinstance(member, str) else [text for _, text in scalars(member)]
            self._texts[name] = [(text, text.casefold()) for text in texts if isinstance(text, str)]
        return self._texts[name]


class Test(Protocol):
    """What one term asks of an event, before it is negated."""

    def matches(self, facts: Facts) -> bool:
        """Tell whether it holds."""


@dataclass(frozen=True, slots=True)
class Equal:
    """Some scalar at `path` is the string `text`, or the number, boolean or null whose canonical form is `other`."""

    path: Path
    text: str
    other: str | None = None

    def matches(self, facts: Facts) -> bool:
        """See Test."""
        texts, others = facts.distinct(self.path)
        return self.text in texts or (self.other is not None and _plain(self.other) in others)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Some string at `path` begins with `text`."""

    path: Path
    text: str

    def matches(self, facts: Facts) -> bool:
        """See Test."""
        return facts.has_prefix(self.path, self.text)


@dataclass(frozen=True, slots=True)
class Present:
    """There is a scalar at `path`."""

    path: Path

    def matches(self, facts: Facts) -> bool:
        """See Test."""
        return bool(facts.at(self.path))


@dataclass(frozen=True, slots=True)
class Compare:
    """Some number at `path` is above (>, >=) or below (<, <=) `number`."""

    path: Path
    order: str
    number: int | float

    def matches(self, facts: Facts) -> bool:
        """See Test."""
        extremes = facts.extremes(self.path)
        return extremes is not None and _ORDERS[self.order](extremes[self.order.startswith(">")], self.number)


@dataclass(frozen=True, slots=True)
class Words:
    """One member of the event has all these words in its strings.

    Digits alone are looked for beside another word, or in strings with white space: see :func:`indexed_words`.
    """

    words: frozenset[str]

    def matches(self, facts: Facts) -> bool:
        """See Test."""
        return facts.have_words(self.words, indexed_words if all(map(is_digits, self.words)) else words_of)


@dataclass(frozen=True, slots=True)
class Term:
    """A test, or its negation."""

    test: Equal | Prefix | Present | Compare | Words
    negated: bool = False

    def matches(self, facts: Facts) -> bool:
        """Tell whether it holds of an event."""
        return self.test.matches(facts) is not self.negated


@dataclass(frozen=True, slots=True)
class Query:
    """Terms that must all hold. One without terms finds every event."""

    terms: tuple[Term, ...]

    def matches(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event is found."""
        facts = Facts(event)
        return all(term.matches(facts) for term in self.terms)


def parse_query(text: str) -> Query:
    """Return the query that a text says. Raises QueryError with the position, in code points from 0."""
    if len(text) > MAX_LENGTH:
        raise QueryError(f"a query has at most {MAX_LENGTH:,} characters", MAX_LENGTH)
    if half := _SURROGATE.search(text):
        raise QueryError("half of a UTF-16 pair", half.start())
    terms: list[Term] = []
    at = _skip(text, 0)
    while at < len(text):
        if len(terms) == MAX_TERMS:
            raise QueryError(f"a query has at most {MAX_TERMS} terms", at)
        term, end = _term(text, at)
        terms.append(term)
        at = _skip(text, end)
        if end < len(text) and at == end:
            raise QueryError("white space is missing between two terms, or a quote has no backslash before it", end)
    return Query(tuple(terms))


def _skip(text: str, at: int) -> int:
    space = _SPACES.match(text, at)
    return space.end() if space else at


def _term(text: str, at: int) -> tuple[Term, int]:
    negated = text[at] == "-"
    begin = at + negated
    path, end = _path(text, begin)
    test, end = _value(text, path, end) if path else _words(text, begin)
    return Term(test, negated), end


def _path(text: str, at: int) -> tuple[Path, int]:
    """Return the path that stands here before a colon, and where its value begins; an empty one if there is none."""
    path: list[str] = []
    while True:
        name, at = _string(text, at) if text[at : at + 1] == '"' else _match(_SEGMENT, text, at)
        if name is None:
            return (), at
        path.append(name)
        if text[at : at + 1] == ":":
            return tuple(path), at + 1
        if text[at : at + 1] != ".":
            return (), at
        at += 1


def _match(pattern: re.Pattern[str], text: str, at: int) -> tuple[str | None, int]:
    found = pattern.match(text, at)
    return (found[0], found.end()) if found else (None, at)


def _string(text: str, at: int) -> tuple[str, int]:
    """Return the JSON string that begins here, and where it ends."""
    try:
        value, end = json.decoder.scanstring(text, at + 1, True)  # type: ignore[attr-defined]  # noqa: FBT003
    except JSONDecodeError as error:
        raise QueryError(f"not a JSON string: {error.msg.removesuffix(' at')}", error.pos) from None
    if _SURROGATE.search(value):
        raise QueryError("half of a UTF-16 pair in this string", at)
    return value, end


def _value(text: str, path: Path, at: int) -> tuple[Equal | Prefix | Present | Compare, int]:
    if text[at : at + 1] == '"':
        value, end = _string(text, at)
        return Equal(path, value), end
    bare, end = _match(_BARE, text, at)
    if bare is None:
        raise QueryError('a value is missing after the colon; the empty string is ""', at)
    if order := _COMPARE.match(bare):
        return Compare(path, order[0], _number(bare[order.end() :], at + order.end())), end
    if bare == "*":
        return Present(path), end
    return (Prefix(path, bare[:-1]) if bare.endswith("*") else Equal(path, bare, _other(bare))), end


def _number(bare: str, at: int) -> int | float:
    """Return the number that a comparison needs."""
    if not _NUMBER.fullmatch(bare):
        raise QueryError("< and > need a number; put a string that begins with them in quotes", at)
    try:
        value: int | float = parse(bare.encode())
    except EventRefused:
        raise QueryError("no event has such a number: they reach to 2^53-1", at) from None
    return value


def _other(bare: str) -> str | None:
    """Return the canonical form of the number, boolean or null that a bare value says; None for anything else."""
    if bare in ("true", "false", "null"):
        return bare
    try:
        return canonical(parse(bare.encode())).decode() if _NUMBER.fullmatch(bare) else None
    except EventRefused:  # no event has such a number
        return None


def _words(text: str, at: int) -> tuple[Words, int]:
    quoted = text[at : at + 1] == '"'
    word, end = _string(text, at) if quoted else _match(_BARE, text, at)
    if word is None:
        raise QueryError("a term is missing after the minus", at)
    if not quoted and ":" in word:
        raise QueryError("a name is missing before the colon; put words that hold one in quotes", at)
    words = words_of(word)
    if not words:
        raise QueryError("no letter and no digit to look for", at)
    return Words(frozenset(words)), end
