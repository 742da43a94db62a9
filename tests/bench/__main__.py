"""`python -m tests.bench`: one command, figures on standard output, progress on standard error, JSON in bench-results/."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from muniment_server import __version__
from tests.bench import ceiling, machine, report, servers, studies, wrk
from tests.bench.measure import Bench, Generator, OwnGenerator
from tests.bench.plan import BATCH, LOG_NAMES, QUICK, Options


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run everything, too shortly for the figures to mean much")
    parser.add_argument("--stores", default="sqlite,postgres", help="stores to measure [%(default)s]")
    parser.add_argument("--json", type=Path, help="where to write the JSON [bench-results/TIME.json]")
    parser.add_argument("--series", default="", type=re.compile, help="only series whose name this expression matches")
    parser.add_argument("--generator", choices=("auto", "wrk", "own"), default="auto", help="[wrk when on the PATH]")
    parser.add_argument("--seconds", type=float, help="length of a run")
    parser.add_argument("--runs", type=int, help="runs of each series; the median counts")
    parser.add_argument("--warmup", type=float, help="length of the warm-up before each run")
    parser.add_argument(
        "--sizes",
        default="",
        help="also measure growth, at these sizes of the raw log: 1000000,10000000 takes half an hour",
    )
    parser.add_argument("--preload", type=int, help="entries in the event log before it is measured")
    parser.add_argument("--reads", type=int, help="entries in the raw log, which reads are spread over")
    given = parser.parse_args()
    stores = tuple(given.stores.split(","))
    if unknown := set(stores) - {"sqlite", "postgres"}:
        parser.error(f"unknown store {unknown.pop()!r}")
    chosen = {
        name: value
        for name in ("seconds", "warmup", "runs", "preload", "reads")
        if (value := getattr(given, name)) is not None
    }
    values: dict[str, Any] = (QUICK if given.quick else {}) | chosen
    values["sizes"] = tuple(int(size) for size in given.sizes.split(",") if size)
    return Options(stores, generator=given.generator, only=given.series, json=given.json, **values)


def _generators(options: Options, folder: Path) -> tuple[Generator, OwnGenerator]:
    """Return what makes the load, and our own generator, which also fills logs."""
    own, program = OwnGenerator(), wrk.find()
    if options.generator == "own" or (options.generator == "auto" and not program):
        return own, own
    if not program:
        raise SystemExit("bench: wrk is not on the PATH; leave out --generator to use our own")
    return wrk.Wrk(program, folder), own


def _measure_store(
    store: str, options: Options, folder: Path, generators: tuple[Generator, OwnGenerator], step: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure all series on one store. Returns what is true of the store, and the series."""
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres(folder)) if store == "postgres" else None

        def database() -> str | None:
            if postgres is None:
                return None
            url = postgres.new_database()
            stack.callback(postgres.drop_database, url)
            return url

        bytes_of = studies.stored(database(), folder / f"bytes-{store}", options.reads)
        url, data = database(), folder / f"data-{store}"
        echo = stack.enter_context(servers.echo())
        served = stack.enter_context(servers.muniment(data, url))
        bench = Bench(store, options, *generators, served.target(), echo, data, url, postgres, step)
        bench.preload()
        step(f"{store}: storage ceiling")
        limits = ceiling.Ceiling(database(), folder, options.reads, options.preload)
        bench.ceiling = stack.enter_context(closing(limits))
        limit = {
            f"{kind}-{batch}": limits.measure(kind, batch, options.ceiling_seconds)
            for kind in ("raw", "event")
            for batch in (1, BATCH)
        }
        found = [bench.series(series) for series in options.series()]
        capacity = {one["workload"]: one["rate"] for one in found if one["connections"] in (4, 64)}
        studied = {"stored": bytes_of} | studies.Studies(bench, generators[1], options, capacity).run()
        studied["cold"] = studies.cold(bench, served)
        studied["dead_calendars"] = studies.dead_calendars(bench, served)
        studied["growth"] = studies.growth(bench, served, options.sizes)
        final = {log: bench.fsck(log) for log in LOG_NAMES}
        return _about(store, limit, found, postgres) | {"fsck": final, "studies": studied}, found


def _about(
    store: str, limit: dict[str, Any], found: list[dict[str, Any]], postgres: servers.Postgres | None
) -> dict[str, Any]:
    echoes = [one["echo"] for one in found]
    names = ("rate", "p50_ms", "p99_ms", "server_us", "server_cores", "generator_cores", "foreign_cores")
    middle = {name: statistics.median(echo[name] for echo in echoes) for name in names} if echoes else {}
    return {"store": store, "ceiling": limit, "echo": middle, "postgres": postgres.settings() if postgres else None}


def main() -> None:
    """Measure, print, write. Exits with 1 when an answer was wrong."""
    options = _options()
    steps = len(options.stores) * (3 + options.runs * len(list(options.series())))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="muniment-bench-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o755)  # Postgres runs as another user
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task("starting", total=steps)
        generator, own = _generators(options, folder)
        stack.enter_context(closing(own))
        about, series = [], []
        for store in options.stores:
            of_store, found = _measure_store(
                store,
                options,
                folder,
                (generator, own),
                lambda what: progress.update(task, description=what, advance=1),
            )
            about.append(of_store)
            series += found
        facts = machine.describe(folder)
    value = report.document(
        version=__version__,
        generator=generator.name,
        options={
            name: getattr(options, name)
            for name in ("seconds", "warmup", "echo_seconds", "runs", "attempts", "repeats", "preload", "reads")
        },
        machine=facts,
        stores=about,
        series=series,
    )
    path = report.write(value, options.json)
    print(report.table(value))
    print(f"\nJSON: {path}")
    if not report.sound(value):
        sys.exit("bench: some answers were wrong or failed; see the notes and the JSON")


if __name__ == "__main__":
    main()
