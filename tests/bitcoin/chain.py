"""A block chain mined here at regtest difficulty (about two hashes a block): real headers, real Merkle roots, reorgs on demand."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

BITS = 0x207FFFFF
_GENESIS_ROOT = bytes.fromhex("4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b")[::-1]
GENESIS = struct.pack("<i32s32sIII", 1, bytes(32), _GENESIS_ROOT, 1296688602, BITS, 2)
"""The regtest genesis block, as every node has it."""


def sha256d(data: bytes) -> bytes:
    return sha256(sha256(data).digest()).digest()


def target_of(bits: int) -> int:
    return (bits & 0x7FFFFF) << 8 * ((bits >> 24) - 3)


def solve(previous: bytes, root: bytes, seconds: int, bits: int = BITS) -> bytes:
    """Return a header of 80 bytes with its proof of work. `previous` and `root` are in internal order."""
    start = struct.pack("<i32s32sII", 0x20000000, previous, root, seconds, bits)
    target = target_of(bits)
    for nonce in range(2**32):
        raw = start + struct.pack("<I", nonce)
        if int.from_bytes(sha256d(raw), "little") <= target:
            return raw
    raise AssertionError("no nonce solves this block")


def merkle_levels(txids: Sequence[bytes]) -> list[list[bytes]]:
    """Return the levels of a block's Merkle tree, transactions first, root last. An odd level repeats its last hash."""
    levels = [list(txids)]
    while len(levels[-1]) > 1:
        level = levels[-1] + levels[-1][-1:] * (len(levels[-1]) % 2)
        levels[-1] = level
        levels.append([sha256d(level[at] + level[at + 1]) for at in range(0, len(level), 2)])
    return levels


@dataclass(frozen=True)
class Block:
    height: int
    raw: bytes
    transactions: tuple[bytes, ...]

    @property
    def hash(self) -> bytes:
        return sha256d(self.raw)

    @property
    def block_hash(self) -> str:
        """The hash as shown to people."""
        return self.hash[::-1].hex()

    @property
    def root(self) -> bytes:
        return self.raw[36:68]

    @property
    def time(self) -> int:
        return int.from_bytes(self.raw[68:72], "little")

    def path(self, transaction: bytes) -> list[tuple[bool, bytes]]:
        """Return the Merkle path of a transaction: (the sibling stands to the right, sibling) from the txid up to the root."""
        levels = merkle_levels([sha256d(one) for one in self.transactions])
        at = self.transactions.index(transaction)
        found = []
        for level in levels[:-1]:
            found.append((at % 2 == 0, level[at ^ 1]))
            at //= 2
        return found


class Chain:
    """Blocks from genesis; safe to share between threads. Transactions are any bytes of more than 64 (not a Merkle node)."""

    def __init__(self, blocks: int = 0, clock: Callable[[], float] = time.time) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._waiting: list[bytes] = []
        self.blocks = [Block(0, GENESIS, ())]
        self._heights = {self.blocks[0].hash: 0}
        self._places: dict[bytes, int] = {}  # transaction -> height
        self.mine(blocks)

    @property
    def tip(self) -> Block:
        return self.blocks[-1]

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    @property
    def file(self) -> bytes:
        """The header file: all headers from genesis."""
        with self._lock:
            return b"".join(block.raw for block in self.blocks)

    def at(self, height: int) -> Block | None:
        with self._lock:
            return self.blocks[height] if 0 <= height < len(self.blocks) else None

    def by_hash(self, block_hash: str) -> Block | None:
        """Return the block of a hash as shown to people, if it is in the chain."""
        with self._lock:
            height = self._heights.get(bytes.fromhex(block_hash)[::-1])
            return None if height is None else self.blocks[height]

    def submit(self, transaction: bytes) -> None:
        """Let a transaction wait for the next block."""
        with self._lock:
            self._waiting.append(transaction)

    def find(self, transaction: bytes) -> Block | None:
        """Return the block a transaction is in."""
        with self._lock:
            return self.at(self._places.get(transaction, -1))

    def mine(self, count: int = 1) -> Block:
        """Add blocks; the first takes all transactions that wait. Return the first new one (the tip when `count` is 0)."""
        with self._lock:
            first = len(self.blocks)
            for _ in range(count):
                self._add(tuple(self._waiting))
                self._waiting = []
            return self.blocks[min(first, len(self.blocks) - 1)]

    def reorg(self, depth: int, longer_by: int = 1) -> list[Block]:
        """Replace the last `depth` blocks by `depth + longer_by` empty ones; their transactions wait again. Return the dropped."""
        with self._lock:
            assert 0 < depth < len(self.blocks)
            dropped = self.blocks[-depth:]
            del self.blocks[-depth:]
            for block in dropped:
                del self._heights[block.hash]
                for one in block.transactions:
                    del self._places[one]
            for _ in range(depth + longer_by):
                self._add(())
            self._waiting = [one for block in dropped for one in block.transactions[1:]] + self._waiting
            return dropped

    def _add(self, transactions: tuple[bytes, ...]) -> None:
        height = len(self.blocks)
        coinbase = b"coinbase" + struct.pack("<Q", height) + os.urandom(64)
        held = (coinbase, *transactions)
        root = merkle_levels([sha256d(one) for one in held])[-1][0]
        seconds = max(self.tip.time + 1, int(self._clock()))
        block = Block(height, solve(self.tip.hash, root, seconds), held)
        self.blocks.append(block)
        self._heights[block.hash] = height
        self._places |= dict.fromkeys(held, height)
