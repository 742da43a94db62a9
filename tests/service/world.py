"""The world of a simulation: a log, its writers, what happens to them, and what must hold after every step. See simulation.py."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from muniment.errors import FormatError
from muniment.policy import LogKey, Policy
from muniment_server.check.fsck import fsck
from muniment_server.errors import ClockRefused, OutcomeUnknown, ReadOnly, Refused, StoreError
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.clock import MAX_BEHIND, Clock
from muniment_server.write.guard import BLOCK, SLOT, Guard, Guarded, copies_of
from muniment_server.write.observer import Unobserved
from muniment_server.write.submission import Outcome, Submission
from tests.service.audit import Naive, audit
from tests.service.model import TTL, Batches, Model, expect
from tests.service.rig import NOW, Bench, Rig, genesis
from tests.service.storm import READS, Fault, Gate, MoodyGuard, Pause, Writer, copy_database, has_log

STRANGER = "example.com/other"


class Told(Unobserved):
    """Has every signature checked in the very moment it is made."""

    check: Callable[[], None]

    def signed(self) -> None:
        self.check()


class World:
    """A log, its writers, and the model. Requires a running loop; see :func:`simulate`."""

    def __init__(self, rng: Random, rig: Rig, bench: Bench) -> None:
        self.rng = rng
        self.rig = rig
        self.bench = bench
        self.database = rig.folder / "store.sqlite"
        self.model = Model()
        self.batches = Batches(rng, bench.row.kind, self.model)
        self.writers: list[Writer] = []
        self.now = NOW
        self.done: list[str] = []  # for the message of a failure
        self._backup: Path | None = None

    # --- writers ---

    async def new_writer(self) -> Writer:
        """Start another process."""
        store = await open_sqlite(self.database)
        gate, guard = Gate(store, self.rng), MoodyGuard(self.bench.guard.path)
        told = Told()
        clock = Clock(lambda: self.now / 1000)
        sequencer = self.bench.sequencer(gate, ttl=TTL, guard=guard, clock=clock, observer=told)
        writer = Writer(store, gate, guard, sequencer)
        told.check = lambda: self._signed(writer)
        self.writers.append(writer)
        await self._start(writer)
        return writer

    async def _start(self, writer: Writer) -> None:
        try:
            await writer.sequencer.start()
        except StoreError:
            self.model.counts["starts failed"] += 1

    def _signed(self, writer: Writer) -> None:
        """Check a signature in the very moment it is made."""
        head = writer.sequencer.signed
        self.model.counts["signatures"] += 1
        expect(self.model.signed.setdefault(head.size, head.root) == head.root, f"FORK: two roots of size {head.size}")
        expect(head.size >= writer.highest, f"a writer went back from {writer.highest} to {head.size}")
        expect((head.size, head.root) in writer.gate.clean, f"signed {head.size}, which no clean reply made durable")
        expect(Guard(writer.guard.path).read().size >= head.size, f"signed {head.size} before the guard had it")
        writer.highest = head.size
        writer.gate.signatures += 1

    async def _drop(self, writer: Writer) -> None:
        """End a process; what it sent may still arrive."""
        await self._deliver(writer)
        self.writers.remove(writer)
        await writer.store.close()

    async def _deliver(self, writer: Writer) -> None:
        late, writer.gate.late = writer.gate.late, []
        for signatures, call in late:
            try:
                await call()
            except StoreError:
                self.model.counts["late writes refused"] += 1
                continue
            # Before it signed again it fenced the head: a write that expects an older epoch must not arrive any more.
            expect(signatures == writer.gate.signatures, "a late write took, though its head was fenced and signed")
            self.model.counts["late writes that took"] += 1

    def _writer(self) -> Writer:
        return self.rng.choice(self.writers)

    # --- submissions ---

    async def submit(self, writer: Writer, batch: list[Submission]) -> None:
        """Send a batch, and take whatever comes back into the model."""
        try:
            outcomes = await writer.sequencer.run(batch)
        except ReadOnly as refused:
            # A bit that flips in a tile that only the guard's head needs cannot be told from another history.
            damage = refused.code in ("database_damaged", "guard_root")
            expect(damage and writer.gate.flips, f"refused without reason: {refused}")
            self.model.counts[refused.code] += 1
            self.model.unknown(batch, self.now)  # the append may have been done before the refusal
            return
        except ClockRefused:
            head = await self.rig.store.reads.head(self.bench.log_id)
            expect(head.logged_at - self.now > MAX_BEHIND, "the clock is refused for no reason")
            return
        except OutcomeUnknown:
            self.model.unknown(batch, self.now)
            if self.rng.random() < 0.5:  # as the batcher does, unless the next batch is quicker
                writer.heal()
                await self._start(writer)
            return
        except StoreError:
            return
        finally:
            writer.heal()
        await self._answers(batch, outcomes)

    async def _answers(self, batch: list[Submission], outcomes: list[Outcome | Refused]) -> None:
        expect(len(outcomes) == len(batch), "another number of answers")
        for submission, outcome in zip(batch, outcomes, strict=True):
            leaves: list[bytes] = []
            if isinstance(outcome, Outcome):
                leaves = await self._leaves(outcome.indices)
                expect(outcome.replayed or list(outcome.leaves) == leaves, "the answer has other leaves than the log")
                expect(self.model.signed.get(outcome.signed.size) == outcome.signed.root, "a head nobody signed")
            self.model.answer(submission, outcome, self.now, leaves)

    async def _leaves(self, indices: Sequence[int]) -> list[bytes]:
        low, high = min(indices), max(indices)
        found = await self.rig.store.reads.leaves(self.bench.log_id, low, high + 1)
        expect(len(found) == high + 1 - low, f"entry {low + len(found)} was acknowledged and is not there")
        return [found[index - low] for index in indices]

    # --- steps ---

    async def append(self) -> None:
        """A batch, mostly through bad luck."""
        writer = self._writer()
        for _ in range(self.rng.choice([0, 1, 1, 2])):
            self._plan(writer)
        await self.submit(writer, self.batches.draw())

    def _plan(self, writer: Writer) -> None:
        kind = self.rng.choice(["read", "read", "append", "append", "fence", "guard", "flip"])
        if kind == "guard":
            writer.guard.planned.append(Fault(self.rng.choice(["fail", "after"])))
        elif kind == "flip":
            writer.gate.planned[self.rng.choice(["append", "reread", "tiles"])].append(Fault("flip"))
        elif kind == "read":
            name = self.rng.choice(READS)
            writer.gate.planned[name] += [Fault("")] * self.rng.randrange(2) + [Fault("fail")]
        else:
            writer.gate.planned[kind].append(Fault(self.rng.choice(["fail", "lost", "after", "late", "moved"])))
        self.done.append(f"plan {kind}")

    async def contest(self) -> None:
        """One writer is held in the middle of a batch while others go on."""
        held = self._writer()
        pause = Pause()
        fault = Fault("", pause, after=self.rng.random() < 0.5)
        name = self.rng.choice([*READS, "append", "append", "fence", "swap", "swap"])
        (held.guard.planned if name == "swap" else held.gate.planned[name]).append(fault)
        batch = self.batches.draw()
        self.model.unknown(batch, self.now)
        running = asyncio.create_task(self.submit(held, batch))
        reached = asyncio.create_task(pause.reached.wait())
        await asyncio.wait((running, reached), return_when=asyncio.FIRST_COMPLETED)
        self.done.append(f"held at {name}, {'after' if fault.after else 'before'}: {pause.reached.is_set()}")
        self.model.counts["contests"] += pause.reached.is_set()
        try:
            for _ in range(self.rng.randrange(1, 4)):
                other = self._writer()
                if other is not held:
                    await self.submit(other, self.batches.draw())
                    await self.publish()
        finally:
            pause.release()
            await running
            reached.cancel()

    async def restart(self) -> None:
        """A process is killed and started anew."""
        await self._drop(self._writer())
        await self.new_writer()

    async def deliver(self) -> None:
        """What was sent long ago arrives."""
        await self._deliver(self._writer())

    async def publish(self) -> None:
        """Publish the last head that some writer signed."""
        signed = self._writer().sequencer.signed
        if not signed or not signed.size:
            return
        store = self.rig.store
        larger = await store.checkpoints.publish(self.bench.log_id, Published(signed.size, signed.note, self.now))
        expect(larger is (signed.size > self.model.published), "published what is not larger, or did not")
        self.model.published = max(self.model.published, signed.size)

    async def clock_step(self) -> None:
        """Time jumps: a little, back within bounds and beyond, or so far that keys expire."""
        self.now += self.rng.choice([1, 700, -700, -20_000, -59_000, -200_000, 60_000, 250_000, TTL * 1000 + 5_000])

    async def back_up(self) -> None:
        """Keep a copy of the database as it is now."""
        path = self.rig.folder / "backup.sqlite"
        path.unlink(missing_ok=True)
        await asyncio.to_thread(copy_database, self.database, path)
        self._backup = path

    async def restore(self) -> None:
        """The copy takes the place of the database. It may go on only if the guard saw nothing that the copy lacks."""
        if self._backup is None:
            return
        await self._close_all()
        kept = self.rig.folder / "kept.sqlite"
        shutil.copy(self.database, kept)
        await self._open(self._backup)
        guarded = self.bench.guard.read()
        head = await self.rig.store.reads.head(self.bench.log_id)
        leaves = await self.rig.store.reads.leaves(self.bench.log_id, 0, head.size)
        same = guarded.size <= head.size and Naive(leaves).root(guarded.size) == guarded.root
        before = self.model.counts["signatures"]
        writer = await self.new_writer()
        if same:
            expect(writer.sequencer.refusal is None, f"a good copy is refused: {writer.sequencer.refusal}")
            self.model.counts["good copies"] += 1
            await self._publish_again(writer)
            return
        await self._must_refuse(writer, "database_behind" if guarded.size > head.size else "guard_root")
        expect(self.model.counts["signatures"] == before, "an old copy was signed")
        for index, leaf in self.model.acked.items():
            expect(index >= head.size or leaves[index] == leaf, f"the copy has another entry {index}")
        await self._close_all()
        await self._open(kept)
        await self.new_writer()

    async def _publish_again(self, writer: Writer) -> None:
        """A copy may lack checkpoints that were published; the head that is signed now is no smaller than any of them."""
        found = await self.rig.store.checkpoints.checkpoint(self.bench.log_id)
        before, self.model.published = self.model.published, found.size if found else 0
        expect(writer.sequencer.signed.size >= before, "the copy went on behind what was published")
        await self.publish()

    async def _must_refuse(self, writer: Writer, *codes: str) -> None:
        """A writer that must not sign says so, and still reads."""
        for _ in range(2):
            refusal = writer.sequencer.refusal
            expect(refusal is not None and refusal.code in codes, f"not refused with {codes}: {refusal}")
            try:
                await writer.sequencer.run(self.batches.draw())
            except ReadOnly:
                continue
            raise AssertionError(f"took a batch, though {codes}")
        await writer.store.reads.leaves(self.bench.log_id, 0, 1)
        self.model.counts[f"refused {codes[0]}"] += 1

    async def damage_guard(self) -> None:
        """The guard file is lost, foreign, or some copies of its slots are damaged."""
        path = self.bench.guard.path
        good = path.read_bytes()
        sequence = self.bench.guard.read().sequence
        newest = SLOT * (sequence % 2)
        kind = self.rng.choice(["missing", "all", "newest", "older", "first copies", "one of each", "foreign", "empty"])
        self.done.append(f"guard {kind}")
        for writer in list(self.writers):
            await self._drop(writer)
        if kind == "missing":
            path.unlink()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "foreign":
            path.unlink()
            Guard(path).create(STRANGER, b"\1\2\3\4")
        else:
            older = SLOT - newest
            places = {
                "all": (0, SLOT, BLOCK, BLOCK + SLOT),
                "newest": (newest, BLOCK + newest),
                "older": (older, BLOCK + older),
                "first copies": (0, SLOT),
                "one of each": (newest, BLOCK + older),
            }[kind]
            path.write_bytes(self._spoiled(good, places))
        before = self.model.counts["signatures"]
        writer = await self.new_writer()
        if _intact(path):
            expect(
                writer.sequencer.refusal is None, f"a good copy of each slot is not enough: {writer.sequencer.refusal}"
            )
            return
        code = {"missing": "guard_missing", "foreign": "guard_foreign"}.get(kind, "guard_unreadable")
        await self._must_refuse(writer, code)
        expect(self.model.counts["signatures"] == before, "signed without a guard")
        await self._drop(writer)
        path.write_bytes(good)
        await self.new_writer()

    def _spoiled(self, good: bytes, places: tuple[int, ...]) -> bytes:
        data = bytearray(good)
        for place in places:
            data[place + self.rng.randrange(200)] ^= 1 << self.rng.randrange(8)
        return bytes(data)

    async def _close_all(self) -> None:
        for writer in list(self.writers):
            await self._drop(writer)
        await self.rig.store.close()
        expect(not await asyncio.to_thread(has_log, self.database), "somebody still has the database open")

    async def _open(self, source: Path) -> None:
        """Put a database in place of the closed one."""
        shutil.copy(source, self.database)
        self.rig.store = await open_sqlite(self.database)

    # --- the run ---

    async def begin(self) -> None:
        """Start the writers, and let the first one make the genesis."""
        for _ in range(self.rng.choice([1, 2, 2, 3])):
            await self.new_writer()
        (made,) = await self.writers[0].sequencer.run([genesis(self.bench)])
        self.model.acknowledge(0, made.leaves[0], made.signed.size)

    async def step(self) -> None:
        """One step, and the invariants after it."""
        (chosen,) = self.rng.choices(list(STEPS), list(STEPS.values()))
        self.done.append(chosen.__name__)
        self.now += self.rng.randrange(5)
        await chosen(self)
        for writer in list(self.writers):
            if writer.sequencer.refusal:  # a bit was flipped under it: it signs nothing until a restart
                await self._drop(writer)
        if not self.writers:
            await self.new_writer()
        for writer in self.writers:
            refusal = writer.sequencer.refusal
            expect(refusal is None, f"a good database and guard are refused: {refusal}")
        await self.check()

    async def check(self) -> None:
        """Every acknowledged entry is there, and every head that was ever signed is of this one history."""
        head = await self.rig.store.reads.head(self.bench.log_id)
        leaves = await self.rig.store.reads.leaves(self.bench.log_id, 0, head.size + 1)
        expect(len(leaves) == head.size, f"{len(leaves)} entries under a head of {head.size}")
        for index, leaf in self.model.acked.items():
            expect(index < head.size and leaves[index] == leaf, f"LOST: entry {index} of {head.size}")
        published = await self.rig.store.checkpoints.checkpoint(self.bench.log_id)
        expect((published.size if published else 0) == self.model.published, "another checkpoint is published")

    async def finish(self) -> None:
        """All is well again: the log goes on, and a stranger finds nothing wrong with it."""
        while len(self.writers) > 1:
            await self._drop(self.writers[0])
        await self.restart()
        self.now = max(self.now, (await self.rig.store.reads.head(self.bench.log_id)).logged_at)
        grown = 0
        for _ in range(20):  # two appends also mend a slot of the guard that is still damaged
            size = await self._size()
            await self.submit(self.writers[0], self.batches.draw())
            grown += await self._size() > size
        expect(grown >= 2, "the log does not go on")
        await self.publish()
        await self.check()
        await self.audit()
        policy = Policy((LogKey(self.bench.key.vkey),))
        report = await fsck(self.rig.store, self.bench.row, policy, self.bench.guard)
        expect(not report.findings, f"fsck: {report.findings}")

    async def _size(self) -> int:
        return (await self.rig.store.reads.head(self.bench.log_id)).size

    async def audit(self) -> None:
        """Recompute everything, and compare every head ever signed."""
        leaves = await audit(self.bench)
        tree = Naive(leaves)
        for size, root in self.model.signed.items():
            expect(size <= len(leaves) and tree.root(size) == root, f"FORK: signed another root of size {size}")

    async def close(self) -> None:
        """End every process."""
        for writer in list(self.writers):
            writer.heal()
            await writer.store.close()
        await self.rig.store.close()


def _intact(path: Path) -> bool:
    """Tell whether a copy of each slot of this log's guard is good."""
    data = path.read_bytes() if path.exists() else b""
    return all(any(map(_good, copies)) for copies in copies_of(data))


def _good(slot: bytes) -> bool:
    try:
        return Guarded.decode(slot).origin != STRANGER
    except FormatError:
        return False


STEPS = {
    World.append: 40, World.contest: 16, World.restart: 8, World.publish: 10, World.clock_step: 6, World.deliver: 5, World.back_up: 3,
    World.restore: 3, World.damage_guard: 3,
}  # fmt: skip
"""How often each step is drawn."""
