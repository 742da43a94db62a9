"""The trace checker: compares what servers wrote down of themselves (muniment_server.trace) with what must hold.

I1 an acknowledged entry stays at its index; I2 one history; I3 sizes never go back; I8 of writers that race one extends; I9 dense, a
repeated Idempotency-Key gives the same entries; I10 every proof verifies at the root it was served with. It recomputes roots from the
leaf hashes in the trace with the oracle's arithmetic, and shares no code with the server.

Lines are read in the order of the file: of one process that is the order of events, of several it is not.

All processes of a log are held against one history, by their leaf hashes and not by who wrote which line: a head that one process
signed, published, answered or proved at must be a head of the tree that any other process signed. Where databases were copied
(`copied`), each copy has writers of its own, and more than one may have extended a head; then only what is signed must be one history.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests import oracle

EMPTY = sha256(b"").hexdigest()
Head = tuple[int, str]


class Violated(AssertionError):
    """An invariant does not hold. The message names it and the line."""


class Tree:
    """A tree that grows: row h has the roots of the complete subtrees of 2^h leaves."""

    def __init__(self) -> None:
        self.rows: list[list[bytes]] = [[]]

    def add(self, leaf_hash: bytes) -> None:
        value, height = leaf_hash, 0
        while True:
            self.rows[height].append(value)
            if len(self.rows[height]) % 2:
                return
            value = sha256(b"\x01" + self.rows[height][-2] + value).digest()
            height += 1
            if height == len(self.rows):
                self.rows.append([])

    def root(self, size: int | None = None) -> str:
        """Return the root of the first `size` leaves, by default of all."""
        size = len(self.rows[0]) if size is None else size
        parts, at = [], 0
        for height in reversed(range(size.bit_length())):
            if size >> height & 1:
                parts.append(self.rows[height][at >> height])
                at += 1 << height
        if not parts:
            return EMPTY
        value = parts.pop()
        while parts:
            value = sha256(b"\x01" + parts.pop() + value).digest()
        return value.hex()


@dataclass
class _Process:
    """What one process did: its append in flight, the heads that it knows to be durable, and those it signed."""

    pending: dict[str, Any] | None = None
    durable: set[Head] = field(default_factory=set)
    signed: set[Head] = field(default_factory=set)
    size: int = 0
    served: list[tuple[int, int]] = field(default_factory=list)  # (time, largest size seen by then)


@dataclass
class _History:
    """One log over all its processes. `leaves` are the leaf hashes of the signed history from `base` on, as far as known."""

    parents: dict[Head, tuple[Head, list[str]]] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)  # of the signed history
    tip: Head = (0, EMPTY)
    base: int = 0
    leaves: list[str] = field(default_factory=list)
    tree: Tree | None = field(default_factory=Tree)  # None when the trace began later than the log
    beyond: dict[Head, str] = field(
        default_factory=dict
    )  # heads that were shown, larger than any that was signed so far
    won: dict[tuple[int, str, int], Head] = field(default_factory=dict)  # who extended a head of an epoch
    keys: dict[str, int] = field(default_factory=dict)
    served: list[tuple[int, int]] = field(default_factory=list)  # (time, largest size seen by then)
    processes: dict[int, _Process] = field(default_factory=lambda: defaultdict(_Process))


class Checker:
    """Reads a trace as it grows. :meth:`check` takes what was added since the last call; `counts` says what it saw."""

    def __init__(self, path: Path, *, copied: bool = False) -> None:
        self.path = path
        self.copied = copied
        self.counts: Counter[str] = Counter()
        self._logs: dict[str, _History] = defaultdict(_History)
        self.offset = 0

    def check(self) -> Counter[str]:
        """Check every whole line that was added. Raises Violated."""
        if not self.path.exists():
            return self.counts
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            self.take(json.loads(line))
        return self.counts

    def take(self, line: dict[str, Any]) -> None:
        """Check one line."""
        self.counts[line["event"]] += 1
        log = self._logs[line["log"]]
        handler = getattr(self, f"_{line['event']}", None)
        if handler:
            try:
                handler(log, log.processes[line["pid"]], line)
            except Violated as error:
                shown = {name: value for name, value in line.items() if name not in ("leaf_hashes", "hashes")}
                raise Violated(f"{error} [{self.path.name}: {shown}]") from None

    # --- what a process does --------------------------------------------------------------------------------------------

    def _load(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        head = _head(line)
        known = head in log.parents or head[0] in log.heads
        if head[0] in log.heads and not self.copied:  # a copy may hold what was not yet signed when the guard was read
            _same(log.heads[head[0]], head, "I2 a stored head contradicts a signed one")
        if not known and head[0] > log.tip[0]:  # made before the trace began: what is below it is taken as it is
            if self.copied:
                raise Violated("I2 a head of which nobody wrote down an append was proved to extend the guard")
            log.tip, log.base, log.leaves, log.tree = head, head[0], [], None
            log.heads[head[0]] = head[1]
        process.pending = None

    def _append(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        head, old = _head(line), (line["old_size"], line["old_root"])
        if head[0] != old[0] + len(line["leaf_hashes"]):
            raise Violated("I9 an append leaves a gap")
        log.parents[head] = (old, line["leaf_hashes"])
        process.pending = line

    def _commit(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        head, pending = _head(line), process.pending
        if not pending or _head(pending) != head:
            raise Violated("I9 a commit without its append")
        contest = (pending["old_size"], pending["old_root"], line["epoch"])
        if log.won.setdefault(contest, head) != head and not self.copied:
            raise Violated("I8 two writers extended one head")
        process.durable.add(head)
        process.pending = None

    def _moved(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        process.pending = None

    def _unknown(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        process.pending = None

    def _fence(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        process.durable.add(_head(line))

    def _sign(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        head = _head(line)
        if head not in process.durable:
            raise Violated("I12 signed a head that no clean reply made durable")
        if head[0] < process.size:
            raise Violated("I3 the signed size went back")
        process.size = head[0]
        process.signed.add(head)
        if head[0] > log.tip[0]:
            self._extend(log, head)
        else:
            self._is_of_the_history(log, head, "signed")

    def _extend(self, log: _History, head: Head) -> None:
        """Follow the appends from a new signed head back to what was signed: that is the one history."""
        hashes, at = _back_to(log, head)
        known = log.leaves[at[0] - log.base :]
        if hashes[: len(known)] != known:
            raise Violated(f"I2 the signed head does not extend the one of size {log.tip[0]}")
        for value in hashes[len(known) :]:
            log.leaves.append(value)
            if log.tree is not None:
                log.tree.add(bytes.fromhex(value))
        if log.tree is not None:
            _same(log.tree.root(), head, "I5 the leaf hashes do not make the signed root")
        log.tip, log.heads[head[0]] = head, head[1]
        for shown in [shown for shown in log.beyond if shown[0] <= head[0]]:
            self._is_of_the_history(log, shown, log.beyond.pop(shown))

    def shown(self, name: str, size: int, root: str, what: str) -> None:
        """Take a head that somebody was shown outside the trace: in a receipt, a checkpoint, a row of a database."""
        self._is_of_the_history(self._logs[name], (size, root), what)

    def placed(self, name: str, index: int, leaf_hash: str) -> None:
        """Take an answer that somebody was given outside the trace: this entry is at this index. Raises Violated."""
        self._placed(self._logs[name], index, leaf_hash)

    def _is_of_the_history(self, log: _History, head: Head, what: str) -> None:
        """Compare a head with the signed history, now or as soon as that is long enough. Raises Violated."""
        if head[0] > log.tip[0]:
            log.beyond[head] = what
        elif log.heads.get(head[0], "") != head[1] and _root(log, head[0]) not in (head[1], None):
            raise Violated(f"I2 {what} a head of size {head[0]} that is not of the history signed before")

    def finish(self) -> Counter[str]:
        """Check what is left at the end. Raises Violated when a head was shown that no process signed, nor any that extends it."""
        for name, log in self._logs.items():
            if log.beyond:
                head, what = next(iter(log.beyond.items()))
                raise Violated(
                    f"I2 {name}: {what} a head of size {head[0]}, and the largest signed one is {log.tip[0]}"
                )
        return self.counts

    # --- what a client sees ---------------------------------------------------------------------------------------------

    def _answer(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        if _head(line) not in process.signed:
            raise Violated("I1 acknowledged under a head that this process did not sign")
        self._is_of_the_history(log, _head(line), "acknowledged")
        _inclusion(line["index"], line["size"], line["leaf_hash"], line["hashes"], line["root"])
        self._placed(log, line["index"], line["leaf_hash"])
        if line.get("key") and log.keys.setdefault(line["key"], line["first"]) != line["first"]:
            raise Violated("I9 one Idempotency-Key, two places")

    def _placed(self, log: _History, index: int, value: str) -> None:
        if log.base <= index < log.base + len(log.leaves) and log.leaves[index - log.base] != value:
            raise Violated(f"I1 entry {index} is not the one that was acknowledged")

    def _proof(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        first, second, root = line["first"], line["second"], line["root"]
        if second in log.heads:
            _same(log.heads[second], (second, root), "I10 a proof was served at another root")
        self._is_of_the_history(log, (second, root), "proved at")
        if line["kind"] == "inclusion":
            _inclusion(first, second, line["leaf_hash"], line["hashes"], root)
        elif first in log.heads:
            proof = tuple(bytes.fromhex(value) for value in line["hashes"])
            roots = bytes.fromhex(log.heads[first]), bytes.fromhex(root)
            if not oracle.Consistency(first, second, *roots, proof).holds():
                raise Violated("I10 a consistency proof does not verify")

    def _publish(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        if _head(line) not in process.signed:
            raise Violated("I4 published what was not signed")
        self._is_of_the_history(log, _head(line), "published")

    def _served(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        served = process.served if self.copied else log.served  # a server on an older copy may well show that
        at = bisect.bisect_left(served, (line["since"], 0))
        if at and served[at - 1][1] > line["size"]:
            raise Violated("I3 /checkpoint went back")
        largest = max(line["size"], served[-1][1] if served else 0)
        bisect.insort(served, (line["t"], largest))


def _back_to(log: _History, head: Head) -> tuple[list[str], Head]:
    """Return a head of the signed history, and the leaf hashes from there to `head`, as they were appended. Raises Violated."""
    steps: list[list[str]] = []
    at = head
    while at[0] > log.tip[0] or _root(log, at[0]) != at[1]:
        if at not in log.parents or at[0] <= log.base:
            raise Violated(f"I2 the signed head does not extend the one of size {log.tip[0]}")
        at, hashes = log.parents[at]
        steps.append(hashes)
    return [value for hashes in reversed(steps) for value in hashes], at


def _root(log: _History, size: int) -> str | None:
    """Return the root of the signed history at a size that it has; None when it is not known, as the trace began later."""
    return log.tree.root(size) if log.tree is not None else log.heads.get(size)


def _head(line: dict[str, Any]) -> Head:
    return line["size"], line["root"]


def _same(expected: str, head: Head, message: str) -> None:
    if expected != head[1]:
        raise Violated(f"{message} of size {head[0]}")


def _inclusion(index: int, size: int, leaf_hash: str, hashes: list[str], root: str) -> None:
    proof = tuple(bytes.fromhex(value) for value in hashes)
    if not oracle.Inclusion(index, size, bytes.fromhex(leaf_hash), proof, bytes.fromhex(root)).holds():
        raise Violated("I10 an inclusion proof does not verify")
