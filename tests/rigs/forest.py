"""Two signed logs of 70,000 entries to spoil: proofs, receipts and tiles of any size come from the oracle, never from the code under test."""

from __future__ import annotations

from functools import cache
from random import Random

from muniment.event import event_leaf, format_time
from muniment.note import SigningKey
from muniment.tiles import Bundle, Tile, encode_bundle, width_at
from tests.unit.samples import EVENTS, NOON, Logged, SampleLog, logged_event

LARGEST = 70_000
EDGES = [
    *(1, 2, 3, 4, 5, 127, 128, 129), *range(254, 259), *range(510, 515), *(1023, 1024, 1025), *range(65_534, 65_539),
    *range(65_790, 65_795), *range(66_046, 66_050), 69_999, LARGEST,
]  # fmt: skip
"""Sizes around powers of two and of 256, and around the first tiles that fill after 256**2."""


@cache
def events() -> SampleLog:
    """A log of events; entry i holds event i % 8 of the samples, stamped i ms after noon, so no two leaves are equal."""
    pool = [logged_event(event, number) for number, event in enumerate(EVENTS * 2)]
    entries = []
    for index in range(LARGEST):
        like = pool[index % len(pool)]
        if like.commitment is None:
            raise AssertionError("a sample event has a commitment")
        leaf = event_leaf(like.commitment.digest(), format_time(NOON + index))
        entries.append(Logged(leaf, like.event, like.commitment, like.disclosures))
    return SampleLog(entries)


@cache
def raws() -> SampleLog:
    """A log of raw leaves: 1 to 40 bytes, now and then 300 or more."""
    rng = Random(1)
    leaves = [b"%d " % index + rng.randbytes(rng.choice([0, 3, 30, 30, 300])) for index in range(LARGEST)]
    return SampleLog([Logged(leaf) for leaf in leaves], SigningKey("log.example/raw", b"r" * 32))


def any_size(rng: Random, least: int = 1) -> int:
    """Draw a size up to 70,000: an edge, a small one, or any."""
    while True:
        size = rng.choice([rng.choice(EDGES), rng.choice(EDGES), rng.randint(1, 300), rng.randint(1, LARGEST)])
        if size >= least:
            return size


def any_index(rng: Random, size: int) -> int:
    """Draw an index below `size`: the first, the last, one beside a tile's edge, or any."""
    near = rng.randrange(size) // 256 * 256 + rng.choice([-1, 0, 1])
    return max(0, min(size - 1, rng.choice([0, size - 1, size // 2, near, rng.randrange(size)])))


def tile_bytes(log: SampleLog, tile: Tile) -> bytes:
    """The hashes of a tile, by the definition of C2SP tlog-tiles."""
    span = 256**tile.level
    first = tile.index * 256
    return b"".join(log.tree.mth(at * span, (at + 1) * span) for at in range(first, first + tile.width))


def bundle_bytes(log: SampleLog, bundle: Bundle) -> bytes:
    """The leaves of an entry bundle."""
    first = bundle.index * 256
    return encode_bundle([entry.leaf for entry in log.entries[first : first + bundle.width]])


def bundle_of(index: int, size: int) -> Bundle:
    """The bundle that holds entry `index` in the tree of `size`."""
    return Bundle(index // 256, width_at(0, index // 256, size))
