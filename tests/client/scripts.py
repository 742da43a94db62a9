"""What a server may do to a client that asks it something: scripts for :mod:`tests.client.hostile`."""

from __future__ import annotations

import threading

import httpx

from tests.client.fake_log import FakeLog
from tests.client.hostile import TICK, Peer, Script

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


def answered(*parts: bytes, then: bytes = b"", every: float = TICK) -> Script:
    """Answer a request with `parts`, then with `then` for ever, or with nothing any more."""

    def script(peer: Peer) -> None:
        peer.request()
        for part in parts:
            peer.send(part)
        if then:
            peer.for_ever(then, every)
        peer.stay()

    return script


def slowly(log: FakeLog, *, piece: int = 40, every: float = 0.001, before: bytes = b"") -> Script:
    """Answer as `log` does, a few bytes at a time."""
    lock = threading.Lock()

    def script(peer: Peer) -> None:
        while sent := peer.request():
            with lock:
                answer = before + as_bytes(log.handle(as_request(sent)))
            for at in range(0, len(answer), piece):
                peer.send(answer[at : at + piece])
                peer.pause(every)

    return script


def as_request(sent: bytes) -> httpx.Request:
    head, _, body = sent.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Request(method, f"http://log.test{target}", headers=headers, content=body)


def as_bytes(answer: httpx.Response) -> bytes:
    body = answer.read()
    kept = [(name, value) for name, value in answer.headers.items() if name.lower() != "content-length"]
    lines = [f"{name}: {value}" for name, value in (*kept, ("Content-Length", str(len(body))))]
    return "\r\n".join([f"HTTP/1.1 {answer.status_code} X", *lines, "", ""]).encode() + body


# --- never done -------------------------------------------------------------------------------------------------------

NEVER_DONE: dict[str, Script] = {
    "nothing": answered(),
    "half a status line": answered(b"HTTP/1.1 2"),
    "a status line that drips": answered(b"HTTP/1.1 200 ", then=b"O"),
    "a header field that drips": answered(OK, b"X-Slow: ", then=b"x"),
    "header fields without end": answered(OK, then=b"X: y\r\n"),
    "early hints without end": answered(then=HINT),
    "an early hint that drips": answered(HINT, b"HTTP/1.1 103 Early Hints\r\nX: ", then=b"x"),
    "a body that drips": answered(OK + b"Content-Length: 100000\r\n\r\n", then=b" "),
    "chunks that drip": answered(CHUNKED, then=b"1\r\n \r\n"),
    "a chunk extension that drips": answered(CHUNKED + b"1;", then=b"x"),
    "trailers that drip": answered(CHUNKED + b"1\r\n \r\n0\r\nX: ", then=b"x"),
    "a body until the end that never comes": answered(OK + b"\r\n", then=b" "),
}


def says_nothing(peer: Peer) -> None:
    peer.stay()


def drips_a_record(peer: Peer) -> None:
    peer.socket.recv(65_536)
    peer.send(b"\x16\x03\x03\x40\x00")  # a record of a handshake, 16,384 bytes long
    peer.for_ever(b"\x02")


HANDSHAKES = [says_nothing, drips_a_record]
"""For a peer that is asked over TLS."""


# --- too much ---------------------------------------------------------------------------------------------------------

TOO_MUCH: dict[str, tuple[Script, str]] = {
    "early hints": (answered(then=HINT * 100, every=0), "larger than"),
    "one early hint": (answered(HINT[:-2], then=b"X: y\r\n" * 1000, every=0), "too long"),
    "header fields": (answered(OK, then=b"X: y\r\n" * 1000, every=0), "too long"),
    "a header field": (answered(OK + b"X: ", then=b"y" * 1000, every=0), "too long"),
    "a status line": (answered(b"HTTP/1.1 200 ", then=b"y" * 1000, every=0), "too long"),
    "a body": (answered(OK + b"\r\n", then=b" " * 1000, every=0), "larger than"),
    "a chunk": (
        answered(CHUNKED + b"fffffff\r\n", then=b" " * 1000, every=0),
        "larger than",
    ),
    "chunk extensions": (
        answered(CHUNKED, then=b"1;%s\r\n \r\n" % (b"x" * 9000), every=0),
        "larger than",
    ),
    "trailers": (
        answered(CHUNKED + b"0\r\n", then=b"X: y\r\n" * 1000, every=0),
        "too long",
    ),
}
