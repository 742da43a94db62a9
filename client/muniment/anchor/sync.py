"""Brings a header file up to a source: plan from heights and hashes, fetch, check, replace.

Any source will do: it can withhold headers, but what it gives is checked from genesis, and a chain of ours gives way
only to one with more work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muniment.anchor.chain import Network
from muniment.anchor.header import HEADER_SIZE
from muniment.anchor.headerfile import HeaderFile
from muniment.errors import BadHeaderChain, SourceUnavailable

SAVE = 65_536
"""Headers fetched between two saves: what an interrupted first sync may lose."""


class HeaderFeed(Protocol):
    """A source that can give many headers. Its methods raise SourceUnavailable."""

    name: str

    def tip(self) -> int:
        """Return the height of the last header."""
        ...

    def hash_at(self, height: int) -> bytes:
        """Return the hash at a height, in internal order. Raises NoHeader above the tip."""
        ...

    def headers(self, start: int, count: int) -> bytes:
        """Return 1 to `count` raw headers from height `start` on, 0 <= start <= tip."""
        ...


class FileFeed:
    """Another header file as a feed: checked from genesis first."""

    def __init__(self, path: str | Path, network: Network) -> None:
        self._file = HeaderFile(path, network)
        self.name = f"header file {self._file.path}"
        if not self._file.chain.count:
            raise SourceUnavailable(f"there are no headers in {path}")

    def tip(self) -> int:
        """Return the height of its last header."""
        return self._file.chain.count - 1

    def hash_at(self, height: int) -> bytes:
        """Return the hash at a height."""
        return self._file.header(height).hash

    def headers(self, start: int, count: int) -> bytes:
        """Return headers from height `start` on."""
        return self._file.read(start, min(start + count, self._file.chain.count))


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync did."""

    count: int
    """Headers in the file now."""
    added: int
    """New headers, those of a fork included."""
    dropped: int
    """Headers that a fork with more work replaced."""
    tip: bytes
    """Hash of the last header, in internal order."""


def sync(file: HeaderFile, feed: HeaderFeed, advance: Callable[[int], object] = lambda _: None) -> Synced:
    """Bring `file` up to `feed`, and return what changed.

    Safe to interrupt: what was saved stays, and the next sync goes on from it. `advance` is told how many headers have
    come. Raises BadHeaderChain when the feed's headers break a rule, or fork from ours without having more work;
    SourceUnavailable when the feed fails.
    """
    before, last = file.refresh(), feed.tip()
    keep = _common(file, feed, last)
    if keep == last + 1:  # the feed has nothing that we have not
        return Synced(before.count, 0, 0, before.tip)
    tail = bytearray()
    fork = keep < before.count
    fetched = 0
    try:
        while keep + len(tail) // HEADER_SIZE <= last:
            start = keep + len(tail) // HEADER_SIZE
            batch = _batch(feed, start, last + 1 - start)
            tail += batch
            fetched += len(batch) // HEADER_SIZE
            advance(len(batch) // HEADER_SIZE)
            # A fork is weighed as a whole; what only goes on is saved now and then.
            if not fork and len(tail) >= SAVE * HEADER_SIZE:
                keep = file.replace(keep, bytes(tail)).count
                tail.clear()
    except (SourceUnavailable, KeyboardInterrupt):
        if tail and not fork:
            file.replace(keep, bytes(tail))
        raise
    same = _same(tail, file.read(keep, before.count)) if fork else 0  # the search for the fork stepped too far back
    after = file.replace(keep + same, bytes(tail[same * HEADER_SIZE :])) if tail else file.chain
    return Synced(after.count, fetched - same, before.count - keep - same if fork else 0, after.tip)


def _batch(feed: HeaderFeed, start: int, left: int) -> bytes:
    batch = feed.headers(start, left)
    if not batch or len(batch) % HEADER_SIZE or len(batch) > left * HEADER_SIZE:
        raise SourceUnavailable(f"{feed.name} has no header {start}, below its tip")
    return batch


def _same(tail: bytes | bytearray, ours: bytes) -> int:
    """Return how many headers two runs of headers have in common at their start."""
    length = min(len(tail), len(ours))
    starts = range(0, length - length % HEADER_SIZE, HEADER_SIZE)
    differ = (at for at in starts if tail[at : at + HEADER_SIZE] != ours[at : at + HEADER_SIZE])
    return next(differ, starts.stop) // HEADER_SIZE


def _common(file: HeaderFile, feed: HeaderFeed, last: int) -> int:
    """Return how many headers the file and the feed have in common, found by steps back that double."""
    height, step = min(file.chain.count - 1, last), 1
    while height >= 0:
        if feed.hash_at(height) == file.header(height).hash:
            return height + 1
        if height == 0:
            raise BadHeaderChain(f"{feed.name} is of another network: its genesis is not ours")
        height, step = max(0, height - step), step * 2
    return 0
