"""`muniment-server index`: the search index of each log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from muniment_server.cli.common import (
    data_options,
    json_option,
    need_instance,
    print_result,
    progress_bar,
    run,
    settings_from,
)
from muniment_server.settings import Settings

if TYPE_CHECKING:
    from muniment_server.storage import Store
    from muniment_server.storage.catalog import LogRow

_POLL_SECONDS = 0.2


@click.group()
def index() -> None:
    """Look at the search index of each log, and make it anew."""


@index.command("status")
@data_options
@json_option
def index_status(**flags: Any) -> None:
    """Say how far the index of each event log is.

    \b
    complete  it has all entries
    building  it lacks some, or is being made anew
    none      it was not begun
    other     it is of other members than the setting `search` names here
    off       the setting does not name this log
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    rows = run(_status(settings))
    text = "\n".join(f"{r['name']:20} {r['state']:10} {r['indexed']:>12} of {r['tree_size']} entries" for r in rows)
    print_result(flags["as_json"], rows, text or "no event logs")


@index.command("rebuild")
@data_options
@click.option("--log", "name", default="default", show_default=True, help="Name of the log.")
@click.option("--resume", is_flag=True, help="Go on with one that was interrupted, instead of beginning anew.")
@json_option
def index_rebuild(name: str, **flags: Any) -> None:
    """Make the index of a log anew. Where a server runs, that does the work, and this command waits for it.

    When it is interrupted, the server goes on, or the next one that is started, or this command with --resume; `index
    status` says how far it is. Until it is done, searches find what is in it. Give this command the setting `search` of
    the servers: an index of other members is none to them.

    \b
    Examples:
      muniment-server index rebuild --data ./log-data
      muniment-server index rebuild --data ./log-data --log payroll --resume --json
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    row = run(_rebuild(settings, name, resume=flags["resume"]))
    print_result(flags["as_json"], row, f"The index of log {name} has all of its {row['indexed']} entries.")


async def _status(settings: Settings) -> list[dict[str, Any]]:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        return [await _row(settings, store, log) for log in await store.catalog.logs() if log.kind == "event"]
    finally:
        await store.close()


async def _row(settings: Settings, store: Store, log: LogRow) -> dict[str, Any]:
    from muniment_server.terms import mark_of

    found, head = await store.search.index_state(log.log_id), await store.reads.head(log.log_id)
    size = found.size if found else 0
    state = "none" if not found else "building" if found.clearing or size < head.size else "complete"
    state = state if not found or found.generation.endswith(mark_of(settings.searched(log.name))) else "other"
    state = state if _searched(settings, log) else "off"
    return {"name": log.name, "state": state, "indexed": size, "tree_size": head.size}


async def _rebuild(settings: Settings, name: str, *, resume: bool) -> dict[str, Any]:
    from muniment_server.errors import SetupError
    from muniment_server.storage.open import open_store
    from muniment_server.terms import new_generation

    store = await open_store(settings)
    try:
        for log in await store.catalog.logs():
            if log.name == name and log.kind == "event" and _searched(settings, log):
                if not resume:
                    await store.search.restart_index(log.log_id, new_generation(settings.searched(name)))
                await _fill(settings, store, log)
                return await _row(settings, store, log)
        raise SetupError(f"no log {name!r} that is searched: `muniment-server index status` lists them")
    finally:
        await store.close()


async def _fill(settings: Settings, store: Store, log: LogRow) -> None:
    """Wait until the index has all entries that there are now; fill it unless another process does."""
    from muniment_server.follow.indexer import Indexer
    from muniment_server.telemetry import Metrics

    indexer = Indexer(store, log, Metrics(), settings.searched(log.name))
    total = (await store.reads.head(log.log_id)).size
    try:
        with progress_bar() as bar:
            task = bar.add_task(log.name, total=total)
            while (state := await store.search.index_state(log.log_id)) is None or state.clearing or state.size < total:
                bar.update(task, completed=state.size if state else 0)
                await asyncio.sleep(min(await indexer.run_once(), _POLL_SECONDS))
    finally:
        await indexer.close()


def _searched(settings: Settings, log: LogRow) -> bool:
    return settings.searched(log.name) != frozenset()
