"""Measures series: the echo before each run, runs again what others disturbed, medians, and a check of the log after each series."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from muniment.policy import Policy
from tests.bench import check
from tests.bench.ceiling import Ceiling
from tests.bench.machine import GENERATOR_CORE, Meter, fdatasync_us, pinned, pss_megabytes
from tests.bench.plan import BATCH, ECHO, LOG_NAMES, PREFIXES, WORKLOADS, Load, Options, Series, Workload
from tests.bench.servers import Postgres, Target

NOISE = 0.25
"""Cores used by strangers beyond which a run does not count."""
_MEDIANS = ("rate", "p50_ms", "p99_ms", "server_us", "postgres_us", "server_cores", "generator_cores", "foreign_cores")


class Generator(Protocol):
    """What makes load."""

    name: str

    def run(self, load: Load) -> dict[str, Any]:
        """Run a load and return what came of it, as :mod:`tests.bench.generator` does."""

    def verdict(self) -> dict[str, Any]:
        """Return how many answers of the last run were verified, and what was wrong with others."""

    def close(self) -> None:
        """End its processes."""


class OwnGenerator:
    """Our own generator, in a process on its own core."""

    name = "own (asyncio, uvloop)"

    def __init__(self, nice: int = 0) -> None:
        """Start it. `nice` lets another generator on the same core go first, whose latencies would otherwise be those of waiting for it."""
        with pinned(GENERATOR_CORE):
            words = [sys.executable, "-m", "tests.bench.generator"]
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)

    def run(self, load: Load) -> dict[str, Any]:
        """See Generator."""
        if self._process.stdin is None:
            raise AssertionError("it was started with pipes")
        self._process.stdin.write(json.dumps(load.to_json()) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def verdict(self) -> dict[str, Any]:
        """See Generator."""
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError("the load generator ended; its error is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """See Generator."""
        self._process.communicate(timeout=60)


@dataclass(slots=True)
class Bench:
    """What all measurements of one store share. `step` is called after each run, to move the progress bar."""

    store: str
    options: Options
    generator: Generator
    filler: Generator
    target: Target
    echo: Target
    data: Path
    database: str | None
    postgres: Postgres | None
    step: Callable[[str], None]
    ceiling: Ceiling | None = None  # once the logs are filled
    repeated: int = 0
    appended: int = 0  # entries that were answered, those of warm-ups and of runs made again included

    def preload(self) -> None:
        """Fill the logs, so that reads have something to read and appends do not start from an empty tree."""
        wanted = {"raw": self.options.reads, "event": self.options.preload, "small": self.options.reads // 4}
        for log, entries in wanted.items():
            name = f"{log}-batch"
            count = -(-entries // BATCH)
            load = self._load(self.target, Series(name, min(2, count)), 600.0, requests=count)
            found = self.filler.run(load) | self.filler.verdict()
            if found["statuses"] != {"201": count}:
                raise RuntimeError(f"preloading failed: {found}")
            self.step(f"{self.store}: preloaded")
        while any(self.size(log) <= entries for log, entries in wanted.items()):
            time.sleep(0.05)  # until a checkpoint covers it

    def size(self, log: str) -> int:
        """Return the published size of a log."""
        note = httpx.get(f"{self.target.url}{PREFIXES[log]}/checkpoint", timeout=30).text
        return int(note.split("\n")[1])

    def signed_size(self, log: str) -> int:
        """Return the size of a log by its last signed head, published or not."""
        answer = httpx.get(f"{self.target.url}{PREFIXES[log]}/proof/inclusion?index=0", timeout=30)
        return int(answer.json()["tree_size"])

    def _load(self, target: Target, series: Series, seconds: float, requests: int = 0, size: int = 0) -> Load:
        return Load(
            series.workload,
            target.host,
            target.port,
            series.connections,
            seconds,
            time.time_ns() % 2**63,
            size,
            requests,
            target.policy,
        )

    def once(self, target: Target, series: Series, seconds: float, size: int = 0) -> dict[str, Any]:
        """Warm up, then measure one run."""
        postgres = self.postgres.pid if self.postgres else None
        warm = self.generator.run(replace(self._load(target, series, self.options.warmup, size=size), policy=""))
        self.generator.verdict()
        meter = Meter(target.pid, postgres).start()
        found = self.generator.run(self._load(target, series, seconds, size=size))
        used = meter.stop(found["generator_cpu"])
        found |= self.generator.verdict()
        self.appended += (warm["requests"] + found["requests"]) * WORKLOADS[series.workload].entries
        requests = max(1, found["requests"])
        per_request = {
            "server_us": used["server_seconds"] / requests * 1e6,
            "postgres_us": used["postgres_seconds"] / requests * 1e6,
        }
        return found | used | per_request | {"noisy": used["foreign_cores"] > NOISE}

    def run(self, target: Target, series: Series, seconds: float, size: int = 0) -> dict[str, Any]:
        """Measure one run; again, a bounded number of times, when others used the machine. Keeps the quietest."""
        tries = []
        while len(tries) < self.options.attempts:
            tries.append(self.once(target, series, seconds, size))
            if not tries[-1]["noisy"] or self.repeated >= self.options.repeats:
                break
            self.repeated += 1
        best = min(tries, key=lambda one: float(one["foreign_cores"]))
        return best | {"attempts": len(tries)}

    def series(self, series: Series) -> dict[str, Any]:
        """Measure a series, an echo before each of its runs, and check the log it used."""
        workload = WORKLOADS[series.workload]
        size, before, self.appended = self.size(workload.log), self.signed_size(workload.log), 0
        echoes, limits, syncs, runs = [], [], [], []
        for number in range(self.options.runs):
            echoes.append(self.run(self.echo, ECHO, self.options.echo_seconds))
            if self.ceiling and workload.entries > 1:
                limits.append(self.ceiling.measure(workload.log, workload.entries, self.options.ceiling_seconds))
            if series.connections == 1:
                syncs.append(fdatasync_us(self.data))
            runs.append(self.run(self.target, series, self.options.seconds, size))
            self.step(f"{self.store}: {series.name}, run {number + 1}")
        memory = pss_megabytes(self.target.pid)
        grown = self.signed_size(workload.log) - before
        return {
            **asdict(series),
            "series": series.name,
            "store": self.store,
            "title": workload.title,
            "entries_per_request": workload.entries,
            "log_size": size,
            "pss_mb": memory,
            "echo": _summary(echoes),
            **_summary(runs),
            "ratios": _ratios(_summary(runs), _summary(echoes), workload.entries)
            | _to_ceiling(runs, limits, workload.entries),
            "checks": {"answered": self.appended, "stored": grown} | self._checks(workload, runs),
        } | ({"fdatasync_us": statistics.median(syncs)} if syncs else {})

    def _checks(self, workload: Workload, runs: list[dict[str, Any]]) -> dict[str, Any]:
        policy = Policy.read(self.target.policy)
        checked = check.check_log(self.target.url, workload.prefix, policy, count=20, seed=time.time_ns())
        return {
            "verified_answers": sum(run["verified"] for run in runs),
            "wrong_answers": [wrong for run in runs for wrong in run["wrong"]],
            "verified_reads": checked,
            "fsck": self.fsck(workload.log) if workload.post and self.options.fsck_each else None,
        }

    def fsck(self, log: str) -> dict[str, Any] | None:
        """Check a whole log; None where the server has no such command."""
        return check.fsck(self.data, LOG_NAMES[log], self.database, self.signed_size(log))


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {name: statistics.median(run[name] for run in runs) for name in _MEDIANS}
    failed = sum(count for run in runs for status, count in run["statuses"].items() if status[0] != "2")
    return medians | {
        "failed": failed + sum(sum(run["errors"].values()) for run in runs),
        "noisy_runs": sum(run["noisy"] for run in runs),
        "runs": runs,
    }


def _ratios(found: dict[str, Any], echo: dict[str, Any], entries: int) -> dict[str, float]:
    """Return throughput against the echo: as measured, and by the server's processor time, which a slow generator cannot distort."""
    return {
        "requests_to_echo": found["rate"] / echo["rate"],
        "cpu_to_echo": echo["server_us"] / found["server_us"] if found["server_us"] else 0.0,
        "entries_per_second": found["rate"] * entries,
        "entries_to_echo": found["rate"] * entries / echo["rate"],
    }


def _to_ceiling(runs: list[dict[str, Any]], limits: list[dict[str, float]], entries: int) -> dict[str, float]:
    """Return the entries a second as a part of S, which was measured before each run; nothing where it was not."""
    if not limits:
        return {}
    parts = [run["rate"] * entries / limit["entries_per_second"] for run, limit in zip(runs, limits, strict=True)]
    return {"entries_to_ceiling": statistics.median(parts)}
