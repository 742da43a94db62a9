"""`muniment-server index`: the search index of each log."""

from __future__ import annotations

from typing import Any

import click

from muniment_server.cli.common import data_options, json_option, need_instance, print_result, run, settings_from
from muniment_server.settings import Settings
from muniment_server.storage.catalog import LogRow


@click.group()
def index() -> None:
    """Look at the search index of each log, and make it anew."""


@index.command("status")
@data_options
@json_option
def index_status(**flags: Any) -> None:
    """Say how far the index of each event log is."""
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    rows = run(_status(settings))
    text = "\n".join(f"{r['name']:20} {r['state']:10} {r['indexed']:>12} of {r['tree_size']} entries" for r in rows)
    print_result(flags["as_json"], rows, text or "no event logs")


@index.command("rebuild")
@data_options
@click.option("--log", "name", default="default", show_default=True, help="Name of the log.")
@json_option
def index_rebuild(name: str, **flags: Any) -> None:
    """Make the index of a log anew: the running server does it, or the next one that is started.

    It goes on where it was interrupted; `index status` says how far it is. Until then searches find what is in it.
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    run(_rebuild(settings, name))
    print_result(flags["as_json"], {"name": name, "state": "building"}, f"The index of log {name} is made anew.")


async def _status(settings: Settings) -> list[dict[str, Any]]:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        rows = []
        for log in await store.catalog.logs():
            if log.kind == "event":
                found, head = await store.search.index_state(log.log_id), await store.reads.head(log.log_id)
                size = found.size if found else 0
                state = "none" if not found else "complete" if size >= head.size else "building"
                searched = _searched(settings, log)
                rows.append(
                    {
                        "name": log.name,
                        "state": state if searched else "off",
                        "indexed": size,
                        "tree_size": head.size,
                    }
                )
        return rows
    finally:
        await store.close()


async def _rebuild(settings: Settings, name: str) -> None:
    from muniment_server.errors import SetupError
    from muniment_server.follow.indexer import new_generation
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        for log in await store.catalog.logs():
            if log.name == name and log.kind == "event" and _searched(settings, log):
                await store.search.restart_index(log.log_id, new_generation(settings.searched(name)))
                return
        raise SetupError(f"no log {name!r} that is searched: `muniment-server index status` lists them")
    finally:
        await store.close()


def _searched(settings: Settings, log: LogRow) -> bool:
    return settings.searched(log.name) != frozenset()
