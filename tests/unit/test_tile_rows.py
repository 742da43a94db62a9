"""The server's way to an inclusion proof gives what the plan folds to: the plan is the definition (see muniment.tree)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from muniment.hashing import leaf_hash
from muniment.tree import Edge, TileRows, expand, grow, plan_inclusion
from muniment_server.tile_rows import compact, heap, path, siblings, with_top
from tests.unit.tilestore import TileStore

SMALL = 70
LARGE = 66_000
"""Three levels of tiles, the last two of them with one that is not full."""


@cache
def store() -> TileStore:
    """The tiles of the largest tree: smaller ones are its prefixes."""
    tiles = TileStore()
    tiles.apply(grow(Edge(), [leaf_hash(index.to_bytes(4, "big")) for index in range(LARGE)]))
    return tiles


@cache
def rows(level: int, index: int, width: int) -> TileRows:
    """The rows of a tile as it is in a tree where it is that wide."""
    return expand(store().tiles[level, index][: width * 32])


@cache
def edge(size: int) -> Edge:
    """The right edge of the tree of `size`."""
    return store().edge(size)


def quick(index: int, size: int, low: int = 0, high: int = 64, *, kept: str = "all") -> list[bytes]:
    """The server's proof in the tree of `size`, from full tiles that are kept in one of three ways."""

    def rows_of(level: int, tile: int) -> Sequence[bytes | bytearray]:
        width = min(256, (size >> 8 * level) - 256 * tile)
        found = rows(level, tile, width)
        if width < 256 or kept == "all":
            return found
        less, top = compact(found)
        return less if kept == "compact" else with_top(bytes(found[0]), top)

    return path(index, size, edge(size).tails, rows_of, low, high)


def planned(index: int, size: int) -> list[bytes]:
    """The same proof by its definition."""
    return store().prove(plan_inclusion(index, size), size)


def test_every_proof_of_every_small_tree() -> None:
    for size in range(1, SMALL + 1):
        for index in range(size):
            assert quick(index, size) == planned(index, size)


@st.composite
def leaves(draw: st.DrawFn) -> tuple[int, int]:
    """An index and the size of a tree that has it, often where tiles begin and end."""
    edges = st.sampled_from([1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_792, LARGE])
    size = draw(edges | st.integers(1, LARGE))
    near = st.sampled_from([0, size - 1, size // 2, size & -256, size & -65_536]).filter(lambda index: index < size)
    return draw(near | st.integers(0, size - 1)), size


@given(leaves(), st.sampled_from(["all", "compact", "top"]))
def test_proofs_that_span_tiles(leaf: tuple[int, int], kept: str) -> None:
    assert quick(*leaf, kept=kept) == planned(*leaf)


@given(leaves(), st.integers(0, 17))
def test_a_proof_in_two_parts_is_the_proof(leaf: tuple[int, int], height: int) -> None:
    """The server keeps the upper part of proofs: what lies below a height and what lies above it make up the whole."""
    assert quick(*leaf, 0, height) + quick(*leaf, height) == planned(*leaf)


@given(st.integers(0, 255), st.integers(0, 256))
def test_siblings_in_a_heap_are_the_proof_within_a_full_tile(position: int, tile: int) -> None:
    index = (tile << 8) + position
    assert siblings(heap(rows(0, tile, 256)), position) == planned(index, LARGE)[:8]
