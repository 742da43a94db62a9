"""Bodies: JSON grammar, numbers, strings, depth, width, sizes, encodings; to every route that takes one."""

# ruff: noqa: RUF001, RUF005 - look-alikes are the point; lists of texts read better added
from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator

from tests.rigs.hostile.case import BYTES, JSON, NDJSON, Case, Referred, request

_BAD = frozenset({400, 413, 422})

NOT_JSON = [
    b"", b" ", b"\n", b"{", b"}", b"[", b"]", b'"', b"{]", b"[}", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}',
    b'{,"a":1}', b'{"a" 1}', b'{"a"::1}', b"{a:1}", b"{'a':1}", b'{"a":1}}', b'{"a":1}{"b":2}', b'{"a":1} x', b'{"a":[1,]}',
    b'{"a":[,1]}', b'{"a":[1 2]}', b'{"a":"\n"}', b'{"a":"\t"}', b'{"a":"\x00"}', b'{"a":"\\x41"}', b'{"a":"\\u12"}',
    b'{"a":"\\u12g4"}', b'{"a":"\\U00000041"}', b'{"a":"\\a"}', b'{"a":"\\', b'{"a":"\\"}', b'{"a":tru}', b'{"a":True}',
    b'{"a":NULL}', b'{"a":nul}', b'{"a":undefined}', b'{"a":1/*c*/}', b'{"a":1//c\n}', b'#\n{"a":1}', b'{"a":\xa0 1}',
    b'{"a":\x0b1}', b'{"a":\x0c1}', b'{"a":\xe2\x80\xa81}', b'{"a":\xc2\x851}', b'\xef\xbb\xbf{"a":1}', b"\xff\xfe{\x00}\x00",
    b"\xfe\xff\x00{\x00}", b'{"a":"\xff"}', b'{"a":"\xc0\x80"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xf4\x90\x80\x80"}',
    b'{"a":"\xe2\x82"}', b'{"\xff":1}', b"<a/>", b"a=1", b"---\na: 1\n", b"\x1f\x8b\x08\x00", b"\x80\x04}", b"(dp0\n.",
]  # fmt: skip
NOT_EVENTS = [
    b"null", b"true", b"1", b'"a"', b"[]", b"[{}]", b"{}", b"1e400", b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}',
    b'{"a":{"b":1,"b":2}}', b'{"a":[{"b":1,"b":2}]}', b'{"a":"\\ud800"}', b'{"a":"\\udc00\\ud800"}', b'{"\\ud800":1}',
    b'{"a":"\\ud800\\u0041"}',
]  # fmt: skip
NOT_NUMBERS = [
    "01",
    "00",
    "-01",
    "+1",
    ".5",
    "1.",
    "-.5",
    "-1.",
    "1e",
    "1e+",
    "1E",
    "1e1.5",
    "0x10",
    "0b1",
    "0o7",
    "1_0",
    "1;0",
    "--1",
    "-",
    "+",
    "++1",
    "1e1e1",
    "NaN",
    "-NaN",
    "nan",
    "Infinity",
    "-Infinity",
    "inf",
    "١",
    "１",
    "−1",
    "1٫5",
    "½",
    "²",
    "0x1p3",
    "1f",
    "1L",
    "1n",
    "1.0.0",
    "1..0",
    "0e",
    "0.e1",
    "1e٣",
]
OUT_OF_RANGE = [
    "9007199254740992",
    "-9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "1e16",
    "1E+16",
    "10e15",
    "1e400",
    "-1e400",
    "1e309",
    "1e999999999",
    "1e-400",
    "-1e-400",
    "1e-999999999",
    "0.1e17",
    "9007199254740991.1",
    "9007199254740991.5",
    "9" * 400,
    "9" * 5000,
    "1" + "0" * 5000,
    "0." + "0" * 400 + "1",
    "0." + "0" * 5000 + "1",
    "1e" + "9" * 5000,
]
NUMBERS = ["0", "-0", "0.0", "-0.0", "0e0", "0e400", "0e-400", "0e999999999", "1", "-1", "1.5", "1e2", "1E2", "1e-2", "5e-324", "2.5e-324", "9007199254740991", "-9007199254740991", "9007199254740991.0", "9.007199254740991e15", "1e15", "1e-7", "1e21", "0.1", "0.30000000000000004", "4.35", "1.7976931348623157e-308"] + ["0." + "1" * 5000, "1." + "0" * 5000, "0" + "." + "3" * 400]  # fmt: skip
STRINGS = [
    "\x00", "\r\n", "a\r\nX: y", "\x1b[31m", "\x1b]0;x\x07", "\u202eevil", "\u2066x\u2069", "\u2028", "\u2029", "\x85", "\x7f",
    "\ufeff", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\U0001fffe", "\ufdd0", "é", "e\u0301", "ﬁ", "Å", "Å", "İ", "ß", "😀", "👩‍👩‍👧‍👦",
    "а", "../../etc/passwd", "%00", "%s%s%s%n", "${jndi:ldap://x}", "{{7*7}}", "' OR 1=1 --", "'; DROP TABLE entries; --",
    "<script>alert(1)</script>", "__proto__", "constructor", "typ", "commitment", "logged_at", "muniment/genesis@v1", "a" * 60_000,
    "\u0300" * 1000, "𝕳", "\u200b", "\u00ad", "٣", "NaN", "null", "1e400",
]  # fmt: skip


def _hash_flood() -> bytes:
    # Names that Python's dict would put into one chain without its random hash seed.
    names = [format(n * (2**61 - 1), "x") for n in range(256)]
    return json.dumps(dict.fromkeys(names, 1)).encode()


def _deep() -> Iterator[tuple[str, bytes, bool]]:
    """Yield (name, body, whether an event may look like that)."""
    for depth in (10, 30, 31, 32, 33, 34, 100, 1000, 10_000, 30_000):
        for name, low, high in (("list", b"[", b"]"), ("object", b'{"a":', b"}"), ("mixed", b'[{"a":', b"}]")):
            inner = low * depth + b"1" + high * depth
            yield f"{depth} deep {name}", b'{"a":' + inner + b"}", depth * (1 + (name == "mixed")) < 32
            yield f"{depth} deep {name}, open", b'{"a":' + low * depth, False
    for width in (1, 255, 256, 257, 1000, 5000):
        yield f"{width} members", json.dumps({f"m{n}": n for n in range(width)}).encode(), width <= 256
        yield f"{width} elements", b'{"a":[' + b",".join([b"1"] * width) + b"]}", True
        yield f"{width} times one name", b"{" + b",".join([b'"a":1'] * width) + b"}", width == 1
    yield "hash flood", _hash_flood(), True


def events() -> Iterator[tuple[str, bytes, bool]]:
    """Yield (name, body, whether it may be taken as an event)."""
    yield from ((f"grammar {n}", body, False) for n, body in enumerate(NOT_JSON))
    yield from ((f"no event {n}", body, False) for n, body in enumerate(NOT_EVENTS))
    for shape in ('{"a":%s}', '{"a":[%s]}', '{"a":{"b":%s}}', '{"a":[1,{"b":[%s]}]}'):
        yield from ((f"no number {text[:9]} in {shape}", (shape % text).encode(), False) for text in NOT_NUMBERS)
        yield from ((f"out of range {text[:9]} in {shape}", (shape % text).encode(), False) for text in OUT_OF_RANGE)
        yield from ((f"number {text[:9]} in {shape}", (shape % text).encode(), True) for text in NUMBERS)
    for text in STRINGS:
        for shape in ({"a": text}, {text: 1}, {"a": [text, {text: text}]}):
            for escaped in (True, False):
                body = json.dumps(shape, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
                yield f"string {text[:9]!a} as {len(str(shape))}", body, True
    yield from _deep()


def _encodings() -> Iterator[tuple[str, bytes, list[tuple[str, str]]]]:
    good = b'{"a":1}'
    for name, body in (
        ("gzip", gzip.compress(good, mtime=0)),
        ("deflate", zlib.compress(good)),
        ("br", good),
        ("zstd", good),
    ):
        yield f"encoding {name}", body, [("Content-Encoding", name)]
        yield f"encoding {name} in capitals", body, [("Content-Encoding", name.upper())]
    yield "gzip bomb", gzip.compress(b" " * 10_000_000, mtime=0), [("Content-Encoding", "gzip")]
    for name in ("identity, gzip", "x", "gzip;q=1", "\xff", "identity gzip"):
        yield f"encoding {name!a}", good, [("Content-Encoding", name)]
    yield (
        "two encodings",
        gzip.compress(good, mtime=0),
        [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")],
    )


def table(_world: Referred) -> Iterator[Case]:
    """Yield every case of this class."""
    refused = _BAD
    for name, body, good in events():
        expect = frozenset() if good else refused
        yield Case(f"event: {name}", request("POST", "/entries", body, [JSON]), expect)
        if b"\n" not in body:
            batch = b'{"good":1}\n' + body + b"\n"
            yield Case(f"batch: {name}", request("POST", "/entries/batch", batch, [NDJSON]), expect)
        yield Case(f"verify: {name}", request("POST", "/verify", body, [JSON]), frozenset({422, 413}))
        yield Case(f"raw batch: {name}", request("POST", "/logs/raw/entries/batch", body, [BYTES]))
    for name, body, headers in _encodings():
        for path in (
            "/entries",
            "/entries/batch",
            "/logs/raw/add",
            "/logs/raw/entries",
            "/logs/raw/entries/batch",
            "/verify",
        ):
            kind = NDJSON if path == "/entries/batch" else JSON
            yield Case(f"{path}: {name}", request("POST", path, body, [kind, *headers]), frozenset({415}))
    for size in (0, 1, 65_534, 65_535, 65_536, 65_537, 655_360):
        good = 0 < size <= 65_535
        for path in ("/logs/raw/add", "/logs/raw/entries"):
            body = bytes(range(1, 256)) * (size // 255 + 1)
            expect = frozenset({200, 201}) if good else frozenset({413, 422})
            yield Case(f"{path}: {size} bytes", request("POST", path, body[:size], [BYTES]), expect)
    whole = b'{"actor":"alice","action":"test","n":[1,2,{"x":"y"}]}'
    for sixteenth in range(16):
        cut = whole[: len(whole) * sixteenth // 16]
        yield Case(f"event cut after {sixteenth}/16", request("POST", "/entries", cut, [JSON]), refused)


def random_case(rng: random.Random, _world: Referred) -> Case:
    """A good body with a few bytes changed, or garbage."""
    body = bytearray(
        rng.choice([b'{"actor":"alice","n":[1,2.5,{"x":null}]}', b"\x00\x02ab\x00\x01c", b'{"a":1}\n{"b":"\\u0041"}\n'])
    )
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[at] ^= 1 << rng.randrange(8)
            case 1:
                del body[at:]
                body += b" "
            case 2:
                body[at:at] = rng.choice([*NOT_JSON, rng.randbytes(rng.randint(1, 40))])
            case _:
                body[at:at] = body[: rng.randint(1, 20)]
    path, kind = rng.choice(
        [("/entries", JSON), ("/entries/batch", NDJSON), ("/logs/raw/entries/batch", BYTES), ("/verify", JSON)]
    )
    return Case(f"random body to {path}", request("POST", path, bytes(body), [kind]))
