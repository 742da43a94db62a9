"""Weaker rules. Each must break in the model, or the model could not see what it is for."""

from __future__ import annotations

from collections.abc import Generator

from tests.model.guard_model import (
    File,
    OutcomeUnknown,
    Refused,
    Session,
    State,
    Steps,
    Tree,
    Value,
    Writer,
)
from tests.model.outside import Database


class OldRecord(Writer):
    """The rule before: takes any larger head, and passes any smaller one without a look. Only equal sizes are compared."""

    durable = -1

    def admit(self, new: Tree, below: set[Tree]) -> Generator[str, None, Tree | None]:
        fd = yield from self.lock()
        try:
            g = fd.newest()
            yield "newest"
            if len(g.head) == len(new) and g.head != new:
                raise Refused("guard_root")
            if len(new) > len(g.head):
                g = Value(new, g.seq + 1)
            elif g.seq == self.durable:
                return None
            self.write(fd, g)
            yield "pwrite"
            fd.fdatasync()
            yield "fdatasync"
            self.durable = g.seq
        finally:
            fd.holder = None
        return None

    def notice(self, g: Value) -> None:
        self.known = max(self.known, g.seq)


class SizesOnly(Writer):
    """The guarded head counts as known when one of its size is."""

    def is_below(self, head: Tree, below: set[Tree]) -> bool:
        return len(head) in map(len, below)


class OwnTree(Writer):
    """Swaps on the last guarded head that was proved in its own tree, though that need not be a prefix of the head it extends."""

    def extended(self, state: State, new: Tree, ahead: Tree | None) -> State:
        return State(new, state.epoch, new if ahead is None else ahead, state.session, new)


class StateKept(Writer):
    """Keeps its state when its connection is made anew."""

    def session_is(self, session: Session) -> bool:
        return True


class SmallerUnproved(Writer):
    """Takes a guarded head that is larger for one that extends its own."""

    def compare(self, new: Tree, g: Tree, below: set[Tree]) -> Generator[str, None, Tree | None]:
        if len(g) > len(new):
            return g
        return (yield from super().compare(new, g, below))


class NoStat(Writer):
    """Does not notice that the guard file was replaced while it wrote."""

    def check_path(self, fd: File) -> None:
        return


class LowerSequence(Writer):
    """Takes whatever number the guard has."""

    def notice(self, g: Value) -> None:
        self.known = max(self.known, g.seq)


class SeenWhenRead(Writer):
    """Remembers the number that it read last, and not the one that it wrote."""

    def write(self, fd: File, g: Value) -> None:
        seen = self.seen
        super().write(fd, g)
        self.seen = seen


class TwoReads(Writer):
    """Folds the roots of the guard and of the head out of a read each."""

    edge: Tree = ()

    def read_tiles(self) -> Generator[str, None, Tree]:
        self.edge = yield from super().read_tiles()
        return (yield from super().read_tiles())

    def judge(self, g: Tree, h: Tree, nodes: Tree) -> None:
        if self.edge[: len(h)] != h or nodes[: len(g)] != g or len(g) > len(h):
            raise Refused("database_damaged")


class RootAlone(Writer):
    """Proves that its database has the guarded head, and not that the new head extends it."""

    def compare(self, new: Tree, g: Tree, below: set[Tree]) -> Generator[str, None, Tree | None]:
        nodes, _ = self.outside.read(self)
        yield "consistency"
        if nodes[: len(g)] != g:
            raise OutcomeUnknown
        if len(g) > len(new):
            return g
        below.add(g)
        return None


class NotSynced(Writer):
    """Trusts what another process wrote, without making it durable."""

    def make_durable(self, fd: File, g: Value) -> Steps:
        if g not in fd.cached:
            yield from super().make_durable(fd, g)
        self.check_path(fd)


class TornIgnored(Writer):
    """Takes the other slot when one is damaged."""

    def lock(self) -> Generator[str, None, File]:
        fd = yield from super().lock()
        fd.cached = [slot or Value((), -1) for slot in fd.cached]
        return fd


class FilesUnwatched(Writer):
    """Does not compare the inode of its database."""

    def check_files(self, database: Database) -> None:
        return


class PublishedUnproved(Writer):
    """Publishes into whatever database it is connected to."""

    def begins_with(self, stored: Tree, note: Tree) -> bool:
        return True


class JudgedFirst(Writer):
    """Judges what a start read, although its connection was made anew between two reads: healthy processes refuse."""

    loading = False

    def load(self) -> Steps:
        self.loading = True
        try:
            yield from super().load()
        finally:
            self.loading = False

    def check_session(self, session: Session) -> None:
        if not self.loading:
            super().check_session(session)


VARIANTS: tuple[type[Writer], ...] = (
    OldRecord,
    SizesOnly,
    OwnTree,
    StateKept,
    SmallerUnproved,
    NoStat,
    LowerSequence,
    SeenWhenRead,
    TwoReads,
    RootAlone,
    NotSynced,
    TornIgnored,
    FilesUnwatched,
    PublishedUnproved,
)
