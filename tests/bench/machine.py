"""What the operating system knows: who used the processors, how much memory, which core to run on. Linux only."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "fastapi", "orjson", "asyncpg", "apsw", "cryptography")


def cores() -> list[int]:
    """Return the cores this process may run on."""
    return sorted(os.sched_getaffinity(0))


SERVER_CORE, GENERATOR_CORE = (cores()[0], cores()[1]) if len(cores()) > 1 else (None, None)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Let processes started in here run on `core` alone; None changes nothing."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy_seconds() -> float:
    """Return the processor time everybody on this machine has used, stolen time included."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / _TICK


def _stat(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process with all its threads has used."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK


def family_seconds(pid: int) -> float:
    """Return the processor time of a process and its children, those that have ended included."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = _stat(int(entry.name))
            if int(entry.name) == pid:
                total += sum(map(int, fields[11:15])) / _TICK
            elif int(fields[1]) == pid:
                total += sum(map(int, fields[11:13])) / _TICK
    return total


def pss_megabytes(pid: int) -> float:
    """Return the memory of a process, with its share of shared pages."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss in smaps_rollup")


@dataclass
class Meter:
    """Measures who uses the processors from its start to :meth:`stop`. `postgres` is the postmaster's pid."""

    server: int
    postgres: int | None = None
    _at: tuple[float, ...] = field(default=(), init=False)

    def start(self) -> Meter:
        """Begin."""
        self._at = self._now()
        return self

    def _now(self) -> tuple[float, ...]:
        postgres = family_seconds(self.postgres) if self.postgres else 0.0
        return time.perf_counter(), busy_seconds(), cpu_seconds(self.server), postgres, time.process_time()

    def stop(self, generator: float) -> dict[str, float]:
        """Return processor seconds of server and Postgres, and cores used by whom; `generator` is what the generator says it used."""
        elapsed, busy, server, postgres, own = (now - before for now, before in zip(self._now(), self._at, strict=True))
        return {
            "server_seconds": server,
            "postgres_seconds": postgres,
            "server_cores": server / elapsed,
            "generator_cores": generator / elapsed,
            "foreign_cores": (busy - server - postgres - own - generator) / elapsed,
        }


def fdatasync_us(folder: Path, times: int = 200) -> float:
    """Return the median time of an 8 kB write with fdatasync, in microseconds."""
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(times):
            started = time.perf_counter()
            os.pwrite(file.fileno(), bytes(8192), 0)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def describe(folder: Path) -> dict[str, Any]:
    """Return what this machine is, as far as figures depend on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(cores()),
        "pinned": SERVER_CORE is not None,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "fdatasync_us": round(fdatasync_us(folder), 1),
        "load_average": os.getloadavg()[0],
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
