"""Events that are hard to search, and queries about them: each query is made from what some event holds, then often spoiled a little."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.service.search_oracle import WHITE, Path, words

NAMES = (
    *("actor", "action", "amount", "note", "user", "tags", "a", "b", "n"),
    *("from", "limit", "to", "__proto__", "constructor", "index", "a.b", ".", "co:lon", ":", 'q"uote', "\\", " space ", "-minus"),
    *("*", ">5", "true", "17", "", "\0", "a\0b", "\u202eevil", "n\u0303ame", "ñame", "ß", "İ", "日本"),
)  # fmt: skip
COMMON = NAMES[:9]
TEXTS = (
    *("alice", "Alice", "alice@example.com", "bob", "login", "invoice.approve", "invoice.reject", "invoice", "inv-17", "inv_17"),
    *("", " ", "-", "*", "x*", ">5", "<5", ":", '"', "\\", 'a\\b"c', "true", "null", "-alice", "a:b", "a.b"),
    *("1", "1.0", "1e0", "-0", "0", "150", "9007199254740991", "17", "007", "\uff12\uff10\uff12\uff16"),
    *("order 17 is late", "order 18", "17 18", "17\u300018", "17\u00a018", "17\x1c18", "17\u200b18", "2026-11-20T12:00:00.123Z", "192.0.2.17"),
    *("STRASSE", "straße", "Straẞe", "İstanbul", "istanbul", "i\u0307stanbul", "\u017fecret", "secret", "ﬁne ﬀ", "fine ff", "ΌΣΟΣ", "όσος", "ǅ"),
    *("café", "cafe\u0301", "CAFÉ au lait", "cafe\u0301 au lait", "naïve\u2014text", "«quoted»", "ªº µ \xd7÷", "日本語", "日本 語、テスト。", "\uff21\uff22\uff23\u3000\uff44"),
    *("a\0b", "\0", "a \0 b", "\u202ealice bob", "\u2066bob\u2069", "a\u200db", "\ufeffbob", "\uffffx", "😀", "😀 bob"),
    *("' OR 1=1 --", "%", "_", "a%b", "x'); DROP TABLE entries;--", "$1", "?", "NULL", "\\x00"),
    *("x" * at for at in (47, 48, 49, 63, 64, 65, 70)),
    *("x" * 47 + tail for tail in ("é", "éa", "😀", "\0", "yz" * 20, "yz" * 20 + "!")),
    *("é" * at for at in (23, 24, 25, 32, 33)),
)  # fmt: skip
NUMBERS = (
    0, -0.0, 1, 1.0, -1, 17, 150, 99.5, 0.1, -0.25, 1e-7, 5e-324, 2**53 - 1, -(2**53 - 1), 2**53 - 2, float(2**53 - 1), 4503599627370495.5,
)  # fmt: skip
_SPELLINGS = ("{}", "{}", "{}.0", "{}e0", "{}.00E+0")


def _number(random: Random) -> int | float:
    return random.choice(NUMBERS) if random.random() < 0.5 else random.randrange(-50, 1000)


def _scalar(random: Random) -> Any:
    chance = random.random()
    if chance < 0.6:
        return random.choice(TEXTS)
    return _number(random) if chance < 0.9 else random.choice((True, False, None))


def _member(random: Random, depth: int = 0) -> Any:
    chance = random.random()
    if chance < 0.08 and depth < 4:
        return {random.choice(NAMES): _member(random, depth + 1) for _ in range(random.randint(0, 3))}
    if chance < 0.16 and depth < 4:
        return [_member(random, depth + 1) for _ in range(random.randint(0, 4))]
    return _scalar(random)


def _large(random: Random) -> dict[str, Any]:
    """One of the largest events there can be, of some kind."""
    text = random.choice(("alice ", "é", "😀", "x", "\0", "17 ", "straße "))
    kind = random.randrange(6)
    if kind == 0:
        return {"note": text * (60_000 // len(json.dumps(text).encode()))}
    if kind == 1:
        return {f"m{at:03}": _scalar(random) for at in range(255)} | {"actor": "alice"}
    if kind == 2:
        return {"note": " ".join(f"w{at}" for at in range(7000)) + " alice"}  # more terms than are indexed
    if kind == 3:
        return {"tags": [_number(random) for _ in range(3000)], "actor": "bob"}
    if kind == 4:
        deep: Any = random.choice(TEXTS)
        for _ in range(29):
            deep = {"a": deep} if random.random() < 0.5 else [deep]
        return {"a": deep}
    return {"x" * 30_000: "alice", "actor": "x" * 20_000}


def events_of(random: Random, count: int) -> list[dict[str, Any]]:
    """Return some events; a few of them are as large as may be."""
    events = [_event(random) for _ in range(count)]
    for at in random.sample(range(count), 3 + count // 500):
        events[at] = _large(random)
    return events


def _event(random: Random) -> dict[str, Any]:
    names = random.sample(COMMON, random.randint(1, 5)) + random.sample(NAMES, random.randint(0, 2))
    event = {name: _member(random) for name in names}
    if random.random() < 0.5:  # as logs are: few values, of which most entries have one
        event |= {
            "actor": f"user{random.randrange(40)}",
            "action": random.choice(("login", "invoice.approve", "invoice.reject")),
        }
    return event


# --- queries ----------------------------------------------------------------------------------------------------------


def query_of(random: Random, events: list[dict[str, Any]]) -> str:
    """Return a query. Most find something, and few find much."""
    event = random.choice(events)
    terms = []
    for _ in range(random.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 4)) if random.random() < 0.95 else random.randint(5, 20)):
        term = _term(random, event if random.random() < 0.8 else random.choice(events))
        terms.append(f"-{term}" if random.random() < 0.2 else term)
    gap = "".join(random.choice(WHITE) for _ in range(random.choice((1, 1, 1, 2))))
    query = gap.join(terms)
    return query if len(query) <= 4096 else query_of(random, events)


def _term(random: Random, event: dict[str, Any]) -> str:
    found = list(_scalars((), event))
    if not found:
        return f"{_path(random, (random.choice(NAMES),))}:*"
    path, value = random.choice(found)
    if isinstance(value, str) and random.random() < 0.4:
        word = _word(random, value)
        if word is not None:
            return word
    if random.random() < 0.1:
        path = random.choice((path[:-1], (*path, "a"), (random.choice(NAMES),))) or path
    return f"{_path(random, path)}:{_value(random, value)}"


def _scalars(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    """Some of the scalars in a value; of the largest not all."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _scalars((*path, name), inner)
    elif isinstance(value, list):
        for inner in value[:20]:
            yield from _scalars(path, inner)
    else:
        yield path, value


def _quoted(random: Random, text: str) -> str:
    return json.dumps(text, ensure_ascii=random.random() < 0.5)


def _path(random: Random, path: Path) -> str:
    def name(at: int, text: str) -> str:
        special = not text or any(c in WHITE + '".:' for c in text) or (at == 0 and text.startswith("-"))
        return _quoted(random, text) if special or random.random() < 0.1 else text

    return ".".join(name(at, text) for at, text in enumerate(path))


def _value(random: Random, value: Any) -> str:
    kind = random.randrange(10)
    if kind == 0:
        return "*"
    if isinstance(value, str):
        if kind <= 3:
            return _prefix(random, value)
        plain = value and not any(c in WHITE + '"' for c in value) and value[0] not in "<>" and not value.endswith("*")
        return value if plain and random.random() < 0.6 else _quoted(random, value[:1500])
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if kind <= 4:
        near = value + random.choice((0, 0, 1, -1)) if abs(value) < 2**52 else value
        return random.choice((">", ">=", "<", "<=")) + json.dumps(near)
    if kind == 5:
        return _quoted(random, json.dumps(value))
    return random.choice(_SPELLINGS).format(value) if type(value) is int else json.dumps(value)


def _prefix(random: Random, text: str) -> str:
    """The beginning of a text, as far as it can be written without quotes."""
    begin = text[: random.randint(0, min(len(text), 90))].lstrip("<>")
    for c in WHITE + '"':
        begin = begin.partition(c)[0]
    return f"{begin}*"


def _word(random: Random, text: str) -> str | None:
    """One or some words of a text, spelled in some way."""
    there = [word for word in words(text[:1500]) if word]
    if not there:
        return None
    some = random.sample(there, min(len(there), random.choice((1, 1, 1, 2, 3))))
    spelled = random.choice((str, str, str.upper, str.title, str.casefold))(random.choice((" ", "-", ", ")).join(some))
    if not any(words(spelled)):
        return None
    bare = not any(c in WHITE + '":' for c in spelled) and not spelled.startswith("-")
    return spelled if bare and random.random() < 0.6 else _quoted(random, spelled)
