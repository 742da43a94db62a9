"""Events and queries at random, out of so few names and words that many of them meet."""

from __future__ import annotations

from random import Random
from typing import Any

NAMES = ("actor", "action", "amount", "note", "user", "a.b", "from", "__proto__")
TEXTS = (
    *("alice", "alice@example.com", "Bob", "invoice.approve", "invoice.reject", "login", "", "150", "true", "inv-17", "17"),
    *("order 17 is late", "Order\u300018", "a\0b", "\u202ebob", "STRASSE", "straße", "x" * 70, "x" * 47 + "é" * 9, "null", ">5", "*"),
)  # fmt: skip
NUMBERS = (0, 1, -1, 17, 150, 99.5, 2**53 - 1, -0.25, 1e-7)
WORDS = (
    "alice",
    "BOB",
    "17",
    "invoice",
    "late",
    "straße",
    "b",
    "inv-17",
    '"order 17"',
    '"example alice"',
    "x" * 70,
    "18",
)


def scalar_of(random: Random) -> Any:
    return random.choice((random.choice(TEXTS), random.choice(TEXTS), random.choice(NUMBERS), True, False, None))


def value_of(random: Random, depth: int = 0) -> Any:
    chance = random.random()
    if chance < 0.1 and depth < 3:
        return {name: value_of(random, depth + 1) for name in random.sample(NAMES, random.randint(0, 3))}
    if chance < 0.2 and depth < 3:
        return [value_of(random, depth + 1) for _ in range(random.randint(0, 3))]
    return scalar_of(random)


def events_of(random: Random, count: int) -> list[dict[str, Any]]:
    """Return some events."""
    return [
        {name: value_of(random) for name in random.sample(NAMES, random.randint(1, 5))} | {"n": n} for n in range(count)
    ]


def queries_of(random: Random, count: int) -> list[str]:
    """Return some queries. Most find something."""
    return [" ".join(_term(random) for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3)))) for _ in range(count)]


def _term(random: Random) -> str:
    minus = "-" if random.random() < 0.25 else ""
    return minus + (random.choice(WORDS) if random.random() < 0.3 else f"{_path(random)}:{_value(random)}")


def _path(random: Random) -> str:
    names = [random.choice((*NAMES, "n")), *random.sample(NAMES, random.choice((0, 0, 0, 1, 2)))]
    return ".".join(f'"{name}"' if "." in name or random.random() < 0.1 else name for name in names)


def _value(random: Random) -> str:
    text = random.choice(TEXTS)
    kind = random.randrange(6)
    if kind == 0:
        return random.choice((">", ">=", "<", "<=")) + str(random.choice((*NUMBERS, random.randrange(3000))))
    if kind == 1:
        return "*"
    if kind == 2 and text and not set(text) & set(' "\u3000\0'):
        return text[: random.randint(1, len(text))].lstrip("<>") + "*"
    if kind == 3:
        return str(random.choice((*NUMBERS, "true", "false", "null", "1.50e2")))
    return f'"{text}"'.replace("\0", "\\u0000")
