"""A first look at an OpenTimestamps proof, before any library sees it: well-formed, and small enough to be parsed.

Pure and iterative: neither recursion nor hashing, and no message is built. Only lengths are followed, so that a
proof which would expand to gigabytes is refused while it is still a few kilobytes. Specified in
docs/spec/anchor.md section 3.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from muniment.anchored import MAX_OTS
from muniment.errors import BadTimestamp

MAX_FILE = MAX_OTS
"""Bytes of a proof file."""
MAX_REPLY = 10_000
"""Bytes of a calendar's reply."""
MAX_NODES = 1_000
"""Nodes of the tree: its root, and one for each operation.

Real proofs have fewer than 200; the library takes 10 to 20 us for each.
"""
MAX_REPLY_NODES = 500
"""Nodes of a calendar's reply, its root included. Real ones have fewer than 100."""
MAX_DEPTH = 200
"""Nodes below one another, the root included. The library parses 256, at two stack frames each."""
MAX_ATTESTATIONS = 500
"""Attestations of the tree. Real proofs have fewer than ten."""
MAX_MESSAGES = 1024 * 1024
"""Bytes of all messages together. An operation of three bytes can make a message of four thousand."""
MAX_MESSAGE = 4_096
MAX_PAYLOAD = 8_192
MAX_URI = 1_000
MAX_HEIGHT = 2**28
"""Block heights are in [0, 2**28): five thousand years of blocks, and it fits everywhere."""

MAGIC = b"\x00OpenTimestamps\x00\x00Proof\x00\xbf\x89\xe2\xe8\x84\xe8\x92\x94"
VERSION = 1
FILE_HASHES = {0x08: ("sha256", 32), 0x02: ("sha1", 20), 0x03: ("ripemd160", 20)}

SHA256, APPEND, PREPEND, REVERSE, HEXLIFY = 0x08, 0xF0, 0xF1, 0xF2, 0xF3
_DIGESTS = {SHA256: 32, 0x02: 20, 0x03: 20, 0x67: 32}
OWN_OPS = frozenset({SHA256, APPEND, PREPEND})
"""What calendars and our own files use."""
ALL_OPS = frozenset({*_DIGESTS, APPEND, PREPEND, REVERSE, HEXLIFY})

PENDING = bytes.fromhex("83dfe30d2ef90c8e")
_HEIGHT_TAGS = {bytes.fromhex(tag) for tag in ("0588960d73d71901", "06869a0d73d71b45", "30fe8087b5c7ead7")}
"""Bitcoin, Litecoin, Ethereum: the payload is a block height."""
_URI_CHARACTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/:")

_MORE, _ATTESTATION = 0xFF, 0x00


@dataclass(frozen=True, slots=True)
class Scan:
    """What a tree consists of.

    `items` are (depth, bytes) of every operation and attestation, sorted: equal for two spellings of one tree that
    differ in the order of items alone. `ops` are the tags of its operations.
    """

    items: tuple[tuple[int, bytes], ...]
    ops: frozenset[int]


def scan_file(data: bytes, ops: AbstractSet[int] = ALL_OPS) -> Scan:
    """Return what a proof file consists of.

    Raises BadTimestamp unless it is one, whole, within all bounds, and of `ops` only.
    """
    _within(len(data) <= MAX_FILE, f"a proof has at most {MAX_FILE} bytes, this one {len(data)}")
    reader = _Reader(data)
    _within(reader.take(len(MAGIC)) == MAGIC, "not an OpenTimestamps proof")
    version = reader.byte()
    _within(version == VERSION, f"version {version} of the format is not known")
    tag = reader.byte()
    _within(tag in FILE_HASHES, f"not a file hash: operation {tag:#04x}")
    size = FILE_HASHES[tag][1]
    reader.take(size)
    return _Scanner(reader, ops, MAX_NODES).run(size)


def scan_reply(data: bytes, start: int) -> Scan:
    """Return what a calendar's reply about a message of `start` bytes consists of.

    Raises BadTimestamp, as :func:`scan_file`.
    """
    _within(len(data) <= MAX_REPLY, f"a reply has at most {MAX_REPLY} bytes, this one {len(data)}")
    _within(0 < start <= MAX_MESSAGE, f"a message has 1 to {MAX_MESSAGE} bytes")
    return _Scanner(_Reader(data), OWN_OPS, MAX_REPLY_NODES).run(start)


def _within(condition: bool, problem: str) -> None:  # noqa: FBT001 - reads like the sentence it is
    if not condition:
        raise BadTimestamp(problem)


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise BadTimestamp(f"the proof ends at byte {len(self.data)}, in the middle of something")
        return self.data[start : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varuint(self) -> int:
        """Return a number of at most 35 bits, in its shortest spelling."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                _within(byte != 0 or shift == 0, "a number has more bytes than it needs")
                return value
        raise BadTimestamp("a number has more than 5 bytes")

    def varbytes(self, least: int, most: int) -> bytes:
        size = self.varuint()
        _within(least <= size <= most, f"a field of {size} bytes, where {least} to {most} may be")
        return self.take(size)

    def end(self) -> None:
        _within(self.at == len(self.data), f"bytes follow the end of the proof at byte {self.at}")


@dataclass(slots=True)
class _Node:
    size: int
    depth: int
    seen: set[bytes] = field(default_factory=set)


class _Scanner:
    __slots__ = ("_items", "_messages", "_most_nodes", "_nodes", "_ops", "_ops_seen", "_reader")

    def __init__(self, reader: _Reader, ops: AbstractSet[int], most_nodes: int) -> None:
        self._reader = reader
        self._ops = ops
        self._most_nodes = most_nodes
        self._ops_seen: set[int] = set()
        self._items: list[tuple[int, bytes]] = []
        self._messages = 0
        self._nodes = 0

    def run(self, start: int) -> Scan:
        """Scan the tree whose root has a message of `start` bytes, up to the end of the data."""
        open_nodes = [self._node(start, 1)]
        while open_nodes:
            node = open_nodes.pop()
            tag = self._reader.byte()
            if tag == _MORE:  # another item of this node follows, after all that is below this one
                open_nodes.append(node)
                tag = self._reader.byte()
            if tag == _ATTESTATION:
                self._attestation(node)
            else:
                open_nodes.append(self._child(node, tag))
        self._reader.end()
        return Scan(tuple(sorted(self._items)), frozenset(self._ops_seen))

    def _node(self, size: int, depth: int) -> _Node:
        self._nodes += 1
        self._messages += size
        # Not by _within: for each of a thousand nodes it would be handed texts that no caller reads.
        if size > MAX_MESSAGE:
            raise BadTimestamp(f"a message of {size} bytes; {MAX_MESSAGE} are the most")
        if depth > MAX_DEPTH:
            raise BadTimestamp(f"the proof is deeper than {MAX_DEPTH} nodes")
        if self._nodes > self._most_nodes:
            raise BadTimestamp(f"more than {self._most_nodes} nodes")
        if self._messages > MAX_MESSAGES:
            raise BadTimestamp(f"the messages of the proof have more than {MAX_MESSAGES} bytes")
        return _Node(size, depth)

    def _child(self, node: _Node, tag: int) -> _Node:
        """Return the node that an operation leads to."""
        if tag not in self._ops:
            raise BadTimestamp(f"operation {tag:#04x} at byte {self._reader.at - 1} is not known, or not allowed here")
        start, size = self._reader.at - 1, _DIGESTS.get(tag, node.size)
        if tag in (APPEND, PREPEND):
            size += len(self._reader.varbytes(1, MAX_MESSAGE))
        elif tag == HEXLIFY:
            size *= 2
        self._ops_seen.add(tag)
        self._add(node, start)
        return self._node(size, node.depth + 1)

    def _attestation(self, node: _Node) -> None:
        start = self._reader.at
        tag, payload = self._reader.take(8), _Reader(self._reader.varbytes(0, MAX_PAYLOAD))
        if tag == PENDING:
            _within(
                _URI_CHARACTERS.issuperset(payload.varbytes(0, MAX_URI)),
                "a calendar's URI has other characters than it may",
            )
            payload.end()
        elif tag in _HEIGHT_TAGS:
            _within(payload.varuint() < MAX_HEIGHT, f"a block height of {MAX_HEIGHT} or more")
            payload.end()
        self._add(node, start)
        _within(
            len(self._items) - self._nodes < MAX_ATTESTATIONS,
            f"the proof has more than {MAX_ATTESTATIONS} attestations",
        )

    def _add(self, node: _Node, start: int) -> None:
        item = self._reader.data[start : self._reader.at]
        # The library keeps the last of two equal operations, and so loses whatever is below the first.
        if item in node.seen:
            raise BadTimestamp(f"the item at byte {start} stands twice under one node")
        node.seen.add(item)
        self._items.append((node.depth, item))
