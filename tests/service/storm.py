"""What goes wrong around a writer in a simulation: its calls to the store and to the guard fail, come late, or are held."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import apsw

from muniment_server.errors import GuardUnavailable, HeadMoved, OutcomeUnknown, StoreUnavailable
from muniment_server.storage import Store
from muniment_server.write.guard import Guard, Guarded, TreeHead
from muniment_server.write.sequencer import Sequencer
from tests.parts import Parts

READS = ("head", "tiles", "reread", "leaves", "find_leaves", "find_keys")
WRITES = ("append", "fence")


class Pause:
    """Holds a writer at a call until released, so that another one can overtake it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._go = threading.Event()
        self._loop = asyncio.get_running_loop()

    async def wait(self) -> None:
        """Hold a coroutine."""
        self.reached.set()
        await asyncio.to_thread(self._go.wait)

    def wait_in_thread(self) -> None:
        """Hold a thread."""
        self._loop.call_soon_threadsafe(self.reached.set)
        self._go.wait()

    def release(self) -> None:
        """Let it go on."""
        self._go.set()


@dataclass
class Fault:
    """What the next call of a name does: "fail" (nothing happens), "lost" (unknown, nothing happens), "after" (happens, and is
    reported as unknown), "late" (reported as unknown, happens later), "moved", "flip" (a bit of what is read), or "hold"."""

    kind: str
    pause: Pause | None = None
    after: bool = False  # hold after the call, not before it


class Gate(Parts):
    """A writer's way to the store. `clean` has every head that a clean reply made durable for this writer; `late` what is to come."""

    def __init__(self, store: Store, rng: Random) -> None:
        super().__init__(store)
        self.rng = rng
        self.planned: dict[str, list[Fault]] = defaultdict(list)
        self.clean: set[tuple[int, bytes]] = set()
        self.signatures = 0  # how many this writer made
        self.late: list[tuple[int, Callable[[], Awaitable[Any]]]] = []  # with the signatures made before it was sent
        self.flips = 0

    async def call(self, part: str, name: str, *args: Any) -> Any:
        """Do it, or let it go wrong as planned."""
        method = getattr(getattr(self.store, part), name)
        fault = self.planned[name].pop(0) if self.planned.get(name) else Fault("")
        if fault.pause and not fault.after:
            await fault.pause.wait()
        if fault.kind == "fail":
            raise StoreUnavailable(f"{name}: planned")
        if fault.kind == "moved":
            raise HeadMoved(f"{name}: planned")
        if fault.kind == "late":
            self.late.append((self.signatures, lambda: method(*args)))
        if fault.kind in ("lost", "late"):
            raise OutcomeUnknown(f"{name}: planned")
        result = await method(*args)
        if fault.pause and fault.after:
            await fault.pause.wait()
        if fault.kind == "after":
            raise OutcomeUnknown(f"{name}: planned")
        if name in WRITES:
            head = args[0].head if name == "append" else result
            self.clean.add((head.size, head.root))
        return self._flip(result) if fault.kind == "flip" else result

    def _flip(self, result: Any) -> Any:
        """Turn one bit of the leaves or tiles that were read."""
        leaves, tiles = result if isinstance(result, tuple) else ([], result)
        blobs = [(leaves, at) for at, leaf in enumerate(leaves) if leaf] + [(tiles, at) for at in sorted(tiles)]
        if blobs:
            self.flips += 1
            where, at = self.rng.choice(blobs)
            bit = self.rng.randrange(8 * len(where[at]))
            where[at] = (int.from_bytes(where[at]) ^ 1 << bit).to_bytes(len(where[at]))
        return result


class MoodyGuard(Guard):
    """The guard, whose swap fails or is held when told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.planned: list[Fault] = []

    def swap(
        self, guard_id: str, new: TreeHead, below: Container[TreeHead], *, above: bool = False
    ) -> tuple[Guarded, bool]:
        """See Guard."""
        fault = self.planned.pop(0) if self.planned else Fault("")
        if fault.kind == "fail":
            raise GuardUnavailable("planned")
        if fault.pause and not fault.after:
            fault.pause.wait_in_thread()
        found = super().swap(guard_id, new, below, above=above)
        if fault.pause and fault.after:
            fault.pause.wait_in_thread()
        if fault.kind == "after":
            raise GuardUnavailable("planned")
        return found


@dataclass
class Writer:
    """One process: its sequencer, and what can be done to it."""

    store: Store
    gate: Gate
    guard: MoodyGuard
    sequencer: Sequencer
    highest: int = -1

    def heal(self) -> None:
        """Nothing more goes wrong."""
        self.gate.planned.clear()
        self.guard.planned.clear()


def copy_database(database: Path, copy: Path) -> None:
    """Write a copy of a live SQLite database, as of one moment."""
    connection = apsw.Connection(str(database))
    connection.execute("VACUUM INTO ?", (str(copy),))
    connection.close()


def has_log(database: Path) -> bool:
    """Tell whether a SQLite database has pages in its write-ahead log: copying the file alone would lose them."""
    log = Path(f"{database}-wal")
    return log.exists() and log.stat().st_size > 0
