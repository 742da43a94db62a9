"""System calls that fail, or kill: each one that start-up, a few appends and the end of a writer make to its files, one after another.

strace makes the k-th call of one kind to one file fail (once, or from then on for good) or kills the process at it. The writer goes on
as well as it can, and reports what it was told. Then a new process must recover: nothing acknowledged is lost, nothing of which a
caller heard "nothing was written" is there, nothing is there twice, and the log grows again.

The points are counted in a run without a fault, so there are as many as the code makes calls; the seed says which one it is.
A failed sync here leaves the data in the page cache; what a real disk drops on a failed sync is not shown.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muniment.note import VerifierKey
from muniment_server.errors import Refused, StoreError
from muniment_server.instance.registry import Registry
from tests.rigs.children import Child, Say, call
from tests.rigs.rig import Context, FaultRig
from tests.rigs.workload import Account, DataPaths, acknowledgement, again, in_loop, init, opened, recover

CALLS = "pread64,write,pwrite64,fdatasync,fsync,openat,ftruncate,fallocate,unlink,rename,link,flock"
_FULL = ("write", "pwrite64", "ftruncate", "fallocate", "openat", "link", "rename")  # what a full disk can refuse
_APPENDS = 4
_TRIES = 25


@dataclass(frozen=True)
class Point:
    """A fault: at the `nth` call of `name` to `path` ("": any file). `what` is strace's word for it."""

    work: str
    path: str
    name: str
    nth: int
    what: str

    def words(self, folder: Path) -> list[str]:
        """Return strace's arguments."""
        action, _, on = self.what.partition(" ")
        only = ["-P", str(folder / self.path)] if self.path else []
        return [*only, "-e", f"trace={self.name}", "-e", f"inject={self.name}:{action}:when={self.nth}{on}"]


# --- the writer ---------------------------------------------------------------------------------------------------------


async def _append(instance: DataPaths, say: Say) -> None:
    """Start, append and stop like a server that meets errors, saying what callers are told."""
    # One thread for the guard's file: which call is the k-th must not depend on who is quicker.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    registry = await _opened(instance)
    if registry is None:
        return
    try:
        log = await registry.get("default")
        assert log, "the instance has no default log"
        for at in range(_APPENDS):
            tag = f"entry {at}"
            for attempt in range(_TRIES):
                made, sent = again("raw", {"bodies": [f"{tag}.{n}" for n in range(3)], "key": None})
                try:
                    say(acknowledgement(sent, await log.append(made)))
                    break
                except Refused as refused:
                    nothing = "othing was written" in f"{refused.detail} {refused.hint}"
                    say({"refused": refused.code, "nothing": nothing, "bodies": sent["bodies"]})
                    if log.sequencer and (refusal := log.sequencer.refusal):
                        say({"gave_up": refusal.code})  # its caller may have heard only that the outcome is unknown
                        return
                    if nothing:
                        tag = f"entry {at} after {attempt} refusals"  # those before must not be there
                    await asyncio.sleep(0.002)
    finally:
        await registry.close()


async def _opened(instance: DataPaths) -> Registry | None:
    for _ in range(_TRIES):
        try:
            return await opened(instance)
        except StoreError:
            await asyncio.sleep(0.002)
    return None


def _init(instance: DataPaths, say: Say) -> None:
    try:
        said = {"vkey": init(instance)}
    except SystemExit as ended:
        said = {"exit": str(ended.code)}
    except (OSError, Refused) as error:  # the command did not finish, and says so
        said = {"exit": f"{type(error).__name__}: {error}"}
    try:
        say(said)
    except OSError:  # the fault was for this very call
        say(said)


# --- under strace -------------------------------------------------------------------------------------------------------


class Sweep:
    """Runs the writer under strace, on a fresh copy of the same instance each time."""

    def __init__(self, context: Context) -> None:
        self.folder = context.folder / "point"
        self.instance = DataPaths(self.folder / "data", kind="raw")
        self.output = context.folder / "output"
        self._base = context.folder / "base"
        self._trace = context.folder / "trace"
        call(lambda _: init(DataPaths(self._base / "data", kind="raw")), self.output)
        call(in_loop(lambda say: _prepare(DataPaths(self._base / "data", kind="raw"), say)), self.output)

    def run(self, work: str, words: list[str]) -> tuple[list[Any], int | None]:
        """Run `work` with these arguments of strace; return what it said and its exit code (negative: killed)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if work == "append":
            shutil.copytree(self._base, self.folder)
        else:
            self.folder.mkdir()
        read, go = os.pipe()

        def body(say: Say) -> None:
            os.read(read, 1)
            if work == "append":
                in_loop(lambda say: _append(self.instance, say))(say)
            else:
                _init(self.instance, say)

        try:
            with Child(body, self.output) as child, _attached(child, words, self._trace):
                os.write(go, b".")
                said = []
                deadline = time.monotonic() + 30
                while not child.ended():
                    assert time.monotonic() < deadline, f"the writer hangs: {said[-3:]} {child.printed()}"
                    said += child.listen(0.01)
                return said + child.hear(), child.code
        finally:
            os.close(read)
            os.close(go)

    def injected(self) -> int:
        """Return how many calls failed in the last run: strace counts calls for each thread, so it may be several."""
        return self._trace.read_text("utf-8", "replace").count("(INJECTED)")

    def points(self) -> list[Point]:
        """Return every point, in an order of their own that is always the same."""
        found = [point for work in ("append", "init") for point in self._points(work)]
        random.Random(0).shuffle(found)
        return found

    def _points(self, work: str) -> list[Point]:
        said, code = self.run(work, ["-y", "-e", f"trace={CALLS}"])
        assert code == 0, f"without a fault: {said}"
        counted: Counter[tuple[str, str, str]] = Counter()
        for line in self._trace.read_text("utf-8", "replace").splitlines():
            if (call_ := re.match(r"(\d+) +(\w+)\(", line)) and (path := self._path(line)) is not None:
                counted[path if work == "append" else "", call_[2], call_[1]] += 1
        most: dict[tuple[str, str], int] = {}
        for (path, name, _), count in counted.items():  # strace counts for each thread
            most[path, name] = max(most.get((path, name), 0), count)
        return [
            Point(work, path, name, nth, what)
            for (path, name), count in sorted(most.items())
            for nth in range(1, count + 1)
            for what in _faults(name, work)
        ]

    def _path(self, line: str) -> str | None:
        found = re.search(rf"{re.escape(str(self.folder))}/([^\"<>,)]*)", line)
        return found[1].removesuffix("(deleted)") if found else None


def _faults(name: str, work: str) -> list[str]:
    once = ["error=EIO", "signal=KILL"] + (["error=ENOSPC"] if name in _FULL else [])
    return once if work == "init" else [*once, "error=EIO +"]


class _attached:
    """strace on a process, until that ends."""

    def __init__(self, child: Child, words: list[str], trace: Path) -> None:
        command = ["strace", "-f", "-qq", "-p", str(child.pid), "-o", str(trace), *words]
        self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._child = child

    def __enter__(self) -> None:
        status = Path(f"/proc/{self._child.pid}/status")
        deadline = time.monotonic() + 20
        while "TracerPid:\t0\n" in status.read_text():
            if self._strace.poll() is not None or time.monotonic() > deadline:
                self._strace.kill()
                raise AssertionError(f"strace does not attach: {self._strace.communicate()[1]}")
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._child.stop()
        self._strace.communicate(timeout=20)


async def _prepare(instance: DataPaths, say: Say) -> None:
    say(await recover(instance, Account(), "before"))


# --- judging ------------------------------------------------------------------------------------------------------------


async def _judged(say: Say, instance: DataPaths, said: list[Any]) -> None:
    """Recover and judge; what callers heard was not written must not be there, and nothing twice (which the audit sees)."""
    account = Account()
    account.add(said)
    refused = [one for one in said if "refused" in one]
    perhaps = {body for one in refused if not one["nothing"] for body in one["bodies"]}
    absent = {body for one in refused for body in one["bodies"]} - perhaps
    registry = await opened(instance)
    try:
        log = await registry.get("default")
        assert log, "the instance has no default log"
        entries, _ = await log.entries.page(0, 1000, with_payload=True)
    finally:
        await registry.close()
    there = {bytes.fromhex(one["leaf_hash"]) for one in entries}
    for body in absent:
        hash_ = again("raw", {"bodies": [body], "key": None})[0].drafts[0].hash  # type: ignore[union-attr]
        assert hash_ not in there, f"a caller heard that nothing was written, but {body!r} was"
    say(await recover(instance, account, "after"))


def _check(sweep: Sweep, point: Point, said: list[Any], code: int | None) -> bool:
    """Check one point; tell whether the fault happened."""
    instance = sweep.instance
    if point.work == "init":
        assert code in (0, -9), f"init ended with {code}: {said}"
        (vkey,) = call(lambda say: say(init(instance)), sweep.output)
        assert all(one.get("vkey") in (None, vkey) for one in said), f"init gave out {said}, now the key is {vkey}"
        assert VerifierKey.parse(vkey).name
    else:
        assert code in (0, -9), f"the writer ended with {code}"
    call(in_loop(lambda say: _judged(say, instance, said)), sweep.output)
    if point.work == "append" and sweep.injected() == 1 and code == 0 and not _gave_up(said):
        acknowledged = sum("indices" in one for one in said)
        assert acknowledged == _APPENDS, (
            f"one failed call, and only {acknowledged} of {_APPENDS} were taken: {said[-2:]}"
        )
    return code != 0 or sweep.injected() > 0


def _gave_up(said: list[Any]) -> bool:
    """Tell whether the writer refused to go on: guard or key could not be used, and only a restart may decide."""
    codes = [str(one.get(word, "")) for one in said for word in ("refused", "gave_up")]
    return any(code.startswith(("guard_", "key_")) for code in codes)


def run(context: Context) -> None:
    """Run the seeds: each is one point."""
    sweep = Sweep(context)
    points = sweep.points()
    for seed in context.each():
        point = points[seed % len(points)]
        said, code = sweep.run(point.work, point.words(sweep.folder))
        try:
            noticed = _check(sweep, point, said, code)
        except AssertionError as error:
            raise AssertionError(f"seed {seed} of {len(points)}: {point}: {error}") from error
        tracebacks = sum(str(one.get("exit", "")).startswith(("OSError", "Refused")) for one in said)
        acknowledged = sum("indices" in one for one in said)
        context.done(
            1, happened=noticed, killed=code == -9, acknowledged=acknowledged, init_ended_in_a_traceback=tracebacks
        )


RIGS = [FaultRig("syscalls", "syscall faults", "system calls", run, 80, 900, needs=("strace",), jobs=2)]
