"""`muniment-server backup`: a log as a folder of files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_UNREACHABLE,
    data_options,
    fail,
    json_option,
    need_instance,
    print_result,
    run,
    settings_from,
)
from muniment_server.errors import SetupError
from muniment_server.settings import Settings


@click.command()
@data_options
@click.option(
    "--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to."
)
@click.option("--log", "log_name", help="Only this log; default: all.")
@click.option(
    "--payloads", is_flag=True, help="Also the payloads of events, with what is needed to open them. Keep it secret."
)
@click.option(
    "--size", type=click.IntRange(min=1), help="As of the published checkpoint of this size; default: the latest."
)
@json_option
def backup(**flags: Any) -> None:
    """Write each log as a static C2SP tlog-tiles tree to FOLDER/NAME, or bring that tree up to date.

    The tree holds checkpoint, tiles and entry bundles, so that any C2SP tool verifies it without a server, and what
    `muniment-server restore` needs. Everything is checked on the way: exit code 1 when the log or the tree that is
    there already is damaged. Reads only, so it may run beside a server. An interrupted backup is completed by running
    it again.

    Two backups of one checkpoint have the same bytes, whichever process made them. Signing key, guard
    and API keys are not in it.

    \b
    Example: muniment-server backup --data ./log-data --to ./backup
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    if flags["size"] and not flags["log_name"]:
        fail(2, "--size is the size of one log: name it with --log")
    with refusals():
        made = run(_backup(settings, flags))
    lines = [
        f"{each.log}: {each.tree_size} entries in {each.folder} ({each.written} files written, {each.kept} kept)"
        for each in made
    ]
    print_result(flags["as_json"], [asdict(each) for each in made], "\n".join(lines))


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what a backup or a restore finds wrong into a message and an exit code."""
    try:
        yield
    except OSError as error:
        fail(EXIT_UNREACHABLE, f"{error.filename or 'a file'}: {error.strerror or error}")


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Show how far each step is, on standard error, when that is a terminal.

    Gives a Progress of muniment_server.backup.
    """
    from rich.console import Console
    from rich.progress import Progress

    tasks: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)

        yield progress


async def _backup(settings: Settings, flags: dict[str, Any]) -> list[Any]:
    from muniment.policy import Policy
    from muniment_server.backup.make import backup as make
    from muniment_server.storage.open import open_store, place_of

    click.echo(f"backing up {place_of(settings)}", err=True)
    store = await open_store(settings)
    try:
        rows = [row for row in await store.catalog.logs() if flags["log_name"] in (None, row.name)]
        if not rows:
            raise SetupError(
                f"there is no log {flags['log_name']!r}" if flags["log_name"] else "the database holds no log"
            )
        made = []
        for row in rows:
            with progress_bar() as progress:
                folder = (flags["folder"] / row.name).absolute()
                policy = Policy.read(settings.policy)
                made.append(await make(store, row, policy, folder, progress, flags["size"], payloads=flags["payloads"]))
        return made
    finally:
        await store.close()
