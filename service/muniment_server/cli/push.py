"""`muniment-server push`: how far the sinks of this instance are, and trying them again."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from muniment_server.cli.common import data_options, json_option, need_instance, print_result, run, settings_from
from muniment_server.settings import Settings

if TYPE_CHECKING:
    from muniment_server.sinks import Sink
    from muniment_server.storage import Store
    from muniment_server.storage.catalog import LogRow
    from muniment_server.storage.sinks import SinkState


@click.group()
def push() -> None:
    """Look at the sinks to which entries are pushed. The settings say what they are: docs/push.md."""


@push.command("status")
@data_options
@json_option
def push_status(**flags: Any) -> None:
    """Say how far each sink is, and why one does not go on.

    \b
    state     new      nothing was pushed yet
              good     it has all that is published
              behind   it takes entries, and has not all yet
              waiting  the last try failed; the next one is at the time named
              stuck    an operator has to act: the reason is named
              off      it is not in these settings any more, and keeps its cursor
              no-log   there is no log of the name in its settings
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    rows = run(_status(settings))
    print_result(flags["as_json"], rows, "\n".join(map(_line, rows)) or "no sinks")


@push.command("retry")
@data_options
@click.option("--sink", "name", metavar="NAME", help="One sink. [default: all that wait]")
@json_option
def push_retry(name: str | None, **flags: Any) -> None:
    """Have sinks that wait for their next try be tried at once, by the server that runs.

    \b
    Example:
      muniment-server push retry --data ./log-data --sink siem
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    names = run(_retry(settings, name))
    print_result(flags["as_json"], {"tried_again": names}, f"tried again: {', '.join(names) or 'none waits'}")


async def _status(settings: Settings) -> list[dict[str, Any]]:
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        logs = {log.name: log for log in await store.catalog.logs()}
        rows: list[dict[str, Any]] = []
        for log in logs.values():
            stored = {state.name: state for state in await store.sinks.sinks(log.log_id)}
            ours = {name: sink for name, sink in settings.push.items() if sink.log == log.name}
            names = sorted({*stored, *ours})
            rows += [await _row(store, log, name, ours.get(name), stored.get(name)) for name in names]
        lost = [(name, sink) for name, sink in settings.push.items() if sink.log not in logs]
        return rows + [_about(name, sink.log, sink) | {"state": "no-log"} for name, sink in lost]
    finally:
        await store.close()


def _about(name: str, log: str, sink: Sink | None) -> dict[str, Any]:
    about: dict[str, Any] = {"sink": name, "log": log}
    if sink:
        about |= {"to": sink.url or str(sink.file), "query": sink.query, "payloads": sink.payloads}
    return about


async def _row(store: Store, log: LogRow, name: str, sink: Sink | None, state: SinkState | None) -> dict[str, Any]:
    from muniment_server.follow.push.pusher import trouble

    published = await store.checkpoints.checkpoint(log.log_id)
    size = published.size if published else 0
    about = _about(name, log.name, sink)
    if state is None:
        return about | {"state": "new", "taken": 0, "tree_size": size}
    at = state.start if state.under_way else state.looked
    waiting = await store.checkpoints.checkpoints(log.log_id, at + 1, 1) if at < size else []
    why = trouble(sink, state, size) if sink else ""
    row = {
        "state": _state(sink, state, why, at < size),
        "taken": state.start,
        "tree_size": size,
        "lag_entries": max(size - at, 0),
        "lag_seconds": max(round(time.time() - waiting[0].published_at / 1000), 0) if waiting else 0,
        "moved_at": _time(state.moved_at),
        "failures": state.failures,
    }
    if state.under_way:
        row["batch"] = f"{log.name}/{name}/{state.start}-{state.stop - 1}"
    if state.failures:
        row |= {"next_try": _time(state.next_at), "error": state.last_error}
    return about | row | ({"error": why} if why else {})


def _state(sink: Sink | None, state: SinkState, why: str, lags: bool) -> str:
    if sink is None:
        return "off"
    if why:
        return "stuck"
    return "waiting" if state.failures else "behind" if lags else "good"


def _time(milliseconds: int) -> str:
    from muniment.event import format_time

    return format_time(milliseconds)


def _line(row: dict[str, Any]) -> str:
    text = f"{row['log']}/{row['sink']:20} {row['state']:8}"
    if "taken" in row:
        text += f" {row['taken']:>12} of {row['tree_size']} entries"
    if row.get("lag_seconds"):
        text += f", {row['lag_seconds']} s behind"
    if "next_try" in row:
        text += f"\n  {row['failures']} tries failed, the next one at {row['next_try']}"
    return text + (f"\n  {row['error']}" if "error" in row else "")


async def _retry(settings: Settings, name: str | None) -> list[str]:
    from muniment_server.errors import SetupError
    from muniment_server.storage.open import open_store

    store, tried, found = await open_store(settings), [], False
    try:
        for log in await store.catalog.logs():
            for state in await store.sinks.sinks(log.log_id):
                found |= state.name == name
                if name in (None, state.name) and state.next_at:
                    await store.sinks.move_sink(log.log_id, state, replace(state, next_at=0))
                    tried.append(f"{log.name}/{state.name}")
    finally:
        await store.close()
    if name is not None and not found:
        raise SetupError(f"no sink {name!r} has a cursor: `muniment-server push status` lists them")
    return tried
