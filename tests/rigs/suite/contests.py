"""contests-*: databases that are copied while writers are on them, and all of these then try to sign. No two notes contradict.

A contest is one copy of a database after which writers on both sides try to sign. Two to four processes (each with a store and a guard of
its own, inside the rig's own process) have mostly signed before. They append batches of any size, are held at calls to the database,
moved to the other copy without a word, answered by a pool that mixes servers; the database file is replaced under them, and the guard
file is copied, or put back to an older copy after all have met a newer one. All from one seed.

Held against each other: every head that any process signed, published or answered with, by the leaves it wrote down (``tracecheck``);
every checkpoint that either database holds, against the entries there; and the guard. Whoever signs nothing says why, and in the end
somebody goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from muniment.checkpoint import parse_checkpoint
from muniment.hashing import EMPTY_ROOT
from muniment.note import SigningKey, parse_note
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.write import refusal
from muniment_server.write.guard import Guard
from muniment_server.write.submission import Submission
from tests.rigs.contest import HELD, Process, copy_over
from tests.rigs.copies import Copies, PostgresCopies, SqliteCopies
from tests.rigs.rig import Context, FaultRig, postgres_server
from tests.service.audit import Naive
from tests.service.rig import NOW, event, raw
from tests.tracecheck import Checker

CONTESTS = 10
"""In each seed, one after the other: the winner's database is copied next."""
WHY = {"database_behind", "guard_root", "guard_replaced", "database_replaced"}
"""What a process that is not the winner may give as its reason."""
KINDS = ("plain", "plain", "moved", "mixed", "guard copied", "guard put back")
ORIGIN = "example.com/contest"


class Contests:
    """The contests of one seed. `base` is the database that is the log."""

    def __init__(self, seed: int, folder: Path, copies: Copies) -> None:
        self.rng = random.Random(seed)
        self.copies = copies
        self.guard = folder / "guard" / "log.guard"
        self.key = SigningKey.generate(ORIGIN)
        self.row = LogRow(0, "log", ORIGIN, self.rng.choice(["event", "raw"]), True, False, NOW)
        self.base = ""
        self.sides: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.checker = Checker(Path("trace"), copied=True)
        self.processes: list[Process] = []
        self.counts = {"signed": 0, "unknown": 0, "refused": 0, "moved": 0, "guard": 0}
        self._numbers = iter(range(1, 1_000_000))
        self._kept: list[tuple[int, bytes]] = []  # contents of the guard file, with their numbers
        self.kind = ""
        self.deleted: list[Store] = []  # stores whose files are gone

    async def begin(self) -> None:
        """Make the log."""
        self.base = await self.copies.first()
        store = await self.copies.open(self.base)
        guarded = Guard(self.guard).create(ORIGIN, self.key.vkey.key_id)
        self.row = await store.catalog.create_log(self.row, Head(0, EMPTY_ROOT, 0, 0, guarded.guard_id))
        await store.close()
        self.keep()

    # --- one contest ----------------------------------------------------------------------------------------------------

    async def contest(self) -> None:
        """Copy the base, let processes of both try to sign, check everything, and go on with the winner's."""
        self.kind, self.deleted = self.rng.choice(KINDS), []
        replaced = isinstance(self.copies, SqliteCopies) and self.rng.random() < 0.15
        await self._copy()
        if self.kind == "moved":
            await self._known_elsewhere()
        for _ in range(self.rng.randint(4, 10)):
            await self._turn()
        if replaced and isinstance(self.copies, SqliteCopies):
            await self._replace(self.copies)
        for process in self.rng.sample(self.processes, len(self.processes)):
            await process.end()
            process.gate.others = []
        if self.kind == "guard put back" and self.rng.random() < 0.7:  # after somebody has signed: the worst moment
            self._disturb(self.processes[0])
        winners = await self._all_try()
        await self._check()
        for process in self.processes:
            await process.close()
        await self._go_on(winners)

    async def _copy(self) -> None:
        """Copy the base: before, after or between the starts of the processes on it."""
        warm = self.rng.randint(0, 2)
        for _ in range(warm):
            await self._start(self.base)
            await self.processes[-1].append(self.batch())
        self.sides = [self.base, await self.copies.copy(self.base)]
        for side in self.sides if not warm else self.sides[1:]:
            await self._start(side)
        for _ in range(self.rng.randint(0, 4 - len(self.processes))):
            await self._start(self.rng.choice(self.sides))
        if self.kind == "mixed":
            for process in self.processes:
                process.gate.others = [other.own for other in self.processes]

    async def _start(self, copy: str) -> None:
        number = next(self._numbers)
        store = await self.copies.open(copy)
        rng = random.Random(self.rng.random())
        process = Process(number, copy, store, self.row, self.key, self.guard, rng, self.lines)
        self.processes.append(process)
        await process.sequencer.start()

    @property
    def silent(self) -> bool:
        """Tell whether calls may have gone to other databases without a new connection, so that places may be of any of them."""
        return self.kind == "mixed" or (self.kind == "moved" and isinstance(self.copies, SqliteCopies))

    def batch(self) -> Submission:
        """A batch: now and then of entries that another process may append as well."""
        count = self.rng.choice((1, 1, 1, 2, 2, 3, 5, 40, 300) if self.rng.random() < 0.3 else (1, 2))
        if self.row.kind == "raw" and self.rng.random() < 0.2:
            return raw(*(b"%d" % self.rng.randint(0, 30) for _ in range(count)))
        return self._fresh(count)

    def _fresh(self, count: int = 1) -> Submission:
        """A batch of entries that nobody has appended yet."""
        make = event if self.row.kind == "event" else lambda *numbers: raw(*(b"leaf %d" % n for n in numbers))
        return make(*(next(self._numbers) for _ in range(count)))

    async def _turn(self) -> None:
        process, dice = self.rng.choice(self.processes), self.rng.random()
        if process.task:
            await process.end()
        elif dice < 0.65:
            name = self.rng.choice(HELD) if self.rng.random() < 0.5 else None
            await process.begin(process.append(self.batch()), name, after=self.rng.random() < 0.5)
        elif dice < 0.75:
            await process.publish()
        elif dice < 0.85:
            await asyncio.gather(*(one.append(self.batch()) for one in self.processes if not one.task))
        else:
            self._disturb(process)
        self.keep()

    async def _known_elsewhere(self) -> None:
        """Move a process to where another one has just committed what it is then asked to append: that is at another place there."""
        one = next(process for process in self.processes if process.copy == self.sides[0])
        two = next(process for process in self.processes if process.copy == self.sides[1])
        first, other = self._fresh(), self._fresh(2)
        for batch in (first, self._fresh(3), first):  # known now, and so looked up from now on
            await one.append(batch)
        await two.append(other)
        one.gate.store = two.own
        await one.append(other)

    def _disturb(self, process: Process) -> None:
        self.keep()
        if self.kind == "moved":
            process.gate.store = self.rng.choice(self.processes).own
            self.counts["moved"] += 1
        elif self.kind == "guard copied":
            process.guard.at_write = lambda: copy_over(self.guard, self.guard.read_bytes())
            self.counts["guard"] += 1
        elif self.kind == "guard put back":
            met = min(one.guard.known for one in self.processes)
            if older := [data for number, data in self._kept if number < met]:
                copy_over(self.guard, self.rng.choice(older))
                self.counts["guard"] += 1

    def keep(self) -> None:
        """Keep a copy of the guard file, as backups do."""
        number = Guard(self.guard).read().sequence
        if not self._kept or number > self._kept[-1][0]:
            self._kept.append((number, self.guard.read_bytes()))

    async def _replace(self, copies: SqliteCopies) -> None:
        """Put a copy of a database in its own place, under the processes on it, and start another one there."""
        side = self.rng.choice(self.sides)
        self.deleted = [process.own for process in self.processes if process.copy == side]
        for process in self.processes:
            process.gate.others = []
        await copies.replace(side, await copies.copy(side))
        if self.kind != "guard put back":  # a process that has met nothing cannot know
            await self._start(side)

    # --- what must hold -------------------------------------------------------------------------------------------------

    async def _all_try(self) -> list[Process]:
        """Let each process try to sign, and return those that did. The others say why."""
        results: dict[int, str] = {}
        for _ in range(
            3
        ):  # unknown is said once, when another history got ahead; two databases may be equal until just now
            for process in self.rng.sample(self.processes, len(self.processes)):
                result = await process.append(self._fresh())
                results[process.number] = await process.append(self._fresh()) if result == "unknown" else result
        for process in self.processes:
            if results[process.number] not in {"signed", *WHY}:
                raise AssertionError(f"process {process.number} neither signs nor says why: {process.said}")
        winners = [process for process in self.processes if results[process.number] == "signed"]
        if any(process.gate.store in self.deleted for process in winners):
            raise AssertionError("a process wrote into a deleted file, and called that a success")
        return winners

    async def _check(self) -> None:
        for line in self.lines:
            self.checker.take(line)
        self.lines.clear()
        for process in self.processes:
            for size, root in process.heads:
                self.checker.shown(self.row.name, size, root, "answered with")
            if not self.silent:
                for index, leaf in process.places:
                    self.checker.placed(self.row.name, index, leaf)
            for name in WHY | {"unknown", "signed"}:
                self.counts["refused" if name in WHY else name] += process.results[name]
        for side in self.sides:
            store = await self.copies.open(side)
            try:
                await self._check_side(store)
            finally:
                await store.close()
        self.keep()
        copy_over(self.guard, self._kept[-1][1])
        guarded = Guard(self.guard).read()
        self.checker.shown(self.row.name, guarded.size, guarded.root.hex(), "guarded")
        self.checker.finish()

    async def _check_side(self, store: Store) -> None:
        """Every checkpoint that a database holds is of its own tree, and of the history."""
        tree = Naive(await store.reads.leaves(self.row.log_id, 0, 10**6))
        for one in await store.checkpoints.checkpoints(self.row.log_id, 0, 10**6):
            found = parse_checkpoint(parse_note(one.note).text)
            self.checker.shown(self.row.name, found.size, found.root.hex(), "published")
            if tree.root(found.size) != found.root:
                raise AssertionError(f"a checkpoint of size {found.size} was stored where its tree is not")

    async def _go_on(self, winners: list[Process]) -> None:
        """Somebody goes on: a new process on the database that has what the guard says."""
        self.processes.clear()
        why: list[str] = []
        for side in self.rng.sample(
            self.sides, 2
        ):  # one alone: a start may raise the guard to a head that nobody had signed
            await self._start(side)
            process = self.processes.pop()
            await process.close()
            if process.sequencer.refusal is None:
                self.base = side
                break
            why.append(repr(process.sequencer.refusal))
        else:
            raise AssertionError(f"nobody can go on, the winners were {[one.number for one in winners]}: {why}")
        for side in self.sides:
            if side != self.base:
                await self.copies.drop(side)

    def leftovers(self) -> Iterator[Process]:
        """Processes that a failure left behind."""
        yield from self.processes


async def run(context: Context, seed: int, copies: Copies, folder: Path) -> None:
    """Run the contests of one seed."""
    refusal.LOOK_SECONDS = 0.0  # a refusal is looked at again at once: in the end only those that are right are left
    contests = Contests(seed, folder, copies)
    async with AsyncExitStack() as stack:
        await contests.begin()
        for number in range(CONTESTS):
            try:
                await contests.contest()
            except BaseException as error:
                error.add_note(f"seed {seed}, contest {number} of {CONTESTS} ({contests.kind}, {contests.row.kind})")
                for process in contests.leftovers():
                    stack.push_async_callback(process.close)
                raise
    context.done(CONTESTS, **contests.counts)


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: nobody cuts the power here, and a copy then costs a tenth."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="contests-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def on_sqlite(context: Context) -> None:
    """Each seed in a folder of its own."""
    for seed in context.each():
        with in_memory() as folder:
            asyncio.run(run(context, seed, SqliteCopies(folder), folder))


def on_postgres(context: Context) -> None:
    """Each seed in databases of its own, on one server."""
    logging.getLogger("asyncpg").setLevel(
        logging.CRITICAL
    )  # a copy cuts all connections, and the pools say so at length
    with in_memory() as server, postgres_server(server) as url:
        for seed in context.each():
            with in_memory() as folder:
                asyncio.run(run(context, seed, PostgresCopies(url, f"seed_{seed}"), folder))


_GOAL = "contests of writers over copied databases"
RIGS = [
    FaultRig("contests-sqlite", _GOAL, "contests", on_sqlite, quick=10, full=1_000),
    FaultRig("contests-postgres", _GOAL, "contests", on_postgres, quick=2, full=300),
]
