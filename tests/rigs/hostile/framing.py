"""Framing: bytes that are not quite HTTP, each on a connection of its own. The server may close it without an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.rigs.hostile.case import Case, Referred

BODY = b'{"a":1}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
PATHS = [
    b"/entries",
    b"/entries/batch",
    b"/logs/raw/add",
    b"/logs/raw/entries",
    b"/verify",
    b"/nowhere",
    b"/checkpoint",
]


def _post(extra: bytes, body: bytes, path: bytes, length: bytes | None = None) -> bytes:
    kind = b"application/x-ndjson" if path.endswith(b"batch") else b"application/json"
    size = b"" if length is None else b"Content-Length: " + length + b"\r\n"
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n%b%bConnection: close\r\n\r\n%b" % (
        path,
        kind,
        extra,
        size,
        body,
    )


LENGTHS = [
    b"7, 7", b"7,8", b"-1", b"+7", b"0x7", b"7.0", b"\xb2", b"0_7", b"9" * 30, b"", b"7 ", b"7\t", b" 7", b"07", b"7;", b"7\x00", b"seven",
    b"18446744073709551616", b"9223372036854775808", b"4294967303", b"7\r\nContent-Length: 7", b"7\r\nContent-Length: 8", b"7e0", b"\xef\xbc\x97",
]  # fmt: skip
ENCODINGS = [
    b"chunked, chunked", b"chunked, gzip", b"gzip, chunked", b"gzip", b"identity", b"xchunked", b"chunkedx", b"chun ked", b" chunked", b"chunked ",
    b"\x0bchunked", b"chunked;q=1", b"chunked\r\nTransfer-Encoding: gzip", b"gzip\r\nTransfer-Encoding: chunked", b'"chunked"', b"", b",", b"chunked,",
]  # fmt: skip
CHUNKS = [
    b"zz\r\n{}\r\n0\r\n\r\n", b"-7\r\n" + BODY + b"\r\n0\r\n\r\n", b"+7\r\n" + BODY + b"\r\n0\r\n\r\n", b"0x7\r\n" + BODY + b"\r\n0\r\n\r\n",
    b"f" * 30 + b"\r\n", b"7\r\n" + BODY + b"XX0\r\n\r\n", b"7\n" + BODY + b"\n0\n\n", b"7\r" + BODY + b"\r0\r\r", b"\r\n0\r\n\r\n", b"6\r\n" + BODY + b"\r\n0\r\n\r\n",
    b"8\r\n" + BODY + b"\r\n0\r\n\r\n", b"7;" + b"x" * 100_000 + b"\r\n" + BODY + b"\r\n0\r\n\r\n", b'7;a="\r\n"\r\n' + BODY + b"\r\n0\r\n\r\n",
    b"7\r\n" + BODY + b"\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n", b"7\r\n" + BODY + b"\r\n0\r\nbad trailer\r\n\r\n", b"7\r\n" + BODY + b"\r\n", b"7\r\n" + BODY,
    b"7", b"", b"7\r\n" + BODY + b"\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", b"1\r\n{\r\n" * 2000, b"0" * 100_000, b"7 \r\n" + BODY + b"\r\n0\r\n\r\n",
    b"ffffffffffffffff\r\n" + BODY, b"10000000000000007\r\n" + BODY + b"\r\n0\r\n\r\n", b"\xef\xbc\x97\r\n" + BODY + b"\r\n0\r\n\r\n",
]  # fmt: skip
FIELDS = [
    b"X : y\r\n", b" X: y\r\n", b"\tX: y\r\n", b"X: a\r\n b\r\n", b"nonsense\r\n", b": y\r\n", b"X: a\x00b\r\n", b"X: a\rb\r\n", b"X\x01: y\r\n", b"X\x00: y\r\n",
    b"X\xff: y\r\n", b"X(: y\r\n", b'X"y": z\r\n', b"X:\r\n", b"X: \x7f\r\n", b"X: " + b"a" * 65_536 + b"\r\n", b"X" * 65_536 + b": y\r\n", b"X: y\r\n" * 6000,
    b"Host: a\r\nHost: b\r\n", b"Host: \x00\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n", b"Connection: \x00\r\n", b"Connection: close, keep-alive\r\n",
    b"Expect: 100-continue\r\n", b"Expect: 200-ok\r\n", b"Expect: 100-continue, x\r\n", b"TE: trailers\r\n", b"Proxy-Connection: keep-alive\r\n", b"\r", b"\n", b"X: y\n", b"X: \xc0\xae\r\n",
]  # fmt: skip
STARTS = [
    b"POST  %b HTTP/1.1", b"POST %b  HTTP/1.1", b"POST\t%b HTTP/1.1", b" POST %b HTTP/1.1", b"POST %b", b"POST %b HTTP/1.1 x", b"POST %b HTTP/1.2", b"POST %b HTTP/0.9",
    b"POST %b HTTP/1.0", b"POST %b HTTP/2.0", b"POST %b HTTP/3", b"POST %b http/1.1", b"POST %b HTTP/1,1", b"POST %b HTTP/01.1", b"POST %b HTTP/1.10", b"POST %b RTSP/1.0",
    b"post %b HTTP/1.1", b"PO\x00ST %b HTTP/1.1", b"P" * 5000 + b" %b HTTP/1.1", b"CONNECT x:1 HTTP/1.1%.0b", b"CONNECT %b HTTP/1.1", b"OPTIONS * HTTP/1.1%.0b", b"POST http://e.example%b HTTP/1.1",
    b"POST //e.example%b HTTP/1.1", b"POST https://u:p@h:99999%b HTTP/1.1", b"POST %b\x00 HTTP/1.1", b"POST %b\xff HTTP/1.1", b"POST %b\x7f HTTP/1.1", b"POST %b#f HTTP/1.1", b"POST %b?\xe2\x80\xa8 HTTP/1.1",
    b"POST \\%b HTTP/1.1", b"POST %b?" + b"a" * 70_000 + b" HTTP/1.1", b"POST " + b"/x" * 9000 + b"%b HTTP/1.1", b"SOURCE %b ICE/1.0", b"POST file://%b HTTP/1.1", b"POST http:%b HTTP/1.1",
]  # fmt: skip
NOISE = [
    b"\x00" * 1000, bytes(range(256)) * 4, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 64, bytes.fromhex("16030100c8010000c40303") + b"\x42" * 190, b"\r\n" * 5000,
    b"\n", b"GET", b"GET /", b"GET / HTTP/1.1\r\n", b"\xff\xf4\xff\xfd\x06", b"SSH-2.0-x\r\n", b"EHLO x\r\n", b"*1\r\n$4\r\nPING\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\x00" * 100_000,
]  # fmt: skip


def table(_world: Referred) -> Iterator[Case]:
    """Yield every case of this class."""
    for path in PATHS:
        where = path.decode()
        for length in LENGTHS:
            yield Case(f"{where}: length {length[:20]!r}", _post(b"", BODY, path, length), alone=True)
        for encoding in ENCODINGS:
            extra = b"Transfer-Encoding: " + encoding + b"\r\n"
            yield Case(
                f"{where}: encoding {encoding[:20]!r}",
                _post(extra, b"7\r\n" + BODY + b"\r\n0\r\n\r\n", path),
                alone=True,
            )
            yield Case(f"{where}: encoding {encoding[:20]!r} and length", _post(extra, BODY, path, b"7"), alone=True)
        for chunks in CHUNKS:
            yield Case(f"{where}: chunks {chunks[:20]!r}", _post(CHUNKED, chunks, path), alone=True)
        for extra in FIELDS:
            yield Case(f"{where}: field {extra[:20]!r}", _post(extra, BODY, path, b"7"), alone=True)
        for start in STARTS:
            data = _post(b"", BODY, path, b"7").replace(b"POST %b HTTP/1.1" % path, start % path, 1)
            yield Case(f"{where}: start {start[:20]!r}", data, alone=True)
        whole = _post(b"", BODY, path, b"7")
        for at in range(0, len(whole), 5):
            yield Case(f"{where}: cut at {at}", whole[:at], alone=True)
        yield Case(f"{where}: line feeds", whole.replace(b"\r\n", b"\n"), alone=True)
    for noise in NOISE:
        yield Case(f"noise {noise[:20]!r}", noise, alone=True)


def random_case(rng: random.Random, _world: Referred) -> Case:
    """A good request with bytes of its frame changed."""
    data = bytearray(_post(rng.choice([b"", CHUNKED]), BODY, rng.choice(PATHS), rng.choice([None, b"7"])))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.choice([0, 9, 10, 13, 32, 58, 44, 255, rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 5)]
            case _:
                data[at:at] = rng.choice([b"\r\n", b"\n", b" ", b":", b"\x00", b"\r\n\r\n", b"0\r\n\r\n"])
    return Case("random framing", bytes(data), alone=True)
