"""What medians of closed loops do not show: latency at a given rate, mixed and refused load, bytes, memory, and growth with the log's size."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import httpx

from muniment.tiles import TILE_WIDTH
from tests.bench import ceiling, imports
from tests.bench.machine import pss_megabytes
from tests.bench.measure import Bench, Generator, OwnGenerator
from tests.bench.plan import BATCH, ECHO, ENTRY_SIZE, WORKLOADS, Load, Options, Series
from tests.bench.servers import Served
from tests.live import run

_PARTS = (0.5, 0.8)
_OVERLOAD = 3.0
_READERS, _WRITERS = 8, 64
_SMALL_CACHE = 1 << 20
_QUIET_READS = 0.05  # of the capacity: few enough that they do not queue behind each other


class Studies:
    """The studies of one store. `capacity` is the throughput of each workload at 64 connections, by the series just measured."""

    def __init__(self, bench: Bench, own: OwnGenerator, options: Options, capacity: dict[str, float]) -> None:
        self.bench = bench
        self.own = own
        self.seconds = options.study_seconds
        self.capacity = capacity

    def run(self) -> dict[str, Any]:
        """Run those that need the log as the series left it."""
        return {
            "open_loop": [self._open(name, part) for name in ("raw", "event", "proof") for part in _PARTS],
            "mixed": self._load(self.own, "mixed", 64),
            "imports": imports.study(self.bench, self.seconds, self.capacity),
            "overload": self._overload(),
            "pss_mb": pss_megabytes(self.bench.target.pid),
        }

    def _load(self, generator: Generator, workload: str, connections: int, rate: float = 0.0) -> dict[str, Any]:
        target = self.bench.target
        log = WORKLOADS[workload].log
        seed, size = time.time_ns() % 2**63, self.bench.size(log)
        policy = "" if generator is not self.own else target.policy
        load = Load(workload, target.host, target.port, connections, self.seconds, seed, size, 0, policy, rate)
        found = generator.run(load) | generator.verdict()
        if found["wrong"]:
            raise RuntimeError(f"{workload}: a wrong answer: {found['wrong']}")
        self.bench.step(f"{self.bench.store}: {workload}, {'closed loop' if not rate else f'{rate:,.0f}/s'}")
        return {"workload": workload, "connections": connections, "asked_rate": rate} | found

    def _open(self, workload: str, part: float) -> dict[str, Any]:
        """Latency at a part of the capacity, counted from the moment a request is due."""
        if workload not in self.capacity:
            return {"workload": workload, "part": part, "skipped": "its series was not measured"}
        return self._load(self.own, workload, 64, part * self.capacity[workload]) | {"part": part}

    def _overload(self) -> dict[str, Any]:
        """The middle one of several runs, by the ratio of its 99th percentiles: one read in a hundred is at the mercy of the machine."""
        if not {"proof", "raw-batch"} <= set(self.capacity):
            return {"skipped": "its series were not measured"}
        runs = sorted(
            (self._refused() for _ in range(self.bench.options.runs)), key=lambda run: float(run["p99_ratio"])
        )
        return runs[len(runs) // 2] | {"ratios": [run["p99_ratio"] for run in runs]}

    def _refused(self) -> dict[str, Any]:
        """Proofs at a small rate: alone, and while three times as many entries are offered as the log can take."""
        rate = _QUIET_READS * self.capacity["proof"]
        alone = self._load(self.own, "proof", _READERS, rate)
        offered = _OVERLOAD * self.capacity["raw-batch"]
        with closing(OwnGenerator(nice=19)) as writer, ThreadPoolExecutor(1) as threads:
            writing = threads.submit(self._load, writer, "raw-batch", _WRITERS, offered)
            beside = self._load(self.own, "proof", _READERS, rate)
            written = writing.result()
        return {"alone": alone, "beside": beside, "writes": written, "p99_ratio": beside["p99_ms"] / alone["p99_ms"]}


# --- bytes ----------------------------------------------------------------------------------------------------------------


def stored(database: str | None, folder: Path, entries: int) -> dict[str, Any]:
    """Return the bytes an entry takes in a database with one raw log of so many entries, by table and index."""
    folder.mkdir(exist_ok=True)
    asyncio.run(_fill_store(database, folder, entries))
    tables = asyncio.run(_postgres_bytes(database)) if database else _sqlite_bytes(folder / "ceiling.sqlite")
    # In SQLite the last entries are not in the index yet: in a quick run, none is.
    indexed = tables.pop("leaf_keys rows", entries) or entries
    index = tables.pop("entries_leaf_key" if database else "leaf_keys") / indexed
    each = {name: size / entries for name, size in sorted(tables.items())}
    return {
        "entries": entries,
        "entry_bytes": ENTRY_SIZE,
        "bytes": each,
        "hash_index": index,
        "beyond_payload": sum(each.values()) - ENTRY_SIZE,
    }


async def _fill_store(database: str | None, folder: Path, entries: int) -> None:
    store = await ceiling.open_store(database, folder)
    try:
        await ceiling.fill(store, "raw", entries)
    finally:
        await store.close()


def _sqlite_bytes(path: Path) -> dict[str, float]:
    database = apsw.Connection(str(path))
    try:
        rows = database.execute("SELECT name, sum(pgsize) FROM dbstat WHERE name NOT LIKE 'sqlite%' GROUP BY name")
        (indexed,) = database.execute("SELECT count(*) FROM leaf_keys").fetchone()
        return {name: float(size) for name, size in rows} | {"leaf_keys rows": float(indexed)}
    finally:
        database.close()


async def _postgres_bytes(url: str) -> dict[str, float]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM")
        sql = (
            "SELECT c.relname, CASE c.relkind WHEN 'r' THEN pg_table_size(c.oid) ELSE pg_relation_size(c.oid) END AS bytes "
            "FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'i')"
        )
        return {row["relname"]: float(row["bytes"]) for row in await connection.fetch(sql)}
    finally:
        await connection.close()


# --- cold ----------------------------------------------------------------------------------------------------------------


def cold(bench: Bench, served: Served) -> dict[str, Any]:
    """Measure reads that find next to nothing in the server's memory: its cache holds a fortieth of the tiles."""
    served.restart({"MUNIMENT_SERVER_CACHE_BYTES": str(_SMALL_CACHE)})
    bench.target = served.target()
    found: dict[str, Any] = {}
    for series in (Series("proof", 64), Series("tile", 64), Series("bundle", 64)):
        echo = bench.run(bench.echo, ECHO, bench.options.echo_seconds)["rate"]
        log = WORKLOADS[series.workload].log
        run = bench.run(bench.target, series, bench.options.seconds, bench.size(log))
        found[series.name] = {name: run[name] for name in ("rate", "p50_ms", "p99_ms", "server_us")} | {
            "over_echo": run["rate"] / echo
        }
    served.restart()
    bench.target = served.target()
    return found


# --- dead calendars -------------------------------------------------------------------------------------------------------


def dead_calendars(bench: Bench, served: Served) -> dict[str, Any]:
    """Measure appends while an anchor is due and no calendar answers: one refuses connections, two take them and say nothing.

    In turns with the same server without anchoring, because a log that grows and a disk that is used change by themselves.
    """
    rates: dict[str, list[float]] = {"off": [], "dead": []}
    failed, metrics = 0, {}
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as ours:
        free = ours.getsockname()[1]
        ours.close()
        settings = _dead_settings(silent.getsockname()[1], free)
        (served.data / "muniment.toml").write_text(settings)
        run("anchor", "now", "--log", "raw", "--data", served.data, database=served.database, check=False)
        for number in range(2 * bench.options.runs):
            name = ("off", "dead")[number % 2]
            (served.data / "muniment.toml").write_text(settings if name == "dead" else "")
            served.restart(how=signal.SIGTERM)  # a killed anchorer would keep its lease for a while
            bench.target = served.target()
            found = bench.run(bench.target, Series("raw", 64), bench.options.seconds, bench.size("raw"))
            rates[name].append(found["rate"])
            failed += sum(count for status, count in found["statuses"].items() if status[0] != "2")
            if name == "dead":
                metrics = _late_anchors(free)
    (served.data / "muniment.toml").write_text("")
    served.restart()
    bench.target = served.target()
    ratio = statistics.median(rates["dead"]) / statistics.median(rates["off"])
    return {"rates": rates, "ratio": ratio, "failed": failed, "metrics": metrics}


def _dead_settings(silent: int, free: int) -> str:
    hosts = (f"127.0.0.1:{silent}", f"localhost:{silent}", f"127.0.0.1:{free}")
    urls = ", ".join(f'"http://{host}"' for host in hosts)
    return f'anchor = true\nanchor_logs = ["raw"]\nanchor_calendars = [{urls}]\nmetrics_port = {free}\n'


def _late_anchors(port: int) -> dict[str, float]:
    """Return what the server says of anchors that no calendar took. Raises RuntimeError after two minutes."""
    wanted = ("muniment_anchors_degraded{", "muniment_anchor_oldest_unconfirmed_timestamp_seconds{")
    for _ in range(1200):
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text.splitlines()
        found = {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line.startswith(wanted))
        }
        if len(found) == len(wanted) and all(found.values()):
            return found
        time.sleep(0.1)
    raise RuntimeError(f"the alarm metrics do not show dead calendars: {found}")


# --- growth ---------------------------------------------------------------------------------------------------------------


def growth(bench: Bench, served: Served, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure a log at several sizes: appends, proofs, memory, and how long a restart takes."""
    found = []
    for size in sizes:
        _fill(bench, size)
        restart = served.restart()
        bench.target = served.target()
        at: dict[str, Any] = {"size": bench.size("raw"), "restart_seconds": restart}
        for series in (Series("raw", 64), Series("raw-batch", 4), Series("proof", 64)):
            at[series.name] = _medians(bench, series)
        found.append(at | {"proof-kept": _kept(bench), "pss_mb": pss_megabytes(bench.target.pid)})
    return found


def _medians(bench: Bench, series: Series) -> dict[str, float]:
    runs = [
        bench.run(bench.target, series, bench.options.seconds, bench.size("raw")) for _ in range(bench.options.runs)
    ]
    return {name: statistics.median(run[name] for run in runs) for name in ("rate", "p50_ms", "p99_ms", "server_us")}


def _kept(bench: Bench) -> dict[str, float]:
    """Measure proofs after each tile was read."""
    size, target = bench.size("raw"), bench.target
    # At random places: of so many, one tile in four hundred is not met.
    requests = 6 * size // TILE_WIDTH
    load = Load("proof", target.host, target.port, 64, 3600.0, time.time_ns() % 2**63, size, requests, "")
    found = bench.filler.run(load) | bench.filler.verdict()
    if set(found["statuses"]) != {"200"}:
        raise RuntimeError(f"reading all tiles failed: {found}")
    return _medians(bench, Series("proof", 64))


def _fill(bench: Bench, size: int) -> None:
    missing = math.ceil((size - bench.signed_size("raw")) / BATCH)
    if missing > 0:
        target = bench.target
        load = Load("raw-batch", target.host, target.port, 2, 3600.0, time.time_ns() % 2**63, 0, missing, "")
        result = bench.filler.run(load) | bench.filler.verdict()
        if result["statuses"] != {"201": missing}:
            raise RuntimeError(f"filling failed: {result}")
    while bench.size("raw") < size:
        time.sleep(0.1)
