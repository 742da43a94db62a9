"""A chain of crashes on one log, each in a process forked for it: recover, check, go on writing, and be hit by the next fault.

The parent keeps what was acknowledged, outside the process that dies. A child first audits the log with code that shares nothing
with what wrote it, then arms its fault, then opens the log like a server does and appends until it is done or dead. So every child
is the recovery from the fault before and the victim of the next one. Needs ``MUNIMENT_FAILPOINTS`` in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from muniment.note import SigningKey
from muniment_server import failpoints
from muniment_server.check.fsck import fsck
from muniment_server.errors import GuardRefused, GuardUnavailable, ReadOnly, Refused, StoreError
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.telemetry import Metrics
from muniment_server.trace import Trace
from muniment_server.web.problems import CODES
from muniment_server.write.guard import Guard
from muniment_server.write.observer import Observer
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Submission
from tests.service.audit import audit
from tests.service.rig import Bench, Rig, event, raw
from tests.tracecheck import Checker

QUIET_SECONDS = 0.08
"""A child whose step hangs is killed when it said nothing for this long. Killing too early is only another crash."""
LIMIT_SECONDS = 60.0
_TRIES = 20
_EXPECTED = (failpoints.Injected, StoreError, Refused, GuardRefused, GuardUnavailable, ReadOnly)
"""What a fault may make of a start. Anything else is a bug."""


class Point(NamedTuple):
    """A fault: `action` at `moment` of a step, the `nth` time it is reached."""

    step: str
    action: str
    moment: str
    nth: int = 1


@dataclass
class Chain:
    """One log and what was acknowledged of it. `fired` counts the faults that happened."""

    engine: str
    database: str | None
    folder: Path
    row: LogRow
    key: SigningKey
    guard: Guard
    rng: random.Random
    light: bool = False  # write little: for rigs that are about recovery
    unchecked: bool = False  # the next child need not audit: the one after it will
    acked: dict[int, bytes] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    fired: int = 0
    unreached: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        self.checker = Checker(self.folder / "trace")

    def crash(self, *points: Point) -> None:
        """Run one child that meets these faults, one after the other; only the last may end it.

        Raises AssertionError when anything acknowledged is not there.
        """
        read, write = os.pipe()
        gc.freeze()  # a collection in the child would touch, and so copy, every page of this process
        pid = os.fork()
        if not pid:
            os.close(read)
            _child(self, points, write)
        os.close(write)
        try:
            lines, status = self._listen(pid, read, points[-1] if points else None)
        finally:
            os.close(read)
        self._account(lines, status, points)
        self.checker.check()

    def _listen(self, pid: int, read: int, point: Point | None) -> tuple[list[dict[str, Any]], int]:
        """Take what the child says until it ends; kill it when it hangs."""
        data, deadline = b"", time.monotonic() + LIMIT_SECONDS
        quiet = QUIET_SECONDS if point and point.action == "hang" else LIMIT_SECONDS
        opened = False
        while True:
            ready, _, _ = select.select([read], [], [], quiet if opened else LIMIT_SECONDS)
            part = os.read(read, 65_536) if ready else b""
            if not ready or time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                if not (point and point.action == "hang"):
                    os.waitpid(pid, 0)
                    raise AssertionError(f"a process without a hanging step hung, after {point}: {data[-500:]!r}")
                quiet = LIMIT_SECONDS
                opened = False
            elif not part:
                break
            data += part
            opened = opened or b"armed" in data
        _, status = os.waitpid(pid, 0)
        return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")], status

    def _account(self, lines: list[dict[str, Any]], status: int, points: tuple[Point, ...]) -> None:
        for line in lines:
            if "ack" in line:
                self._acknowledged(*line["ack"])
            if "failed" in line:
                raise AssertionError(f"after {points}: {line['failed']}")
        killed = os.WIFSIGNALED(status)
        if killed and not points:
            raise AssertionError("a process without a fault was killed")
        fired = killed + sum("fired" in line for line in lines)
        self.fired += fired
        self.unreached += len(points) - fired

    def _acknowledged(self, index: int, leaf: str, key: str | None) -> None:
        if self.acked.setdefault(index, bytes.fromhex(leaf)) != bytes.fromhex(leaf):
            raise AssertionError(f"index {index} was acknowledged for two leaves")
        if key and self.keys.setdefault(key, index) != index:
            raise AssertionError(f"Idempotency-Key {key} was acknowledged at {self.keys[key]} and {index}")


# --- in the child -------------------------------------------------------------------------------------------------------


def _child(chain: Chain, points: tuple[Point, ...], write: int) -> None:
    """Run in the forked process; never returns."""

    def say(**values: Any) -> None:
        os.write(write, json.dumps(values).encode() + b"\n")

    code = 0
    # What is said of faults that were asked for is nobody's business, and writing it down takes longer than the fault.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        asyncio.run(_live(chain, points, say))
    except _EXPECTED:  # while starting: as good as a crash
        if points and points[0].action == "fail":
            say(fired=True)
        else:
            say(failed=traceback.format_exc())
        code = 2
    except BaseException:
        say(failed=traceback.format_exc())
        code = 1
    os._exit(code)


async def _live(chain: Chain, points: tuple[Point, ...], say: Callable[..., None]) -> None:
    if not (chain.light and chain.unchecked):
        await _check(chain)
    # A single fault may hit the start; of several the first would end it, and the others would not happen.
    starting, running = (points, ()) if len(points) <= 1 else ((), points)
    _arm(starting, say, last=not running)
    async with contextlib.AsyncExitStack() as stack:
        store = await _open(chain)
        stack.push_async_callback(store.close)
        trace = Trace(chain.folder / "trace")
        settings = Settings(data=chain.folder, publish_interval=0.01)

        def new_sequencer(observer: Observer) -> Sequencer:
            return Sequencer(store, chain.row, chain.key, chain.guard, trace=trace, observer=observer)

        log = Log(store, chain.row, settings, Metrics(), Cache(2**20), new_sequencer, trace=trace)
        await log.start()
        stack.push_async_callback(log.close)
        if not running:
            await _write(chain, log, say)
            _tell(starting, say)
        for number, point in enumerate(running, 1):
            if log.refusal:  # it wants a restart: the next child is one
                break
            _arm([point], say, last=number == len(running))
            await _write(chain, log, say)
            _tell([point], say)


def _arm(points: Sequence[Point], say: Callable[..., None], *, last: bool) -> None:
    failpoints.disarm()
    for point in points:
        failpoints.arm(*point)
    if last:
        say(armed=True)


def _tell(points: Sequence[Point], say: Callable[..., None]) -> None:
    for point in points:
        if failpoints.hits.get(point.step, 0) >= point.nth:
            say(fired=True)


async def _open(chain: Chain) -> Store:
    if chain.database:
        return await open_postgres(chain.database)
    return await open_sqlite(chain.folder / "store.sqlite")


def _bench(chain: Chain, store: Any) -> Bench:
    rig = Rig(chain.engine, chain.database, chain.folder, store, contextlib.AsyncExitStack())
    return Bench(rig, chain.row, chain.key, chain.guard)


async def _check(chain: Chain) -> None:
    """Audit the log as the last process left it, before anything is recovered."""
    if not chain.database and not (chain.folder / "store.sqlite").exists():
        return
    leaves = await audit(_bench(chain, None))
    for index, leaf in chain.acked.items():
        if index >= len(leaves) or leaves[index] != leaf:
            raise AssertionError(
                f"entry {index} was acknowledged and is {'gone' if index >= len(leaves) else 'another'}"
            )


async def _write(chain: Chain, log: Log, say: Callable[..., None]) -> None:
    """Send a few rounds of submissions side by side; repeat what was not answered, as a client does."""
    rng = chain.rng
    for _ in range(1 if chain.light else rng.choice((1, 2, 3))):
        width = rng.choice((1, 2) if chain.light else (1, 2, 4))
        await asyncio.gather(*(_send(log, _submission(chain, rng), say) for _ in range(width)))
        if log.refusal:
            return


def _submission(chain: Chain, rng: random.Random) -> Submission:
    chain.sent += 1
    first = rng.randrange(2**40)
    count = rng.choice((1, 1, 2) if chain.light else (1, 1, 1, 2, 5, 12))
    if chain.row.kind == "raw":
        known = [chain.acked[index] for index in sorted(chain.acked)[-2:]]
        leaves = [b"%d/%d" % (first, at) for at in range(count)]
        return raw(
            *leaves, *(rng.sample(known, min(len(known), rng.choice((0, 0, 1)))) if chain.row.kind == "raw" else ())
        )
    return event(*range(first, first + count), key=f"k{first}" if rng.random() < 0.7 else None)


async def _send(log: Log, submission: Submission, say: Callable[..., None]) -> None:
    for _ in range(_TRIES):
        try:
            outcome = await log.append(submission)
        except Refused as error:
            if log.refusal or CODES[error.code].status != 503:
                return
            await asyncio.sleep(0.002)
            continue
        made = await log.receipts.all_of_append(submission, outcome)
        for receipt in made:
            key = submission.key if receipt is made[0] else None
            say(ack=[receipt.index, receipt.leaf.hex(), key])
        return


async def finish(chain: Chain, policy: Any) -> None:
    """The end of a chain: fsck clean, and everything acknowledged at its index. In the parent, so with nothing armed."""
    await _check(chain)
    store = await _open(chain)
    try:
        report = await fsck(store, chain.row, policy, chain.guard, lambda *_: None)
        if not report.clean:
            raise AssertionError(f"fsck: {report.findings}")
    finally:
        await store.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a child of its own: this process must stay without threads and open databases, or it cannot be forked."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        code = 0
        try:
            asyncio.run(work)
        except BaseException:
            os.write(write, traceback.format_exc().encode())
            code = 1
        os._exit(code)
    os.close(write)
    work.close()
    text = b""
    while part := os.read(read, 65_536):
        text += part
    os.close(read)
    os.waitpid(pid, 0)
    if text:
        raise AssertionError(text.decode())
