"""A log as the routes see it: published in time, proved at every size, and honest about what is missing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from muniment.event import parse_leaf
from muniment.hashing import LeafHash, RootHash, leaf_hash
from muniment.policy import LogKey, Policy
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.tiles import Bundle, Tile, decode_bundle
from muniment.tree import TileRows, expand, hash_in
from muniment_server.errors import Corrupt, NotFound, OutcomeUnknown, Refused, StoreError, StoreUnavailable
from muniment_server.follow import follower, publisher
from muniment_server.log import Log
from muniment_server.read import heads
from muniment_server.read.cache import Cache
from muniment_server.read.flow import run
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.telemetry import Metrics
from muniment_server.tile_rows import compact, hash_at, heap, path, siblings, with_top
from muniment_server.web.problems import CODES
from muniment_server.write.admission import draft_event
from muniment_server.write.submission import Submission
from tests.live import PATIENCE
from tests.oracle import Tree
from tests.service.audit import Naive, audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import Bench, NewEntry, Rig, event, genesis, raw

Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path) -> AsyncIterator[Make]:
    """Open logs of a bench as a server would; closed after the test."""
    made: list[Log] = []

    async def start(
        bench: Bench,
        *,
        store: Store | None = None,
        read_only: bool = False,
        cache: Cache | None = None,
        **settings: Any,
    ) -> Log:
        store = store or bench.rig.store
        sequencer = None if read_only else bench.new_sequencer(store)
        parts = {"publish_interval": 0.05} | settings
        log = Log(store, bench.row, Settings(data=tmp_path, **parts), Metrics(), cache or Cache(2**20), sequencer)
        made.append(log)
        await log.start()
        return log

    yield start
    for log in made:
        await log.close()


async def crash(log: Log) -> None:
    """Stop a log as kill -9 does: nothing is answered, nothing is published."""
    for task in (*(one._task for one in log._followers), log.batcher._task):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    log._followers, log.publisher, log.batcher, log.sequencer = [], None, None, None


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def published_size(bench: Bench, store: Store | None = None) -> int:
    found = await (store or bench.rig.store).checkpoints.checkpoint(bench.log_id)
    return found.size if found else 0


def trusting(bench: Bench) -> Policy:
    return Policy((LogKey(bench.key.vkey),))


async def not_there(awaitable: Any) -> NotFound:
    with pytest.raises(NotFound) as caught:
        await awaitable
    assert caught.value.hint
    return caught.value


# --- publication --------------------------------------------------------------------------------------------------------


class Pauses:
    """What the followers' module knows as asyncio. Writes down how long the publisher means to sleep."""

    def __init__(self, happened: list[tuple[str, float]]) -> None:
        self._happened = happened

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        publishes = asyncio.current_task().get_name().startswith("publisher") and seconds
        noted = self._happened if publishes else []
        noted.append(("pause", seconds))
        await asyncio.sleep(seconds)
        noted.append(("awake", 0.0))


async def test_every_answer_is_published_within_the_interval(rig: Rig, make: Make, monkeypatch: pytest.MonkeyPatch):
    """Between an answer and its publication is one pause at most, a shorter one; between two publications is one."""
    interval, happened = 0.4, []
    monkeypatch.setattr(follower, "asyncio", Pauses(happened))
    # A publication that took long is followed by a shorter pause: here none takes any time.
    monkeypatch.setattr(publisher, "time", SimpleNamespace(monotonic=lambda: 0.0, time_ns=time.time_ns))
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=interval)
    real = log.publisher.publish

    async def publish() -> bool:
        if found := await real():
            happened.append(("published", log.publisher.last.size))
        return found

    log.publisher.publish = publish
    for number in range(60):
        outcome = await log.append(raw(b"%d" % number))
        happened.append(("answered", outcome.signed.size))
        await asyncio.sleep(random.uniform(0, 0.06))
    async with asyncio.timeout(PATIENCE):
        while ("published", 60) not in happened:  # noqa: ASYNC110 - the log says nothing when it does
            await asyncio.sleep(0.01)
    kinds = [what for what, _ in happened]
    assert all(seconds < interval for what, seconds in happened if what == "pause")
    for at, (what, size) in enumerate(happened):
        if what == "answered":
            out = next(n for n, (then, other) in enumerate(happened) if then == "published" and other >= size)
            asleep = [then for then in kinds[:at] if then in ("pause", "awake")][-1:] == ["pause"]
            assert asleep + kinds[at:out].count("pause") <= 1
    kinds = [what for what in kinds if what in ("published", "pause")]
    assert kinds == ["published", "pause"] * (len(kinds) // 2) + ["published"] * (len(kinds) % 2)
    await audit(bench)


async def test_the_first_answer_is_published_at_once(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=60)
    await log.append(raw(b"a"))
    await until(lambda: is_published(bench, 1))
    await log.append(raw(b"b"))
    await asyncio.sleep(0.1)
    assert await published_size(bench) == 1, "and the second one after the interval"


async def is_published(bench: Bench, size: int) -> bool:
    return await published_size(bench) >= size


async def has_followed(reader: Log, size: int) -> bool:
    return (await reader.heads.latest()).size == size


async def test_an_entry_whose_waiter_left_is_published_too(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench)
    task = asyncio.create_task(log.append(raw(b"a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: is_published(bench, 1))
    await audit(bench)


async def test_what_a_crash_left_unpublished_is_published_at_start(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=60)
    await log.append(raw(b"a"))
    await until(lambda: is_published(bench, 1))
    await log.append(raw(b"b", b"c"))
    await crash(log)
    assert await published_size(bench) == 1
    again = await make(bench, publish_interval=60)
    assert await published_size(bench) == 3, "before it takes anything"
    assert (await again.heads.published()).note == again.sequencer.signed.note
    await audit(bench)


async def test_close_publishes_what_was_answered(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=60)
    for leaf in (b"a", b"b", b"c"):
        await log.append(raw(leaf))
    await log.close()
    assert await published_size(bench) == 3
    await log.close()
    assert (await refused(log.append(raw(b"d")))).code == "shutting_down"
    await audit(bench)


async def refused(awaitable: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize(
    "fault",
    [
        Fault(StoreUnavailable("test")),
        Fault(OutcomeUnknown("test")),
        Fault(OutcomeUnknown("test"), after=True),
        Fault(RuntimeError("a bug")),
    ],
    ids=["unavailable", "lost", "stored and lost", "bug"],
)
async def test_a_publication_that_fails_is_tried_again(
    rig: Rig, make: Make, fault: Fault, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publisher, "_RETRY_SECONDS", 0.02)
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    log = await make(bench, store=faulty)
    faulty.plan("publish", fault, fault)
    await log.append(raw(b"a"))
    await until(lambda: is_published(bench, 1))
    await log.append(raw(b"b"))
    await until(lambda: is_published(bench, 2))
    await audit(bench)


async def test_writers_publish_for_each_other(rig: Rig, make: Make):
    bench = await rig.log("raw")
    logs = [await make(bench), await make(bench, store=await rig.open())]
    for number in range(30):
        await logs[number % 2].append(raw(b"%d" % number))
    await until(lambda: is_published(bench, 30))
    sizes = [found.size for found in await rig.store.checkpoints.checkpoints(bench.log_id, 0, 100)]
    assert sizes == sorted(set(sizes))
    for log in logs:
        assert (await log.heads.published()).size == 30
        assert (await log.heads.latest(30)).size == 30
    await audit(bench)


# --- clocks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [6_000, -6_000])
async def test_a_clock_off_the_databases_stamps_nothing_from_the_start(rig: Rig, make: Make, off: int):
    bench = await rig.log("event")
    faulty = Faulty(rig.store)
    faulty.always["clock"] = Fault(change=lambda now: now + off)
    log = await make(bench, store=faulty)
    answer = await refused(log.append(event(1)))
    assert (CODES[answer.code][0], answer.code) == (503, "clock")
    assert (await rig.store.reads.head(bench.log_id)).size == 0


# --- heads --------------------------------------------------------------------------------------------------------------


async def test_before_anything_is_published(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench, read_only=True)
    assert (await not_there(log.heads.published())).code == "no_checkpoint"
    assert (await not_there(log.heads.latest())).code == "no_checkpoint"
    assert await log.heads.checkpoints(0, 10) == []


async def test_another_size_than_a_published_one_names_the_next(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=60)
    for size in (2, 5, 6):
        while log.sequencer.signed.size < size:
            await log.append(raw(b"%d" % log.sequencer.signed.size))
        await log.publisher.publish()
    assert [found.size for found in await log.heads.checkpoints(0, 9)][-2:] == [5, 6]
    absent = await not_there(log.heads.published(3))
    assert (absent.code, absent.extra) == ("no_checkpoint", {"next_size": 5})
    assert "5" in absent.hint
    absent = await not_there(log.heads.published(7))
    assert (absent.code, absent.extra) == ("no_checkpoint", {})
    for index in (0, 1):
        assert (await not_there(log.receipts.published(index, 4, with_payload=False))).extra == {"next_size": 5}
    assert (await not_there(log.receipts.published(2, 2, with_payload=False))).code == "no_entry"
    await log.append(raw(b"unpublished"))
    assert (await not_there(log.receipts.published(6, None, with_payload=False))).code == "not_published_yet"
    assert (await not_there(log.receipts.published(7, None, with_payload=False))).code == "no_entry"


# --- proofs -------------------------------------------------------------------------------------------------------------

SIZE = 600


@pytest.fixture
async def grown(rig: Rig) -> Bench:
    """A raw log of 600 entries, written by somebody else."""
    bench = await rig.log("raw")
    await bench.sequencer().run([raw(*[b"leaf %d" % n for n in range(SIZE)])])
    return bench


def oracle() -> Tree:
    return Tree([b"leaf %d" % n for n in range(SIZE)])


@pytest.mark.parametrize("how", ["edge and cache", "cold"])
async def test_proofs_at_every_size_are_those_of_the_oracle(rig: Rig, grown: Bench, make: Make, how: str):
    tree = oracle()
    log = await make(grown, cache=NoCache(16) if how == "cold" else None)
    if how == "cold":
        log.sequencer.edge = lambda: None
    exhaustive = {1, 2, 3, 255, 256, 257, 511, 512, 513, SIZE}
    for size in range(1, SIZE + 1):
        if how == "cold" and size not in exhaustive:
            continue
        indices = range(size) if size in exhaustive and how != "cold" else {0, size - 1, *random.sample(range(size), 1)}
        for index in indices:
            proof = await run(log.proofs.inclusion(index, size))
            assert proof.hashes == tree.path(index, size), (index, size)
            assert proof.root == tree.root(size)
            assert proof.size == size
            assert proof.tie == tree.proof(size, SIZE)
            assert (proof.signed.size, proof.signed.root) == (SIZE, tree.root(SIZE))
        for first in {1, size, *random.sample(range(1, size + 1), min(size, 2))}:
            proof = await run(log.proofs.consistency(first, size))
            assert proof.hashes == tree.proof(first, size), (first, size)
            assert (proof.root, proof.tie) == (tree.root(size), tree.proof(size, SIZE))


async def test_the_shorter_ways_say_what_the_definitions_say(rig: Rig, make: Make, monkeypatch: pytest.MonkeyPatch):
    """What is made of memory alone is what is planned, folded and verified; and None where memory is not enough."""
    monkeypatch.setattr(heads, "_LOOK_SECONDS", 1e9)
    bench = await rig.log("raw")
    log = await make(bench, publish_interval=60)
    size = 0
    for width in (1, 1, 6, 247, 1, 1, 255, 88, 10):
        await log.append(raw(*[b"leaf %d" % n for n in range(size, size + width)]))
        await until(lambda: is_published(bench, 1))
        size += width
        for index in {0, size // 2, size - 1, *random.sample(range(size), min(size, 20))}:
            defined = await run(log.proofs.inclusion(index, size))
            assert await run(log.proofs.inclusion(index)) == defined
            assert log.proofs.inclusion_now(index) == defined, "all of it is in memory by now"
        assert log.proofs.inclusion_now(size) is None
    for wanted in (Tile(0, 0), Tile(0, 1), Tile(0, 1, 9), Bundle(0), Bundle(1)):
        log.proofs.forget()
        assert log.files.file_now(wanted) is None
        defined = await run(log.files.file(wanted))
        assert defined
        assert log.files.file_now(wanted) == await run(log.files.file(wanted)) == defined


class NoCache(Cache):
    def put(self, log_id: int, level: int, index: int, rows: TileRows) -> None:
        pass


async def test_sizes_and_indices_that_are_not_there(grown: Bench, make: Make):
    log = await make(grown)
    assert (await not_there(run(log.proofs.inclusion(SIZE, None)))).code == "no_entry"
    assert (await not_there(run(log.proofs.inclusion(5, 5)))).code == "no_entry"
    for work in (
        run(log.proofs.inclusion(0, SIZE + 1)),
        run(log.proofs.consistency(1, SIZE + 1)),
        run(log.proofs.consistency(SIZE + 1, None)),
    ):
        absent = await not_there(work)
        assert (absent.code, absent.extra) == ("no_such_size", {"tree_size": SIZE})
    assert (await not_there(run(log.proofs.inclusion(2**63 - 1, 2**63 - 1)))).code == "no_such_size"
    assert (await refused(run(log.proofs.consistency(7, 6)))).code == "sizes_reversed"
    assert (await run(log.proofs.inclusion(0, None))).size == SIZE
    assert (await run(log.proofs.consistency(SIZE, SIZE))).hashes == []


async def test_proofs_hold_while_the_log_grows(rig: Rig, make: Make):
    """Each proof verifies against the head served with it, whichever moment it was made in."""
    bench = await rig.log("raw")
    writer = await make(bench)
    await writer.append(raw(b"0"))
    await until(lambda: is_published(bench, 1))
    readers = [writer, await make(bench, store=await rig.open(), read_only=True)]
    done, proofs = asyncio.Event(), 0

    async def write() -> None:
        for number in range(1, 150):
            await writer.append(raw(*[b"%d %d" % (number, n) for n in range(1 + number % 9)]))
        done.set()

    async def read(log: Log) -> None:
        nonlocal proofs
        last = 0
        while not done.is_set():
            signed = await log.heads.latest()
            assert signed.size >= last
            last = signed.size
            trusting(bench).verify(signed.note)
            index, size = random.randrange(signed.size), random.randrange(1, signed.size + 1)
            if index < size:
                proof = await run(log.proofs.inclusion(index, size))
                (leaf,) = await rig.store.reads.leaves(bench.log_id, index, index + 1)
                verify_inclusion(index, size, leaf_hash(leaf), proof.hashes, RootHash(proof.root))
            else:
                proof = await run(log.proofs.consistency(size, None))
            trusting(bench).verify(proof.signed.note)
            verify_consistency(proof.size, proof.signed.size, RootHash(proof.root), proof.signed.root, proof.tie)
            proofs += 1

    await asyncio.gather(write(), *(read(log) for log in readers for _ in range(2)))
    assert proofs > 20
    await audit(bench)


# --- tiles and bundles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
async def test_tiles_of_any_width_up_to_the_signed_size(grown: Bench, make: Make, read_only: bool):
    writer = await make(grown)
    log = await make(grown, read_only=True) if read_only else writer
    expected = Naive([b"leaf %d" % n for n in range(SIZE)]).tiles(SIZE)
    for (level, index), data in expected.items():
        stored = len(data) // 32
        for width in range(1, 257) if level else {1, 2, 87, 88, 89, 128, 255, 256}:
            found = await run(log.files.file(Tile(level, index, width)))
            assert found == (data[: 32 * width] if width <= stored else None), (level, index, width)
    for level, index in [(0, 3), (1, 1), (2, 0), (3, 0), (63, 0), (0, 2**55), (63, 2**55 - 1), (8, 1)]:
        for width in (1, 256):
            assert await run(log.files.file(Tile(level, index, width))) is None


async def test_bundles_of_any_width_up_to_the_signed_size(grown: Bench, make: Make):
    log = await make(grown)
    leaves = [b"leaf %d" % n for n in range(SIZE)]
    for index in range(3):
        part = leaves[256 * index : 256 * index + 256]
        for width in (1, 2, 88, 89, 255, 256):
            found = await run(log.files.file(Bundle(index, width)))
            if width > len(part):
                assert found is None
            else:
                assert decode_bundle(found) == part[:width]
                assert found == b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in part[:width])
    assert await run(log.files.file(Bundle(3, 1))) is None
    assert await run(log.files.file(Bundle(2**55, 256))) is None


async def test_a_cold_and_a_warm_cache_say_the_same(grown: Bench, make: Make):
    log = await make(grown, cache=Cache(20_000))
    wanted = [Tile(0, 0), Tile(0, 1), Tile(0, 2, 88), Tile(1, 0, 2), Tile(0, 0, 5)]
    rounds = [[await run(log.files.file(tile)) for tile in wanted] for _ in range(3)]
    assert rounds[0] == rounds[1] == rounds[2]


def test_the_cache_forgets_what_was_used_least_recently():
    rows = [expand(bytes([n]) * 8192) for n in range(5)]
    one = Cache(2**30)
    one.put(1, 0, 0, rows[0])
    cache = Cache(3 * one.size + 1_100)  # the top of a fourth has room
    for n in range(3):
        cache.put(1, 0, n, rows[n])
    assert cache.get(1, 0, 0)
    cache.put(1, 0, 3, rows[3])
    assert cache.get(1, 0, 1) is None
    assert all(cache.get(1, 0, n) for n in (0, 2, 3))
    assert cache.get(2, 0, 0) is None, "logs share a cache, not its entries"
    assert cache.get(1, 1, 0) is None
    assert cache.bundle(1, 0) is None


def test_the_cache_counts_bytes():
    cache = Cache(100_000)
    for n in range(100):
        cache.put_bundle(1, n, bytes(3000 + 10 * n))
        cache.put(1, 0, n % 7, expand(bytes(8192)))
    kept = [n for n in range(100) if cache.bundle(1, n)]
    tiles = [n for n in range(7) if cache.get(1, 0, n)]
    assert kept
    assert tiles
    assert 80_000 < sum(3000 + 10 * n for n in kept) + 9_856 * len(tiles) <= cache.size <= 100_000
    before = cache.size
    cache.put_bundle(1, 200, bytes(40_000))
    assert (cache.size, cache.bundle(1, 200)) == (before, None), "a large bundle does not drive out what others need"
    assert all(cache.bundle(1, n) for n in kept)
    small = Cache(10_000)
    small.put_bundle(1, 0, bytes(20_000))
    assert (small.size, small.bundle(1, 0)) == (0, None), "what is larger than the cache is not kept"


@pytest.mark.parametrize("level", [0, 1])
def test_the_rows_of_a_cached_tile_say_what_the_tile_says(level: int):
    rows = expand(random.Random(level).randbytes(8192))
    cache = Cache(2**20)
    cache.put(1, level, 7, rows)
    kept = cache.get(1, level, 7)
    assert kept
    for row in range(8):
        for position in range(256 >> row):
            assert hash_at(kept, row, position) == hash_in(rows, row, position)
        with pytest.raises(AssertionError):
            hash_at(kept, row, 256 >> row)


def test_what_is_kept_of_a_tile_proves_what_the_tile_proves():
    rows = expand(random.Random(3).randbytes(8192))
    kept, top = compact(rows)
    hashes, hashes_of_tile = bytes(rows[0]), heap(rows)
    for position in range(256):
        wanted = path(position, 256, [], lambda _level, _index: rows)
        assert wanted == [hash_in(rows, row, position >> row ^ 1) for row in range(8)]
        assert siblings(hashes_of_tile, position) == wanted
        assert path(position, 256, [], lambda _level, _index: kept) == wanted
        assert path(position, 256, [], lambda _level, _index: with_top(hashes, top)) == wanted


def test_the_top_of_a_tile_outlives_its_hashes():
    cache = Cache(300_000)
    tiles = [expand(bytes([n]) * 8192) for n in range(100)]
    for n, rows in enumerate(tiles):
        cache.put(1, 0, n, rows)
    gone = [n for n in range(100) if cache.data(1, 0, n) is None]
    assert len(gone) > 70
    assert cache.size <= 300_000
    for n in gone:
        assert cache.get(1, 0, n) is None
        cache.put_data(1, 0, n, bytes(tiles[n][0]))
        kept = cache.get(1, 0, n)
        assert kept, "its inner nodes need not be made again"
        assert [hash_at(kept, row, 1) for row in range(8)] == [hash_in(tiles[n], row, 1) for row in range(8)]
    for n in range(1000):
        cache.put(1, 0, n, tiles[0])
    assert cache.size <= 300_000, "tops are bounded, too"
    cache.put_data(1, 0, 5000, bytes(8192))
    assert cache.data(1, 0, 5000), "they leave room for tiles"
    assert cache.get(1, 0, 5000) is None


async def test_a_tile_that_grows_is_never_served_as_it_was(rig: Rig, make: Make):
    """Partial tiles are not cached: what was asked for early must not stand in the way later."""
    bench = await rig.log("raw")
    writer = await make(bench)
    reader = await make(bench, store=await rig.open(), read_only=True)
    leaves = []
    for number in range(300):
        leaves.append(b"%d" % number)
        if number in (0, 5, 200, 255, 256, 299):
            await writer.append(raw(*leaves))
            await until(lambda: is_published(bench, len(leaves)))
            tree = Naive(leaves)
            for log in (writer, reader):
                for (level, index), data in tree.tiles(len(leaves)).items():
                    assert await run(log.files.file(Tile(level, index, len(data) // 32))) == data


# --- damage -------------------------------------------------------------------------------------------------------------


async def damage(rig: Rig, table: str, where: str) -> None:
    off = f"ALTER TABLE {table} DISABLE TRIGGER ALL" if rig.database else f"DROP TRIGGER {table}_no_delete"
    await rig.sql(off, f"DELETE FROM {table} WHERE {where}", "SELECT 1")


async def test_a_missing_tile_is_damage_not_absence(rig: Rig, grown: Bench, make: Make):
    log = await make(grown)
    await damage(rig, "tiles", 'level = 0 AND "index" = 1')
    for work in (
        run(log.files.file(Tile(0, 1))),
        run(log.files.file(Tile(0, 1, 3))),
        run(log.proofs.inclusion(300, None)),
        run(log.proofs.inclusion(2, 300)),
    ):
        with pytest.raises(Corrupt):
            await work
    assert await run(log.files.file(Tile(0, 0))) is not None
    assert (await run(log.proofs.inclusion(3, 256))).hashes == oracle().path(3, 256)


async def test_missing_entries_are_damage_not_absence(rig: Rig, grown: Bench, make: Make):
    log = await make(grown)
    await damage(rig, "entries", '"index" = 300')
    for work in (
        run(log.files.file(Bundle(1))),
        log.entries.one(300, with_payload=True),
        log.entries.page(290, 20, with_payload=True),
        log.receipts.published(300, None, with_payload=False),
    ):
        with pytest.raises(Corrupt):
            await work
    assert (await log.entries.one(299, with_payload=False))["index"] == 299
    assert len(decode_bundle(await run(log.files.file(Bundle(1, 44))))) == 44


async def test_damage_is_an_error_of_the_store():
    assert issubclass(Corrupt, StoreError)


# --- receipts and entries -----------------------------------------------------------------------------------------------


async def test_receipts_of_an_answer_prove_every_entry(rig: Rig, make: Make):
    bench = await rig.log("event")
    log = await make(bench)
    await log.append(genesis(bench))
    values = [{"actor": "alice", "n": 1}, {"ü": [None, True, 1.5], "n": {"a": "\x7f"}}, {"n": 0}]
    bodies = [b'{"actor":"alice","n":1}', '{"ü":[null,true,1.5],"n":{"a":"\x7f"}}'.encode(), b'{"n":-0}']
    submission = Submission([draft_event(body) for body in bodies], "alice", "key")
    outcome = await log.append(submission)
    receipts = await log.receipts.all_of_append(submission, outcome)
    for at, (receipt, value) in enumerate(zip(receipts, values, strict=True)):
        verified = receipt.verify(trusting(bench))
        assert (verified.index, verified.complete, verified.opened) == (1 + at, True, value)
        assert verified.checkpoint.size == 4
    await log.append(event(9))
    again = Submission([draft_event(body) for body in bodies], "alice", "key")
    outcome = await log.append(again)
    assert outcome.replayed
    for receipt, value in zip(await log.receipts.all_of_append(again, outcome), values, strict=True):
        verified = receipt.verify(trusting(bench))
        assert (verified.complete, verified.opened, verified.checkpoint.size) == (True, value, 5)
    await audit(bench)


async def test_receipts_of_old_and_new_raw_entries(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench)
    await log.append(raw(*[b"%d" % n for n in range(700)]))
    for request in (raw(b"3", b"new", b"699", b"new", b"256"), raw(b"0"), raw(b"700", b"701")):
        outcome = await log.append(request)
        for draft, receipt in zip(request.drafts, await log.receipts.all_of_append(request, outcome), strict=True):
            verified = receipt.verify(trusting(bench))
            assert verified.leaf == draft.leaf
            assert receipt.commitment is None
    assert len(await audit(bench)) == 703


async def test_stored_receipts_at_every_published_size(rig: Rig, make: Make):
    bench = await rig.log("event")
    log = await make(bench, publish_interval=60)
    for number in range(9):
        await log.append(event(number))
        await log.publisher.publish()
    for published in await log.heads.checkpoints(0, 99):
        for index in range(published.size):
            receipt = await log.receipts.published(index, published.size, with_payload=True)
            verified = receipt.verify(trusting(bench))
            assert (verified.opened, verified.complete) == ({"n": index}, True)
            assert receipt.checkpoint == published.note
            closed = await log.receipts.published(index, published.size, with_payload=False)
            assert closed.disclosures is None
            assert closed.verify(trusting(bench)).hidden == ("*",)
    assert (await log.receipts.published(0, None, with_payload=False)).tree_size == 9
    await audit(bench)


async def test_entries_show_what_the_caller_may_see(rig: Rig, make: Make):
    bench = await rig.log("event")
    log = await make(bench)
    await log.append(genesis(bench))
    await log.append(event(5, 6))
    (first, second, third), size = await log.entries.page(0, 10, with_payload=True)
    assert size == 3
    assert (first["typ"], "event" in first) == ("muniment/genesis@v1", False)
    assert orjson.dumps(second["event"]) == b'{"n":5}'
    assert third["leaf_hash"] == leaf_hash((await rig.store.reads.leaves(bench.log_id, 2, 3))[0]).hex()
    assert second["logged_at"].endswith("Z")
    found, _ = await log.entries.page(1, 1, with_payload=False)
    assert "event" not in found[0]
    assert await log.entries.page(3, 10, with_payload=True) == ([], 3)
    assert (await not_there(log.entries.one(3, with_payload=True))).code == "no_entry"
    assert (await log.entries.one(2, with_payload=True))["index"] == 2


async def test_entries_end_at_the_signed_head(rig: Rig, make: Make):
    """What is stored but not signed is nobody's business yet."""
    bench = await rig.log("raw")
    log = await make(bench)
    await log.append(raw(b"a"))
    await until(lambda: is_published(bench, 1))
    await bench.extend(b"stored by a writer that died")
    for view in (log, await make(bench, read_only=True)):
        found, size = await view.entries.page(0, 10, with_payload=True)
        assert (len(found), size) == (1, 1)
        assert await run(view.files.file(Tile(0, 0, 2))) is None
        assert await run(view.files.file(Bundle(0, 2))) is None
        assert (await not_there(run(view.proofs.inclusion(1, None)))).code == "no_entry"


async def test_find_compares_the_whole_hash(rig: Rig, make: Make):
    bench = await rig.log("raw")
    wanted = leaf_hash(b"c")
    key = int.from_bytes(wanted[:8], "big", signed=True)
    await bench.extend(NewEntry(b"a", key), NewEntry(b"b", key), NewEntry(b"c", key), NewEntry(b"c", key))
    log = await make(bench)
    assert await log.entries.find(wanted) == 2, "the lowest index"
    absent = LeafHash(wanted[:8] + bytes(24))
    assert (await not_there(log.entries.find(absent))).code == "no_entry"
    assert (await not_there(log.entries.find(leaf_hash(b"nowhere")))).code == "no_entry"


# --- one that only reads ------------------------------------------------------------------------------------------------


async def test_a_log_that_only_reads(rig: Rig, make: Make, monkeypatch: pytest.MonkeyPatch):
    bench = await rig.log("event")
    writer = await make(bench)
    await writer.append(genesis(bench))
    await writer.append(event(*range(20)))
    await until(lambda: is_published(bench, 21))
    before = await rig.dump()
    reader = await make(bench, store=await rig.open(), read_only=True)
    answer = await refused(reader.append(event(1)))
    assert (CODES[answer.code][0], answer.code) == (503, "read_only")
    assert (await reader.heads.latest()).note == (await writer.heads.published()).note
    assert (await reader.receipts.published(7, None, with_payload=True)).verify(trusting(bench)).opened == {"n": 6}
    assert (await run(reader.proofs.inclusion(3, 9))).hashes == (await run(writer.proofs.inclusion(3, 9))).hashes
    assert await run(reader.files.file(Tile(0, 0, 21))) == await run(writer.files.file(Tile(0, 0, 21)))
    assert parse_leaf(decode_bundle(await run(reader.files.file(Bundle(0, 1))))[0]).typ == "muniment/genesis@v1"
    await reader.close()
    assert await rig.dump() == before
    await writer.append(event(99))
    await until(lambda: is_published(bench, 22))
    await until(lambda: has_followed(reader, 22))
    assert (await reader.heads.latest(at_least=22)).size == 22
    monkeypatch.setattr(heads, "_FOLLOW_SECONDS", 1e9)  # however long ago it looked
    now = reader.proofs.inclusion_now(5)
    assert now
    assert now == await run(reader.proofs.inclusion(5, 22))
    assert now.hashes == (await run(writer.proofs.inclusion(5, 22))).hashes


async def test_a_log_whose_guard_refuses_still_reads(rig: Rig, make: Make):
    bench = await rig.log("raw")
    log = await make(bench)
    await log.append(raw(*[b"%d" % n for n in range(10)]))
    await log.close()
    bench.guard.path.unlink()
    log = await make(bench)
    answer = await refused(log.append(raw(b"new")))
    assert (CODES[answer.code][0], answer.code) == (503, "guard_missing")
    assert str(bench.guard.path) not in answer.detail + answer.hint
    assert (await log.heads.latest()).size == 10
    assert (await run(log.proofs.inclusion(3, None))).hashes == Tree([b"%d" % n for n in range(10)]).path(3, 10)
    assert (await log.receipts.published(3, None, with_payload=False)).verify(trusting(bench)).leaf == b"3"
    assert len(decode_bundle(await run(log.files.file(Bundle(0, 10))))) == 10
