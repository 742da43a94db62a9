"""Byte strings spoiled in ways that parsers of text formats get wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

# What Python's own decoders are too kind to, and what other systems split or fold.
NASTY = [
    b"\x00", b"\n", b"\n\n", b"\r\n", b"\t", b" ", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x80", b"\xff", b"\xc3", b"\xed\xa0\x80",
    b"\xc0\x80", b"\xef\xbb\xbf", b"\xef\xbf\xbf", "\u0085".encode(), "\u00a0".encode(), "\u2028".encode(), "\u200b".encode(), "\u202e".encode(),
    "—".encode(), "\u2013".encode(), "\u0661".encode(), "\uff10".encode(), "é".encode(), "e\u0301".encode(), "\U0001f600".encode(),
    b"=", b"==", b"+", b"-", b"_", b"/", b"\\", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"#", b"%", b"0", b"00", b"x", b".", b"..",
]  # fmt: skip
NUMBERS = [
    b"-1", b"0", b"00", b"01", b"1", b"+1", b"1_0", b"1.0", b"1e0", b"-0", b"255", b"256", b"999", b"1000", b"65535", b"65536", b"2147483648",
    b"4294967296", b"9007199254740991", b"9007199254740992", b"9007199254740991.1", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"1e400", b"1e-400", b"1e9999999", b"1e-9999999999999999999", b"NaN", b"Infinity", b"0x10", b"9" * 400,
]  # fmt: skip
_NUMBER = re.compile(rb"[0-9]+")
_WORD = re.compile(rb"[A-Za-z0-9+/=_-]{8,}")

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]


def _at(rng: Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def flip_bit(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def set_byte(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.randbytes(1) + data[at + 1 :]


def insert(rng: Random, data: bytes, words: Sequence[bytes]) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.choice([*NASTY, *words]) + data[at:]


def replace(rng: Random, data: bytes, words: Sequence[bytes]) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.choice([*NASTY, *words]) + data[at + rng.randrange(1, 5) :]


def delete(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(rng, data)
    return data[:at] + data[at + rng.choice([1, 1, 1, 2, 4, 32, 1000]) :]


def repeat(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start = _at(rng, data)
    end = start + rng.choice([1, 2, 4, 40, 400])
    return data[:end] + data[start:end] * rng.choice([1, 1, 2, 70]) + data[end:]


def cut(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = _at(rng, data)
    return data[:at] if rng.random() < 0.7 else data[at:]


def number(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    match = rng.choice(found)
    near = str(int(match[0][:15]) + rng.choice([-1, 1])).encode()
    return data[: match.start()] + rng.choice([*NUMBERS, near]) + data[match.end() :]


def lines(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    parts = data.split(b"\n")
    one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    kind = rng.randrange(4)
    if kind == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif kind == 1:
        parts.insert(one, parts[other])
    elif kind == 2:
        del parts[one]
    else:
        parts[one] = b" ".join(rng.sample(words := parts[one].split(b" "), len(words)))
    return b"\n".join(parts)


def word(rng: Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """Replace one long word (a hash, a key, a signature) by another, or change its last character."""
    found = list(_WORD.finditer(data))
    if not found:
        return data
    match = rng.choice(found)
    others = [m[0] for m in found] + list(words) + [match[0][:-1] + rng.choice([b"A", b"B", b"=", b"_", b"+"])]
    return data[: match.start()] + rng.choice(others) + data[match.end() :]


MUTATIONS: list[Mutation] = [
    flip_bit, set_byte, insert, insert, replace, delete, repeat, cut, number, number, lines, lines, word, word,
]  # fmt: skip


def mutate(rng: Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return one of `seeds`, mostly spoiled: once in fifty as it is, else by one to five mutations, now and then spliced."""
    data = rng.choice(seeds)
    if rng.random() < 0.02:
        return data
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        data = data[: _at(rng, data)] + other[_at(rng, other) :]
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        data = rng.choice(MUTATIONS)(rng, data, words)
    return data[:100_000]
