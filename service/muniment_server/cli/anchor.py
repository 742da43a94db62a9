"""`muniment-server anchor`: anchor now, see how far anchors are, and ask again."""

from __future__ import annotations

import sys
from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_GUARD,
    EXIT_PENDING,
    EXIT_UNREACHABLE,
    data_options,
    fail,
    json_option,
    need_instance,
    print_result,
    run,
    settings_from,
)
from muniment_server.errors import AnchorRefused, SetupError
from muniment_server.settings import Settings

_LOG = click.option("--log", "log_name", help="Only this log; default: all.")


@click.group()
def anchor() -> None:
    """Anchor checkpoints in Bitcoin by hand, and see how far they are.

    A running server with the setting `anchor` does all of this by itself; these commands may run beside it, or without
    it.
    """


@anchor.command("now")
@data_options
@_LOG
@json_option
def anchor_now(**flags: Any) -> None:
    """Anchor the latest published checkpoint, without waiting for entries or time, and give it to the calendars.

    Exit code 0 when a calendar has it, 4 when none could be reached (a running server goes on trying), 5 when the
    stored log is not the one that was anchored before.

    \b
    Example: muniment-server anchor now --data ./log-data
    """
    settings = _settings(flags)
    found = run(_now(settings, flags["log_name"]))
    _print(flags, found)
    if not all(one["submitted_at"] for log in found for one in log["anchors"]):
        sys.exit(EXIT_UNREACHABLE)


@anchor.command("status")
@data_options
@_LOG
@click.option("--all", "everything", is_flag=True, help="Anchors that are confirmed or superseded, too.")
@json_option
def anchor_status(**flags: Any) -> None:
    """Say how far the open anchors are, and what each state is worth. Exit code 0 when none is open, else 3.

    \b
    Example: muniment-server anchor status --data ./log-data
    """
    settings = _settings(flags)
    found = run(_status(settings, flags["log_name"], everything=flags["everything"]))
    _print(flags, found)
    if any(log["open"] for log in found):
        sys.exit(EXIT_PENDING)


@anchor.command("retry")
@data_options
@_LOG
@json_option
def anchor_retry(**flags: Any) -> None:
    """Ask every calendar now about every open anchor, those that were given up too, and look at their blocks.

    Exit code 0 when none is open any more, 3 when some are, 4 when no source of block headers is set.

    \b
    Example: muniment-server anchor retry --data ./log-data
    """
    settings = _settings(flags)
    sourced, found = run(_retry(settings, flags["log_name"]))
    _print(flags, found)
    if any(log["open"] for log in found):
        sys.exit(EXIT_PENDING if sourced else EXIT_UNREACHABLE)


def _settings(flags: dict[str, Any]) -> Settings:
    from muniment_server.telemetry import configure_logging

    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    configure_logging(settings.log_format, "error")
    return settings


def _print(flags: dict[str, Any], found: list[dict[str, Any]]) -> None:
    print_result(flags["as_json"], found, "\n".join(line for log in found for line in _lines(log)))


def _lines(log: dict[str, Any]) -> list[str]:
    lines = [f"{log['log']}: {log['open']} open, {log['confirmed']} confirmed"]
    for one in log["anchors"]:
        degraded = ", degraded: too few calendars have it" if one["degraded"] else ""
        lines.append(f"  size {one['tree_size']}: {one['state']} ({one['explanation']}){degraded}")
        if one["block"]:
            lines.append(f"    block {one['block']['height']} {one['block']['hash']}")
        lines += [
            f"    {each['url']}: {each['state']}, asked {each['attempts']} times"
            + (f"; {each['last_reason']}" if each["last_reason"] else "")
            for each in one["calendars"]
        ]
    return lines


async def _logs(store: Any, settings: Settings, name: str | None) -> list[Any]:
    rows = [
        row
        for row in await store.catalog.logs()
        if (row.name == name if name else not settings.anchor_logs or row.name in settings.anchor_logs)
    ]
    if not rows:
        raise SetupError(f"there is no log {name!r}" if name else "no log is to be anchored")
    return rows


async def _report(store: Any, settings: Settings, row: Any, anchors: list[Any]) -> dict[str, Any]:
    from muniment_server.follow.anchors.byhand import open_anchors
    from muniment_server.web.handlers.anchors import anchor_value

    summary = await store.anchors.anchor_summary(row.log_id, settings.anchor_held)
    values = []
    for one in anchors:
        calendars = await store.anchors.anchor_calendars(row.log_id, one.tree_size, one.tree_size + 1)
        values.append(anchor_value(one, calendars, settings.anchor_held))
    return {
        "log": row.name,
        "open": len(await open_anchors(store.anchors, row)),
        "confirmed": summary.states.get("confirmed", 0),
        "degraded": summary.degraded,
        "bad_attestations": summary.bad,
        "anchors": values,
    }


async def _status(settings: Settings, name: str | None, *, everything: bool) -> list[dict[str, Any]]:
    from muniment_server.follow.anchors.byhand import open_anchors
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        found = []
        for row in await _logs(store, settings, name):
            shown = await (
                store.anchors.anchors(row.log_id, 0, 1_000_000) if everything else open_anchors(store.anchors, row)
            )
            found.append(await _report(store, settings, row, shown))
        return found
    finally:
        await store.close()


async def _now(settings: Settings, name: str | None) -> list[dict[str, Any]]:
    from muniment_server.follow.anchors.byhand import anchor_now, open_anchorer
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    found = []
    try:
        for row in await _logs(store, settings, name):
            async with open_anchorer(settings, store, row, None) as anchorer:
                made = await anchor_now(store.anchors, row, anchorer)
            found.append(await _report(store, settings, row, [made] if made else []))
    except AnchorRefused as error:
        fail(EXIT_GUARD, f"{error.code}: {error}")
    else:
        return found
    finally:
        await store.close()


async def _retry(settings: Settings, name: str | None) -> tuple[bool, list[dict[str, Any]]]:
    from muniment_server.follow.anchors.byhand import open_anchorer, retry
    from muniment_server.follow.anchors.running import source_of
    from muniment_server.storage.open import open_store

    source = source_of(settings)
    store = await open_store(settings)
    try:
        found = []
        for row in await _logs(store, settings, name):
            async with open_anchorer(settings, store, row, source) as anchorer:
                still = await retry(store.anchors, row, anchorer)
            found.append(await _report(store, settings, row, still))
        return source is not None, found
    finally:
        await store.close()
