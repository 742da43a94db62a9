"""`make bench` runs and tells the truth: everything once, on SQLite, far too shortly for figures."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench import bodies, echo, report, wrk
from tests.bench.plan import ENTRY_SIZE, SERIES, WORKLOADS, Load

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 800  # half a minute on a machine of its own; servers and generator are pinned to cores that others may use
_NUMBERS = {"rate", "p50_ms", "p99_ms", "server_us", "postgres_us", "server_cores", "generator_cores", "foreign_cores"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(_SECONDS + 60)
@pytest.mark.timed
def test_quick_bench_of_sqlite(tmp_path: Path) -> None:
    where = tmp_path / "bench.json"
    words = ["--quick", "--stores", "sqlite", "--seconds", "0.1", "--preload", "1000", "--generator", "own", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *words, str(where)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    value = json.loads(where.read_text())
    assert value["typ"] == report.FORMAT
    assert {"at", "version", "generator", "options", "machine", "stores", "series"} <= set(value)
    assert [one["series"] for one in value["series"]] == [series.name for series in SERIES]
    for one in value["series"]:
        _check_series(one)
    (store,) = value["stores"]
    assert store["store"] == "sqlite"
    assert set(store["ceiling"]) == {"raw-1", "raw-1000", "event-1", "event-1000"}
    assert all(found["entries_per_second"] > 0 for found in store["ceiling"].values())
    assert store["echo"]["rate"] > 0
    assert all(verdict["clean"] and verdict["entries"] > 1000 for verdict in store["fsck"].values())
    assert report.table(value) in done.stdout


def _check_series(one: dict) -> None:
    assert set(one) >= _NUMBERS | {"store", "title", "connections", "log_size", "pss_mb", "echo", "ratios", "runs"}
    assert one["rate"] > 0
    assert one["failed"] == 0
    assert len(one["runs"]) == 1
    checks = one["checks"]
    assert not checks["wrong_answers"]
    assert checks["verified_answers"] > 0
    assert checks["verified_reads"] == 41
    assert checks["stored"] == checks["answered"]
    assert bool(checks["answered"]) is bool(one["entries_per_request"])


def _uvicorn_settings(module: ModuleType) -> dict[str, str]:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
    (config,) = (call for call in calls if ast.unparse(call.func) == "uvicorn.Config")
    return {word.arg or "": ast.unparse(word.value) for word in config.keywords}


def test_the_echo_runs_under_the_settings_of_the_server() -> None:
    own_only = {
        "host",
        "port",
        "timeout_graceful_shutdown",
        "http",
    }  # deadlines are the server's own: the echo is without
    served = {
        name: value
        for name, value in _uvicorn_settings(importlib.import_module("muniment_server.cli.serve")).items()
        if name not in own_only
    }
    assert {name: value for name, value in _uvicorn_settings(echo).items() if name not in own_only} == served


@pytest.mark.parametrize("name", ["raw", "event", "raw-batch", "event-batch"])
def test_bodies_are_unique_and_of_the_size_promised(name: str) -> None:
    make = bodies.body_maker(WORKLOADS[name], 7)
    assert make(0) != make(1)
    assert make(1) != bodies.body_maker(WORKLOADS[name], 8)(1)
    extra = {"raw-batch": 2, "event-batch": 1}.get(name, 0)
    assert len(make(0)) == WORKLOADS[name].entries * (ENTRY_SIZE + extra)
    event = json.loads(bodies.entry(bodies.entry_parts(7), 0))
    assert len(event) == 7
    assert list(event) == sorted(event)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_wrk_has_a_script_for_each_workload(name: str) -> None:
    lua = wrk.script(Load(name, "127.0.0.1", 1, 1, 1.0, 7, size=5000))
    assert "function request()" in lua
    assert "function done(" in lua
