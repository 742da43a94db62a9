"""`muniment-server key`: API keys."""

from __future__ import annotations

from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_FAILED,
    data_options,
    fail,
    json_option,
    need_instance,
    print_result,
    run,
    settings_from,
)
from muniment_server.settings import Settings


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command("create")
@data_options
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice(["append", "read"]), help="May repeat."
)
@click.option("--log", "log_name", help="Only for this log; default: all.")
@click.option("--label", default="", help="Whose key it is, for `key list`.")
@json_option
def key_create(**flags: Any) -> None:
    """Make an API key and print it, this once.

    \b
    Example: muniment-server key create --scope append --label billing --data ./log-data
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    token, row, first = run(_make_key(settings, frozenset(flags["scopes"]), flags["log_name"], flags["label"]))
    value = {"key_id": row.key_id, "key": token, "scopes": sorted(row.scopes), "log": row.log_name, "label": row.label}
    text = (
        f"{token}\n\nKeep it: only its hash is stored. Its id is {row.key_id}. Send it as\n"
        f"  Authorization: Bearer {token}"
    )
    if first:
        text += (
            "\n\nIt is the first key of this instance. From now on no caller appends without a key,"
            "\nor reads what events say, also not from this machine."
        )
    print_result(flags["as_json"], value, text)


async def _make_key(settings: Settings, scopes: frozenset[str], log_name: str | None, label: str) -> Any:
    """Return the key, its row, and whether it is the first one."""
    from muniment_server.access.keys import create_api_key
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        first = not await store.catalog.api_keys()
        return *await create_api_key(store.catalog, scopes, log_name, label), first
    finally:
        await store.close()


@key.command("list")
@data_options
@json_option
def key_list(**flags: Any) -> None:
    """List API keys, without their secrets."""
    from muniment.event import format_time

    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    rows = [
        {
            "key_id": row.key_id,
            "scopes": sorted(row.scopes),
            "log": row.log_name,
            "label": row.label,
            "created_at": format_time(row.created_at),
            "revoked_at": format_time(row.revoked_at) if row.revoked_at else None,
        }
        for row in run(_list_keys(settings))
    ]
    lines = [
        f"{r['key_id']}  {','.join(r['scopes']):12} {r['log'] or '*':20} "
        f"{'revoked ' + r['revoked_at'] if r['revoked_at'] else 'since ' + r['created_at']}  {r['label']}"
        for r in rows
    ]
    print_result(flags["as_json"], rows, "\n".join(lines) or "no API keys")


async def _list_keys(settings: Settings) -> Any:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        return await store.catalog.api_keys()
    finally:
        await store.close()


@key.command("revoke")
@click.argument("key_id")
@data_options
@json_option
def key_revoke(key_id: str, **flags: Any) -> None:
    """Revoke an API key by its id; running servers refuse it within a second."""
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    if not run(_revoke(settings, key_id)):
        fail(EXIT_FAILED, f"no such key, or revoked already: {key_id}")
    print_result(flags["as_json"], {"revoked": key_id}, f"Revoked {key_id}.")


async def _revoke(settings: Settings, key_id: str) -> bool:
    import time

    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        return await store.catalog.revoke_key(key_id, time.time_ns() // 1_000_000)
    finally:
        await store.close()
