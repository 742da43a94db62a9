"""What is outside the writers of the guard model: two databases, the guard file, the operator, time. And the judge.

:func:`interleave` runs two writers for some turns. Each turn either something happens outside, or one writer goes some steps on while
the other stands still. All is drawn from one seed.

What no local rule can prevent is left out: a guard file that is put back to an older copy although a process that has not met anything
newer is to write, which is a second guard; and whatever follows when all processes are gone and the guard with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from tests.model.guard_model import File, HeadMoved, OutcomeUnknown, Refused, Session, Steps, Tree, Value, Writer

TURNS = 50
_RESTART = 0.3
"""Share of turns in which a writer that refused is started again."""


T = TypeVar("T")


class Dice(Random):
    """The one source of chance. Quicker than Random.choice, which is most of what an interleaving does."""

    def pick(self, things: Sequence[T]) -> T:
        """Return one of them."""
        return things[int(self.random() * len(things))]


class Broken(Exception):
    """The model's property does not hold: the kind, and what was seen."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


@dataclass(slots=True, eq=False)
class Database:
    """One database; `past` is what a standby or a backup may still have."""

    tree: Tree
    epoch: int = 0
    note: Tree = ()
    past: list[tuple[Tree, int, Tree]] = field(default_factory=list)

    def _keep(self) -> None:
        self.past.append((self.tree, self.epoch, self.note))

    def append(self, head: Tree, epoch: int, new: Tree) -> Tree:
        """Compare and swap; return what is stored then. Raises HeadMoved."""
        if (self.tree, self.epoch) != (head, epoch):
            raise HeadMoved
        self._keep()
        self.tree = new
        return self.tree

    def fence(self, head: Tree, epoch: int) -> int:
        """Raise the epoch of this very head. Raises HeadMoved."""
        if (self.tree, self.epoch) != (head, epoch):
            raise HeadMoved
        self._keep()
        self.epoch += 1
        return self.epoch

    def publish(self, note: Tree | None, begins_with: Callable[[Tree, Tree], bool]) -> bool:
        """Store a note that this tree begins with; tell whether it did."""
        if note is None:
            return True
        if not begins_with(self.tree, note):
            return False
        if self.tree[: len(note)] != note:
            raise Broken("published", f"{note} in a database of {self.tree}")
        self.note = max(self.note, note, key=len)
        return True

    def copy(self, back: int) -> Database:
        """Return what this database was, so many commits ago."""
        if back and self.past:
            at = max(len(self.past) - back, 0)
            return Database(*self.past[at], past=self.past[:at])
        return Database(self.tree, self.epoch, self.note, list(self.past))


class Outside:
    """Everything but the rule. Steps of writers come here for what they meet."""

    def __init__(self, rule: type[Writer], rng: Dice, events: tuple[str, ...], rate: float) -> None:
        self.rule = rule
        self.rng = rng
        self.rate = rate
        self.tight = rng.pick((0.0, 0.1, 0.5)) if events else 0.0
        self.events = events
        self.counts: Counter[str] = Counter()
        self.log: list[str] | None = None
        self.entries = iter(range(1, 1_000_000))
        self.alike = rng.random() < 0.25  # equal raw leaves: two trees may grow alike, apart and alike again
        first = tuple(next(self.entries) for _ in range(rng.pick((0, 1, 2))))
        self.paths = [Database(first), Database(first)]
        self.guard = File([Value(first, 0), Value((), -1)])
        self.copies = [Value(first, 0)]  # contents of the guard file that an operator may still have
        self.guard_lost = False  # a process that starts now would meet a guard that was put back
        self.mixed = False
        self.chain: Tree = first
        self.longest: Tree = first
        self.writers: list[Writer] = []
        self.running: list[Steps | None] = [None, None]
        for name in (0, 1):
            self.writers.append(rule(self, name, Session(self.paths[name and rng.pick((0, 1))])))

    # --- what writers meet ----------------------------------------------------------------------------------------------

    def read(self, writer: Writer) -> tuple[Tree, int]:
        """One read of a writer: from its own database, or, where a pool mixes servers, from any."""
        database = writer.session.database
        if self.mixed and self.rng.random() < 0.4:
            database = self.rng.pick(self.paths)
        return database.tree, database.epoch

    def reply_is_lost(self) -> bool:
        return "lost reply" in self.events and self.rng.random() < 0.05

    def replaced(self, database: Database) -> bool:
        """Tell whether another file is now where this database was."""
        return database not in self.paths

    # --- the judge ------------------------------------------------------------------------------------------------------

    def guarded(self, fd: File, g: Value) -> None:
        """A value is in the guard: it must extend the one before it, or be it."""
        if fd is self.guard:
            self.chain = _longer(self.chain, g.head, "guard")
            if g.seq > self.copies[-1].seq:
                self.copies.append(g)

    def signed(self, head: Tree) -> None:
        """A note was made. Whether it is ever sent does not matter."""
        self.counts["notes"] += 1
        self.longest = _longer(self.longest, head, "notes")

    def answered(self, replaced: bool | None, note: Tree, claimed: Tree) -> None:
        """An answer went out: all entries are those under the note, and were not appended to a file that was gone already."""
        self.counts["replays" if replaced is None else "appends"] += 1
        if replaced:
            raise Broken("acknowledged", "an append into a database that had been replaced")
        if note[: len(claimed)] != claimed:
            raise Broken("answered", f"entry {len(claimed) - 1} under {note} was said to be {claimed[-1]}")

    # --- what happens ---------------------------------------------------------------------------------------------------

    def happen(self) -> None:
        """One event."""
        event = self.rng.pick(self.events)
        self.note(event)
        self.counts[event] += 1
        getattr(self, "_" + event.replace(" ", "_"))()

    def _clone(self) -> None:
        """A database is copied over the other, as it is or as it was. Writers stay on the deleted file, or are moved."""
        source = self.rng.pick((0, 1))
        old = self.paths[1 - source]
        self.paths[1 - source] = new = self.paths[source].copy(self.rng.pick((0, 0, 1, 2, 4)))
        self._moved(old, new, everyone=self.rng.random() < 0.7)

    def _fail_over(self) -> None:
        """A standby takes over that lacks the last commits."""
        at = self.rng.pick((0, 1))
        old = self.paths[at]
        self.paths[at] = new = old.copy(self.rng.pick((1, 1, 2, 3, 5)))
        self._moved(old, new, everyone=True)

    def _unsigned_lost(self) -> None:
        """A standby takes over that lacks only what is not in the guard, nor about to be."""
        old, guarded = self.paths[0], self.guard.newest().head
        back = next((n for n, past in enumerate(reversed(old.past), 1) if past[0] == guarded), 0)
        if back and not any(writer.admitting for writer in self.writers):
            self.paths = [new := old.copy(back), new]
            self._moved(old, new, everyone=True)

    def _moved(self, old: Database, new: Database, *, everyone: bool) -> None:
        for writer in self.writers:
            if everyone and writer.session.database is old:
                writer.session = Session(new)

    def _reconnect(self) -> None:
        """A writer's connection is made anew, to either database."""
        self.rng.pick(self.writers).session = Session(self.rng.pick(self.paths))

    def _pool(self) -> None:
        """Pools begin or end to mix servers."""
        self.mixed = not self.mixed

    def _lost_reply(self) -> None:
        """Happens by itself at the appends."""

    def _guard_copied(self) -> None:
        """The guard file is replaced by an equal one."""
        self.guard = File(self.guard.cached)

    def _guard_put_back(self) -> None:
        """The guard file is replaced by an older copy, while every process has met something newer."""
        older = [copy for copy in self.copies if copy.seq < min(writer.known for writer in self.writers)]
        if older:
            self.guard = File([(copy := self.rng.pick(older)), Value((), copy.seq - 1)])
            self.guard.cached = [self.guard.cached[(copy.seq + n) % 2] for n in (0, 1)]
            self.guard.disk = list(self.guard.cached)
            self.guard_lost = True

    def _kill(self) -> None:
        """A process is killed, and started again."""
        if not self.guard_lost:
            self.restart(self.rng.pick((0, 1)))

    def _power_cut(self) -> None:
        """All processes are gone; of what was written to the guard since its last sync any part is there, perhaps in pieces."""
        if self.guard_lost:
            return
        for at in (0, 1):
            self.restart(at)
        fd = self.guard
        for at in (0, 1):
            if fd.cached[at] != fd.disk[at]:
                fd.cached[at] = self.rng.pick((fd.cached[at], fd.disk[at], fd.disk[at], None))
        fd.disk = list(fd.cached)
        self.chain = max((slot for slot in fd.cached if slot), key=lambda slot: slot.seq, default=Value((), -1)).head

    def restart(self, at: int) -> None:
        """Start a new process in the place of a writer, connected to the same path."""
        if (steps := self.running[at]) is not None:
            steps.close()  # the lock is gone with the process
        self.running[at] = None
        database = self.writers[at].session.database
        if self.replaced(database) or self.rng.random() < 0.2:
            database = self.rng.pick(self.paths)
        self.writers[at] = self.rule(self, at, Session(database))

    def over(self) -> bool:
        """Tell whether nobody will ever write again."""
        return all([getattr(writer, "refusal", None) for writer in self.writers])

    # --- turns ----------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let something happen, or a writer go on."""
        rng = self.rng
        if self.events and rng.random() < self.rate:
            self.happen()
            return
        at = rng.pick((0, 1))
        for _ in range(rng.pick((1, 1, 2, 3, 5, 8, 16))):
            if not self.step(at):
                return

    def step(self, at: int) -> bool:
        """Let a writer do one step; tell whether it may do another one."""
        steps = self.running[at]
        if steps is None:
            if getattr(self.writers[at], "refusal", None):
                return self._again(at)
            steps = self.running[at] = self.work(self.writers[at])
        try:
            reached = next(steps)
        except StopIteration:
            self.running[at] = None
            return True
        except (HeadMoved, OutcomeUnknown, Refused) as error:
            self.running[at] = None
            self._ended(self.writers[at], error)
            return True
        if self.log is not None:
            self.note(f"writer {at}: {reached}")
        if reached == "pwrite" and self.rng.random() < self.tight:
            self.happen_now(at)
        return reached != "flock"

    def happen_now(self, at: int) -> None:
        """The moment at which most depends on the order: the guard is written, and perhaps not durable."""
        event = self.rng.pick(self.events)
        if event in ("kill", "power cut", "guard copied") and not self.guard_lost:
            self.note(f"{event} (at once)")
            self.restart(at) if event == "kill" else getattr(self, "_" + event.replace(" ", "_"))()

    def _again(self, at: int) -> bool:
        if not self.guard_lost and self.rng.random() < _RESTART:
            self.restart(at)
        return False

    def _ended(self, writer: Writer, error: Exception) -> None:
        writer.state, writer.admitting = None, False
        name = str(error) or type(error).__name__
        self.counts[name] += 1
        self.note(f"writer {writer.name}: {name}")
        if isinstance(error, Refused):
            writer.refusal = name  # type: ignore[attr-defined]
            self.counts["refused"] += 1

    def work(self, writer: Writer) -> Steps:
        """What a writer does next."""
        if writer.state is None:
            yield from writer.load()
            return
        dice = self.rng.random()
        if writer.state.signed is None and self.rng.random() < 0.5:
            yield from writer.fence()
        elif dice < 0.8:
            yield from writer.append(self.leaves())
        elif dice < 0.9:
            yield from writer.publish()
        else:
            yield from writer.replay(self.rng.random())
        writer.admitting = False

    def leaves(self) -> Tree:
        """Entries to append: each is of its own kind, or one of two."""
        count = self.rng.pick((1, 1, 1, 2, 3))
        if self.alike:
            return tuple(self.rng.pick((-1, -2)) for _ in range(count))
        return tuple(next(self.entries) for _ in range(count))

    def note(self, text: str) -> None:
        """Write down what happened, if that is asked for."""
        if self.log is not None:
            self.log.append(text)


def _longer(known: Tree, head: Tree, kind: str) -> Tree:
    """Return the longer of two heads of one history. Raises Broken when they are of two."""
    short, long = (known, head) if len(known) <= len(head) else (head, known)
    if long[: len(short)] != short:
        raise Broken(kind, f"{known} and {head}")
    return long


ANY = (
    *("clone", "fail over", "reconnect", "pool", "lost reply", "kill", "power cut"),
    *("guard copied", "guard put back"),
)
TOGETHER = (
    ("pool", "reconnect", "clone"),
    ("clone", "reconnect"),
    ("kill", "power cut", "fail over"),
    ("kill", "power cut", "clone", "reconnect"),
    ("guard copied", "clone", "reconnect"),
    ("guard put back", "clone", "reconnect"),
)
"""Events that are worst together: half of all interleavings have one of these sets."""
HEALTHY = ("kill", "lost reply", "unsigned lost")
"""What may happen without making any process refuse."""


def _some(rng: Dice) -> tuple[str, ...]:
    return rng.pick(TOGETHER) if rng.random() < 0.5 else tuple(rng.sample(ANY, rng.pick((1, 2, 3, 4, 6, 9))))


def interleave(
    rule: type[Writer], seed: int, events: tuple[str, ...] = ANY, log: list[str] | None = None, turns: int = TURNS
) -> Outside:
    """Run one interleaving. Raises Broken when a property does not hold."""
    rng = Dice(seed)
    chosen = _some(rng) if events is ANY else events
    outside = Outside(rule, rng, chosen, rng.pick((0.05, 0.1, 0.2, 0.3)))
    outside.log = log
    if events is not ANY:
        outside.paths[1] = outside.paths[0]
        outside.writers[1].session = Session(outside.paths[0])
    for _ in range(turns):
        outside.turn()
        if outside.guard_lost and outside.over():
            break
    return outside
