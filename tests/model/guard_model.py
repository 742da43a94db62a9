"""The rule by which writers of one log share a guard, as a model: one line for each step of the server's code.

A writer is a process. Its steps are generators, and at each ``yield`` anything may happen: the other writer runs, databases are
cloned, the guard file is replaced, this process is stopped or killed (see ``outside``). A tree is the tuple of its entries, so a
proof is a comparison of tuples. What a proof stands on matters: :func:`proved` takes the values of one read, in memory, as the code
does; two reads may come from two databases.

============================ =====================================================================================
here                         in the server
============================ =====================================================================================
``load``                     ``Recovery._read``, ``startup.check_guard``, ``startup.prove``
``append``, ``fence``        ``Sequencer._commit``, ``Sequencer._signed_state``
``check_session``            ``Sessions._run`` and ``Sessions.check``: SessionLost
``check_files``              ``Database.check_premises``: Replaced
``admit``, ``compare``       ``raising.raise_guard``, with ``recheck.extends`` for ``proved``
``lock``, ``notice``         ``Guard._locked``, ``Guard._current``
``make_durable``, ``write``  ``Guard.swap``, ``Guard._write``
``check_path``               ``Guard._check_place``
``sign``, ``replay``         ``Sequencer._sign``, ``Sequencer._signed_at``
``publish``                  ``Publisher.publish``, and ``publish`` of either store
============================ =====================================================================================
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.model.outside import Database, Outside

Tree = tuple[int, ...]
Steps = Generator[str, None, None]
TRIES = 8
PATIENCE = 40
"""Turns for which a writer waits for the lock."""


class Refused(Exception):
    """This process signs nothing any more. The message is the code."""


class OutcomeUnknown(Exception):
    """The state is dropped; waiting callers are told so."""


class HeadMoved(Exception):
    """The compare-and-swap lost."""


class Value(NamedTuple):
    """What a slot of the guard file says."""

    head: Tree
    seq: int


class File:
    """A guard file, as an inode: what processes see, and what a power cut leaves. None is a slot of which no copy is whole."""

    def __init__(self, slots: list[Value | None]) -> None:
        self.cached = list(slots)
        self.disk = list(slots)
        self.holder: Writer | None = None  # of the lock

    def newest(self) -> Value:
        """Return the slot that counts. Raises Refused when one is damaged."""
        whole = [slot for slot in self.cached if slot is not None]
        if len(whole) < len(self.cached):
            raise Refused("guard_unreadable")
        return max(whole, key=lambda slot: slot.seq)

    def pwrite(self, value: Value) -> None:
        """Other processes see it. A power cut may lose it."""
        self.cached[value.seq % 2] = value

    def fdatasync(self) -> None:
        """Make what was written last until a power cut, whoever wrote it."""
        self.disk = list(self.cached)


class Session:
    """A connection of a writer to a database."""

    def __init__(self, database: Database) -> None:
        self.database = database


@dataclass(slots=True)
class State:
    """What a writer knows of the log. `token` is the guarded head that was proved to be a prefix of `head`."""

    head: Tree
    epoch: int
    token: Tree
    session: Session
    signed: Tree | None = None


def proved(a: Tree, b: Tree, nodes: Tree) -> bool:
    """Tell whether the nodes of one read make both roots, which a consistency proof then ties together."""
    return len(a) <= len(b) and nodes[: len(b)] == b and b[: len(a)] == a


class Writer:
    """The rule. What this process remembers besides its state is `seen`: the newest guard value that it read or wrote."""

    def __init__(self, outside: Outside, name: int, session: Session) -> None:
        self.outside = outside
        self.name = name
        self.session = session
        self.state: State | None = None
        self.seen: Value | None = None
        self.known = -1  # the model's own: the highest sequence number that this process met
        self.admitting = False  # likewise: a head that is not yet in the guard may get there

    # --- load -----------------------------------------------------------------------------------------------------------

    def load(self) -> Steps:
        self.state, session = None, self.session
        g = (yield from self.guard_read()).head
        h, epoch = self.outside.read(self)
        yield "head"
        nodes = yield from self.read_tiles()
        self.check_session(session)  # first: what was read before and after a fail-over says nothing
        self.judge(g, h, nodes)
        self.state = State(h, epoch, g, session)

    def read_tiles(self) -> Generator[str, None, Tree]:
        nodes, _ = self.outside.read(self)  # ONE read: right edge of h and the proof from g to h
        yield "tiles"
        return nodes

    def judge(self, g: Tree, h: Tree, nodes: Tree) -> None:
        if nodes[: len(h)] != h:
            raise Refused("database_damaged")
        if not proved(g, h, nodes):
            raise Refused("database_behind" if len(g) > len(h) else "guard_root")

    def guard_read(self) -> Generator[str, None, Value]:
        fd = yield from self.lock()
        try:
            g = fd.newest()
            self.notice(g)
            yield "guard.read"
        finally:
            fd.holder = None
        return g

    # --- commit ---------------------------------------------------------------------------------------------------------

    def append(self, entries: Tree) -> Steps:
        state, self.state = self.known_state(), None
        self.check_session(state.session)
        new = state.head + entries
        database = self.session.database
        replaced = self.outside.replaced(database)
        stored = database.append(state.head, state.epoch, new)  # raises HeadMoved
        self.admitting = True
        yield "append"
        if self.outside.reply_is_lost():
            raise OutcomeUnknown
        if stored[: len(new)] != new:  # recheck
            raise Refused("database_damaged")
        self.check_session(state.session)
        self.check_files(database)
        ahead = yield from self.admit(new, {state.token, state.head})
        yield "admitted"
        self.state = self.extended(state, new, ahead)
        self.sign(new)
        yield "signed"
        self.outside.answered(replaced, new, new)

    def extended(self, state: State, new: Tree, ahead: Tree | None) -> State:
        return State(new, state.epoch, new if ahead is None else state.token, state.session, new)

    def fence(self) -> Steps:
        state, self.state = self.known_state(), None
        self.check_session(state.session)
        database = self.session.database
        epoch = database.fence(state.head, state.epoch)  # raises HeadMoved
        self.admitting = True
        yield "fence"
        self.check_session(state.session)
        self.check_files(database)
        ahead = yield from self.admit(state.head, {state.token})
        yield "admitted"
        state.epoch = epoch
        self.state = self.extended(state, state.head, ahead)
        self.sign(state.head)

    # --- admit ----------------------------------------------------------------------------------------------------------

    def admit(self, new: Tree, below: set[Tree]) -> Generator[str, None, Tree | None]:
        """Return None when the guard now says `new`, or the guarded head that was proved to extend it."""
        above: Tree | None = None
        for _ in range(TRIES):
            fd = yield from self.lock()
            try:
                g = fd.newest()
                self.notice(g)
                yield "newest"
                if above is None and self.is_below(g.head, below) and g.head != new:
                    g = Value(new, g.seq + 1)
                if g.head == new or above is not None:
                    yield from self.make_durable(fd, g)
                    return None if g.head == new else above
            finally:
                fd.holder = None
            yield "unlocked"
            above = yield from self.compare(new, g.head, below)
        raise OutcomeUnknown

    def is_below(self, head: Tree, below: set[Tree]) -> bool:
        return head in below

    def compare(self, new: Tree, g: Tree, below: set[Tree]) -> Generator[str, None, Tree | None]:
        nodes, _ = self.outside.read(self)  # plan_consistency's tiles, in ONE read
        yield "consistency"
        if proved(g, new, nodes):
            below.add(g)
            return None
        if proved(new, g, nodes):
            return g
        raise OutcomeUnknown  # NotProved: only load refuses

    def make_durable(self, fd: File, g: Value) -> Steps:
        self.write(fd, g)
        yield "pwrite"
        fd.fdatasync()
        yield "fdatasync"
        self.check_path(fd)

    def write(self, fd: File, g: Value) -> None:
        fd.pwrite(g)  # or as it was: another process's write may be clean here and not on disk
        self.known, self.seen = (
            max(self.known, g.seq),
            g,
        )  # what was written, too; only once it is: a full disk changes nothing
        self.outside.guarded(fd, g)

    def check_path(self, fd: File) -> None:
        if self.outside.guard is not fd:  # replaced between open and write: two registers
            raise Refused("guard_replaced")

    def notice(self, g: Value) -> None:
        self.known = max(self.known, g.seq)
        if self.seen is not None and g != self.seen and g.seq <= self.seen.seq:
            raise Refused("guard_went_back")
        self.seen = g

    def lock(self) -> Generator[str, None, File]:
        fd = self.outside.guard  # open
        yield "open"
        for _ in range(PATIENCE):
            if fd.holder is None:
                fd.holder = self
                return fd
            yield "flock"
        raise OutcomeUnknown  # the deadline passed

    # --- sign, publish, answer ------------------------------------------------------------------------------------------

    def sign(self, head: Tree) -> None:
        self.outside.signed(head)

    def publish(self) -> Steps:
        state = self.known_state()
        if not self.session.database.publish(state.signed, self.begins_with):
            self.state = None
        yield "published"

    def begins_with(self, stored: Tree, note: Tree) -> bool:
        return stored[: len(note)] == note

    def replay(self, nth: float) -> Steps:
        """Answer a repeated request: the entry's place is looked up, its receipt is under the head that was signed last."""
        state = self.known_state()
        if not self.session_is(state.session):
            self.state = None
            return
        stored, note = self.session.database.tree, state.signed
        yield "look_up"
        index = int(nth * len(stored))
        if not stored or note is None or index >= len(note):
            self.state = None  # an entry beyond our head
            return
        self.outside.answered(None, note, (*note[:index], stored[index]))

    # --- premises -------------------------------------------------------------------------------------------------------

    def known_state(self) -> State:
        if self.state is None:
            raise AssertionError("nothing is known")
        return self.state

    def session_is(self, session: Session) -> bool:
        return self.session is session

    def check_session(self, session: Session) -> None:
        if not self.session_is(session):
            raise OutcomeUnknown  # before the append nothing was written: the caller only loads again

    def check_files(self, database: Database) -> None:
        if self.outside.replaced(database):
            raise Refused("database_replaced")
