"""`muniment-server init`: make an instance."""

from __future__ import annotations

import json
from typing import Any

import click

from muniment_server.cli.common import data_options, json_option, print_result, run, settings_from
from muniment_server.settings import FILE, Settings


@click.command()
@data_options
@click.option("--origin", required=True, help="Name of the default log, for good: usually its URL without scheme.")
@click.option("--kind", type=click.Choice(["event", "raw"]), default="event", show_default=True)
@click.option("--private", is_flag=True, help="Reads need an API key too.")
@click.option("--open", "open_payloads", is_flag=True, help="Anyone may read the payloads of events.")
@json_option
def init(**flags: Any) -> None:
    """Make an instance: key, guard, policy and genesis entry. Safe to run again after a crash.

    An empty Postgres database gets its tables too, where the role may make them; else run `migrate` first.

    \b
    Example: muniment-server init --data ./log-data --origin example.com/log
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    vkey = run(make_log(settings, "default", flags))
    if flags["database"] and not (settings.data / FILE).exists():
        from muniment_server.instance.files import write_new

        write_new(settings.data / FILE, f"database = {json.dumps(flags['database'])}\n", 0o600)
    commands = [
        f"muniment-server serve --data {settings.data}",
        f"""curl --json '{{"actor":"alice","action":"test"}}' http://127.0.0.1:{settings.port}/entries > receipt.json"""
        if flags["kind"] == "event"
        else f"echo hello | muniment append - --policy {settings.policy}",
        f"muniment verify receipt.json --policy {settings.policy}",
    ]
    value = {"origin": flags["origin"], "vkey": vkey, "policy": str(settings.policy), "next": commands}
    steps = "\n".join(f"  {command}" for command in commands)
    text = (
        f"{flags['origin']} is ready in {settings.data}.\n\n"
        f"Its public key, to give to everyone:\n  {vkey}\n\nNext:\n{steps}"
    )
    print_result(flags["as_json"], value, text)


async def make_log(settings: Settings, name: str, flags: dict[str, Any]) -> str:
    """Make, or finish, the log that the flags of `init` or `log create` describe, and return its vkey."""
    from muniment_server.instance.create import create_log
    from muniment_server.storage.open import open_new_store

    store = await open_new_store(settings)
    try:
        key = await create_log(
            settings,
            store,
            name,
            flags["origin"],
            flags["kind"],
            public=not flags["private"],
            open_payloads=flags["open_payloads"],
        )
        return str(key.vkey)
    finally:
        await store.close()
