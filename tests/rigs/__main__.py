"""``python -m tests.rigs``: runs rigs, in workers of their own, and adds what they did to a report.

    python -m tests.rigs --list
    python -m tests.rigs --quick                                  every rig, as many seeds as its quick lane has
    python -m tests.rigs --rig crash-sqlite --seeds 0..2000       one shard
    python -m tests.rigs --status                                 what the report holds for the code as it is

Exit codes: 0 good, 1 a rig found something, 2 usage, 4 something a rig needs is missing (with CI set; elsewhere it is skipped).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.rigs import report, suite
from tests.rigs.rig import Context, FaultRig, Missing

SIDE_BY_SIDE = 2
REPORT = report.ROOT / "var" / "faults.json"


def all_rigs() -> dict[str, FaultRig]:
    """Return every rig by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(suite.__path__))
    modules = [importlib.import_module(f"{suite.__name__}.{name}") for name in names]
    return {rig.name: rig for module in modules for rig in module.RIGS}


def say(text: str) -> None:
    """Print a line, now."""
    print(text, file=sys.stderr, flush=True)


# --- a worker -----------------------------------------------------------------------------------------------------------


def work(rig: FaultRig, seeds: range, output: Path) -> None:
    """Run seeds in this process, and write the result to a file."""
    started = last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"  {rig.name} {seeds.start}..{seeds.stop}: {context.points} {rig.unit}, {last - started:.0f} s")

    with tempfile.TemporaryDirectory(prefix=f"muniment-{rig.name}-", ignore_cleanup_errors=True) as folder:
        context = Context(rig, seeds, Path(folder), _beat=beat)
        failure = None
        try:
            with context.stack:
                rig.run(context)
        except Missing:
            raise
        except BaseException:
            failure = traceback.format_exc()
            for place in (f"{report.ROOT}/", f"{sys.base_prefix}/"):  # the report names no place of one machine
                failure = failure.replace(place, "")
    result = {"points": context.points, "counts": dict(context.counts), "failure": failure}
    output.write_text(json.dumps(result), "utf-8")


# --- all workers of a rig -----------------------------------------------------------------------------------------------


def split(seeds: range, parts: int) -> list[range]:
    """Cut a range into up to `parts` pieces of about the same length."""
    length = len(seeds)
    cuts = [seeds.start + length * at // parts for at in range(parts + 1)]
    return [range(low, high) for low, high in itertools.pairwise(cuts) if low < high]


def run(rig: FaultRig, seeds: range, path: Path | None) -> bool:
    """Run one shard of a rig and report it; tell whether everything held."""
    started = time.monotonic()
    command = f"make faults RIG={rig.name} SEEDS={seeds.start}..{seeds.stop}"
    before = report.state()
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for part in split(seeds, rig.jobs):
            output = Path(folder, f"{part.start}.json")
            words = ["--rig", rig.name, "--seeds", f"{part.start}..{part.stop}", "--worker", str(output)]
            environment = os.environ | dict(rig.env)
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.rigs", *words],
                env=environment,
                cwd=report.ROOT,
                stdin=subprocess.DEVNULL,
            )
            workers.append((part, output, process))
        found = [_result(part, output, process) for part, output, process in workers]
    counts: dict[str, int] = {}
    for result in found:
        for name, count in result["counts"].items():
            counts[name] = counts.get(name, 0) + count
    failures = [result["failure"] for result in found if result["failure"]]
    shard = {
        "rig": rig.name,
        "goal": rig.goal,
        "unit": rig.unit,
        "seeds": [seeds.start, seeds.stop],
        "points": sum(result["points"] for result in found),
        "counts": counts,
        "ok": not failures,
        "failures": failures,
        "seconds": round(time.monotonic() - started, 1),
        "command": command,
        "machine": report.machine(),
        **before,
    }
    if path:
        report.append(path, shard)
    more = "".join(f", {name} {count}" for name, count in sorted(counts.items()))
    say(f"{rig.name}: {shard['points']} {rig.unit}{more}, {shard['seconds']:.0f} s: {'FAILED' if failures else 'held'}")
    for failure in failures:
        say(failure)
    return not failures


def _result(part: range, output: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    code = process.wait()
    if output.exists():
        result: dict[str, Any] = json.loads(output.read_text("utf-8"))
        return result
    return {"points": 0, "counts": {}, "failure": f"the worker of seeds {part.start}..{part.stop} ended with {code}"}


# --- command line -------------------------------------------------------------------------------------------------------


def seeds_of(text: str | None, default: int) -> range:
    """Return the range that ``a..b`` names."""
    if not text:
        return range(default)
    first, _, stop = text.partition("..")
    return range(int(first), int(stop))


def status(known: dict[str, FaultRig], path: Path) -> None:
    """Print what the report holds for the code as it is."""
    totals = report.totals(report.holding(report.read(path), report.state()["trees"]))
    for rig in known.values():
        done = totals.get(rig.name, {"seeds": 0, "points": 0, "seconds": 0.0})
        say(
            f"{rig.name:24} {done['seeds']:7} of {rig.full:7} seeds  {done['points']:9} {rig.unit}  {done['seconds']:.0f} s"
        )


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rigs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rig", action="append", help="run this rig; may repeat; default: all")
    parser.add_argument("--seeds", help="a..b, half-open; default: those of the lane")
    parser.add_argument("--quick", action="store_true", help="the quick lane: what .ci/run calls")
    parser.add_argument(
        "--report", type=Path, default=REPORT, help=f"JSON file to add to [default: {REPORT.name} in var/]"
    )
    parser.add_argument("--list", action="store_true", help="name the rigs")
    parser.add_argument("--status", action="store_true", help="what the report holds for the code as it is")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    known = all_rigs()
    if unknown := sorted(set(given.rig or ()) - set(known)):
        parser.error(f"no rig {unknown[0]!r}; --list names them")
    chosen = [known[name] for name in given.rig or known]
    if given.worker:
        work(chosen[0], seeds_of(given.seeds, 0), given.worker)
        return 0
    if given.list:
        for rig in chosen:
            say(f"{rig.name:24} {rig.quick:6} / {rig.full:6} seeds  {rig.goal}")
        return 0
    if given.status:
        status(known, given.report)
        return 0
    return _run_all(chosen, given)


def _run_all(chosen: list[FaultRig], given: argparse.Namespace) -> int:
    started = time.monotonic()
    todo, code = [], 0
    for rig in chosen:
        seeds = seeds_of(given.seeds, rig.quick if given.quick else rig.full)
        if not seeds:
            continue
        try:
            rig.check_needs()
            todo.append((rig, seeds))
        except Missing as missing:
            say(f"{rig.name}: {'MISSING' if os.environ.get('CI') else 'skipped'}: {missing}")
            code = 4 if os.environ.get("CI") else code
    if not all(_side_by_side(todo, given.report)):
        code = 1
    say(f"all rigs: {time.monotonic() - started:.0f} s: {'good' if not code else f'exit code {code}'}")
    return code


def _side_by_side(todo: Sequence[tuple[FaultRig, range]], path: Path) -> list[bool]:
    """Run rigs, two at a time: most of them wait for disks and clocks. Those that judge times come last, one by one."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        done = list(pool.map(lambda one: run(*one, path), [one for one in todo if not one[0].alone]))
    return done + [run(rig, seeds, path) for rig, seeds in todo if rig.alone]


if __name__ == "__main__":
    sys.exit(main())
