"""How a query was read, in words: an empty answer to another question looks like an answer to one's own."""

from __future__ import annotations

import json

from muniment.query import Compare, Equal, Path, Prefix, Present, Query, Term, Words
from muniment.verify import printable


def read_as(query: Query) -> list[str]:
    """Return a line for each term of a query."""
    return [_term(term) for term in query.terms]


def _term(term: Term) -> str:
    return printable(f"{'not: ' if term.negated else ''}{_test(term.test)}")


def _test(test: Equal | Prefix | Present | Compare | Words) -> str:
    match test:
        case Words(words):
            several = "one member has all the words" if len(words) > 1 else "a member has the word"
            return f"{several} {', '.join(sorted(words))}{_hint(words)}"
        case Equal(path, text, other):
            return f"{_named(path)} is exactly {_quoted(text)}{'' if other is None else f' or {other}'}{_dotted(path)}"
        case Prefix(path, text):
            return f"{_named(path)} begins with {_quoted(text)}{_dotted(path)}"
        case Present(path):
            return f"there is {_named(path)}{_dotted(path)}"
        case Compare(path, order, number):
            return f"{_named(path)} is a number {order} {number}{_dotted(path)}"


def _named(path: Path) -> str:
    return " in ".join(_quoted(name) for name in reversed(path))


def _dotted(path: Path) -> str:
    """Say how a name with a dot is written, where the caller may have meant one."""
    return f" (a name with a dot is written {_quoted('.'.join(path))}:...)" if len(path) > 1 else ""


def _hint(words: frozenset[str]) -> str:
    """Say how numbers are compared, where the caller may have meant that."""
    return " (numbers are compared like this: amount:>100)" if any(word.isdigit() for word in words) else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
