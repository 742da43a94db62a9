"""The trace checker: compares what servers wrote down of themselves (muniment_server.trace) with what must hold.

I1 an acknowledged entry stays at its index; I2 one history; I3 sizes never go back; I8 of writers that race one extends; I9 dense, a
repeated Idempotency-Key gives the same entries; I10 every proof verifies at the root it was served with. It recomputes roots from the
leaf hashes in the trace with the oracle's arithmetic, and shares no code with the server.

Lines are read in the order of the file: of one process that is the order of events, of several it is not.
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


@dataclass
class _Process:
    """What one process did: its append in flight, the heads that it knows to be durable, and those it signed."""

    pending: dict[str, Any] | None = None
    durable: set[Head] = field(default_factory=set)
    signed: set[Head] = field(default_factory=set)
    size: int = 0


@dataclass
class _History:
    """One log over all its processes. `leaves` are the leaf hashes of the signed history from `base` on, as far as known."""

    parents: dict[Head, tuple[Head, list[str]]] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)  # of the signed history
    tip: Head = (0, EMPTY)
    base: int = 0
    leaves: list[str] = field(default_factory=list)
    tree: Compact | None = None
    won: dict[tuple[int, str, int], Head] = field(default_factory=dict)  # who extended a head of an epoch
    keys: dict[str, int] = field(default_factory=dict)
    served: list[tuple[int, int]] = field(default_factory=list)  # (time, largest size seen by then)
    answers: dict[int, str] = field(default_factory=dict)
    processes: dict[int, _Process] = field(default_factory=lambda: defaultdict(_Process))


class Compact:
    """The roots of the complete subtrees of a growing tree, tallest first."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, bytes]] = []

    def add(self, leaf_hash: bytes) -> None:
        height, value = 0, leaf_hash
        while self.nodes and self.nodes[-1][0] == height:
            value = sha256(b"\x01" + self.nodes.pop()[1] + value).digest()
            height += 1
        self.nodes.append((height, value))

    def root(self) -> str:
        if not self.nodes:
            return EMPTY
        value = self.nodes[-1][1]
        for _, left in reversed(self.nodes[:-1]):
            value = sha256(b"\x01" + left + value).digest()
        return value.hex()


class Checker:
    """Reads a trace as it grows. :meth:`check` takes what was added since the last call; `counts` says what it saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
        if head[0] in log.heads:
            _same(log.heads[head[0]], head, "I2 a stored head contradicts a signed one")
        if not known and head[0] > log.tip[0]:  # made before the trace began: what is below it is taken as it is
            log.tip, log.base, log.leaves, log.tree = head, head[0], [], None if head[0] else Compact()
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
        if log.won.setdefault(contest, head) != head:
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
        elif head[0] > log.base and log.heads.get(head[0]) != head[1]:
            raise Violated("I2 signed a head that is not of the history signed before")

    def _extend(self, log: _History, head: Head) -> None:
        """Follow the appends from a new signed head back to the last one: that is the one history."""
        steps, at = [], head
        while at != log.tip:
            if at not in log.parents or at[0] <= log.tip[0]:
                raise Violated(f"I2 the signed head does not extend the one of size {log.tip[0]}")
            before, hashes = log.parents[at]
            steps.append((at, hashes))
            at = before
        for (size, root), hashes in reversed(steps):
            log.heads[size] = root
            log.leaves += hashes
            if log.tree is None and not log.base:
                log.tree = Compact()
            if log.tree is not None:
                for value in hashes:
                    log.tree.add(bytes.fromhex(value))
                _same(log.tree.root(), (size, root), "I5 the leaf hashes do not make the signed root")
        log.tip = head
        for index, value in log.answers.items():
            self._placed(log, index, value)
        log.answers.clear()

    # --- what a client sees ---------------------------------------------------------------------------------------------

    def _answer(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        if _head(line) not in process.signed:
            raise Violated("I1 acknowledged under a head that this process did not sign")
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

    def _served(self, log: _History, process: _Process, line: dict[str, Any]) -> None:
        at = bisect.bisect_left(log.served, (line["since"], 0))
        if at and log.served[at - 1][1] > line["size"]:
            raise Violated("I3 /checkpoint went back")
        largest = max(line["size"], log.served[-1][1] if log.served else 0)
        bisect.insort(log.served, (line["t"], largest))


def _head(line: dict[str, Any]) -> Head:
    return line["size"], line["root"]


def _same(expected: str, head: Head, message: str) -> None:
    if expected != head[1]:
        raise Violated(f"{message} of size {head[0]}")


def _inclusion(index: int, size: int, leaf_hash: str, hashes: list[str], root: str) -> None:
    proof = tuple(bytes.fromhex(value) for value in hashes)
    if not oracle.Inclusion(index, size, bytes.fromhex(leaf_hash), proof, bytes.fromhex(root)).holds():
        raise Violated("I10 an inclusion proof does not verify")
