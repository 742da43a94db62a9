"""`muniment-server log`: make and list logs."""

from __future__ import annotations

from typing import Any

import click

from muniment_server.cli.common import data_options, json_option, need_instance, print_result, run, settings_from
from muniment_server.cli.init import make_log
from muniment_server.settings import Settings


@click.group()
def log() -> None:
    """Make and list logs."""


@log.command("create")
@click.argument("name")
@data_options
@click.option("--origin", required=True, help="Name of the log, for good: usually its URL without scheme.")
@click.option("--kind", type=click.Choice(["event", "raw"]), default="event", show_default=True)
@click.option("--private", is_flag=True, help="Reads need an API key too.")
@click.option("--open", "open_payloads", is_flag=True, help="Anyone may read the payloads of events.")
@json_option
def log_create(name: str, **flags: Any) -> None:
    """Make another log in this instance; a running server finds it by itself.

    \b
    Example: muniment-server log create releases --kind raw --origin example.com/releases --data ./log-data
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    vkey = run(make_log(settings, name, flags))
    policies = {"policy": str(settings.policy), "log_policy": str(settings.policy_file(name))}
    value = {"name": name, "origin": flags["origin"], "vkey": vkey, **policies}
    text = (
        f"Log {name} is ready, under /logs/{name}.\n\nIts public key, to give to everyone:\n  {vkey}\n\n"
        f"A policy that trusts this log alone: {settings.policy_file(name)}"
    )
    print_result(flags["as_json"], value, text)


@log.command("list")
@data_options
@json_option
def log_list(**flags: Any) -> None:
    """List the logs of this instance."""
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    rows = run(_list_logs(settings))
    text = "\n".join(f"{r['name']:20} {r['kind']:6} {r['tree_size']:>12}  {r['origin']}" for r in rows)
    print_result(flags["as_json"], rows, text or "no logs")


async def _list_logs(settings: Settings) -> list[dict[str, Any]]:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        return [
            {
                "name": row.name,
                "origin": row.origin,
                "kind": row.kind,
                "public": row.public,
                "open": row.open or row.kind == "raw",
                "tree_size": (await store.reads.head(row.log_id)).size,
            }
            for row in await store.catalog.logs()
        ]
    finally:
        await store.close()
