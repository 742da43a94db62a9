"""`muniment-server fsck`: check a stored log from the ground up."""

from __future__ import annotations

import sys
from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_FAILED,
    data_options,
    json_option,
    need_instance,
    print_result,
    run,
    settings_from,
)
from muniment_server.settings import Settings


@click.command()
@data_options
@click.option("--log", "log_name", help="Check only this log; default: all.")
@json_option
def fsck(**flags: Any) -> None:
    """Recompute every leaf hash, tile, root and signature from the stored entries; name the first bad index.

    Reads only, so it may run beside a server. Exit code 1 when something is wrong.

    \b
    Example: muniment-server fsck --data ./log-data
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    reports = run(_fsck(settings, flags["log_name"]))
    lines = [line for report in reports for line in _fsck_lines(report)]
    print_result(flags["as_json"], [report.to_json() for report in reports], "\n".join(lines))
    if not all(report.clean for report in reports):
        sys.exit(EXIT_FAILED)


def _fsck_lines(report: Any) -> list[str]:
    counts = f"{report.entries} entries, {report.tiles} tiles, {report.checkpoints} checkpoints"
    if report.clean:
        return [f"{report.log}: clean ({counts})"]
    problems = [f"  {finding.code} at {finding.index}: {finding.detail}" for finding in report.findings]
    return [f"{report.log}: NOT clean, first at index {report.first_bad_index} ({counts})", *problems]


async def _fsck(settings: Settings, name: str | None) -> list[Any]:
    from rich.console import Console
    from rich.progress import Progress

    from muniment.policy import Policy
    from muniment_server.catalog import SetupError, open_store
    from muniment_server.fsck import fsck as check
    from muniment_server.guard import Guard

    store = await open_store(settings)
    try:
        rows = [row for row in await store.logs() if name in (None, row.name)]
        if not rows:
            raise SetupError(f"there is no log {name!r}")
        reports = []
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
            for row in rows:
                task = bar.add_task(row.name, total=None)

                def progress(done: int, total: int, task: Any = task) -> None:
                    bar.update(task, completed=done, total=total)

                guard = Guard(settings.guard_file(row.name))
                reports.append(await check(store, row, Policy.read(settings.policy), guard, progress))
        return reports
    finally:
        await store.close()
