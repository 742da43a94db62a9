"""How fast one `muniment import` fills a log, and whether it or the server is what holds it up."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.bodies import entry, entry_parts
from tests.bench.machine import GENERATOR_CORE, cpu_seconds, pinned
from tests.bench.measure import Bench
from tests.bench.plan import BATCH, LOG_NAMES

_ROWS = {"raw": 20_000, "event": 6_000}
"""Rows for each second that a study takes."""
_LIKE = {"raw": "raw-batch", "event": "event-receipts"}
"""The series whose answers are like those an import asks for."""

_LOOK_SECONDS = 0.02


def study(bench: Bench, seconds: float, capacity: dict[str, float]) -> list[dict[str, Any]]:
    """Import a file of raw leaves, and one of events, each with one process on the generator's core."""
    with tempfile.TemporaryDirectory() as folder:
        return [_import(bench, Path(folder), kind, int(seconds * _ROWS[kind]), capacity) for kind in _ROWS]


def _import(bench: Bench, folder: Path, kind: str, rows: int, capacity: dict[str, float]) -> dict[str, Any]:
    path, target = folder / f"{kind}.jsonl", bench.target
    parts = entry_parts(time.time_ns() % 2**63)
    path.write_bytes(b"".join(entry(parts, number) + b"\n" for number in range(rows)))
    words = [sys.executable, "-m", "muniment.cli", "import", str(path), "--json"]
    words += ["--url", target.url, "--policy", target.policy, "--log", LOG_NAMES[kind]]
    server, started = cpu_seconds(target.pid), time.perf_counter()
    # Its memory goes with the folder: in the user's own, the log of the next run would be another one under an old name.
    environment = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
    with pinned(GENERATOR_CORE):
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    said, used, peak = _end(process)
    took = time.perf_counter() - started
    if process.returncode or said["new_rows"] != rows:
        raise RuntimeError(f"importing {rows} rows failed: {said}")
    bench.step(f"{bench.store}: import, {kind}")
    found = {
        "kind": kind,
        "rows": rows,
        "rate": rows / took,
        "server_cores": (cpu_seconds(target.pid) - server) / took,
        "client_cores": (used.ru_utime + used.ru_stime) / took,
        "client_mb": peak / 1024,
    }
    if _LIKE[kind] in capacity:
        found["of_batches"] = found["rate"] / (BATCH * capacity[_LIKE[kind]])
    return found


def _end(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], resource.struct_rusage, int]:
    """Return what an import says in the end, what it used, and the most memory it had, in KiB."""
    peak, pid = 0, 0
    while not pid:
        peak = max(peak, _peak(process.pid))
        time.sleep(_LOOK_SECONDS)
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = process.stdout.read() if process.stdout else b""
    return json.loads(text or b"{}"), used, peak


def _peak(pid: int) -> int:
    # Not ru_maxrss: that of a child begins with what its parent had when it was forked.
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
