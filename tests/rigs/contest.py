"""One process of a contest, inside the rig's own: a sequencer with a store and a guard of its own, held at any of its calls."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from muniment.checkpoint import parse_checkpoint
from muniment.note import SigningKey, parse_note
from muniment_server.errors import ReadOnly, StoreError
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.telemetry import Metrics
from muniment_server.write.admission import RawDraft
from muniment_server.write.guard import Guard
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, Submission
from tests.parts import Parts

HELD = ("append", "append", "fence", "tiles", "reread", "publish", "find_keys", "head_to_extend")
READS = ("head", "tiles", "reread", "leaves", "checkpoint")
"""Calls that any server of a pool may answer."""


class Pause:
    """Holds a coroutine until it is released."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._go = asyncio.Event()

    async def wait(self) -> None:
        """Be held."""
        self.reached.set()
        await self._go.wait()

    def release(self) -> None:
        """Let it go on."""
        self._go.set()


class Gate(Parts):
    """A process's way to the databases. `store` may be changed at any moment; where `others` are given, they answer reads too."""

    def __init__(self, store: Store, rng: Random) -> None:
        super().__init__(store)
        self.others: list[Store] = []
        self.planned: dict[str, tuple[Pause, bool]] = {}
        self._rng = rng

    async def call(self, part: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Do it, held before it or after it as planned."""
        pause, after = self.planned.pop(name, (None, False))
        if pause and not after:
            await pause.wait()
        store = self._rng.choice([self.store, *self.others]) if name in READS else self.store
        try:
            return await getattr(getattr(store, part), name)(*args, **kwargs)
        finally:
            if pause and after:
                await pause.wait()


class WatchedGuard(Guard):
    """A guard that tells what this process met in it. `at_write` is done once, with the lock held, before something is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.known = -1
        self.at_write: Callable[[], None] | None = None

    def _current(self, descriptor: int) -> Any:
        found = super()._current(descriptor)
        self.known = max(self.known, found.sequence)
        return found

    def _write(self, descriptor: int, slot: Any) -> None:
        done, self.at_write = self.at_write, None
        if done:
            done()
        super()._write(descriptor, slot)
        self.known = max(self.known, slot.sequence)


class _Quiet(Log):
    """A log that says nothing of refusals: thousands of lines that are as they should be."""

    def refused(self, refusal: ReadOnly) -> None:
        pass

    def returned(self) -> None:
        pass


class Process:
    """A writer, begun on `copy` with the store `own`. `results` counts how its batches ended."""

    def __init__(
        self,
        number: int,
        copy: str,
        store: Store,
        row: LogRow,
        key: SigningKey,
        guard: Path,
        rng: Random,
        lines: list[dict[str, Any]],
    ) -> None:
        self.number = number
        self.copy = copy
        self.own = store
        self.gate = Gate(store, rng)
        self.guard = WatchedGuard(guard)
        self.heads: list[tuple[int, str]] = []
        self.places: list[tuple[int, str]] = []
        self.results: dict[str, int] = defaultdict(int)
        self.said = ""  # how the last batch ended that did not end well
        self.task: asyncio.Task[str] | None = None
        self.pause: Pause | None = None
        self._lines = lines
        gate: Any = self.gate

        def new_sequencer(observer: Observer) -> Sequencer:
            return Sequencer(gate, row, key, self.guard, trace=self._trace, observer=observer)  # type: ignore[arg-type]

        settings = Settings(data=guard.parent)
        self.log = _Quiet(gate, row, settings, Metrics(), Cache(2**16), new_sequencer, trace=self._trace)  # type: ignore[arg-type]
        self.sequencer: Any = self.log.sequencer

    def _trace(self, log: str, event: str, **values: Any) -> None:
        line = {name: _hex(value) for name, value in values.items()}
        self._lines.append({"t": time.monotonic_ns(), "pid": self.number, "log": log, "event": event, **line})

    async def append(self, batch: Submission) -> str:
        """Append a batch; return how that ended: "signed", "unknown", or the code of a refusal."""
        try:
            (answer,) = await self.sequencer.run([batch])
        except ReadOnly as error:
            self.said = repr(error)
            return self._ended(error.code)
        except StoreError as error:
            self.said = repr(error)
            return self._ended("unknown")
        if not isinstance(answer, Outcome) or answer.signed is None:
            raise AssertionError(f"no outcome: {answer}")
        head = parse_checkpoint(parse_note(answer.signed.note).text)
        self.heads.append((head.size, head.root.hex()))
        for index, draft in zip(answer.indices, batch.drafts, strict=True):
            if index >= head.size:
                raise AssertionError(f"entry {index} was answered under a head of {head.size}")
            if isinstance(draft, RawDraft):
                self.places.append((index, draft.hash.hex()))
        return self._ended("signed")

    def _ended(self, how: str) -> str:
        self.results[how] += 1
        return how

    async def publish(self) -> str:
        """Publish what was signed last, as the log's own task would."""
        try:
            await self.log.publisher.publish()
        except StoreError:
            return "not published"
        return "published"

    async def begin(self, work: Any, name: str | None, *, after: bool) -> None:
        """Begin some work, up to its end or to where it is held."""
        self.pause = Pause()
        if name:
            self.gate.planned = {name: (self.pause, after)}
        self.task = asyncio.create_task(work)
        reached = asyncio.create_task(self.pause.reached.wait())
        await asyncio.wait((self.task, reached), return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if self.task.done():
            await self.end()

    async def end(self) -> None:
        """Let the work that is held go on, and wait for its end."""
        task, self.task = self.task, None
        self.gate.planned = {}
        if self.pause:
            self.pause.release()
        if task:
            await task

    async def close(self) -> None:
        """End the process."""
        await self.end()
        await self.own.close()


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return [_hex(item) for item in value] if isinstance(value, list | tuple) else value


def copy_over(path: Path, data: bytes) -> None:
    """Put a file with this content in the place of another one, as a restore of it does."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)
