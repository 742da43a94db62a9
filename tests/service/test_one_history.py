"""One history: two writers over two databases that were one, files that are replaced, connections that lead elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import apsw
import asyncpg
import pytest

from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.hashing import LeafHash, leaf_hash
from muniment.note import parse_note
from muniment.receipt import Receipt
from muniment.tree import Edge, expand, grow, partial_tiles
from muniment_server.errors import (
    Behind,
    Corrupt,
    NotProved,
    OtherTree,
    OutcomeUnknown,
    ReadOnly,
    Replaced,
    SessionLost,
    StoreError,
)
from muniment_server.follow.publisher import edge_tiles
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.read.flow import run
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.telemetry import Metrics
from muniment_server.write import recheck, refusal
from muniment_server.write import sequencer as module
from muniment_server.write.guard import Guard, TreeHead
from muniment_server.write.observer import Observer, Unobserved
from muniment_server.write.raising import raise_guard
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Submission
from tests.service.audit import audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import NOW, Bench, Rig, event, new_entry, raw


@contextlib.asynccontextmanager
async def cloned(rig: Rig) -> AsyncIterator[Store]:
    """Yield a store on a copy of the rig's database as it is now. The rig's own store is opened anew: a clone needs it closed."""
    await rig.store.close()
    if not rig.database:
        (rig.folder / "clone").mkdir()
        shutil.copy(rig.folder / "store.sqlite", rig.folder / "clone")
        rig.store, clone = await rig.open(), await open_sqlite(rig.folder / "clone" / "store.sqlite")
        yield clone
        await clone.close()
        return
    name = rig.database.partition("?")[0].rsplit("/", 1)[1]
    url, server = rig.database.replace(f"/{name}", f"/{name}_clone"), rig.database.replace(f"/{name}", "/postgres")
    await execute(server, f"CREATE DATABASE {name}_clone TEMPLATE {name}")
    rig.store, clone = await rig.open(), await open_postgres(url)
    try:
        yield clone
    finally:
        await clone.close()
        await execute(server, f"DROP DATABASE {name}_clone WITH (FORCE)")


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def started(bench: Bench, store: Store | None = None) -> Sequencer:
    sequencer = bench.sequencer(store)
    await sequencer.start()
    assert sequencer.refusal is None
    return sequencer


class Notes:
    """Every note that was signed, whether or not it left; checked against what each database holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heads: set[tuple[int, bytes]] = set()
        sign = module.sign_checkpoint

        def watched(checkpoint: Checkpoint, key: object) -> object:
            self.heads.add((checkpoint.size, checkpoint.root))
            return sign(checkpoint, key)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "sign_checkpoint", watched)

    async def check(self, bench: Bench, *stores: Store) -> None:
        """One of the databases has them all."""
        roots = [roots_of(await store.reads.leaves(bench.log_id, 0, 10**6)) for store in stores]
        assert any(all(mine.get(size) == root for size, root in self.heads) for mine in roots), self.heads


def roots_of(leaves: list[bytes]) -> dict[int, bytes]:
    edge, found = Edge(), {0: bytes(Edge().root())}
    for leaf in leaves:
        edge = grow(edge, [LeafHash(leaf_hash(leaf))]).edge
        found[edge.size] = bytes(edge.root())
    return found


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(monkeypatch)


# --- two databases that were one ----------------------------------------------------------------------------------------

CONTESTS = {
    "two of one, then one": ([1, 1], 1),
    "one, then a batch of two": ([1], 2),
    "one, then one": ([1], 1),
    "five, then one": ([5], 1),
    "one, then five": ([1], 5),
}


@pytest.mark.parametrize("contest", CONTESTS)
async def test_of_two_writers_on_two_databases_one_signs(rig: Rig, notes: Notes, contest: str):
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(4))])
    async with cloned(rig) as clone:
        one, two = await started(bench, rig.store), await started(bench, clone)
        batches, last = CONTESTS[contest]
        for size in batches:
            await one.run([event(*range(100, 100 + size))])
        with pytest.raises(OutcomeUnknown, match="size"):
            await two.run([event(*range(200, 200 + last))])
        with pytest.raises(ReadOnly) as refused:
            await two.run([event(7)])
        assert refused.value.code in ("database_behind", "guard_root")
        await one.run([event(8)])
        await notes.check(bench, rig.store)
        bench.sequencers = [one]
        await audit(bench)


async def test_two_writers_that_go_on_and_on_over_two_databases(rig: Rig, notes: Notes):
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(4))])
    async with cloned(rig) as clone:
        writers = [await started(bench, rig.store), await started(bench, clone)]
        for number in range(12):
            results = await asyncio.gather(
                *(one.run([event(number, at, seed=bytes([at]) * 32)]) for at, one in enumerate(writers)),
                return_exceptions=True,
            )
            assert sum(isinstance(result, list) for result in results) <= 1, results
        await notes.check(bench, rig.store, clone)
        assert sum(one.refusal is not None for one in writers) == 1


async def test_the_same_entries_in_two_databases_are_one_history(rig: Rig, notes: Notes):
    """Two trees that are equal contradict nothing, whoever signs them."""
    bench = await rig.log("raw")
    await (await started(bench)).run([raw(b"a", b"b")])
    async with cloned(rig) as clone:
        one, two = await started(bench, rig.store), await started(bench, clone)
        await one.run([raw(b"c", b"d")])
        (outcome,) = await two.run([raw(b"c", b"d")])
        assert outcome.signed == one.signed
        await two.run([raw(b"e")])
        with pytest.raises(OutcomeUnknown):
            await one.run([raw(b"f")])
        await notes.check(bench, clone)


async def test_a_smaller_head_of_another_tree_is_not_signed(rig: Rig, notes: Notes):
    """The guard is far ahead: a smaller head passes only if the guarded tree extends it."""
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(4))])
    async with cloned(rig) as clone:
        two, one = await started(bench, clone), await started(bench, rig.store)
        await one.run([event(*range(300))])
        for _ in range(3):
            with pytest.raises((OutcomeUnknown, ReadOnly)):
                await two.run([event(1)])
        await notes.check(bench, rig.store)


async def test_a_writer_that_is_overtaken_signs_its_head_once_it_is_proved(rig: Rig, notes: Notes):
    """Another healthy writer extended ours between our commit and our turn at the guard: nothing is unknown."""
    bench = await rig.log("raw")
    one, two = await started(bench), await started(bench, await rig.open())
    real, reached, gate = Guard.swap, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def late(guard: Guard, *values, **more):
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
        return real(guard, *values, **more)

    one._guard.swap = late.__get__(one._guard)  # type: ignore[method-assign]
    task = asyncio.create_task(one.run([raw(b"a")]))
    await asyncio.wait_for(reached.wait(), 30)
    await two.run([raw(b"b")])
    await two.run([raw(*[b"%d" % n for n in range(300)])])
    gate.set()
    (outcome,) = await task
    assert (list(outcome.indices), outcome.signed.size) == ([0], 1)
    assert Guard(bench.guard.path).read().size == 302
    await one.run([raw(b"c")])
    await notes.check(bench, rig.store)
    await audit(bench)


async def test_a_head_that_was_never_signed_may_be_lost(rig: Rig):
    """A fail-over loses a commit that its writer never got to guard: the writer goes on, and so does the log."""
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(4))])
    async with cloned(rig) as clone:
        faulty = Faulty(rig.store)
        writer = await started(bench, faulty)
        faulty.plan("append", Fault(OutcomeUnknown("test"), after=True))
        with pytest.raises(OutcomeUnknown):
            await writer.run([event(5)])
        faulty.store = clone
        (outcome,) = await writer.run([event(6)])
        assert (list(outcome.indices), writer.refusal) == ([4], None)


# --- raising the guard --------------------------------------------------------------------------------------------------


async def test_the_guard_is_raised_only_along_one_chain(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(600)])
    roots = roots_of(await rig.store.reads.leaves(bench.log_id, 0, 600))
    held = bench.guard.read()

    async def raised(size: int, root: bytes | None = None) -> bool:
        new = TreeHead(size, held.root.__class__(root or roots[size]))
        return await raise_guard(Guard(bench.guard.path), rig.store.reads, bench.log_id, held.guard_id, new, ())

    assert await raised(256)
    assert await raised(257)
    assert not await raised(1), "an older head, proved to be a prefix"
    assert not await raised(256)
    assert await raised(257)
    assert await raised(600)
    for size in (1, 255, 257, 600, 601, 2**40):
        with pytest.raises(NotProved):
            await raised(size, bytes(32))
    assert Guard(bench.guard.path).read().head == (600, roots[600])


async def test_a_guard_that_cannot_be_compared_leaves_the_outcome_unknown(rig: Rig):
    bench = await rig.log("raw")
    head = await bench.extend(b"a")
    faulty = Faulty(rig.store)
    faulty.plan("tiles", Fault(StoreError("test")))
    guard, new = Guard(bench.guard.path), TreeHead(head.size, head.root)
    guard.swap(bench.guard.read().guard_id, TreeHead(7, head.root), {bench.guard.read().head})
    with pytest.raises(OutcomeUnknown) as caught:
        await raise_guard(guard, faulty.reads, bench.log_id, bench.guard.read().guard_id, new, ())
    assert not isinstance(caught.value, NotProved)


def test_extends_is_exact():
    """Against every pair of sizes of one tree and of another one that shares a prefix."""
    leaves = [b"%d" % n for n in range(20)]
    trees = [leaves, [*leaves[:7], *(b"x" + leaf for leaf in leaves[7:])]]
    roots = [roots_of(tree) for tree in trees]
    tiles = [{(0, 0): b"".join(leaf_hash(leaf) for leaf in tree)} for tree in trees]
    for first in range(21):
        for second in range(21):
            for a, b, stored in [(a, b, stored) for a in (0, 1) for b in (0, 1) for stored in (0, 1)]:
                one, two = (first, roots[a][first]), (second, roots[b][second])
                told = recheck.extends(one, two, tiles[stored])
                true = first <= second and (first <= 7 or a == b or first == 0) and roots[b].get(first) == one[1]
                assert not told or true, "never where it is not so"
                if true and stored == b:
                    assert told, (first, second, a, b)


# --- premises that change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("what", ["replaced", "removed", "-wal removed", "-shm removed"])
async def test_a_sqlite_file_that_is_gone_or_another_one_takes_nothing(rig: Rig, notes: Notes, what: str):
    bench = await rig.log("event")
    writer = await started(bench)
    await writer.run([event(1)])
    file = rig.folder / "store.sqlite"
    if what == "replaced":
        backup(file, rig.folder / "copy.sqlite")
        (rig.folder / "copy.sqlite").replace(file)
    else:
        remove(file, what.removesuffix("removed").strip())
    signed = set(notes.heads)
    for batch in ([event(2)], [event(1, key="looked up first")], [event(3)]):
        with pytest.raises((ReadOnly, OutcomeUnknown), match="Do not stop it yet"):
            await writer.run(batch)
        assert writer.refusal.code == "database_replaced"
    assert notes.heads == signed
    with pytest.raises(Replaced):
        await rig.store.reads.leaves(bench.log_id, 0, 1)
    assert bench.guard.read().size == 1, "the guard was not raised for what is lost"


def remove(file: Path, *ends: str) -> None:
    for end in ends:
        file.with_name(file.name + end).unlink()


def backup(source: Path, target: Path) -> None:
    one, two = apsw.Connection(str(source)), apsw.Connection(str(target))
    with two.backup("main", one, "main") as copying:
        copying.step()
    two.close()
    one.close()


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_look_up_on_files_that_are_gone_refuses_the_log(rig: Rig):
    """The store was found out elsewhere, by the watch of the disk: the first thing that a batch does says so."""
    bench = await rig.log("event")
    writer = await started(bench)
    remove(rig.folder / "store.sqlite", "")
    with pytest.raises(Replaced):
        rig.store.log.check_premises()
    with pytest.raises(ReadOnly) as caught:
        await writer.run([event(1, key="k")])
    assert caught.value.code == writer.refusal.code == "database_replaced"


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_the_writer_on_the_file_that_is_there_goes_on(rig: Rig, notes: Notes):
    """The database file is replaced by a copy of itself, and a second process opens it."""
    bench = await rig.log("event")
    old = await started(bench)
    await old.run([event(1)])
    file = rig.folder / "store.sqlite"
    backup(file, rig.folder / "copy.sqlite")
    remove(file, "-wal", "-shm")
    (rig.folder / "copy.sqlite").replace(file)
    opened = await rig.open()
    new = await started(bench, opened)
    with pytest.raises(OutcomeUnknown, match="replaced"):
        await old.run([event(2)])
    await new.run([event(3)])
    with pytest.raises(ReadOnly, match="replaced"):
        await old.run([event(4)])
    await notes.check(bench, opened)


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("noticed", [True, False])
async def test_a_store_whose_files_were_replaced_takes_nothing_with_it(rig: Rig, noticed: bool):
    """SQLite carries a WAL over and removes it, by its name, with the last connection: by then that name is another database's."""
    bench = await rig.log("raw")
    old = await started(bench)
    await old.run([raw(b"a")])
    file = rig.folder / "store.sqlite"
    backup(file, rig.folder / "copy.sqlite")
    remove(file, "-wal", "-shm")
    (rig.folder / "copy.sqlite").replace(file)
    opened = await rig.open()
    new = await started(bench, opened)
    await new.run([raw(b"b")])
    if noticed:
        with pytest.raises(Replaced):
            rig.store.log.check_premises()
    await rig.store.close()
    await new.run([raw(b"c")])
    assert await opened.reads.leaves(bench.log_id, 0, 9) == [b"a", b"b", b"c"]
    rig.store = opened


@pytest.mark.parametrize("engine", ["postgres"])
async def test_a_new_connection_is_a_new_session(rig: Rig):
    """What expects a head is written on the connection that the head was read on, or not at all."""
    bench = await rig.log("event")
    head = await rig.store.log.head_to_extend(bench.log_id)
    rig.store.log.check_premises(head)
    await rig.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    grown, expected = await bench.grown([b"a"], head)
    with pytest.raises((SessionLost, OutcomeUnknown)):
        await rig.store.log.append(grown, expected)
    with pytest.raises(SessionLost):
        await rig.store.log.append(grown, expected)
    with pytest.raises(SessionLost):
        await rig.store.log.fence(bench.log_id, expected)
    with pytest.raises(SessionLost):
        await rig.store.reads.find_keys(bench.log_id, [("a", "b")], NOW, expected.session)
    with pytest.raises(SessionLost):
        await rig.store.reads.find_leaves(bench.log_id, [1], expected.session)
    with pytest.raises(SessionLost):
        rig.store.log.check_premises(expected)
    assert (await rig.store.reads.head(bench.log_id)).size == 0
    head = await rig.store.log.head_to_extend(bench.log_id)
    assert (head.session or 0) > (expected.session or 0)
    await rig.store.log.append(replace(grown, head=replace(grown.head, session=head.session)), head)


@pytest.mark.parametrize("engine", ["postgres"])
async def test_a_lost_session_drops_the_state_and_loses_nothing(rig: Rig):
    bench = await rig.log("event")
    faulty = Faulty(rig.store)
    writer = await started(bench, faulty)
    await writer.run([event(1, key="k")])
    for number, batch in enumerate([[event(2)], [event(1, key="k")]]):
        await rig.store.log.reconnect(bench.log_id)
        faulty.calls.clear()
        (outcome,) = await writer.run(batch)
        assert list(outcome.indices) == [[1], [0]][number]
        assert ("head_to_extend", True) in faulty.calls, "everything is read again"
    assert await audit(bench)


@pytest.mark.parametrize("kind", ["event", "raw"])
async def test_what_was_looked_up_is_answered_under_its_own_head(rig: Rig, kind: str):
    """The log is read again between the look-up of known entries and the signed head, and from another copy."""
    bench = await rig.log(kind)
    one, two = (raw(b"a"), raw(b"b")) if kind == "raw" else (event(1, key="k"), event(2, key="l"))
    await (await started(bench)).run([raw(b"0") if kind == "raw" else event(0)])
    async with cloned(rig) as clone:
        bench.sequencers.clear()
        await bench.extend(new_entry(b"unguarded"))
        await (await started(bench, clone)).run([two, one])
        moving = Faulty(clone)
        writer = await started(bench, moving)
        writer._careful = 9
        real = writer._look_up

        async def elsewhere_first(batch, head):
            moving.plan("find_leaves", Fault(change=lambda found: [(1, leaf) for _, leaf in found]))
            moving.plan(
                "find_keys", Fault(change=lambda found: [replace(k, row=replace(k.row, first_index=1)) for k in found])
            )
            found = await real(batch, head)
            writer.doubt()
            writer._look_up = real
            return found

        writer._look_up = elsewhere_first
        (outcome,) = await writer.run([one])
        assert list(outcome.indices) == [2], "not where the other copy has it"
        assert outcome.signed == writer.signed


async def test_a_checkpoint_is_published_only_where_its_tree_is(rig: Rig):
    bench = await rig.log("raw")
    await bench.extend(*[b"%d" % n for n in range(300)])
    edge = Edge.of(300, await rig.store.reads.tiles(bench.log_id, partial_tiles(300)))
    await bench.extend(b"more")
    tiles = edge_tiles(edge)
    assert len(tiles) == 2
    for at in range(len(tiles)):
        level, index, data = tiles[at]
        for other in (data[:-1] + bytes([data[-1] ^ 1]), data + bytes(32)):
            wrong = [*tiles[:at], (level, index, other), *tiles[at + 1 :]]
            with pytest.raises(OtherTree):
                await rig.store.checkpoints.publish(bench.log_id, Published(300, "note", NOW), wrong)
        with pytest.raises(OtherTree):
            await rig.store.checkpoints.publish(bench.log_id, Published(300, "note", NOW), [(level, index + 1, data)])
    assert await rig.store.checkpoints.checkpoint(bench.log_id) is None
    assert await rig.store.checkpoints.publish(bench.log_id, Published(300, "note", NOW), tiles)
    assert not await rig.store.checkpoints.publish(bench.log_id, Published(300, "note", NOW), tiles)
    assert [one.size for one in await rig.store.checkpoints.checkpoints(bench.log_id, 0, 9)] == [300]


# --- a database that goes back under a server ---------------------------------------------------------------------------


def opened(
    bench: Bench,
    store: Store,
    folder: Path,
    sequencer: Callable[[Observer], Sequencer] | None = None,
    cache: Cache | None = None,
) -> Log:
    settings = Settings(data=folder, publish_interval=0.05)
    return Log(store, bench.row, settings, Metrics(), cache or Cache(2**20), sequencer)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_what_a_reader_shows_never_goes_back(rig: Rig, tmp_path: Path):
    bench = await rig.log("event")
    writer = opened(bench, rig.store, tmp_path, bench.new_sequencer())
    await writer.start()
    await writer.append(event(*range(5)))
    await writer.close()
    async with cloned(rig) as older:
        newer = opened(bench, rig.store, tmp_path, bench.new_sequencer(rig.store))
        await newer.start()
        await newer.append(event(*range(12)))
        await newer.close()
        moving = Faulty(rig.store)
        reader = opened(bench, moving, tmp_path)
        await reader.start()
        assert (await reader.heads.published()).size == 17
        moving.store = older
        for _ in range(3):
            with pytest.raises(Behind, match="17"):
                await reader.heads.published()
        assert (await reader.heads.published(5)).size == 5, "an old checkpoint is as good as ever"
        moving.store = rig.store
        assert (await reader.heads.published()).size == 17
        await reader.close()


async def test_a_writer_under_which_the_database_goes_back_is_refused_and_comes_back(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(refusal, "LOOK_SECONDS", 0.05)
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(5))])
    async with cloned(rig) as older:
        moving = Faulty(rig.store)
        log = opened(bench, moving, tmp_path, bench.new_sequencer(moving))
        await log.start()
        await log.append(event(*range(12)))
        await until(lambda: log.publisher.last is log.sequencer.signed)
        assert (await log.heads.published()).size == 17
        moving.store = older
        with pytest.raises(Behind):
            await log.heads.published()
        await until(lambda: log.refusal is not None)
        assert log.refusal.code == "database_behind"
        moving.store = rig.store
        await until(lambda: log.refusal is None)
        await log.append(event(1))
        await until(lambda: log.publisher.last is log.sequencer.signed)
        assert (await log.heads.published()).size == 18
        await log.close()


async def test_a_checkpoint_is_not_published_where_its_tree_is_not(rig: Rig, tmp_path: Path):
    """The connection leads to a copy that has other entries by now: nothing is published there, and the writer looks again."""
    bench = await rig.log("event")
    await (await started(bench)).run([event(*range(5))])
    async with cloned(rig) as clone:
        bench.rig.store, kept = clone, rig.store
        await bench.extend(*[new_entry(b'{"other":%d}' % n) for n in range(3)])
        bench.rig.store = kept
        moving = Faulty(rig.store)
        log = opened(bench, moving, tmp_path, bench.new_sequencer(moving))
        await log.start()
        await log.append(event(1))
        await until(lambda: log.publisher.last is log.sequencer.signed)
        moving.store = clone
        log.publisher.last = None
        with pytest.raises(OtherTree):
            await log.publisher.publish()
        await until(lambda: log.refusal is not None)
        assert log.refusal.code == "guard_root"
        assert await clone.checkpoints.checkpoint(bench.log_id) is None
        await log.close()


async def test_tiles_of_another_database_prove_nothing_and_are_forgotten(rig: Rig, tmp_path: Path):
    """They are in memory after the connection led elsewhere for a while: no proof is made of them, and they do not stay."""
    bench = await rig.log("raw")
    cache = Cache(2**20)
    log = opened(bench, rig.store, tmp_path, bench.new_sequencer(), cache)
    await log.start()
    await log.append(raw(*[b"%d" % n for n in range(300)]))
    await until(lambda: log.publisher.last is log.sequencer.signed)
    wrong = expand(bytes(256 * 32))
    asked = {
        "a known entry": lambda: known(log, raw(b"7")),
        "a stored receipt": lambda: log.receipts.published(7, None, with_payload=False),
        "a proof at an older size": lambda: run(log.proofs.inclusion(7, 299)),
    }
    for ask in asked.values():
        cache.put(bench.log_id, 0, 0, wrong)
        with pytest.raises(Corrupt):
            await ask()
        await ask()
    for moved in (log.sequencer.doubt, lambda: setattr(log.sequencer._recovery, "_session", -1)):
        cache.put(bench.log_id, 0, 0, wrong)
        moved()
        log.sequencer.doubt()
        await log.append(raw(b"new"))
        assert cache.get(bench.log_id, 0, 0) is None
    await log.close()


async def known(log: Log, submission: Submission) -> list[Receipt]:
    return await log.receipts.all_of_append(submission, await log.append(submission))


# --- refusals that end --------------------------------------------------------------------------------------------------


async def test_a_refusal_ends_once_database_and_guard_fit_again(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refusal, "LOOK_SECONDS", 0.0)
    bench = await rig.log("raw")
    refusals: list[str] = []

    class Told(Unobserved):
        def refused(self, refusal: ReadOnly) -> None:
            refusals.append(refusal.code)

        def returned(self) -> None:
            refusals.append("return")

    writer = bench.sequencer(observer=Told())
    await writer.start()
    await writer.run([raw(b"a")])
    kept = bench.guard.path.read_bytes()
    bench.guard.path.unlink()
    writer.doubt()
    for _ in range(3):
        with pytest.raises(ReadOnly):
            await writer.run([raw(b"b")])
    bench.guard.path.write_bytes(kept)
    await writer.run([raw(b"b")])
    assert refusals == ["guard_missing", "return"], "told once"
    assert len(await audit(bench)) == 2


async def test_one_wrong_answer_while_the_log_is_read_refuses_nothing(rig: Rig):
    """During a fail-over head and tiles may come from servers of different times; or a bit flips once."""
    bench = await rig.log("raw")
    await (await started(bench)).run([raw(b"a", b"b")])
    for name, change in {
        "tiles": lambda tiles: {where: bytes(len(data)) for where, data in tiles.items()},
        "head_to_extend": lambda head: replace(head, size=1),
    }.items():
        faulty = Faulty(rig.store)
        faulty.plan(name, Fault(change=change))
        writer = bench.sequencer(faulty)
        await writer.start()
        assert writer.refusal is None, name
        assert writer.signed.size == 2


async def test_a_lock_that_is_held_refuses_with_a_code_and_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    import fcntl  # noqa: PLC0415

    monkeypatch.setattr(refusal, "LOOK_SECONDS", 0.0)
    bench = await rig.log("raw")
    writer = bench.sequencer(guard=Guard(bench.guard.path, lock_seconds=0.05))
    await writer.start()
    with bench.guard.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutcomeUnknown, match="lock"):
            await writer.run([raw(b"a")])
        with pytest.raises(ReadOnly) as refused:
            await writer.run([raw(b"a")])
        assert refused.value.code == "guard_locked"
    (outcome,) = await writer.run([raw(b"a")])
    assert list(outcome.indices) == [0]
    assert parse_checkpoint(parse_note(outcome.signed.note).text).size == 1


async def test_a_log_whose_guard_cannot_be_raised_at_start_serves_reads_and_comes_back(rig: Rig, tmp_path: Path):
    """Another process may read the guard and hold a shared lock: nothing is signed until it is free."""
    import fcntl  # noqa: PLC0415

    bench = await rig.log("raw")
    await (await started(bench)).run([raw(b"a")])
    log = opened(bench, rig.store, tmp_path, bench.new_sequencer(guard=Guard(bench.guard.path, lock_seconds=0.05)))
    with bench.guard.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        await log.start()
        assert log.sequencer.signed is None
        assert await rig.store.reads.leaves(bench.log_id, 0, 9) == [b"a"]
    await until(lambda: log.sequencer.signed is not None)
    outcome = await log.append(raw(b"b"))
    assert list(outcome.indices) == [1]
    await log.close()
