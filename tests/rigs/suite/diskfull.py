"""A full disk: database, guard and keys on a small file system that is filled while callers append over HTTP.

Nothing is acknowledged while it is full that is not stored; what was acknowledged before is there; reads go on; and when there is
room again the same process takes entries again. With the early stop appends are refused before the disk is full.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.live import LiveServer, free_of_tracebacks, free_port, trace_of, until
from tests.rigs.children import Child, call
from tests.rigs.cluster import Cluster
from tests.rigs.http_load import connection, http_writer, patient
from tests.rigs.mounts import in_memory, make_ext4, mounted
from tests.rigs.rig import Context, FaultRig
from tests.rigs.workload import Account, DataPaths, in_loop, init, judge

LEVELS = (0, 96 << 10, 768 << 10)  # bytes that the filler leaves free
_SQLITE_MIB, _POSTGRES_MIB = 24, 128
_LOW_MIB = 512  # the rest must last longer than it takes to look at the disk again, a growing write-ahead log of 16 MiB included
_SECONDS = 60.0
_RESUME_SECONDS = 20.0
_BUSY = 40  # acknowledgements before and after each fault
_FULL_CODES = {"database_unavailable", "outcome_unknown"}


def _fill(disk: Path, leave: int) -> Path:
    """Write a file that leaves so many bytes free. For 0 everybody else runs into the end of the disk at the same time."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(free - leave - (64 << 10), 4096))
        for step in (65536, 4096) if not leave else ():
            with contextlib.suppress(OSError):
                while True:
                    os.pwrite(file.fileno(), bytes(step), os.fstat(file.fileno()).st_size)
                    os.fsync(file.fileno())
        os.fsync(file.fileno())
    return filler


class Scene:
    """A server on a small disk with callers; what it must not write to that disk lies beside it."""

    def __init__(self, context: Context, disk: Path, cluster: Cluster | None, free: str) -> None:
        self.context = context
        self.disk = disk
        self.cluster = cluster
        self.output = context.folder / "output"
        self.account = Account()
        beside = Path(tempfile.mkdtemp(dir=context.folder))
        self.instance = DataPaths(disk / "data", database=cluster.url("data") if cluster else None)
        call(lambda _: init(self.instance), self.output)
        # A trace and a log that cannot be written would be faults of their own: they go to another disk.
        (beside / "data").symlink_to(disk / "data")
        trace_of(disk / "data").symlink_to(beside / "trace")
        self.metrics_port = free_port()
        environment = self.instance.environment() | {
            "MUNIMENT_SERVER_MIN_FREE_PERCENT": free,
            "MUNIMENT_SERVER_METRICS_PORT": str(self.metrics_port),
        }
        self.server = LiveServer(beside / "data", env=environment)
        self.callers: Child

    @contextlib.contextmanager
    def busy(self, seed: int) -> Iterator[None]:
        """Serve, with callers that do not give up."""
        try:
            url = self.server.wait().url
            with Child(lambda say: http_writer(url, seed, say, patient), self.output) as self.callers:
                yield
            assert self.server.process.poll() is None, f"the server ended: {self.server.stderr()[-2000:]}"
            assert self.server.stop() == 0, f"the server did not stop well: {self.server.stderr()[-2000:]}"
            # The driver's pool logs a connection that it could not restore with its traceback.
            own = [line for line in self.server.stderr().splitlines() if '"logger": "asyncpg.' not in line]
            wrong = [line for line in own if not free_of_tracebacks(line)]
            assert not wrong, f"the server met something unexpected: {wrong[0][:4000]}"
        finally:
            self.server.stop(signal.SIGKILL)

    def acknowledged(self, count: int, seconds: float = _SECONDS) -> float:
        """Wait for so many more acknowledgements; return the seconds until the first one."""
        started, wanted, first = time.monotonic(), self.account.entries + count, 0.0
        while self.account.entries < wanted:
            assert time.monotonic() - started < seconds, f"no entries are taken: {self.server.stderr()[-2000:]}"
            before = self.account.entries
            self.account.add(self.callers.listen(0.02))
            if self.account.entries > before and not first:
                first = time.monotonic() - started
        return first

    def refused(self) -> set[str]:
        """Wait until callers are refused, and half a second more; return the codes."""
        codes: set[str] = set()
        deadline = time.monotonic() + _SECONDS
        while not codes:
            assert time.monotonic() < deadline, "entries are still taken on a full disk"
            codes |= self._codes(0.02)
        return codes | self._codes(0.5)

    def _codes(self, seconds: float) -> set[str]:
        said = self.callers.listen(seconds)
        self.account.add(said)
        wrong = [one for one in said if "refused" in one and one["status"] != 503]
        assert not wrong, f"not 503: {wrong[:3]}"
        return {one["refused"] for one in said if "refused" in one}

    def metric(self, name: str) -> float:
        """Return a metric without labels."""
        http_ = connection(f"http://127.0.0.1:{self.metrics_port}")
        http_.request("GET", "/metrics")
        lines = http_.getresponse().read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def lines_of(self, code: str) -> list[str]:
        """Return what the server told its operator with this code."""
        lines = [json.loads(line) for line in self.server.stderr().splitlines() if line.startswith("{")]
        return [line["event"] for line in lines if line.get("code") == code]

    def reads(self) -> None:
        """Check that reads are answered."""
        for path in ("/checkpoint", "/entries?start=0&limit=3", "/healthz"):
            http_ = connection(self.server.url)
            http_.request("GET", path)
            answer: http.client.HTTPResponse = http_.getresponse()
            answer.read()
            assert answer.status == 200, f"GET {path} on a full disk: {answer.status}"

    def judge_copy(self) -> None:
        """Judge what is stored at this moment, as after a crash: from a copy on another disk."""
        self.server.process.send_signal(signal.SIGSTOP)
        try:
            self.account.add(self.callers.hear())
            copy = replace(self.instance, data=self.context.folder / "copy")
            shutil.copytree(self.instance.data, copy.data, symlinks=True)
        finally:
            self.server.process.send_signal(signal.SIGCONT)
        call(in_loop(lambda _: _judge(copy, self.account)), self.output)
        shutil.rmtree(copy.data)


async def _judge(instance: DataPaths, account: Account) -> None:
    await judge(instance, account)


# --- seeds --------------------------------------------------------------------------------------------------------------


def full(scene: Scene, seed: int) -> None:
    """Fill the disk to each level in turn, and make room again."""
    levels = list(LEVELS)
    random.Random(seed).shuffle(levels)
    with scene.busy(seed):
        for leave in levels:
            scene.acknowledged(_BUSY)
            filler = _fill(scene.disk, leave)
            codes = scene.refused()
            assert codes <= _FULL_CODES, f"seed {seed}: refused on a full disk with {codes}"
            if not scene.cluster:  # a Postgres that cannot write its log stops altogether
                scene.reads()
                scene.judge_copy()
            filler.unlink()
            if scene.cluster:
                scene.cluster.revive()
            waited = scene.acknowledged(_BUSY, _RESUME_SECONDS)
            scene.context.done(1, fills=1, resumed_after_ms=int(1000 * waited))
    _end(scene)


def low(scene: Scene, seed: int) -> None:
    """Fill the disk to less than a tenth free: appends stop early, and nothing is lost because nothing was tried."""
    with scene.busy(seed):
        scene.acknowledged(_BUSY)
        size = os.statvfs(scene.disk).f_blocks * os.statvfs(scene.disk).f_frsize
        filler = _fill(scene.disk, int(size * 0.07))
        codes = scene.refused() | scene.refused()
        assert codes == {"disk_low"}, f"seed {seed}: refused on a nearly full disk with {codes}"
        assert scene.metric("muniment_disk_free_ratio") < 0.1, "the metric does not show it"
        scene.reads()
        filler.unlink()
        scene.acknowledged(_BUSY, _RESUME_SECONDS)
        until(lambda: scene.lines_of("disk_low")[1:] == ["disk has room again"])
        assert scene.lines_of("disk_low")[0] == "disk is nearly full: appends are refused"
        scene.context.done(1, early_stops=1)
    _end(scene)


def _end(scene: Scene) -> None:
    call(in_loop(lambda _: _judge(scene.instance, scene.account)), scene.output)
    scene.context.done(0, acknowledged=scene.account.entries)


@contextlib.contextmanager
def _disk(context: Context, mebibytes: int) -> Iterator[Path]:
    # In memory below the loop device, so that a sync is not one of the machine's own disk.
    with in_memory(context.folder / "memory", mebibytes + 8) as memory:
        image = make_ext4(memory / "image", mebibytes)
        with mounted(image, context.folder / "disk") as disk:
            yield disk


def run(context: Context) -> None:
    """Run the seeds: of four, two fill a disk with SQLite, one lets the early stop act, one fills a disk with Postgres."""
    context.folder.chmod(0o711)
    for seed in context.each():
        if seed % 4 == 3:
            _on_postgres(context, seed)
            continue
        work: Callable[[Scene, int], None] = low if seed % 4 == 1 else full
        with _disk(context, _LOW_MIB if work is low else _SQLITE_MIB) as disk:
            work(Scene(context, disk, None, "10" if work is low else "0"), seed)


def _on_postgres(context: Context, seed: int) -> None:
    with _disk(context, _POSTGRES_MIB) as disk:
        cluster = Cluster(disk, context.folder)
        cluster.make()
        with cluster.running():
            cluster.create("data")
            full(Scene(context, disk, cluster, "0"), seed)


RIGS = [FaultRig("disk-full", "disk full", "fills", run, 4, 40, needs=("mkfs.ext4", "mount"))]
