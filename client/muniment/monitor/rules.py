"""What a monitor looks for in entries: leaf hashes, and fields of events by the query grammar. From a TOML file.

::

    [[rule]]
    name = "our releases"
    sha256 = ["9f86d0…"]               # of whole leaves, without the 0x00 that a leaf hash has: sha256sum FILE

    [[rule]]
    name = "roles that change"
    query = "action:role.*"            # docs/search.md; takes an API key that may read what events say
    severity = "alarm"                 # by default "info"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from muniment.encoding import parse_hex
from muniment.errors import FormatError, QueryError
from muniment.hashing import HASH_SIZE
from muniment.query import Query, parse_query

MAX_RULES = 1000
_MEMBERS = {"name", "sha256", "leaf_hash", "query", "severity", "log"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Of `hashes` and `query` one is there; `origin` limits it to one log."""

    name: str
    digests: frozenset[bytes] = frozenset()
    leaf_hashes: frozenset[bytes] = frozenset()
    query: Query | None = None
    alarm: bool = False
    origin: str | None = None

    def matches_leaf(self, leaf: bytes, leaf_hash: bytes) -> bool:
        """Tell whether this leaf is one of those it names."""
        return leaf_hash in self.leaf_hashes or (bool(self.digests) and sha256(leaf).digest() in self.digests)


@dataclass(frozen=True, slots=True)
class Match:
    """Entries [start, stop) that match, all of them."""

    rule: Rule
    start: int
    stop: int

    def to_json(self) -> dict[str, Any]:
        """Return what a finding of it says."""
        count, name = self.stop - self.start, self.rule.name
        where = f"entry {self.start}" if count == 1 else f"entries {self.start} to {self.stop - 1}"
        facts = {"rule": name, "start": self.start, "stop": self.stop}
        return {"code": "match", "detail": f"{name}: {where}", "facts": facts, "alarm": self.rule.alarm}


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Return the rules in a file. Raises FormatError with the name of the rule, or OSError."""
    try:
        value = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path} is not TOML: {error}") from error
    found = value.get("rule")
    if set(value) != {"rule"} or not isinstance(found, list) or not 1 <= len(found) <= MAX_RULES:
        raise FormatError(f"{path} has 1 to {MAX_RULES} tables [[rule]], and nothing else")
    rules = tuple(_rule(one, at) for at, one in enumerate(found, 1))
    if len({rule.name for rule in rules}) != len(rules):
        raise FormatError(f"{path}: two rules have one name")
    return rules


def _rule(value: Any, at: int) -> Rule:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name or len(name) > 200:
        raise FormatError(f"rule {at} has no name")
    if unknown := sorted(value.keys() - _MEMBERS):
        raise FormatError(f"rule {name!r}: unknown {', '.join(unknown)}; there are {', '.join(sorted(_MEMBERS))}")
    kinds = [kind for kind in ("sha256", "leaf_hash", "query") if kind in value]
    severity, log = value.get("severity", "info"), value.get("log")
    if len(kinds) != 1 or severity not in ("info", "alarm") or not (log is None or isinstance(log, str)):
        hint = "one of sha256, leaf_hash and query; severity info or alarm; log is an origin"
        raise FormatError(f"rule {name!r}: {hint}")
    try:
        made = _sought(kinds[0], value[kinds[0]])
    except (FormatError, QueryError) as error:
        raise FormatError(f"rule {name!r}: {error}") from error
    return Rule(name, **made, alarm=severity == "alarm", origin=log)


def _sought(kind: str, value: Any) -> dict[str, Any]:
    if kind == "query":
        if not isinstance(value, str):
            raise FormatError("query is a text")
        return {"query": parse_query(value)}
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise FormatError(f"{kind} is a list of hashes")
    hashes = frozenset(parse_hex(one, HASH_SIZE, kind) for one in value)
    return {"digests" if kind == "sha256" else "leaf_hashes": hashes}


def match_leaves(rules: Iterable[Rule], leaves: Sequence[bytes], hashes: bytes, start: int) -> list[Match]:
    """Return which of the leaves from index `start` on are named by rules; `hashes` are theirs, joined."""
    found: list[Match] = []
    for rule in rules:
        if rule.query is None:
            hits = [
                start + at
                for at, leaf in enumerate(leaves)
                if rule.matches_leaf(leaf, hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE])
            ]
            found += ranges(rule, hits)
    return found


def match_events(rules: Iterable[Rule], events: Iterable[tuple[int, dict[str, Any]]]) -> list[Match]:
    """Return which events match the queries of rules. Each comes with its index, in order."""
    known = list(events)
    found: list[Match] = []
    for rule in rules:
        if rule.query is not None:
            found += ranges(rule, [index for index, event in known if rule.query.matches(event)])
    return found


def ranges(rule: Rule, indices: Iterable[int]) -> list[Match]:
    """Return ascending indices as ranges of neighbours."""
    found: list[Match] = []
    for index in indices:
        if found and found[-1].stop == index:
            found[-1] = Match(rule, found[-1].start, index + 1)
        else:
            found.append(Match(rule, index, index + 1))
    return found
