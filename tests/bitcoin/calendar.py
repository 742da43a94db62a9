"""Calendars that speak the OpenTimestamps HTTP protocol, commit to blocks of a local chain, and misbehave when told to.

The bytes are written here by hand, without the library: a second opinion on the format.
"""

from __future__ import annotations

import json
import os
import re
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from hashlib import sha256

from tests.bitcoin.chain import Block, Chain, sha256d
from tests.bitcoin.web import Answer, Request, Web

APPEND, PREPEND, SHA256 = b"\xf0", b"\xf1", b"\x08"
FORK, ATTESTATION = b"\xff", b"\x00"
PENDING_TAG = bytes.fromhex("83dfe30d2ef90c8e")
BITCOIN_TAG = bytes.fromhex("0588960d73d71901")
OCTETS = {"Content-Type": "application/octet-stream"}

SSRF_URIS = (
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:22",
    "http://localhost:5432/",
    "file:///etc/passwd",
    "ftp://example.com/x",
    "https://evil.example:443.calendar.opentimestamps.org",
    "https://alice.btc.calendar.opentimestamps.org.evil.example",
    "//evil.example/x",
    "http:",
    "",
)
"""Pending URIs that the format allows and nobody may contact."""


def varuint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varbytes(data: bytes) -> bytes:
    return varuint(len(data)) + data


def append(data: bytes) -> bytes:
    return APPEND + varbytes(data)


def prepend(data: bytes) -> bytes:
    return PREPEND + varbytes(data)


def pending(uri: str) -> bytes:
    return ATTESTATION + PENDING_TAG + varbytes(varbytes(uri.encode()))


def bitcoin(height: int) -> bytes:
    return ATTESTATION + BITCOIN_TAG + varbytes(varuint(height))


def merkle_paths(leaves: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the root of a SHA-256 tree and, for each leaf, the ops that lead to it. An odd node moves up as it is."""
    paths = [b""] * len(leaves)
    nodes = [(leaf, [at]) for at, leaf in enumerate(leaves)]
    while len(nodes) > 1:
        above = [_joined(*nodes[at : at + 2], paths) for at in range(0, len(nodes) - 1, 2)]
        nodes = above + nodes[len(above) * 2 :]
    return nodes[0][0], paths


def _joined(
    left: tuple[bytes, list[int]], right: tuple[bytes, list[int]], paths: list[bytes]
) -> tuple[bytes, list[int]]:
    for at in left[1]:
        paths[at] += append(right[0]) + SHA256
    for at in right[1]:
        paths[at] += prepend(left[0]) + SHA256
    return sha256(left[0] + right[0]).digest(), left[1] + right[1]


class Calendar(Web):
    """A calendar at `url`, whose pending attestations name `uri` (by default the same).

    POST /digest takes a commitment at once. `publish` puts a transaction over all unpublished commitments before the chain's miners;
    GET /timestamp/<commitment> answers 200 once its block is `confirmations` deep.

    `fault` is one of TRANSPORT_FAULTS or BODY_FAULTS, or "control" (a 404 with control characters), "not_found", or "silent" (takes
    digests and never anchors them). With `down()` it refuses connections.
    """

    def __init__(self, chain: Chain, *, confirmations: int = 1, uri: str | None = None) -> None:
        self.chain = chain
        self.confirmations = confirmations
        self.posts: list[tuple[float, bytes]] = []
        """(monotonic time, digest) of each POST."""
        self.polls: dict[bytes, list[float]] = defaultdict(list)
        """Commitment -> monotonic times at which it was asked for."""
        self._guard = threading.Lock()
        self._unpublished: list[bytes] = []
        self._published: dict[bytes, tuple[bytes, bytes]] = {}  # commitment -> (ops up to the transaction, transaction)
        super().__init__()
        self.uri = self.url if uri is None else uri

    @property
    def url(self) -> str:
        return self.origin

    @property
    def commitments(self) -> list[bytes]:
        """All commitments taken so far, oldest first."""
        with self._guard:
            return [*self._published, *self._unpublished]

    @property
    def most_polls_in_a_minute(self) -> int:
        """The most requests for one commitment within any 60 seconds."""
        return max((_most_within(times, 60) for times in self.polls.values()), default=0)

    def publish(self) -> None:
        """Send a transaction that commits to everything taken since the last one. It waits for a block."""
        with self._guard:
            taken, self._unpublished = self._unpublished, []
            if not taken or self.fault == "silent":
                self._unpublished = taken
                return
            tip, paths = merkle_paths([sha256(one).digest() for one in taken])
            before = b"\x02\x00\x00\x00transaction" + os.urandom(32)
            transaction = before + tip + bytes(4)
            for commitment, path in zip(taken, paths, strict=True):
                ops = SHA256 + path + prepend(before) + append(bytes(4)) + SHA256 + SHA256
                self._published[commitment] = ops, transaction
        self.chain.submit(transaction)

    def answer(self, request: Request) -> Answer:
        if request.method == "POST":
            return self._digest(request)
        if request.path == "/":
            return Answer(200, json.dumps({"pending_commitments": len(self._unpublished)}).encode())
        if match := re.fullmatch(r"/timestamp/((?:[0-9a-f]{2})+)", request.path):
            return self._timestamp(bytes.fromhex(match[1]))
        return (
            Answer(400, b"commitment must be hex")
            if request.path.startswith("/timestamp/")
            else Answer(404, b"Not found")
        )

    def _reply(self, handler: object, request: Request) -> None:
        if request.method == "POST" and request.path == "/digest":
            self.posts.append((time.monotonic(), request.body))
        elif match := re.fullmatch(r"/timestamp/((?:[0-9a-f]{2})+)", request.path):
            self.polls[bytes.fromhex(match[1])].append(time.monotonic())
        super()._reply(handler, request)  # type: ignore[arg-type]

    def _digest(self, request: Request) -> Answer:
        if request.path != "/digest":
            return Answer(404, b"Not found")
        if "content-length" not in request.headers:
            return Answer(400, b"invalid Content-Length")
        if not 0 < len(request.body) <= 64:
            return Answer(400, b"digest too long")
        nonce, seconds, mac = os.urandom(16), struct.pack(">I", int(time.time())), os.urandom(8)
        commitment = seconds + sha256(request.body + nonce).digest() + mac
        with self._guard:
            self._unpublished.append(commitment)
        good = append(nonce) + SHA256 + prepend(seconds) + append(mac) + pending(self.uri)
        return self._spoiled("POST", Answer(200, good, OCTETS))

    def _timestamp(self, commitment: bytes) -> Answer:
        return self._spoiled("GET", self._state(commitment))

    def _state(self, commitment: bytes) -> Answer:
        with self._guard:
            waits = commitment in self._unpublished
            ops, transaction = self._published.get(commitment, (b"", b""))
        block = self.chain.find(transaction) if transaction else None
        if block is None:
            known = waits or transaction
            return _not_yet("Pending confirmation in Bitcoin blockchain" if known else "Not found")
        missing = self.confirmations - (self.chain.height - block.height + 1)
        if missing > 0:
            txid = sha256d(transaction)[::-1].hex()
            return _not_yet(f"Timestamped by transaction {txid}; waiting for {missing} confirmations")
        return Answer(200, ops + block_ops(block, transaction), OCTETS | {"Cache-Control": "public, max-age=31536000"})

    def _spoiled(self, method: str, good: Answer) -> Answer:
        """Return the answer as the fault wants it."""
        if method not in self.faulty:
            return good
        if self.fault == "control":
            return _not_yet("Pending\r\n2026-01-01 ERROR forged log line\x1b[2J\x00\x07")
        if self.fault == "not_found":
            return _not_yet("Not found")
        spoil = BODY_FAULTS.get(self.fault)
        return (
            Answer(200, spoil(good.body if good.status == 200 else bitcoin(1), self.chain), OCTETS) if spoil else good
        )


def block_ops(block: Block, transaction: bytes) -> bytes:
    """Return the ops from a txid to the block's Merkle root, and the attestation of the block."""
    steps = ((append if right else prepend)(sibling) + SHA256 + SHA256 for right, sibling in block.path(transaction))
    return b"".join(steps) + bitcoin(block.height)


def confirm(chain: Chain, calendars: Iterable[Calendar], depth: int = 6) -> Block:
    """Let every calendar publish, mine a block with all their transactions, and bury it `depth` deep. Return that block."""
    for calendar in calendars:
        calendar.publish()
    block = chain.mine()
    chain.mine(depth - 1)
    return block


def _not_yet(text: str) -> Answer:
    return Answer(404, text.encode(), {"Content-Type": "text/plain", "Cache-Control": "public, max-age=60"})


def _most_within(times: list[float], seconds: float) -> int:
    return max(sum(start <= one < start + seconds for one in times) for start in times)


def _lie(_: bytes, chain: Chain) -> bytes:
    """A well-formed path to a root that is not the block's."""
    return append(os.urandom(32)) + SHA256 + SHA256 + bitcoin(chain.height)


BODY_FAULTS: dict[str, Callable[[bytes, Chain], bytes]] = {
    "big": lambda good, _: good + bytes(10_001 - len(good)),
    "junk": lambda good, _: good + b"JUNK",
    "cut": lambda good, _: good[:-1],
    "empty": lambda *_: b"",
    "deep": lambda good, _: SHA256 * 300 + good,
    "varuint": lambda good, _: APPEND + b"\xff" * 9_000 + b"\x01" + good[:10],
    "duplicate": lambda *_: FORK + append(b"x") + SHA256 + bitcoin(1) + append(b"x") + SHA256 + bitcoin(2),
    "fake_height": lambda *_: append(bytes(32)) + SHA256 + bitcoin(2**57_000),
    "future": lambda _, chain: append(os.urandom(32)) + SHA256 + bitcoin(chain.height + 1_000_000),
    "lie": _lie,
    "sha1": lambda *_: b"\x02" + SHA256 + bitcoin(1),
    "wide": lambda *_: b"".join(FORK + append(bytes([at])) + SHA256 + bitcoin(at) for at in range(255)) + bitcoin(1),
}
"""Name -> the body for a good body. All of them must be refused; `lie`, `future` and `wide` are well formed."""
