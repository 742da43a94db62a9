"""`muniment-server fsck`: check a stored log from the ground up, repair its tiles, or compare it with a copy."""

from __future__ import annotations

import sys
from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    data_options,
    fail,
    json_option,
    need_instance,
    print_result,
    progress_bar,
    run,
    settings_from,
)
from muniment_server.errors import RepairRefused, SetupError
from muniment_server.settings import Settings

_ALONE = 20_000  # entries that are checked before another process has started


@click.command()
@data_options
@click.option("--log", "log_name", help="Check only this log; default: all.")
@click.option("--from", "start", type=click.IntRange(0), metavar="INDEX", help="Recompute entries from this one on.")
@click.option(
    "--to", "stop", type=click.IntRange(1), metavar="INDEX", help="Recompute entries up to, not with, this one."
)
@click.option("--jobs", type=click.IntRange(1, 64), help="Processes that check; default: one for each core.")
@click.option(
    "--repair",
    is_flag=True,
    help="Make wrong tiles again from the entries, if these hash to a signed checkpoint; begin a wrong index anew.",
)
@click.option(
    "--against", metavar="URL|DIR", help="Compare with a mirror, or a static tlog-tiles tree; nothing else is checked."
)
@click.option(
    "--check-anchors", is_flag=True, help="Check the anchors, too: against blocks, if a source of headers is set."
)
@json_option
def fsck(**flags: Any) -> None:
    """Recompute every entry, payload, tile, root and signature of a log; name the first bad index.

    Reads only, so it may run beside a server. --repair writes tiles, SQLite's table of leaf keys and
    the state of the search index, and nothing else.
    With --from or --to the rest of the log counts as its stored tiles say, and the report says so.

    Exit code 1 when something is wrong, or a copy differs; 4 when database, copy, or the source of block headers cannot
    be reached.

    \b
    Examples:
      muniment-server fsck --data ./log-data
      muniment-server fsck --data ./log-data --from 1000000 --to 1010000 --json
      muniment-server fsck --data ./log-data --against https://mirror.example.com/log
      muniment-server fsck --data ./log-data --repair
    """
    if sum((flags["repair"], bool(flags["against"]), flags["start"] is not None or flags["stop"] is not None)) > 1:
        fail(EXIT_USAGE, "--repair, --against and --from/--to are different runs: give one of them")
    if flags["check_anchors"] and (flags["repair"] or flags["against"]):
        fail(EXIT_USAGE, "--check-anchors goes with neither --repair nor --against")
    if flags["stop"] is not None and (flags["start"] or 0) >= flags["stop"]:
        fail(EXIT_USAGE, "--from must be smaller than --to")
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    work = _against if flags["against"] else _repair if flags["repair"] else _fsck
    reports = run(work(settings, flags))
    lines = [line for report in reports for line in report.lines()]
    print_result(flags["as_json"], [report.to_json() for report in reports], "\n".join(lines))
    if not all(report.clean for report in reports):
        sys.exit(EXIT_FAILED)
    if flags["check_anchors"] and any(report.unreachable for report in reports):
        sys.exit(EXIT_UNREACHABLE)


async def _rows(store: Any, name: str | None) -> list[Any]:
    rows = [row for row in await store.catalog.logs() if name in (None, row.name)]
    if not rows:
        raise SetupError(f"there is no log {name!r}")
    return rows


async def _fsck(settings: Settings, flags: dict[str, Any]) -> list[Any]:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        with progress_bar() as bar:
            rows = await _rows(store, flags["log_name"])
            reports = [(await _check(settings, store, row, flags, bar)).report for row in rows]
        if flags["check_anchors"]:
            await _check_anchors(settings, store, rows, reports)
        return reports
    finally:
        await store.close()


async def _check_anchors(settings: Settings, store: Any, rows: list[Any], reports: list[Any]) -> None:
    from muniment.policy import Policy
    from muniment_server.check.fsck.anchors import check_anchors
    from muniment_server.follow.anchors.running import source_of

    source, policy = source_of(settings), Policy.read(settings.policy)
    for row, report in zip(rows, reports, strict=True):
        await check_anchors(store, row, policy, source, report)


async def _check(settings: Settings, store: Any, row: Any, flags: dict[str, Any], bar: Any) -> Any:
    from muniment.policy import Policy
    from muniment_server.check.fsck.whole import Whole
    from muniment_server.check.fsck.workers import Database, Workers, check_here
    from muniment_server.write.guard import Guard

    task = bar.add_task(row.name, total=None)

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    guard, policy = Guard(settings.guard_file(row.name)), Policy.read(settings.policy)
    whole = Whole(store, row, policy, guard, flags.get("start") or 0, flags.get("stop"))
    if flags.get("jobs") == 1 or (await store.reads.head(row.log_id)).size < _ALONE:
        await whole.run(progress, check_here)
    else:
        workers = Workers(Database(settings.sqlite, settings.database), flags.get("jobs"))
        try:
            await whole.run(progress, workers.check)
        finally:
            workers.close()
    await _check_index(settings, store, row, whole.report)
    return whole


async def _check_index(settings: Settings, store: Any, row: Any, report: Any) -> None:
    """Compare the search index with a log that is whole: otherwise what is wrong there would be told twice."""
    from muniment_server.check.fsck.index import check_index

    members = settings.searched(row.name)
    if row.kind == "event" and report.clean and report.note is None and members != frozenset():
        await check_index(store, row, members, report)


async def _repair(settings: Settings, flags: dict[str, Any]) -> list[Any]:
    from muniment_server.check.fsck.index import repair_index
    from muniment_server.check.fsck.repair import repair
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    done = []
    try:
        with progress_bar() as bar:
            for row in await _rows(store, flags["log_name"]):
                before = await _check(settings, store, row, flags, bar)
                try:
                    mended = await repair(before, settings.sqlite, settings.database)
                    mended += await repair_index(store, row, settings.searched(row.name), before.report)
                except RepairRefused as error:
                    before.report.add_one("repair_refused", before.report.first_bad_index or 0, str(error))
                    mended = []
                after = await _check(settings, store, row, flags, bar) if mended else before
                after.report.repaired = mended
                done.append(after.report)
        return done
    finally:
        await store.close()


async def _against(settings: Settings, flags: dict[str, Any]) -> list[Any]:
    from muniment.policy import Policy
    from muniment_server.check.fsck.against import compare, open_copy
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        async with open_copy(flags["against"]) as copy:
            rows = await _rows(store, flags["log_name"])
            return [await compare(store, rows, Policy.read(settings.policy), copy)]
    finally:
        await store.close()
