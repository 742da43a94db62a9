"""Tiles and bundles that are not in memory: read together, kept only when they are whole, and nobody waits for good."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from muniment.tiles import Tile
from muniment.tree import TileRows
from muniment_server.errors import StoreUnavailable
from muniment_server.read.cache import Cache
from muniment_server.read.loader import ColdBundles, ColdTiles
from muniment_server.tile_rows import hash_at

SIZE = 3 * 65_536 + 700
LOG = 7


class Tiles:
    """A store of tiles that notes each read."""

    def __init__(self, *, short: bool = False) -> None:
        self.reads: list[Sequence[Tile]] = []
        self.short = short
        self.down = False

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        assert log_id == LOG
        self.reads.append(tiles)
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("down")
        return {(t.level, t.index): self.content(t)[: 100 if self.short else None] for t in tiles}

    @staticmethod
    def content(tile: Tile) -> bytes:
        return (b"%04d%08d" % (tile.level, tile.index) * 700)[:8192]


class Waiting:
    """What those who asked were told."""

    def __init__(self) -> None:
        self.told: list[Exception | None] = []

    def __call__(self, error: Exception | None) -> None:
        self.told.append(error)

    async def until(self, count: int) -> list[Exception | None]:
        for _ in range(10_000):
            if len(self.told) >= count:
                return self.told
            await asyncio.sleep(0)
        raise AssertionError(f"{len(self.told)} of {count} were told")


def all_are_tied(level: int, index: int, rows: TileRows) -> bool:
    """What the tile above has is not looked at here."""
    return len(rows) == 9


@pytest.fixture
def cache() -> Cache:
    return Cache(4 << 20)


async def test_one_read_for_all_that_ask_in_one_turn(cache: Cache):
    store, waiting = Tiles(), Waiting()
    cold = ColdTiles(store, LOG, cache, all_are_tied)  # type: ignore[arg-type]
    for index in (0, 1, 300, 70_000):
        cold.proof(index, SIZE, waiting)
    cold.tile(0, 5, waiting)
    assert await waiting.until(5) == [None] * 5
    expected = [(0, 0), (0, 1), (0, 5), (0, 273), (1, 0), (1, 1)]
    assert [[(t.level, t.index) for t in read] for read in store.reads] == [expected]
    for level, index in expected:
        assert cache.data(LOG, level, index) == store.content(Tile(level, index, 256))
        assert (cache.get(LOG, level, index) is None) == ((level, index) == (0, 5)), "a file needs no inner nodes"
    cold.proof(5 * 256, SIZE, waiting)
    await waiting.until(6)
    assert cache.get(LOG, 0, 5), "inner nodes, when a proof needs them"
    assert len(store.reads) == 1, "from what is in memory"


async def test_a_tile_that_is_read_again_is_not_expanded_again(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    store, waiting = Tiles(), Waiting()
    cold = ColdTiles(store, LOG, cache, all_are_tied)  # type: ignore[arg-type]
    cold.proof(600, SIZE, waiting)
    await waiting.until(1)
    before = cache.get(LOG, 0, 2)
    for n in range(1000):
        cache.put_data(LOG, 0, 1000 + n, bytes(8192))
    assert cache.data(LOG, 0, 2) is None
    monkeypatch.setattr("muniment_server.read.loader.expand", lambda _: pytest.fail("its top is known"))
    cold.tile(0, 2, waiting)
    assert await waiting.until(2) == [None] * 2
    after = cache.get(LOG, 0, 2)
    assert before
    assert after
    assert [hash_at(after, row, 0) for row in range(8)] == [hash_at(before, row, 0) for row in range(8)]


async def test_many_are_read_in_parts_four_at_a_time_and_later_ones_with_the_next_part(cache: Cache):
    store, waiting = Tiles(), Waiting()
    cold = ColdTiles(store, LOG, cache, all_are_tied)  # type: ignore[arg-type]
    for index in range(200):
        cold.tile(0, index, waiting)
    while not store.reads:  # noqa: ASYNC110 - an event would have to be set by the store
        await asyncio.sleep(0)
    assert [len(read) for read in store.reads] == [32] * 4
    cold.tile(0, 200, waiting)
    assert await waiting.until(201) == [None] * 201
    assert [len(read) for read in store.reads] == [32] * 6 + [9]


async def test_what_is_not_whole_is_not_kept(cache: Cache):
    waiting = Waiting()
    cold = ColdTiles(Tiles(short=True), LOG, cache, all_are_tied)  # type: ignore[arg-type]
    cold.tile(0, 1, waiting)
    cold.proof(600, SIZE, waiting)
    assert await waiting.until(2) == [None, None], "whoever misses it says so"
    assert cache.size == 0


async def test_inner_nodes_that_the_tile_above_does_not_have_are_not_kept(cache: Cache):
    store, waiting, asked = Tiles(), Waiting(), []

    def tied(level: int, index: int, rows: TileRows) -> bool:
        asked.append((level, index))
        return level > 0

    cold = ColdTiles(store, LOG, cache, tied)  # type: ignore[arg-type]
    cold.proof(600, SIZE, waiting)
    assert await waiting.until(1) == [None]
    assert asked == [(1, 0), (0, 2)], "those above first"
    assert cache.get(LOG, 1, 0)
    assert cache.get(LOG, 0, 2) is None


async def test_all_who_wait_hear_of_an_error_and_the_next_one_is_served(cache: Cache):
    store, waiting = Tiles(), Waiting()
    store.down = True
    cold = ColdTiles(store, LOG, cache, all_are_tied)  # type: ignore[arg-type]
    cold.tile(0, 1, waiting)
    cold.proof(600, SIZE, waiting)
    assert [type(error) for error in await waiting.until(2)] == [StoreUnavailable] * 2
    store.down = False
    cold.tile(0, 1, waiting)
    assert (await waiting.until(3))[2] is None
    assert cache.data(LOG, 0, 1)


class Bundles:
    """A store of bundles that notes each read, and has not those of odd indices. A read goes on when :meth:`release` is called."""

    def __init__(self) -> None:
        self.reads: list[Sequence[int]] = []
        self.at_once = 0  # the most reads at a time
        self._running = 0
        self._go = asyncio.Event()
        self.down = False

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        assert log_id == LOG
        self.reads.append(indices)
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        await self._go.wait()
        self._running -= 1
        if self.down:
            raise StoreUnavailable("down")
        return {index: self.content(index) for index in indices if not index % 2}

    def release(self) -> None:
        self._go.set()

    @staticmethod
    def content(index: int) -> bytes:
        return b"%08d" % index * (10_000 if index == 4 else 1000)


class Read:
    """What those who asked for bundles were told, by the index they asked for."""

    def __init__(self, cold: ColdBundles) -> None:
        self.cold = cold
        self.told: list[tuple[int, bytes | Exception | None]] = []

    def ask(self, *indices: int) -> None:
        for index in indices:
            self.cold.bundle(index, lambda found, index=index: self.told.append((index, found)))  # type: ignore[misc]

    async def until(self, count: int) -> list[tuple[int, bytes | Exception | None]]:
        for _ in range(10_000):
            if len(self.told) >= count:
                return self.told
            await asyncio.sleep(0)
        raise AssertionError(f"{len(self.told)} of {count} were told")


async def test_bundles_are_read_together_and_told_as_they_are(cache: Cache):
    store = Bundles()
    store.release()
    read = Read(ColdBundles(store, LOG, cache))  # type: ignore[arg-type]
    read.ask(6, 2, 3, 4, 2)
    expected = [(index, store.content(index)) for index in (6, 2)] + [(3, None), (4, store.content(4))]
    assert await read.until(5) == [*expected, (2, store.content(2))]
    assert store.reads == [[2, 3, 4, 6]]
    assert cache.bundle(LOG, 2) == store.content(2)
    assert cache.bundle(LOG, 4) is None, "large bundles do not drive tiles out of memory"


async def test_many_bundles_are_read_in_parts_and_two_parts_at_a_time(cache: Cache):
    store = Bundles()
    read = Read(ColdBundles(store, LOG, cache))  # type: ignore[arg-type]
    read.ask(*range(0, 200, 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert [len(part) for part in store.reads] == [16, 16]
    store.release()
    await read.until(100)
    assert sorted(index for part in store.reads for index in part) == list(range(0, 200, 2))
    assert store.at_once == 2


async def test_all_who_wait_for_bundles_hear_of_an_error_and_the_next_one_is_served(cache: Cache):
    store = Bundles()
    store.down = True
    store.release()
    read = Read(ColdBundles(store, LOG, cache))  # type: ignore[arg-type]
    read.ask(*range(40))
    assert {type(found) for _, found in await read.until(40)} == {StoreUnavailable}
    store.down = False
    read.ask(8)
    assert (await read.until(41))[40] == (8, store.content(8))
