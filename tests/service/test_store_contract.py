"""The contract of storage.log, checkpoints and catalog, sentence by sentence, on each store."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace

import pytest

from muniment.hashing import EMPTY_ROOT, RootHash, leaf_hash
from muniment.tiles import Tile, encode_bundle
from muniment.tree import TileGrowth
from muniment_server.errors import DuplicateLeaf, HeadMoved, StoreError, StoreUnavailable
from muniment_server.storage.catalog import ApiKeyRow, LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import SMALL_LEAF, Head, IdempotencyRow, StoredKey, StoredPayload, leaf_key
from muniment_server.write.recheck import tiles_between
from tests.service.audit import Naive, audit
from tests.service.rig import NOW, NewEntry, Rig, new_entry

SEED = bytes(range(32))


def key_row(key: str = "k", *, caller: str = "alice", first: int = 0, count: int = 1, expires: int = NOW):
    return IdempotencyRow(caller, key, b"fingerprint", first, count, expires)


# --- append -------------------------------------------------------------------------------------------------------------


async def test_an_append_stores_everything_at_once(rig: Rig):
    bench = await rig.log("raw")
    leaves = [b"a", b"\x00", b"nul \x00 inside", bytes(65_535), b"\xff\xfe", b"'; DROP TABLE entries; --"]
    entries = [new_entry(leaf) for leaf in leaves] + [new_entry(b"with payload", payload=b'{"a":1}', seed=SEED)]
    row = key_row(first=6, expires=NOW + 1)
    grown, expected = await bench.grown(entries, at=NOW, idempotency=[row])
    await rig.store.log.append(grown, expected)
    for store in (rig.store, await rig.open()):
        assert await store.reads.head(bench.log_id) == grown.head
        assert await store.reads.leaves(bench.log_id, 0, 99) == [*leaves, b"with payload"]
        assert await store.reads.payloads(bench.log_id, 0, 99) == [StoredPayload(6, b'{"a":1}', SEED)]
        assert await store.reads.tiles(bench.log_id, [Tile(0, 0, 7)]) == {
            (0, 0): b"".join(Naive([*leaves, b"with payload"]).rows[0])
        }
        assert await store.reads.find_keys(bench.log_id, [("alice", "k")], NOW) == [StoredKey(row, SEED)]
        for start, stop in ((0, 7), (2, 4), (7, 9)):
            assert await store.reads.reread(bench.log_id, start, stop, []) == (
                [*leaves, b"with payload"][start:stop],
                {},
            )


@pytest.mark.parametrize("count", [1, 40, 256, 700])
async def test_an_append_returns_what_is_stored(rig: Rig, count: int):
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(300)])
    grown, expected = await bench.grown([b"new %d" % n for n in range(count)])
    size = grown.head.size
    tiles = [*tiles_between(300, size), Tile(0, 0, 256), Tile(5, 7, 1)]  # the last two: not new, and not there
    found = await rig.store.log.append(grown, expected, (), tiles)
    assert found == await rig.store.reads.reread(bench.log_id, 300, size, tiles)
    leaves, stored = found
    assert leaves == grown.leaves
    assert set(stored) == {(tile.level, tile.index) for tile in tiles[:-1]}
    assert stored == await rig.store.reads.tiles(bench.log_id, tiles)


async def test_an_append_that_asks_for_no_tile_reads_nothing(rig: Rig):
    bench = await rig.log("raw")
    grown, expected = await bench.grown([b"a"])
    assert await rig.store.log.append(grown, expected) == ([], {})


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 511, 512, 600])
async def test_an_append_of_any_width(rig: Rig, count: int):
    bench = await rig.log("raw")
    await bench.extend(b"first")
    await bench.extend(*[b"%d" % n for n in range(count)])
    await bench.extend(b"last")
    assert len(await audit(bench)) == count + 2


WRONG = {
    "size": lambda head: replace(head, size=head.size - 1),
    "root": lambda head: replace(head, root=RootHash(bytes(32))),
    "logged_at": lambda head: replace(head, logged_at=head.logged_at - 1),
    "epoch": lambda head: replace(head, epoch=head.epoch + 1),
    "guard_id": lambda head: replace(head, guard_id="somebody else's"),
}


@pytest.mark.parametrize("field", WRONG)
async def test_a_head_that_differs_in_one_field_loses_and_writes_nothing(rig: Rig, field: str):
    bench = await rig.log("raw")
    await bench.extend(b"a", b"b")
    grown, expected = await bench.grown([b"c"], idempotency=[key_row()])
    before = await rig.dump()
    with pytest.raises(HeadMoved):
        await rig.store.log.append(grown, WRONG[field](expected))
    with pytest.raises(HeadMoved):
        await rig.store.log.fence(bench.log_id, WRONG[field](expected))
    assert await rig.dump() == before
    await rig.store.log.append(grown, expected)  # and with the right one it is taken
    assert len(await audit(bench)) == 3


async def test_a_leaf_key_that_should_be_absent_and_is_not(rig: Rig):
    bench, other = await rig.log("raw"), await rig.log("raw")
    await bench.extend(b"a", b"b")
    await other.extend(b"c")
    keys = {leaf: leaf_key(leaf_hash(leaf)) for leaf in (b"a", b"b", b"c", b"d")}
    grown, expected = await bench.grown([b"c", b"d"])
    before = await rig.dump()
    for absent in ([keys[b"a"]], [keys[b"c"], keys[b"b"], keys[b"d"]], list(keys.values())):
        with pytest.raises(DuplicateLeaf):
            await rig.store.log.append(grown, expected, absent)
    assert await rig.dump() == before
    with pytest.raises((HeadMoved, DuplicateLeaf)):
        await rig.store.log.append(grown, WRONG["epoch"](expected), list(keys.values()))
    with pytest.raises(HeadMoved):
        await rig.store.log.append(grown, WRONG["epoch"](expected), [keys[b"c"]])
    assert await rig.dump() == before
    await rig.store.log.append(grown, expected, [keys[b"c"], keys[b"d"]])  # the other log's c is not this one's
    assert len(await audit(bench)) == 4


async def test_an_append_to_an_unknown_log_writes_nothing(rig: Rig):
    bench = await rig.log("raw")
    grown, expected = await bench.grown([b"a"])
    before = await rig.dump()
    with pytest.raises(HeadMoved):
        await rig.store.log.append(replace(grown, log_id=bench.log_id + 1), expected)
    assert await rig.dump() == before
    with pytest.raises(StoreError):
        await rig.store.reads.head(bench.log_id + 1)


BROKEN = {
    "a leaf that is too long": lambda g: replace(g, leaves=[*g.leaves[:-1], bytes(65_536)]),
    "a seed that is too short": lambda g: replace(g, payloads=[StoredPayload(4, b"{}", bytes(31))]),
    "a root that is too short": lambda g: replace(g, head=replace(g.head, root=RootHash(bytes(31)))),
    "a tile that does not start as before": lambda g: replace(g, tiles=[TileGrowth(0, 0, 3, bytes(5 * 32))]),
    "a tile that shrinks": lambda g: replace(g, tiles=[TileGrowth(0, 0, 3, g.tiles[0].data[:64])]),
    "a tile that stays": lambda g: replace(g, tiles=[TileGrowth(0, 0, 3, g.tiles[0].data[:96])]),
    "a tile of half a hash": lambda g: replace(g, tiles=[TileGrowth(0, 0, 3, g.tiles[0].data + bytes(16))]),
    "a tile that is too wide": lambda g: replace(g, tiles=[TileGrowth(0, 0, 3, g.tiles[0].data + bytes(8192))]),
    "a tile twice": lambda g: replace(g, tiles=[TileGrowth(0, 5, 0, bytes(32))] * 2),
    "a tile level that does not exist": lambda g: replace(g, tiles=[TileGrowth(64, 0, 0, bytes(32))]),
    "time that goes back": lambda g: replace(g, head=replace(g.head, logged_at=0)),
    "an epoch that goes back": lambda g: replace(g, head=replace(g.head, epoch=-1)),
    "one Idempotency-Key twice": lambda g: replace(g, idempotency=[key_row(), key_row()]),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_an_append_that_cannot_be_stored_whole_leaves_nothing(rig: Rig, broken: str):
    bench = await rig.log("raw")
    await bench.extend(b"a", b"b", b"c")
    good, expected = await bench.grown([b"d", b"e"])
    before = await rig.dump()
    with pytest.raises((HeadMoved, StoreUnavailable)):  # never OutcomeUnknown: the answer is certain
        await rig.store.log.append(BROKEN[broken](good), expected)
    assert await rig.dump() == before
    await rig.store.log.append(good, expected)  # the store is as good as before
    await audit(bench)


async def test_an_append_whose_entries_do_not_reach_the_head_leaves_nothing(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    good, expected = await bench.grown([b"b", b"c"])
    before = await rig.dump()
    with pytest.raises((HeadMoved, StoreUnavailable)):
        await rig.store.log.append(
            replace(good, leaves=[*good.leaves, b"beyond"], leaf_keys=[*good.leaf_keys, 1]), expected
        )
    assert await rig.dump() == before


async def test_of_racing_appends_exactly_one_wins(rig: Rig):
    bench = await rig.log("raw")
    stores = [rig.store, await rig.open()]
    won = 0
    for number in range(40):
        contenders = [await bench.grown([b"%d %d" % (number, who)] * (1 + who)) for who in range(4)]

        async def contend(who: int, made=contenders) -> bool:
            try:
                await stores[who % 2].log.append(*made[who])
            except HeadMoved:
                return False
            return True

        results = await asyncio.gather(*map(contend, random.sample(range(4), 4)))
        assert sum(results) == 1
        head = await stores[number % 2].reads.head(bench.log_id)
        assert head in [grown.head for grown, _ in contenders]
        won += 1
    leaves = await rig.store.reads.leaves(bench.log_id, 0, 1000)
    assert [int(leaf.split()[0]) for leaf in dict.fromkeys(leaves)] == list(range(won))
    ((root,),) = await rig.sql(f"SELECT root FROM heads WHERE log_id = {bench.log_id}")
    assert root == Naive(leaves).root(len(leaves))


async def test_logs_of_one_database_do_not_touch_each_other(rig: Rig):
    one, two = await rig.log("raw"), await rig.log("raw")
    shared = new_entry(b"same leaf", payload=b"{}", seed=SEED)
    for bench in (one, two):
        grown, expected = await bench.grown([b"own %d" % bench.log_id, shared], idempotency=[key_row(expires=NOW)])
        await rig.store.log.append(grown, expected)
    await one.extend(b"more")
    await rig.store.checkpoints.publish(one.log_id, Published(3, "one", NOW))
    assert await rig.store.reads.find_leaves(two.log_id, [shared.leaf_key]) == [(1, b"same leaf")]
    assert (await rig.store.reads.head(two.log_id)).size == 2
    assert await rig.store.checkpoints.checkpoint(two.log_id) is None
    assert await rig.store.reads.leaves(two.log_id, 0, 9) == [b"own %d" % two.log_id, b"same leaf"]
    assert [stored.index for stored in await rig.store.reads.payloads(two.log_id, 0, 9)] == [1]
    assert len(await rig.store.reads.find_keys(two.log_id, [("alice", "k")], 0)) == 1
    grown = [await bench.grown([b"z"]) for bench in (one, two)]
    assert await asyncio.gather(*(rig.store.log.append(*arguments) for arguments in grown)) == [([], {}), ([], {})]


# --- fence --------------------------------------------------------------------------------------------------------------


async def test_after_a_fence_no_older_epoch_can_append(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a")
    late, expected = await bench.grown([b"late"])
    fenced = await (await rig.open()).log.fence(bench.log_id, expected)
    assert fenced == replace(expected, epoch=expected.epoch + 1) == await rig.store.reads.head(bench.log_id)
    before = await rig.dump()
    with pytest.raises(HeadMoved):
        await rig.store.log.append(late, expected)
    with pytest.raises(HeadMoved):
        await rig.store.log.fence(bench.log_id, expected)
    assert await rig.dump() == before
    await bench.extend(b"b")
    assert len(await audit(bench)) == 2


async def test_of_racing_fences_and_appends_exactly_one_wins(rig: Rig):
    bench = await rig.log("raw")
    stores = [rig.store, await rig.open()]
    for number in range(30):
        grown, expected = await bench.grown([b"%d" % number])
        work = [store.log.fence(bench.log_id, expected) for store in stores]
        work += [store.log.append(grown, expected) for store in stores]
        random.shuffle(work)
        results = await asyncio.gather(*work, return_exceptions=True)
        assert sum(not isinstance(result, HeadMoved) for result in results) == 1, results
    await audit(bench)


# --- publish ------------------------------------------------------------------------------------------------------------


async def test_published_sizes_never_go_back(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(40)])
    stores = [rig.store, await rig.open()]

    async def publish(store, sizes) -> set[int]:
        stored: set[int] = set()
        seen: list[int] = []
        for size in sizes:
            if await store.checkpoints.publish(bench.log_id, Published(size, f"note of {size}", NOW + size)):
                stored.add(size)
            latest = await store.checkpoints.checkpoint(bench.log_id)
            assert latest.size >= size, "a reader sees at least what was published before it asked"
            seen.append(latest.size)
        assert seen == sorted(seen)
        return stored

    for _ in range(3):
        orders = [random.sample(range(1, 41), 40) for _ in range(4)]
        results = await asyncio.gather(*(publish(stores[i % 2], order) for i, order in enumerate(orders)))
        if _ == 0:
            kept = sorted(set().union(*results))
            assert sum(map(len, results)) == len(kept), "two publishers stored one size"
        else:
            assert not any(results)
    found = await rig.store.checkpoints.checkpoints(bench.log_id, 0, 100)
    assert found == [Published(size, f"note of {size}", NOW + size) for size in kept]
    assert await rig.store.checkpoints.checkpoint(bench.log_id) == found[-1] == Published(40, "note of 40", NOW + 40)


async def test_checkpoints_are_listed_from_a_size_on(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(20)])
    assert await rig.store.checkpoints.checkpoint(bench.log_id) is None
    assert await rig.store.checkpoints.checkpoints(bench.log_id, 0, 10) == []
    for size in (2, 3, 5, 8, 13):
        assert await rig.store.checkpoints.publish(bench.log_id, Published(size, f"— {size} ñ\n", NOW))
        assert not await rig.store.checkpoints.publish(bench.log_id, Published(size, "another", NOW))
        assert not await rig.store.checkpoints.publish(bench.log_id, Published(size - 1, "smaller", NOW))
    sizes = lambda found: [one.size for one in found]  # noqa: E731
    assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, 0, 100)) == [2, 3, 5, 8, 13]
    assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, 3, 2)) == [3, 5]
    assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, 4, 1)) == [5]
    assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, 14, 1)) == []
    assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, 0, 0)) == []
    for start, limit, wanted in (
        (2**63 - 1, 100, [13, 8, 5, 3, 2]),
        (8, 2, [8, 5]),
        (7, 1, [5]),
        (1, 9, []),
        (9, 0, []),
    ):
        assert sizes(await rig.store.checkpoints.checkpoints(bench.log_id, start, limit, newest=True)) == wanted
    assert await rig.store.checkpoints.checkpoint(bench.log_id, 5) == Published(5, "— 5 ñ\n", NOW)
    assert await rig.store.checkpoints.checkpoint(bench.log_id, 4) is None


async def test_a_checkpoint_beyond_the_head_is_not_published(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"a", b"b")
    before = await rig.dump()
    with pytest.raises(StoreError):
        await rig.store.checkpoints.publish(bench.log_id, Published(3, "too early", NOW))
    assert await rig.dump() == before
    assert await rig.store.checkpoints.publish(bench.log_id, Published(2, "now", NOW))


async def test_publishing_and_appending_do_not_disturb_each_other(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(b"first")
    other = await rig.open()

    async def append() -> None:
        for number in range(60):
            await bench.extend(b"%d" % number)

    async def publish() -> None:
        for _ in range(60):
            size = (await other.reads.head(bench.log_id)).size
            await other.checkpoints.publish(bench.log_id, Published(size, "note", NOW))

    await asyncio.gather(append(), publish())
    assert (await rig.store.reads.head(bench.log_id)).size == 61


# --- reads --------------------------------------------------------------------------------------------------------------


async def test_ranges_are_half_open_and_end_where_the_log_does(rig: Rig):
    bench = await rig.log("raw")
    entries = [new_entry(b"%d" % n, payload=b"{}" if n % 2 else None, seed=SEED if n % 2 else None) for n in range(10)]
    await bench.extend(*entries)
    numbers = lambda leaves: [int(leaf) for leaf in leaves]  # noqa: E731
    for start, stop in [
        (0, 0),
        (0, 1),
        (3, 7),
        (9, 10),
        (9, 99),
        (10, 20),
        (5, 3),
        (0, 2**63 - 1),
        (2**63 - 2, 2**63 - 1),
    ]:
        assert numbers(await rig.store.reads.leaves(bench.log_id, start, stop)) == list(range(10))[start:stop]
        found = [stored.index for stored in await rig.store.reads.payloads(bench.log_id, start, stop)]
        assert found == [n for n in range(10)[start:stop] if n % 2]


async def test_full_bundles_of_small_leaves_come_joined(rig: Rig):
    one, two = await rig.log("raw"), await rig.log("event")
    leaves = [random.Random(n).randbytes(n % 40) for n in range(520)]
    leaves[:5] = [b"", bytes(SMALL_LEAF), b"\x00 within", "\ud800".encode("utf-8", "surrogatepass"), b"\xff\x00"]
    others = [b"%d" % n for n in range(512)]
    await one.extend(*leaves[:300])
    await two.extend(*[new_entry(leaf, payload=b"{}", seed=SEED) for leaf in others])
    await one.extend(*leaves[300:])
    for store in (rig.store, await rig.open()):
        found = await store.reads.bundles(one.log_id, [1, 0, 2, 1, 7, 2**55 - 2])
        assert found == {n: encode_bundle(leaves[256 * n :][:256]) for n in (0, 1)}, "the third is not full"
        assert await store.reads.bundles(two.log_id, [1]) == {1: encode_bundle(others[256:])}
        assert await store.reads.bundles(one.log_id, []) == {}


async def test_a_bundle_with_a_large_leaf_does_not_come_joined(rig: Rig):
    bench = await rig.log("raw")
    large = [bytes(SMALL_LEAF + 1), bytes(65_535)]
    leaves = [large[n // 256] if n in (7, 511) else b"%d" % n for n in range(768)]
    await bench.extend(*leaves)
    assert await rig.store.reads.bundles(bench.log_id, range(3)) == {2: encode_bundle(leaves[512:])}


async def test_a_bundle_that_lacks_an_entry_does_not_come_joined(rig: Rig):
    bench = await rig.log("raw")
    leaves = [b"%d" % n for n in range(512)]
    await bench.extend(*leaves)
    off = "ALTER TABLE entries DISABLE TRIGGER ALL" if rig.database else "DROP TRIGGER entries_no_delete"
    await rig.sql(off, 'DELETE FROM entries WHERE "index" = 9', "SELECT 1")
    assert await rig.store.reads.bundles(bench.log_id, range(2)) == {1: encode_bundle(leaves[256:])}


async def test_tiles_come_as_they_are_stored(rig: Rig):
    bench = await rig.log("raw")
    assert await rig.store.reads.tiles(bench.log_id, []) == {}
    assert await rig.store.reads.tiles(bench.log_id, [Tile(0, 0, 1)]) == {}
    await bench.extend(*[b"%d" % n for n in range(300)])
    tree = Naive([b"%d" % n for n in range(300)])
    wanted = [Tile(0, 0), Tile(0, 1, 44), Tile(1, 0, 1)]
    assert await rig.store.reads.tiles(bench.log_id, wanted) == tree.tiles(300)
    narrow = await rig.store.reads.tiles(bench.log_id, [Tile(0, 1, 1), Tile(0, 0, 7)])
    assert narrow == {where: tree.tiles(300)[where] for where in [(0, 0), (0, 1)]}, "as wide as they are by now"
    absent = [Tile(0, 2, 1), Tile(1, 1, 1), Tile(2, 0, 1), Tile(63, 0, 1), Tile(0, 2**62, 1)]
    assert await rig.store.reads.tiles(bench.log_id, absent) == {}
    assert set(await rig.store.reads.tiles(bench.log_id, [*wanted, *absent])) == {(0, 0), (0, 1), (1, 0)}


async def _give_keys(rig: Rig, keys: dict[bytes, int]) -> None:
    """Let leaves have these keys in Postgres, which makes them itself, and nobody finds two leaves with the same one."""
    cases = " ".join(f"WHEN {rig.blob(leaf)} THEN ({key})::bigint" for leaf, key in keys.items())
    await rig.sql(
        "CREATE OR REPLACE FUNCTION muniment_leaf_key(leaf bytea) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE "
        f"RETURN CASE leaf {cases} END",
        "REINDEX INDEX entries_leaf_key",
    )


async def test_leaves_with_one_leaf_key_are_all_found(rig: Rig):
    bench = await rig.log("raw")
    keys = {b"a": 7, b"b": -(2**63), b"collides with a": 7, b"c": 2**63 - 1, b"d": 0, b"a too": 7}
    if rig.database:
        await _give_keys(rig, keys)
    await bench.extend(*[NewEntry(leaf, key) for leaf, key in keys.items()])
    find = rig.store.reads.find_leaves
    assert await find(bench.log_id, [7]) == [(0, b"a"), (2, b"collides with a"), (5, b"a too")]
    assert await find(bench.log_id, [-(2**63), 2**63 - 1]) == [(1, b"b"), (3, b"c")]
    assert await find(bench.log_id, [2**63 - 1, 7, -(2**63)]) == [
        (0, b"a"), (1, b"b"), (2, b"collides with a"), (3, b"c"), (5, b"a too")
    ]  # fmt: skip
    assert await find(bench.log_id, [7, 7]) == await find(bench.log_id, [7])
    assert await find(bench.log_id, []) == []
    assert await find(bench.log_id, [8]) == []


async def test_readers_never_see_half_an_append(rig: Rig):
    bench = await rig.log("raw")
    other, done = await rig.open(), asyncio.Event()

    async def write() -> None:
        for number in range(60):
            await bench.extend(*[b"%d %d" % (number, n) for n in range(17)])
        done.set()

    async def read(store) -> int:
        looks = 0
        while not done.is_set():
            head = await store.reads.head(bench.log_id)
            leaves = await store.reads.leaves(bench.log_id, 0, head.size)
            tree = Naive(leaves)
            assert len(leaves) == head.size
            assert tree.root(head.size) == head.root
            tiles = await store.reads.tiles(bench.log_id, [Tile(*where) for where in tree.tiles(head.size)])
            for where, data in tree.tiles(head.size).items():
                assert tiles[where].startswith(data)
            looks += 1
        return looks

    _, *looks = await asyncio.gather(write(), read(rig.store), read(other))
    assert all(looks)


async def test_the_clock_is_that_of_the_database(rig: Rig):
    before = time.time() * 1000
    assert before - 2000 < await rig.store.reads.clock() < time.time() * 1000 + 2000


# --- Idempotency-Keys ---------------------------------------------------------------------------------------------------


async def test_a_key_is_found_until_it_expires(rig: Rig):
    bench = await rig.log("event")
    row = key_row("k", first=0, count=2, expires=NOW + 10)
    grown, expected = await bench.grown(
        [new_entry(b"a", payload=b"{}", seed=SEED), new_entry(b"b", payload=b"{}", seed=bytes(32))],
        at=NOW,
        idempotency=[row, key_row("k", caller="bob", first=1, expires=NOW + 10)],
    )
    await rig.store.log.append(grown, expected)
    find = rig.store.reads.find_keys
    assert await find(bench.log_id, [("alice", "k")], NOW + 9) == [StoredKey(row, SEED)]
    assert await find(bench.log_id, [("alice", "k")], NOW + 10) == []
    assert await find(bench.log_id, [("alice", "other"), ("carol", "k")], NOW) == []
    assert await find(bench.log_id, [], NOW) == []
    both = await find(bench.log_id, [("alice", "k"), ("bob", "k"), ("alice", "nope")], NOW)
    assert {(found.row.caller, found.seed) for found in both} == {("alice", SEED), ("bob", bytes(32))}


async def test_a_key_without_payload_has_no_seed(rig: Rig):
    bench = await rig.log("event")
    grown, expected = await bench.grown([b"erased"], idempotency=[key_row(expires=NOW)])
    await rig.store.log.append(grown, expected)
    assert await rig.store.reads.find_keys(bench.log_id, [("alice", "k")], 0) == [StoredKey(key_row(expires=NOW), None)]


async def test_a_key_in_use_stops_the_whole_append(rig: Rig):
    bench = await rig.log("event")
    grown, expected = await bench.grown([b"a"], at=NOW, idempotency=[key_row(expires=NOW + 10)])
    await rig.store.log.append(grown, expected)
    before = await rig.dump()
    for at in (NOW, NOW + 9):
        again, head = await bench.grown(
            [b"b", b"c"], at=at, idempotency=[key_row("new"), key_row(first=1, expires=NOW + 99)]
        )
        with pytest.raises(HeadMoved):
            await rig.store.log.append(again, head)
        assert await rig.dump() == before
    again, head = await bench.grown([b"b"], at=NOW + 10, idempotency=[key_row(first=1, expires=NOW + 99)])
    await rig.store.log.append(again, head)  # expired by now: replaced
    (found,) = await rig.store.reads.find_keys(bench.log_id, [("alice", "k")], NOW + 10)
    assert (found.row.first_index, found.row.expires_at) == (1, NOW + 99)
    assert len(await rig.store.reads.leaves(bench.log_id, 0, 9)) == 2


async def test_expired_keys_are_forgotten_and_others_kept(rig: Rig):
    for bench in (await rig.log(), await rig.log()):
        rows = [key_row(f"k{n}", expires=NOW + n) for n in range(5)]
        await rig.store.log.append(*await bench.grown([b"a"], at=NOW - 1, idempotency=rows))
    assert await rig.store.catalog.forget_expired(NOW - 1) == 0
    assert await rig.store.catalog.forget_expired(NOW + 2) == 6
    assert await rig.store.catalog.forget_expired(NOW + 2) == 0
    left = await rig.sql("SELECT key FROM idempotency ORDER BY key")
    assert left == [("k3",), ("k3",), ("k4",), ("k4",)]


# --- catalog ------------------------------------------------------------------------------------------------------------


def log_row(name: str, origin: str, kind: str = "event") -> LogRow:
    return LogRow(0, name, origin, kind, True, False, NOW)


FIRST = Head(0, EMPTY_ROOT, 0, 0, "guard")


async def test_logs_are_listed_in_the_order_of_creation(rig: Rig):
    made = [await rig.store.catalog.create_log(log_row(name, f"example.com/{name}"), FIRST) for name in ("z", "a", "m")]
    assert await rig.store.catalog.logs() == made == await (await rig.open()).catalog.logs()
    assert len({row.log_id for row in made}) == 3
    assert [replace(row, log_id=0) for row in made] == [
        log_row(name, f"example.com/{name}") for name in ("z", "a", "m")
    ]
    assert await rig.store.reads.head(made[0].log_id) == FIRST
    private = LogRow(0, "p", "example.com/ünïcode", "raw", False, True, NOW)
    assert replace(await rig.store.catalog.create_log(private, FIRST), log_id=0) == private


async def test_a_log_that_exists_is_returned_and_not_touched(rig: Rig):
    made = await rig.store.catalog.create_log(log_row("a", "example.com/a"), FIRST)
    before = await rig.dump()
    later = replace(log_row("a", "example.com/a"), public=False, created_at=NOW + 5)
    assert await rig.store.catalog.create_log(later, replace(FIRST, guard_id="other")) == made
    assert await rig.dump() == before


@pytest.mark.parametrize(("name", "origin"), [("a", "example.com/b"), ("b", "example.com/a")])
async def test_names_and_origins_are_used_once(rig: Rig, name: str, origin: str):
    await rig.store.catalog.create_log(log_row("a", "example.com/a"), FIRST)
    before = await rig.dump()
    with pytest.raises(HeadMoved):
        await rig.store.catalog.create_log(log_row(name, origin), FIRST)
    assert await rig.dump() == before


async def test_racing_creators_of_one_log_get_the_same_one(rig: Rig):
    stores = [rig.store, await rig.open()]
    for number in range(10):
        row = log_row(f"log-{number}", f"example.com/{number}")
        made = await asyncio.gather(*(stores[n % 2].catalog.create_log(row, FIRST) for n in range(6)))
        assert len(set(made)) == 1
    assert len(await rig.store.catalog.logs()) == 10


async def test_api_keys_are_kept_found_and_revoked_once(rig: Rig):
    rows = [
        ApiKeyRow("id-b", bytes([1]) * 32, frozenset({"append", "read"}), None, "first ünïcode", NOW, None),
        ApiKeyRow("id-a", bytes([2]) * 32, frozenset({"read"}), "log", "", NOW + 1, None),
    ]
    assert await rig.store.catalog.api_keys() == []
    for row in rows:
        await rig.store.catalog.create_key(row)
    other = await rig.open()
    assert await other.catalog.api_keys() == rows
    assert await other.catalog.find_key(bytes([2]) * 32) == rows[1]
    assert await other.catalog.find_key(bytes(32)) is None
    assert await rig.store.catalog.revoke_key("nobody", NOW) is False
    assert await rig.store.catalog.revoke_key("id-b", NOW + 7) is True
    assert await rig.store.catalog.revoke_key("id-b", NOW + 8) is False
    revoked = replace(rows[0], revoked_at=NOW + 7)
    assert await other.catalog.find_key(rows[0].digest) == revoked
    assert await other.catalog.api_keys() == [revoked, rows[1]]
    with pytest.raises(StoreError):
        await rig.store.catalog.create_key(replace(rows[1], key_id="id-c"))  # the digest is taken
    assert len(await rig.store.catalog.api_keys()) == 2


# --- close --------------------------------------------------------------------------------------------------------------


async def test_close_lets_what_is_in_flight_finish(rig: Rig):
    bench = await rig.log("raw")
    other = await rig.log("raw")
    store = await rig.open()
    await bench.extend(b"first")
    work = [
        asyncio.create_task(store.log.append(*await bench.grown([b"in flight"]))),
        asyncio.create_task(store.checkpoints.publish(bench.log_id, Published(1, "note", NOW))),
        asyncio.create_task(store.log.append(*await other.grown([b"on a connection that is not open yet"]))),
        asyncio.create_task(store.reads.leaves(bench.log_id, 0, 9)),
    ]
    await asyncio.sleep(0)
    await asyncio.gather(store.close(), store.close())
    done, waiting = await asyncio.wait(work, timeout=0)
    assert not waiting, "close returned before the work in flight"
    for task in done:
        assert task.exception() is None
    assert (await rig.store.reads.head(bench.log_id)).size == 2
    assert (await rig.store.reads.head(other.log_id)).size == 1


async def test_a_closed_store_says_so(rig: Rig):
    bench = await rig.log("raw")
    store = await rig.open()
    grown, expected = await bench.grown([b"a"])
    await store.close()
    await store.close()
    before = await rig.dump()
    calls = {
        "append": lambda: store.log.append(grown, expected),
        "fence": lambda: store.log.fence(bench.log_id, expected),
        "publish": lambda: store.checkpoints.publish(bench.log_id, Published(0, "", NOW)),
        "head": lambda: store.reads.head(bench.log_id),
        "tiles": lambda: store.reads.tiles(bench.log_id, [Tile(0, 0, 1)]),
        "logs": store.catalog.logs,
        "create_log": lambda: store.catalog.create_log(log_row("x", "y"), FIRST),
        "revoke_key": lambda: store.catalog.revoke_key("x", NOW),
        "forget_expired": lambda: store.catalog.forget_expired(NOW),
    }
    for name, call in calls.items():
        results = await asyncio.gather(call(), return_exceptions=True)
        assert [type(result) for result in results] == [StoreUnavailable], name
    assert await rig.dump() == before
