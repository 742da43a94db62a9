"""Crashes of a writer in its own process, at every step of the write path and of recovery; and every pair of them.

``crash-*``: a seed is a chain of random faults on one log: any step, before or after, fail, kill or hang, at any call.
``pairs-*``: a seed is one step at which the writer is hit first; then, for every step and every action, the recovery is hit too.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from muniment.hashing import EMPTY_ROOT
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment_server import failpoints
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.storage.postgres.connect import migrate
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.guard import Guard
from tests.rigs.chain import Chain, Point, finish, run
from tests.rigs.rig import Context, FaultRig
from tests.service.rig import NOW, Bench, genesis
from tests.service.rig import Rig as Database

LINKS = 20
"""Processes in one chain: each meets up to three errors, and then one more fault that may end it."""
_RECOVERY = ("sequencer.load", "startup.prove", "store.head", "store.fence", "postgres.connect", "guard.read")
ENV = {failpoints.VARIABLE: ""}
# Steps of making a log, of anchors, and of the search index.
_NOT_HERE = (
    *("catalog.", "guard.create", "anchorer.", "store.add_anchor", "store.save_anchor"),
    *("store.restart_index", "store.add_postings"),
)


def steps(engine: str) -> list[str]:
    """Return the steps that a writer on this engine reaches."""
    other = "postgres." if engine == "sqlite" else "sqlite."
    return sorted(name for name in failpoints.steps if not name.startswith((other, *_NOT_HERE)))


@dataclass
class ReceiptBuilder:
    """Makes logs to crash: on SQLite each in a copy of one empty database, on Postgres all in one."""

    engine: str
    context: Context
    url: str | None = None

    def __post_init__(self) -> None:
        # A crash of the process leaves the page cache as it is, so memory does: what a power cut leaves is another rig's business.
        shared = Path("/dev/shm")
        self.root = Path(
            tempfile.mkdtemp(prefix="muniment-crash-", dir=shared if shared.is_dir() else self.context.folder)
        )
        self.context.stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        if self.engine == "postgres":
            self.url = self.context.postgres(self.root)
            run(migrate(self.url))

    def make(self, seed: int, name: str) -> Chain:
        """Make a log of some kind and size."""
        rng = random.Random(seed)
        folder = self.root / name
        folder.mkdir()
        kind = rng.choice(("event", "raw"))
        key, guard = SigningKey.generate(f"example.com/{name}"), Guard(folder / "guard" / "log.guard")
        guarded = guard.create(key.vkey.name, key.vkey.key_id)
        row = LogRow(1, name, key.vkey.name, kind, True, False, NOW)
        chain = Chain(self.engine, self.url, folder, row, key, guard, rng)
        size = rng.choice((1, 1, 2, 100, 250, 254, 255, 256, 257, 300))
        run(self._fill(chain, guarded.guard_id, size))
        chain.row = self._row(chain)
        return chain

    def _row(self, chain: Chain) -> LogRow:
        number = int((chain.folder / "log_id").read_text())
        return LogRow(number, chain.row.name, chain.row.origin, chain.row.kind, True, False, NOW)

    async def _fill(self, chain: Chain, guard_id: str, size: int) -> None:
        store: Store
        if self.url:
            store = await open_postgres(self.url)
        else:
            store = await open_sqlite(chain.folder / "store.sqlite")
        try:
            row = await store.catalog.create_log(chain.row, Head(0, EMPTY_ROOT, 0, 0, guard_id))
            (chain.folder / "log_id").write_text(str(row.log_id))
            database = Database(self.engine, self.url, chain.folder, store, None)  # type: ignore[arg-type]
            bench = Bench(database, row, chain.key, chain.guard)
            sequencer = bench.sequencer()
            await sequencer.start()
            await sequencer.run([genesis(bench)])
            if size > 1:
                await sequencer.run([_filler(chain.row.kind, size - 1)])
        finally:
            await store.close()

    def finish(self, chain: Chain) -> None:
        """Check a chain to the ground, and throw it away."""
        run(finish(chain, Policy((LogKey(chain.key.vkey),))))
        shutil.rmtree(chain.folder, ignore_errors=True)


def _filler(kind: str, count: int):
    from tests.service.rig import event, raw  # noqa: PLC0415

    return raw(*[b"filler %d" % n for n in range(count)]) if kind == "raw" else event(*range(count))


def _crash(engine: str):
    def work(context: Context) -> None:
        builder = ReceiptBuilder(engine, context)
        known = steps(engine)
        for seed in context.each():
            chain = builder.make(seed, f"c{seed}")
            try:
                for link in range(LINKS):
                    rng = chain.rng = random.Random(f"{seed}/{link}")
                    errors = [_error(rng, known) for _ in range(rng.choice((0, 1, 2, 3)))]
                    last = _writing(known, guard=True) if errors else known
                    chain.crash(*errors, _point(rng, last, rng.choice(("fail", "kill", "kill", "kill", "hang"))))
                chain.rng = random.Random(f"{seed}/last")
                chain.crash()
                builder.finish(chain)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            context.done(chain.fired, unreached=chain.unreached, acknowledged=len(chain.acked))

    return work


def _point(rng: random.Random, known: list[str], action: str) -> Point:
    return Point(rng.choice(known), action, rng.choice(failpoints.MOMENTS), rng.choice((1, 1, 1, 2, 3)))


def _error(rng: random.Random, known: list[str]) -> Point:
    """Return an error that a running process gets over: not of the guard, and at a step that every append comes by."""
    return Point(rng.choice(_writing(known, guard=False)), "fail", rng.choice(failpoints.MOMENTS))


def _writing(known: list[str], *, guard: bool) -> list[str]:
    return [name for name in known if name not in _RECOVERY and (guard or not name.startswith("guard."))]


def _firsts(engine: str) -> list[tuple[str, str]]:
    """Return every step and moment, in one shuffled order: so a lane of some of the seeds has steps from everywhere."""
    found = [(step, moment) for step in steps(engine) for moment in failpoints.MOMENTS]
    random.Random(engine).shuffle(found)
    return found


def _pairs(engine: str):
    def work(context: Context) -> None:
        builder = ReceiptBuilder(engine, context)
        firsts = _firsts(engine)
        for seed in context.each():
            if seed >= len(firsts):
                continue
            chain = builder.make(seed, f"p{seed}")
            chain.light = True
            try:
                for number, (first, second) in enumerate(_both(engine, *firsts[seed])):
                    chain.rng = random.Random(f"{seed}/{number}/1")
                    chain.unchecked = number > 0
                    chain.crash(first)
                    chain.unchecked = False
                    chain.rng = random.Random(f"{seed}/{number}/2")
                    before = chain.fired
                    chain.crash(second)
                    context.done(chain.fired - before)
                    context.counts["crash_points"] = context.counts["crash_points"] + 1 + chain.fired - before
                chain.rng = random.Random(f"{seed}/last")
                chain.crash()
                builder.finish(chain)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {firsts[seed]}: {error}") from error
            context.done(0, unreached=chain.unreached, acknowledged=len(chain.acked))

    return work


def _both(engine: str, step: str, moment: str) -> Iterator[tuple[Point, Point]]:
    for action in failpoints.ACTIONS:
        for second, when in _firsts(engine):
            yield Point(step, action, moment), Point(second, action, when)


PAIRS = 48
"""Seeds that hold every first step on either engine; more do nothing."""
GOAL = "in-process crash points"
RIGS = [
    FaultRig("crash-sqlite", GOAL, "crash points", _crash("sqlite"), 40, 1500, env=ENV),
    FaultRig("crash-postgres", GOAL, "crash points", _crash("postgres"), 30, 900, env=ENV),
    FaultRig("pairs-sqlite", "pairs of faults", "pairs", _pairs("sqlite"), 10, PAIRS, env=ENV),
    FaultRig("pairs-postgres", "pairs of faults", "pairs", _pairs("postgres"), 6, PAIRS, env=ENV),
]
