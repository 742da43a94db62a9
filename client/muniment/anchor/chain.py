"""The rules of the header chain, from genesis: what makes a file of headers more than a list of numbers.

Checked are links, proof of work, difficulty, times, pinned blocks and total work; not transactions. Who forges a header
has to do the work of all blocks after it again. :mod:`muniment.anchor.headerfile` keeps such chains on disk.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from muniment.anchor.header import HEADER_SIZE, Header, bits_of, block_hash, display, target_of, work_of
from muniment.errors import BadHeaderChain

_FIELDS = struct.Struct("<4x32s32xI4s4x")  # previous hash, time, bits
MEDIAN_SPAN = 11
MILESTONE = 2016
"""A chain remembers the hash of every so many-th header: enough to recheck any stretch between two of them."""


@dataclass(frozen=True, slots=True)
class Network:
    """The parameters of a chain. Hashes are in internal order."""

    name: str
    limit: int
    """Bits of the easiest target, which are those of genesis too."""
    pins: Mapping[int, bytes]
    """Height -> hash that the header there must have. Has at least genesis, height 0."""
    interval: int = 0
    """Headers between two changes of difficulty; 0: it never changes."""
    spacing: int = 600
    """Seconds that the difficulty aims at between two headers."""
    minimum_work: int = 0
    """A chain with less total work is not believed, however valid."""

    @property
    def timespan(self) -> int:
        """Seconds that `interval` headers should take."""
        return self.interval * self.spacing


def _hash(shown: str) -> bytes:
    return bytes.fromhex(shown)[::-1]


MAIN = Network(
    "main",
    0x1D00FFFF,
    {
        0: _hash("000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"),
        358391: _hash("000000000000000003e892881a8cdcdc117c06d444057c98b6f04a9ee75a2319"),
        428648: _hash("000000000000000000ca478eb185560e1f1178746ee05e3d9bc9a31765f6f4a3"),
    },
    interval=2016,
    minimum_work=0x63C4EBD298DB40AF57541800,  # of the chain up to block 824,000 (2024), as Bitcoin Core 27 has it
)
REGTEST = Network("regtest", 0x207FFFFF, {0: _hash("0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206")})
NETWORKS = {network.name: network for network in (MAIN, REGTEST)}


def next_bits(network: Network, bits: int, seconds: int) -> int:
    """Return the bits after an interval that had `bits` and took `seconds` from its first header to its last."""
    span = network.timespan
    clamped = max(span // 4, min(seconds, span * 4))
    return bits_of(min(target_of(bits) * clamped // span, target_of(network.limit)))


@dataclass(slots=True)
class HeaderChain:
    """What is known after checking the headers [0, count) of a network. Not safe to share between threads."""

    network: Network
    count: int = 0
    work: int = 0
    """Sum of the work of all headers, in hashes."""
    tip: bytes = bytes(32)
    """Hash of the last header."""
    bits: int = 0
    """Bits of the last header."""
    times: tuple[int, ...] = ()
    """Times of the last 11 headers, oldest first."""
    interval_start: int = 0
    """Time of the first header of the interval that the last header is in."""
    milestones: list[bytes] = field(default_factory=list)
    """milestones[i] is the hash of the header at height (i + 1) * MILESTONE - 1."""

    def copy(self) -> HeaderChain:
        """Return a chain that can go on without this one."""
        return HeaderChain(
            self.network,
            self.count,
            self.work,
            self.tip,
            self.bits,
            self.times,
            self.interval_start,
            [*self.milestones],
        )

    def extend(self, data: bytes) -> None:
        """Check the headers in `data`, 80 bytes each, as the next ones.

        Raises BadHeaderChain, and then nothing has changed. The rules, for a header at height h:

        1. Its previous hash is the hash of header h-1 (zeros at genesis).
        2. Its bits are those of h-1; at multiples of the interval, those that the times of the last interval call for.
        3. Its hash is not above the target.
        4. Its time is later than the median of the up to 11 headers before.
        5. Where a hash is pinned for h, it has that hash.
        """
        if len(data) % HEADER_SIZE:
            raise BadHeaderChain(f"{len(data)} bytes are not a whole number of headers of {HEADER_SIZE} bytes")
        network, interval = self.network, self.network.interval
        tip, total, start = self.tip, self.work, self.interval_start
        times, latest = deque(self.times, MEDIAN_SPAN), max(self.times, default=-1)
        bits = self.bits or network.limit
        bits_bytes, target, work = _difficulty(bits)
        rows = _FIELDS.iter_unpack(data)
        for height, (previous, seconds, said) in enumerate(rows, self.count):
            if interval and height % interval == 0:
                if height:
                    bits = next_bits(network, bits, times[-1] - start)
                    bits_bytes, target, work = _difficulty(bits)
                start = seconds
            if previous != tip:  # 1
                raise BadHeaderChain(f"header {height} does not follow block {display(tip)}")
            if said != bits_bytes:  # 2
                raise BadHeaderChain(f"header {height} has bits {display(said)}; the difficulty rules say {bits:08x}")
            at = (height - self.count) * HEADER_SIZE
            tip = sha256(sha256(data[at : at + HEADER_SIZE]).digest()).digest()
            if tip[::-1] > target:  # 3
                raise BadHeaderChain(f"header {height} ({display(tip)}) has not the work that its bits ask for")
            if seconds > latest:
                latest = seconds  # later than all is later than their median
            elif seconds <= sorted(times)[len(times) // 2]:  # 4
                raise BadHeaderChain(f"header {height} is not later than the median of the {len(times)} before it")
            times.append(seconds)
            total += work
        self._check_pins(data)  # 5
        self.milestones += _milestones(data, self.count, tip)
        self.count += len(data) // HEADER_SIZE
        self.tip, self.work, self.interval_start = tip, total, start
        self.times, self.bits = tuple(times), bits

    def _check_pins(self, data: bytes) -> None:
        for height, pinned in self.network.pins.items():
            at = (height - self.count) * HEADER_SIZE
            if 0 <= at < len(data) and (found := block_hash(data[at : at + HEADER_SIZE])) != pinned:
                raise BadHeaderChain(f"header {height} is {display(found)}; block {height} is {display(pinned)}")

    def require_work(self) -> None:
        """Raise BadHeaderChain when the whole chain has less work than its network must have by now."""
        if not self.count or self.work < self.network.minimum_work:
            raise BadHeaderChain(
                f"{self.count:,} headers with 2^{self.work.bit_length()} hashes of work are too little to be the chain"
                f" of {self.network.name}: at least 2^{self.network.minimum_work.bit_length()} are known"
            )

    def proven(self, height: int, data: bytes) -> Header:
        """Return the header at `height`, 0 <= height < count, when `data` leads to a known hash.

        `data` are the headers from it up to `stop_of(height)`. Raises BadHeaderChain when they do not: these are not
        the headers that were checked.
        """
        stop = self.stop_of(height)
        known = self.tip if stop == self.count else self.milestones[stop // MILESTONE - 1]
        hashes = [block_hash(data[at : at + HEADER_SIZE]) for at in range(0, len(data), HEADER_SIZE)]
        linked = all(data[at * 80 + 84 : at * 80 + 116] == hashes[at] for at in range(len(hashes) - 1))
        if len(data) != (stop - height) * HEADER_SIZE or not linked or hashes[-1] != known:
            raise BadHeaderChain(f"the headers from {height} on are not those that were checked before")
        return Header(data[:HEADER_SIZE])

    def stop_of(self, height: int) -> int:
        """Return the height after the next header at or after `height` whose hash is remembered."""
        return min((height // MILESTONE + 1) * MILESTONE, self.count)


def _difficulty(bits: int) -> tuple[bytes, bytes, int]:
    """Return bits as they stand in a header, their target, and the work of a header.

    The target is 32 bytes, which compare as numbers do.
    """
    target = target_of(bits)
    return bits.to_bytes(4, "little"), target.to_bytes(32, "big"), work_of(target)


def _milestones(data: bytes, first: int, tip: bytes) -> Iterator[bytes]:
    """Yield the hashes of the headers just below multiples of MILESTONE.

    `data` has the headers from height `first` on.
    """
    count = len(data) // HEADER_SIZE
    for height in range(-(-(first + 1) // MILESTONE) * MILESTONE, first + count + 1, MILESTONE):
        at = (height - first) * HEADER_SIZE
        yield data[at + 4 : at + 36] if height < first + count else tip
