"""Every state of guard and database that a start can meet, on both stores, with the guard file and with witnesses as the guard; and
what a process says that had signed before guard or database came into that state.

Whatever is not provably the one history signs nothing, keeps serving proofs, and says why with a stable code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

from muniment.checkpoint import Checkpoint
from muniment.hashing import EMPTY_ROOT, RootHash
from muniment.note import SigningKey
from muniment_server.errors import Corrupt, Refused
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.read.flow import run
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.telemetry import Metrics
from muniment_server.write.guard import BLOCK, FILE_SIZE, Guarded
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from tests.rigs.rig import Context, FaultRig
from tests.service.audit import Naive
from tests.service.rig import Bench, raw
from tests.service.rig import Rig as Database

SIZE = 300
LEAVES = [b"%d" % number for number in range(SIZE)]
TREE = Naive(LEAVES)
State = Callable[[Bench, Guarded], Awaitable[None]]


def write_guard(bench: Bench, guarded: Guarded) -> None:
    """Put a guard file with this content in the place of the log's own."""
    bench.guard.path.unlink(missing_ok=True)
    bench.guard.create_at(guarded)


def at(size: int, guarded: Guarded) -> Guarded:
    """Return the guard as it was at a size."""
    return replace(guarded, size=size, root=RootHash(TREE.root(size)), sequence=size)


async def same(bench: Bench, guarded: Guarded) -> None:
    """The guard knows the stored head."""


async def behind(bench: Bench, guarded: Guarded) -> None:
    """The process was killed between commit and guard."""
    write_guard(bench, at(SIZE - 7, guarded))


async def never(bench: Bench, guarded: Guarded) -> None:
    """Nothing was ever signed."""
    write_guard(bench, replace(guarded, size=0, root=EMPTY_ROOT))


async def behind_and_damaged(bench: Bench, guarded: Guarded) -> None:
    """As behind, and an entry that was added since is not what its tile says."""
    write_guard(bench, at(SIZE - 7, guarded))
    await force(
        bench,
        f"UPDATE entries SET leaf = {bench.rig.blob(b'other')} WHERE log_id = {bench.log_id} AND {INDEX} = {SIZE - 3}",
    )


async def ahead(bench: Bench, guarded: Guarded) -> None:
    """The database is a restored backup."""
    write_guard(bench, replace(guarded, size=SIZE + 1, root=RootHash(bytes(32))))


async def ahead_and_newer(bench: Bench, guarded: Guarded) -> None:
    """A writer on another copy of the database was quicker, and has gone on."""
    write_guard(bench, replace(guarded, size=SIZE + 50, root=RootHash(bytes(32)), sequence=guarded.sequence + 1))


async def another_root_newer(bench: Bench, guarded: Guarded) -> None:
    """A writer on another copy of the database was quicker."""
    write_guard(bench, replace(guarded, size=SIZE + 1, root=RootHash(bytes(32)), sequence=guarded.sequence + 1))


async def put_back(bench: Bench, guarded: Guarded) -> None:
    """The guard file was restored from a backup."""
    write_guard(bench, replace(at(SIZE - 7, guarded), sequence=guarded.sequence - 1))


async def put_back_empty(bench: Bench, guarded: Guarded) -> None:
    """The guard file was restored from the day on which the log was made."""
    write_guard(bench, replace(guarded, size=0, root=EMPTY_ROOT, sequence=0))


async def overtaken(bench: Bench, guarded: Guarded) -> None:
    """A writer on the same database was quicker."""
    other = bench.sequencer()
    await other.run([raw(b"by another")])


async def missing(bench: Bench, guarded: Guarded) -> None:
    """The guard's volume was lost."""
    bench.guard.path.unlink()


async def another_root(bench: Bench, guarded: Guarded) -> None:
    """The database is another history."""
    write_guard(bench, replace(at(SIZE - 7, guarded), root=RootHash(bytes(32))))


async def another_root_now(bench: Bench, guarded: Guarded) -> None:
    """Another history of the very same size."""
    write_guard(bench, replace(guarded, root=RootHash(bytes(32))))


async def another_origin(bench: Bench, guarded: Guarded) -> None:
    """The guard of another log."""
    write_guard(bench, replace(guarded, origin="example.com/another"))


async def another_key(bench: Bench, guarded: Guarded) -> None:
    """The guard of another key."""
    write_guard(bench, replace(guarded, key_id=b"abcd"))


async def another_guard(bench: Bench, guarded: Guarded) -> None:
    """The database is a clone: its writer has a guard of its own."""
    write_guard(bench, replace(guarded, guard_id="0" * 32))


async def unreadable(bench: Bench, guarded: Guarded) -> None:
    """Every copy of both slots is spoiled."""
    bench.guard.path.write_bytes(bytes(FILE_SIZE))


async def rotten(bench: Bench, guarded: Guarded) -> None:
    """Both copies of one slot are spoiled: it may have been the newer one."""
    data = bytearray(bench.guard.path.read_bytes())
    for start in (0, BLOCK):
        data[start + 40] ^= 1
    bench.guard.path.write_bytes(data)


async def torn(bench: Bench, guarded: Guarded) -> None:
    """The first copy of the newer slot is torn, the second was not written: the older slot counts, and the entries since are checked."""
    write_guard(bench, at(SIZE - 7, guarded))
    data = bytearray(bench.guard.path.read_bytes())
    data[:40] = b"x" * 40
    bench.guard.path.write_bytes(data)


async def damaged_edge(bench: Bench, guarded: Guarded) -> None:
    """A stored tile does not hash to the stored root."""
    spoiled = bench.rig.blob(bytes(32 * (SIZE % 256)))
    await force(bench, f"UPDATE tiles SET data = {spoiled} WHERE log_id = {bench.log_id} AND level = 0 AND {INDEX} = 1")


async def beyond_head(bench: Bench, guarded: Guarded) -> None:
    """Rows beyond the head, put there by hand (Trillian 646)."""
    size = (await bench.rig.store.reads.head(bench.log_id)).size
    values = f"({bench.log_id}, {size}, 0, {bench.rig.blob(b'orphan')})"
    await force(bench, f"INSERT INTO entries (log_id, {INDEX}, leaf_key, leaf) VALUES {values}")


INDEX = '"index"'
FILE: dict[State, str | None] = {
    same: None,
    behind: None,
    never: None,
    torn: None,
    behind_and_damaged: "database_damaged",
    ahead: "database_behind",
    missing: "guard_missing",
    unreadable: "guard_unreadable",
    rotten: "guard_unreadable",
    another_root: "guard_root",
    another_root_now: "guard_root",
    another_origin: "guard_foreign",
    another_key: "guard_foreign",
    another_guard: "guard_foreign",
    damaged_edge: "database_damaged",
    beyond_head: "database_damaged",
}
WARM: dict[State, str | None] = {
    same: None,
    overtaken: None,
    put_back: "guard_replaced",
    put_back_empty: "guard_replaced",
    ahead: "guard_replaced",  # with the same number: another file
    ahead_and_newer: "database_behind",
    another_root_now: "guard_replaced",
    another_root_newer: "guard_root",
    missing: "guard_missing",
    unreadable: "guard_unreadable",
    rotten: "guard_unreadable",
    another_guard: "guard_foreign",
    damaged_edge: "database_damaged",
    beyond_head: "database_damaged",
}
"""What a process says that was running, and had signed, before the outside changed: it has seen a newer guard than an old copy."""
WITNESSES: dict[tuple[int, bool], str | None] = {
    (SIZE, True): None,
    (SIZE - 50, True): None,
    (0, True): None,
    (SIZE, False): "witness_root",
    (SIZE - 50, False): "witness_root",
    (SIZE + 1, True): "witness_ahead",
    (2**40, True): "witness_ahead",
}


async def force(bench: Bench, statement: str) -> None:
    """Run a statement past the triggers, as whoever owns the database can."""
    if bench.rig.database:
        await bench.rig.sql("SET LOCAL session_replication_role = replica", *_without_triggers(statement))
    else:
        names = await bench.rig.sql("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        drops = [f"DROP TRIGGER {name}" for name, _ in names]
        await bench.rig.sql(*drops, statement, *[sql for _, sql in names])


def _without_triggers(statement: str) -> Iterator[str]:
    table = statement.split()[1 if statement.startswith("UPDATE") else 2]
    yield f"ALTER TABLE {table} DISABLE TRIGGER USER"
    yield statement
    yield f"ALTER TABLE {table} ENABLE TRIGGER USER"


async def make(engine: str, url: str | None, folder: Path, store: Store, number: int) -> tuple[Bench, Guarded]:
    """Make a log of SIZE entries, signed and guarded."""
    database = Database(engine, url, folder, store, contextlib.AsyncExitStack(), _made=number)
    bench = await database.log("raw")
    sequencer = bench.sequencer()
    await sequencer.start()
    await sequencer.run([raw(*LEAVES)])
    return bench, bench.guard.read()


async def judge(bench: Bench, code: str | None, sequencer: Callable[[Observer], Sequencer]) -> None:
    """Start as a server does: it goes, or it refuses with this code, signs nothing, and still proves."""
    before = bench.guard.path.read_bytes() if bench.guard.path.exists() else None
    log = Log(bench.rig.store, bench.row, Settings(data=bench.rig.folder), Metrics(), Cache(2**20), sequencer)
    await bench.rig.store.checkpoints.publish(bench.log_id, _published(bench))
    await log.start()
    try:
        found = log.refusal.code if log.refusal else None
        if found != code:
            raise AssertionError(f"expected {code or 'to go'}, found {found}: {log.refusal}")
        if code is None:
            await log.append(raw(b"one more"))
        elif log.sequencer.signed or (bench.guard.path.read_bytes() if bench.guard.path.exists() else None) != before:
            raise AssertionError("it refused, and signed or wrote a guard")
        await _still_proves(log, code)
    finally:
        await log.close()


async def _still_proves(log: Log, code: str | None) -> None:
    """A log that refuses still proves; where its tiles are damaged it says so, rather than hand out what does not verify."""
    try:
        proof = await run(log.proofs.inclusion(5, SIZE - 60))
    except Corrupt:
        if code != "database_damaged":
            raise
    else:
        if proof.root != TREE.root(SIZE - 60):
            raise AssertionError("a refusing log proves something else")


async def judge_warm(bench: Bench, state: State, code: str | None) -> None:
    """Let a log sign, change the outside, and let it try again: it goes on, or refuses with this code and signs nothing more."""
    sequencer = bench.new_sequencer()
    log = Log(bench.rig.store, bench.row, Settings(data=bench.rig.folder), Metrics(), Cache(2**20), sequencer)
    await log.start()
    try:
        await log.append(raw(b"warm"))
        signed, guarded = log.sequencer.signed, bench.guard.read()
        await state(bench, guarded)
        before = bench.guard.path.read_bytes() if bench.guard.path.exists() else None
        found = await _appended(log)
        if found != code:
            raise AssertionError(f"expected {code or 'to go on'}, found {found}: {log.refusal}")
        after = bench.guard.path.read_bytes() if bench.guard.path.exists() else None
        if code and (log.sequencer.signed is not signed or after != before):
            raise AssertionError("it refused, and signed or wrote a guard")
        await _still_proves(log, code)
    finally:
        await log.close()


async def _appended(log: Log) -> str | None:
    """Append until that is done, or refused for a reason; return the reason."""
    for number in range(3):
        try:
            await log.append(raw(b"one more %d" % number))
        except Refused as refused:
            if refused.code != "outcome_unknown":
                return refused.code
        else:
            return None
    return "outcome_unknown"


def _published(bench: Bench):
    from muniment.checkpoint import sign_checkpoint  # noqa: PLC0415
    from muniment_server.storage.checkpoints import Published  # noqa: PLC0415

    note = sign_checkpoint(Checkpoint(bench.row.origin, SIZE, RootHash(TREE.root(SIZE))), bench.key)
    return Published(SIZE, str(note), 0)


async def states(context: Context, engine: str, url: str | None) -> None:
    """Run every state on one store."""
    folder = context.folder / engine
    folder.mkdir()
    store: Store
    if url:
        await migrate(url)
        store = await open_postgres(url)
    else:
        store = await open_sqlite(folder / "store.sqlite")
    try:
        for number, (state, code) in enumerate(FILE.items()):
            bench, guarded = await make(engine, url, folder, store, number)
            await state(bench, guarded)
            await _named(judge(bench, code, bench.new_sequencer()), engine, state.__name__)
            context.done(1, file=1)
        for number, ((size, right), code) in enumerate(WITNESSES.items(), len(FILE)):
            bench, _ = await make(engine, url, folder, store, number)
            seen = Checkpoint(bench.row.origin, size, RootHash(TREE.root(min(size, SIZE)) if right else bytes(32)))

            async def witnessed(seen: Checkpoint = seen) -> list[Checkpoint]:
                return [seen]

            await _named(
                judge(bench, code, bench.new_sequencer(witnessed=witnessed)), engine, f"witness at {size}, {right}"
            )
            context.done(1, witness=1)
        for number, (state, code) in enumerate(WARM.items(), len(FILE) + len(WITNESSES) + 1):
            bench, _ = await make(engine, url, folder, store, number)
            await _named(judge_warm(bench, state, code), engine, f"warm, {state.__name__}")
            context.done(1, warm=1)
        bench, _ = await make(engine, url, folder, store, len(FILE) + len(WITNESSES))
        await _named(
            judge(bench, "guard_foreign", bench.new_sequencer(key=_other_key(bench))), engine, "another key file"
        )
        context.done(1, file=1)
    finally:
        await store.close()


def _other_key(bench: Bench) -> SigningKey:
    return SigningKey.generate(bench.row.origin)


async def _named(work: Awaitable[None], engine: str, state: str) -> None:
    try:
        await work
    except AssertionError as error:
        raise AssertionError(f"{engine}, {state}: {error}") from error


def work(context: Context) -> None:
    """One seed is everything."""
    for _ in context.each():
        asyncio.run(states(context, "sqlite", None))
        asyncio.run(states(context, "postgres", context.postgres()))


RIGS = [FaultRig("guard-states", "guard start-up states x stores x guards", "states", work, 1, 1, jobs=1)]
