"""Growth: in whatever steps a tree grows, its tiles are those of tlog-tiles, and what was there before stays as it was."""

from __future__ import annotations

import copy
import random
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.errors import BadProof
from muniment.hashing import leaf_hash, node_hash
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.tiles import Tile, tiles_at, width_at
from muniment.tree import (
    Edge,
    Node,
    expand,
    fold,
    grow,
    hash_in,
    nodes_of,
    partial_tiles,
    place,
    plan_consistency,
    plan_inclusion,
    plan_root,
)
from tests.oracle import Tree
from tests.unit.tilestore import TileStore

LARGE = 70_000
LARGE_SIZES = [254, 255, 256, 257, 258, 65_534, 65_535, 65_536, 65_537, 65_538, LARGE]


@cache
def large_tree() -> Tree:
    return Tree([index.to_bytes(4, "big") for index in range(LARGE)])


@cache
def large_hashes() -> list[bytes]:
    return [leaf_hash(leaf) for leaf in large_tree().leaves]


@cache
def levels_of(size: int) -> list[list[bytes]]:
    """Hash by hash what each tile level holds: level l + 1 has one hash for every 256 hashes of level l, paired up eight times."""
    levels = [large_hashes()[:size]]
    while len(levels[-1]) >= 256:
        row = levels[-1]
        for _ in range(8):
            row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
        levels.append(row)
    return levels


def assert_stored(store: TileStore, size: int) -> None:
    """Check that `store` holds exactly the tiles of the tree of `size`, hash by hash."""
    expected = {
        (level, index // 256): b"".join(hashes[index : index + 256])
        for level, hashes in enumerate(levels_of(size))
        for index in range(0, len(hashes), 256)
    }
    assert store.tiles == expected
    assert [tile[:2] for tile in tiles_at(size)] == sorted(expected)
    for tile in tiles_at(size):
        assert tile.width == width_at(tile.level, tile.index, size) == len(expected[tile[:2]]) // 32
        assert 1 <= tile.width <= 256


def same(one: Edge, other: Edge) -> bool:
    """Whether two edges are equal in every row."""
    return one.size == other.size and one.levels == other.levels


@cache
def large_store() -> TileStore:
    store = TileStore()
    store.apply(grow(Edge(), large_hashes()))
    return store


def test_tiles_of_every_size_up_to_600() -> None:
    store, edge = TileStore(), Edge()
    for size in range(1, 601):
        growth = grow(edge, [large_hashes()[size - 1]])
        store.apply(growth)
        edge = growth.edge
        assert edge.size == size
        assert_stored(store, size)
        assert same(store.edge(size), edge)
        assert [len(rows[0]) // 32 for rows in edge.levels] == [tile.width for tile in partial_tiles(size)]


def test_tiles_around_powers_of_256_and_of_a_large_tree() -> None:
    store, edge = TileStore(), Edge()
    for before, size in pairwise([0, *LARGE_SIZES]):
        growth = grow(edge, large_hashes()[before:size])
        store.apply(growth)
        edge = growth.edge
        assert_stored(store, size)
        assert same(store.edge(size), edge)
        assert edge.root() == large_tree().root(size)
    assert store.tiles == large_store().tiles


def test_tiles_of_70_000_leaves_are_those_the_specification_counts() -> None:
    widths: dict[int, list[int]] = {}
    for tile in tiles_at(LARGE):
        widths.setdefault(tile.level, []).append(tile.width)
    assert widths == {0: [256] * 273 + [112], 1: [256, 17], 2: [1]}
    assert list(tiles_at(256)) == [Tile(0, 0, 256), Tile(1, 0, 1)]
    assert list(tiles_at(0)) == []


def test_every_hash_of_a_tile_is_the_root_of_its_leaves() -> None:
    """Hash i of tile n at level l is MTH(D[(n*256+i) * 256**l : (n*256+i+1) * 256**l])."""
    for (level, index), data in large_store().tiles.items():
        if level:
            for at in range(len(data) // 32):
                low = (index * 256 + at) << 8 * level
                assert data[at * 32 :][:32] == large_tree().mth(low, low + 256**level)


def test_an_earlier_size_is_served_from_the_tiles_of_a_later_one() -> None:
    for size in LARGE_SIZES:
        for tile in tiles_at(size):
            assert len(large_store().fetch(tile)) == 32 * tile.width
        assert large_store().edge(size).root() == large_tree().root(size)
        assert large_store().prove(plan_root(size), size) == [large_tree().root(size)]


def test_proofs_that_span_tiles() -> None:
    rng = random.Random(70)
    tree, store = large_tree(), large_store()
    for size in [*LARGE_SIZES, *(rng.randrange(257, LARGE) for _ in range(60))]:
        for index in {0, size - 1, *(rng.randrange(size) for _ in range(3))}:
            proof = store.prove(plan_inclusion(index, size), size)
            assert proof == tree.path(index, size)
            verify_inclusion(index, size, tree.leaf_hash(index), proof, tree.root(size))
        for first in {1, size, *(rng.randrange(1, size + 1) for _ in range(3))}:
            proof = store.prove(plan_consistency(first, size), size)
            assert proof == tree.proof(first, size)
            verify_consistency(first, size, tree.root(first), tree.root(size), proof)


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, 700))
def test_batches_make_the_tree_that_one_step_makes(batches: list[int], start: int) -> None:
    hashes = large_hashes()
    stepwise, store = Edge(), TileStore()
    growth = grow(stepwise, hashes[:start])
    store.apply(growth)
    stepwise = growth.edge
    for batch in batches:
        growth = grow(stepwise, iter(hashes[stepwise.size : stepwise.size + batch]))
        assert growth.edge.size == stepwise.size + batch
        store.apply(growth)
        stepwise = growth.edge
    at_once = grow(Edge(), hashes[: stepwise.size])
    assert same(stepwise, at_once.edge)
    assert store.tiles == {(tile.level, tile.index): tile.data for tile in at_once.tiles}
    assert stepwise.root() == large_tree().root(stepwise.size)


@given(st.integers(0, 1200), st.integers(0, 600))
def test_growth_changes_nothing_that_was_there(start: int, more: int) -> None:
    edge = grow(Edge(), large_hashes()[:start]).edge
    before = copy.deepcopy(edge.levels)
    growth = grow(edge, large_hashes()[start : start + more])
    again = grow(growth.edge, large_hashes()[start + more : start + more + 300])
    assert edge.levels == before
    assert edge.size == start
    assert same(growth.edge, grow(edge, large_hashes()[start : start + more]).edge), "a later growth changed it"
    assert again.edge.size == start + more + 300


@given(st.integers(0, 66_000), st.integers(1, 400))
def test_a_growth_answers_for_its_own_leaves(start: int, more: int) -> None:
    """The sequencer proves the new leaves from the growth and, for tiles it did not touch, from the store."""
    size = min(start + more, LARGE)
    growth = grow(large_store().edge(start), large_hashes()[start:size])
    for index in {start, size - 1}:
        plan = plan_inclusion(index, size)
        stored = large_store().lookup(plan, size)

        def find(node: Node, stored: object = stored) -> bytes:
            level, tile, _, _ = place(node)
            return growth.lookup(node) if (level, tile) in growth.rows else stored(node)  # type: ignore[operator]

        assert plan.fold(find) == large_tree().path(index, size)
    untouched = Node(0, (start // 256 - 1) * 256)
    if start >= 256:
        with pytest.raises(KeyError):
            growth.lookup(untouched)


def test_growing_by_nothing_stores_nothing() -> None:
    for size in (0, 1, 255, 256, 70_000):
        growth = grow(large_store().edge(size), [])
        assert growth.tiles == []
        assert same(growth.edge, large_store().edge(size))


def test_an_edge_needs_the_tiles_it_says_it_has() -> None:
    size = 600
    good = {tile[:2]: large_store().tiles[tile[:2]][: 32 * tile.width] for tile in partial_tiles(size)}
    assert Edge.of(size, good).root() == large_tree().root(size)
    assert Edge.of(size, {key: data + bytes(64) for key, data in good.items()}).root() == large_tree().root(size)
    for key, data in good.items():
        without = {other: value for other, value in good.items() if other != key}
        for spoiled in (without, good | {key: data[:-32]}, good | {key: data[:-1]}, good | {key: b""}):
            with pytest.raises(BadProof, match=f"tile {key[0]}/{key[1]} has"):
                Edge.of(size, spoiled)


def test_expand_agrees_with_growth() -> None:
    for width in (1, 2, 3, 64, 127, 128, 255, 256):
        rows = expand(b"".join(large_hashes()[:width]))
        assert rows == grow(Edge(), large_hashes()[:width]).rows[0, 0]
        assert len(rows) == 9
        for height, row in enumerate(rows):
            assert len(row) == 32 * (width >> height)


def test_a_hash_outside_a_tile_is_an_error_of_ours() -> None:
    rows = expand(b"".join(large_hashes()[:3]))
    assert hash_in(rows, 1, 0) == large_tree().mth(0, 2)
    for row, position in ((0, 3), (1, 1), (8, 0)):
        with pytest.raises(AssertionError, match="bad index math"):
            hash_in(rows, row, position)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_nodes_cover_a_range_once(low: int, length: int) -> None:
    align = 1 << max(0, (length - 1).bit_length())
    low -= low % align
    at = low
    heights = []
    for node in nodes_of(low, low + length):
        assert node.index << node.height == at
        at += 1 << node.height
        heights.append(node.height)
    assert at == low + length
    assert heights == sorted(set(heights), reverse=True)


@given(st.integers(0, 62), st.integers(0, 2**20))
def test_a_node_lies_where_its_leaves_are(height: int, index: int) -> None:
    level, tile, row, position = place(Node(height, index))
    assert level == height // 8
    assert 0 <= row < 8
    first = (tile * 256 + (position << row)) << 8 * level
    assert first == index << height
    assert (position + 1) << row <= 256


def test_fold_is_the_root_of_its_parts() -> None:
    tree = large_tree()
    for low, high in ((0, 1), (0, 7), (0, 600), (512, 1000)):
        parts = [tree.mth(node.index << node.height, node.index + 1 << node.height) for node in nodes_of(low, high)]
        assert fold(parts) == tree.mth(low, high)


@given(st.integers(0, 1200), st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_growths_one_after_the_other_are_one_growth(start: int, parts: list[int]) -> None:
    hashes, edge = large_hashes(), grow(Edge(), large_hashes()[:start]).edge
    joined = grow(edge, hashes[start : start + parts[0]])
    for part in parts[1:]:
        size = joined.edge.size
        joined = joined.then(grow(joined.edge, hashes[size : size + part]))
    at_once = grow(edge, hashes[start : start + sum(parts)])
    assert same(joined.edge, at_once.edge)
    assert sorted(joined.tiles) == sorted(at_once.tiles)
    assert joined.rows == at_once.rows
