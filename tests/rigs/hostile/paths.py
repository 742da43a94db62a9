"""Numbers in paths and queries, tile and bundle paths, hashes in hex."""

# ruff: noqa: RUF001 - look-alikes are the point
from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tests.rigs.hostile.case import STILL_SIZE, Case, Referred, request

NUMBERS = [
    "0",
    "1",
    "2",
    "7",
    "255",
    "256",
    "299",
    "300",
    "301",
    "302",
    "1000",
    "1001",
    str(2**31 - 1),
    str(2**31),
    str(2**32),
]
NUMBERS += [str(2**53), str(2**63 - 1)]
NOT_NUMBERS = [str(2**63), str(2**64), str(2**64 - 1), str(2**128), "9" * 400, "9" * 4301, "9" * 10_000]
NOT_NUMBERS += (
    (
        "-1 -0 +1 %2B1 00 01 007 1_0 1.0 1.5 .5 1. 1e2 1E2 0x10 0b1 0o7 1,0 1%20 %201 %091 1%0a %0a1 1%0d 1%00 %001 %31%0a 1%3b 1/ "
        "nan NaN inf Infinity -inf null None true undefined [] {} %22%22 %22 1%22 ' ½ "
        "%d9%a1 %ef%bc%91 %c2%b2 %e2%88%921 %f0%9d%9f%8f %ff %c0%b1 1%ff %F3%A0%80%B1 a abc 1a a1 %25 %2531 -9223372036854775808"
    )
    .replace("½", "%c2%bd")
    .split()
)
QUERIES = [
    "/entries?start={}", "/entries?limit={}", "/entries?start={}&limit=1", "/entries?start=1&limit={}", "/entries/1/receipt?tree_size={}",
    "/proof/inclusion?index={}", "/proof/inclusion?index=0&tree_size={}", "/proof/inclusion?index={}&tree_size=300",
    "/proof/consistency?first={}", "/proof/consistency?first=1&second={}", "/proof/consistency?first={}&second=300",
    "/checkpoints?start={}", "/checkpoints?limit={}", "/checkpoints?start={}&limit=1000",
]  # fmt: skip
PATHS = ["/entries/{}", "/entries/{}/receipt"]
PREFIXES = ["", "/logs/raw", "/logs/still", "/v1", "/v1/logs/still"]


def _numbers() -> Iterator[Case]:
    for prefix in PREFIXES:
        for place in QUERIES:
            for text in NUMBERS:
                yield Case(f"number {place} {text[:20]}", request("GET", prefix + place.format(text)))
            for text in NOT_NUMBERS:
                expect = frozenset({400, 404, 422})
                yield Case(f"no number {place} {text[:20]}", request("GET", prefix + place.format(text)), expect)
            yield Case(f"empty {place}", request("GET", prefix + place.format("")), frozenset({400}))
            yield Case(
                f"twice {place}",
                request("GET", prefix + place.format("1") + "&" + place.partition("?")[2].format("1")),
                frozenset({400}),
            )
        for place in PATHS:
            for text in NUMBERS:
                yield Case(f"number {place} {text[:20]}", request("GET", prefix + place.format(text)))
            for text in NOT_NUMBERS:
                yield Case(
                    f"no number {place} {text[:20]}", request("GET", prefix + place.format(text)), frozenset({400, 404})
                )


# --- tiles --------------------------------------------------------------------------------------------------------------

_TILE = re.compile(r"(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*)([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


def tile_exists(path: str, size: int) -> bool:
    """Tell whether the tree of `size` has this tile, by the C2SP text alone."""
    match = _TILE.fullmatch(path)
    if not match or match[2].startswith("x000/"):
        return False
    level = 0 if match[1] == "entries" else int(match[1])
    index = int(match[2].replace("x", "").replace("/", "") + match[3])
    there = (size >> 8 * level) - 256 * index if level < 8 else 0
    return (1 <= int(match[4]) <= min(255, there)) if match[4] else there >= 256


_LEVELS = [
    "entries",
    "0",
    "1",
    "2",
    "7",
    "8",
    "63",
    "64",
    "255",
    "256",
    "00",
    "01",
    "-1",
    "+0",
    "0x0",
    "",
    "Entries",
    "entries/",
    "data",
]
_LEVELS += ["%30", "0%00", "٠".encode().hex("%"), "1_0", "a", "..", ".", "%2e%2e"]
_INDICES = [
    "000",
    "001",
    "002",
    "255",
    "256",
    "999",
    "x000/000",
    "x001/000",
    "x000/x000/000",
    "x999/999",
    "x001/x000/000",
    "00",
    "0",
    "0000",
    "1",
]
_INDICES += [
    "x1/000",
    "x001",
    "001/000",
    "x001/x000",
    "/000",
    "000/",
    "000//",
    "%30%30%30",
    "00%30",
    "-01",
    "+00",
    "0_0",
    "٠٠٠",
    "x/000",
    "X001/000",
    "x0001/000",
]
_INDICES += [
    "x999/" * 6 + "999",
    "x999/" * 7 + "999",
    "x999/" * 40 + "999",
    "000%00",
    "000%0a",
    "000.json",
    "000.p",
    "..",
    "../000",
    "%2e%2e/000",
]
_WIDTHS = [
    "",
    ".p/1",
    ".p/2",
    ".p/44",
    ".p/45",
    ".p/46",
    ".p/254",
    ".p/255",
    ".p/256",
    ".p/257",
    ".p/0",
    ".p/00",
    ".p/01",
    ".p/045",
    ".p/-1",
    ".p/+1",
]
_WIDTHS += [".p/", ".p", ".p/1/", ".p/1/1", ".p/%31", ".P/1", ".p/1.p/1", ".p/1_0", ".p/1e1", ".p/" + "9" * 300, ".p/1%0a", ".p//1", "?x=1", "?", ".p/1?a", ";a", "#x"]  # fmt: skip


def _tiles() -> Iterator[Case]:
    for level in _LEVELS:
        for index in _INDICES:
            for width in _WIDTHS:
                path = f"{level}/{index}{width}"
                if "?" in path or "#" in path or "%" in path:
                    expect = frozenset({404, 400}) if path[-1:] != "?" else frozenset({200, 404})
                else:
                    expect = frozenset({200} if tile_exists(path, STILL_SIZE) else {404})
                if ".." in path or "#" in path:
                    expect = frozenset({404, 400})
                target = f"/logs/still/tile/{path}".encode()
                if target.isascii():
                    yield Case(f"tile {path[:60]}", request("GET", target), expect)


# --- hashes -------------------------------------------------------------------------------------------------------------


def _hashes() -> Iterator[Case]:
    good = "ab" * 32
    odd = [good[:length] for length in range(65) if length != 64] + [good + "a", good + "ab", good * 2, good * 100]
    odd += [
        good.upper(),
        good[:63] + "g",
        good[:63] + "%20",
        "%20" + good[:63],
        "0x" + good[:62],
        good[:62] + "%0a",
        good[:31] + "%20" + good[31:63],
    ]
    odd += [
        "q6u" * 14 + "q" + "%3d",
        "q6-_" * 11,
        "%ff" * 32,
        "%d9%a1" * 64,
        good[:62] + "%00%00",
        good[:62] + "_1",
        good + "%0a",
        "+" + good[:63],
    ]
    for prefix in PREFIXES:
        yield Case("hash of nothing", request("GET", f"{prefix}/proof/inclusion?leaf_hash={good}"), frozenset({404}))
        for text in odd:
            yield Case(
                f"hash {text[:20]}", request("GET", f"{prefix}/proof/inclusion?leaf_hash={text}"), frozenset({400})
            )
        for query in (
            f"leaf_hash={good}&index=0",
            f"leaf_hash={good}&leaf_hash={good}",
            "",
            "x=1",
            "index=0&x",
            "index=0&&&",
            "index=0;tree_size=1",
            "index%00=0",
            "=",
            "&",
            "%",
            "index",
        ):
            yield Case(f"query {query[:20]}", request("GET", f"{prefix}/proof/inclusion?{query}"))


def table(_world: Referred) -> Iterator[Case]:
    """Yield every case of this class."""
    yield from _numbers()
    yield from _tiles()
    yield from _hashes()


def random_case(rng: random.Random, _world: Referred) -> Case:
    """A path made of parts that occur in paths."""
    parts = [
        "tile",
        "entries",
        "0",
        "1",
        "000",
        "x001",
        ".p",
        "45",
        "checkpoint",
        "proof",
        "logs",
        "still",
        "raw",
        "v1",
        "..",
        ".",
        "%2f",
        "%00",
        "%ff",
        "log",
        "add",
        "batch",
        "receipt",
    ]
    path = "/" + "/".join(rng.choice(parts) for _ in range(rng.randint(1, 7)))
    method = rng.choice(["GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    body = None if method == "GET" else b""
    return Case(
        f"random path {path}", request(method, path + rng.choice(["", "", "?", "/", "?x=%ff", "?start=1"]), body)
    )
