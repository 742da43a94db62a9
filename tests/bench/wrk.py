"""Drives wrk, when it is on the PATH, with a Lua script that makes every body unique as :mod:`tests.bench.bodies` does."""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.bodies import batch_parts, entry_parts
from tests.bench.machine import GENERATOR_CORE, pinned
from tests.bench.plan import WORKLOADS, Load, Workload

_POST = """
local before, after, entries, number = %(before)s, %(after)s, %(entries)d, 0
local headers = { ["Content-Type"] = "%(type)s" }
function request()
  local parts = {}
  for at = 1, entries do
    parts[at] = before .. string.format("%%012d", number) .. after
    number = number + 1
  end
  return wrk.format("POST", "%(path)s", headers, table.concat(parts))
end
"""
_GET = """
function request()
  local index = math.random(0, %(last)d)
  return wrk.format("GET", "%(path)s" .. %(name)s)
end
function init() math.randomseed(%(seed)d) end
"""
_NAMES = {
    "index": "index",
    "tile": '(index < 1000 and string.format("%03d", index)'
    ' or string.format("x%03d/%03d", math.floor(index / 1000), index % 1000))',
}
_DONE = """
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"micros":%d,"bytes":%d,"p50":%d,"p99":%d,"max":%d,"status":%d,"socket":%d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99), latency.max,
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def find() -> str | None:
    """Return the path of wrk, or None."""
    return shutil.which("wrk")


def version(program: str) -> str:
    """Return what wrk calls itself."""
    done = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).split("\n")[0].split("[")[0].strip()


def script(load: Load) -> str:
    """Return the Lua script of a load."""
    workload = WORKLOADS[load.workload]
    return (_post(workload, load) if workload.post else _get(workload, load)) + _DONE


def _post(workload: Workload, load: Load) -> str:
    parts = entry_parts(load.seed)
    before, after = batch_parts(workload, parts) if workload.entries > 1 else parts
    values = {
        "before": _lua(before),
        "after": _lua(after),
        "entries": max(1, workload.entries),
        "type": workload.content_type,
        "path": workload.prefix + workload.path,
    }
    return _POST % values


def _get(workload: Workload, load: Load) -> str:
    proof = workload.name == "proof"
    values = {
        "last": load.size - 1 if proof else max(1, load.size // 256) - 1,
        "path": workload.prefix + workload.path,
        "name": _NAMES["index" if proof else "tile"],
        "seed": load.seed % 2**31,
    }
    return _GET % values


def _lua(data: bytes) -> str:
    """Return a Lua string literal: every byte in decimal, so that nothing needs escaping."""
    return '"' + "".join(f"\\{byte:03}" for byte in data) + '"'


class Wrk:
    """A generator that runs wrk: one thread on its core, whole seconds, at least one. Answers are not verified by it."""

    def __init__(self, program: str, folder: Path) -> None:
        self.name = version(program)
        self._program = program
        self._script = folder / "wrk.lua"

    def run(self, load: Load) -> dict[str, Any]:
        """Run a load, in the words of :mod:`tests.bench.generator`. A load with a number of requests is not for wrk."""
        self._script.write_text(script(load))
        seconds = max(1, math.ceil(load.seconds))
        words = [self._program, "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "30s", "--latency"]
        words += ["-s", str(self._script), f"http://{load.host}:{load.port}"]
        before = _children_cpu()
        with pinned(GENERATOR_CORE):
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 120, check=False)
        if done.returncode or "RESULT " not in done.stdout:
            raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
        found = json.loads(done.stdout.rpartition("RESULT ")[2])
        return _result(found, _children_cpu() - before)

    def verdict(self) -> dict[str, Any]:
        """Return what :mod:`tests.bench.generator` would: wrk keeps no answers."""
        return {"verified": 0, "wrong": []}

    def close(self) -> None:
        """Nothing to do: wrk has ended."""


def _result(found: dict[str, int], cpu: float) -> dict[str, Any]:
    requests = found["requests"]
    statuses = {"2xx": requests - found["status"]} | ({"other": found["status"]} if found["status"] else {})
    return {
        "requests": requests,
        "rate": requests / (found["micros"] / 1e6),
        "seconds": found["micros"] / 1e6,
        "p50_ms": found["p50"] / 1000,
        "p99_ms": found["p99"] / 1000,
        "max_ms": found["max"] / 1000,
        "bytes": found["bytes"],
        "statuses": statuses,
        "errors": {"socket": found["socket"]} if found["socket"] else {},
        "generator_cpu": cpu,
    }


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
