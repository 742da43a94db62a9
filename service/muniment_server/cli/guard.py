"""`muniment-server guard`: what stands in the guards, and giving a log another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from muniment_server.cli.common import (
    EXIT_GUARD,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    data_options,
    fail,
    json_option,
    need_instance,
    print_result,
    run,
    settings_from,
)
from muniment_server.errors import InstanceRefused, SetupError
from muniment_server.settings import Settings

_LIMIT = 65_536
"""Bytes of a checkpoint, the most that is read of one."""
_SECONDS = 20.0


@click.group()
def guard() -> None:
    """Look at the guards, or give a log another one.

    The guard of a log remembers, outside the database, the last head that may have been signed. It is why a restored
    backup or a cloned database cannot fork the log. Keep it on a volume that is not restored with the database.
    """


@guard.command("show")
@data_options
@click.option("--log", "log_name", help="Only this log; default: all.")
@json_option
def guard_show(**flags: Any) -> None:
    """Compare each guard with its database and say what a start would do. Exit code 5 when it would refuse to write.

    \b
    Example: muniment-server guard show --data ./log-data
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    found = run(_inspect(settings, flags["log_name"]))
    lines = [line for one in found for line in _lines(one)]
    print_result(flags["as_json"], [one.to_json() for one in found], "\n".join(lines))
    if any(one.code != "good" for one in found):
        sys.exit(EXIT_GUARD)


def _lines(one: Any) -> list[str]:
    guard = f"{one.guarded.size} as of sequence number {one.guarded.sequence}" if one.guarded else "?"
    return [
        f"{one.log}: {one.code} (guard {guard}, database {one.head.size}, {one.file})",
        *([] if one.code == "good" else [f"  {one.detail}"]),
    ]


def _evidence_options(command: Any) -> Any:
    known = click.option(
        "--checkpoint",
        "checkpoints",
        multiple=True,
        metavar="FILE|URL",
        help=(
            "A signed checkpoint of the log that was seen elsewhere: a monitor's, a mirror's, a receipt holder's. "
            "May repeat."
        ),
    )
    none = click.option(
        "--without-evidence",
        is_flag=True,
        help="No other party has seen this log: trust that the database is the newest copy.",
    )
    return known(none(command))


@guard.command("init")
@click.argument("log_name", metavar="LOG")
@data_options
@_evidence_options
@json_option
def guard_init(log_name: str, **flags: Any) -> None:
    """Make a new guard for a log whose guard file is lost. Every entry is checked first.

    What the old guard knew is gone: only checkpoints that others have seen can show that the database is not an old
    copy.

    \b
    Example: muniment-server guard init default --checkpoint https://mirror.example.org/checkpoint --data ./log-data
    """
    _take(log_name, flags, fresh=True)


@guard.command("adopt")
@click.argument("log_name", metavar="LOG")
@data_options
@_evidence_options
@json_option
def guard_adopt(log_name: str, **flags: Any) -> None:
    """Let the database name the guard of this instance: the writer moves here, and writers elsewhere are fenced off.

    The database must extend what this guard remembers; a guard is never lowered.

    \b
    Example: muniment-server guard adopt default --checkpoint last-seen.txt --data ./log-data
    """
    _take(log_name, flags, fresh=False)


def _take(log_name: str, flags: dict[str, Any], *, fresh: bool) -> None:
    settings = settings_from(data=flags["data"], database=flags["database"])
    need_instance(settings)
    if bool(flags["checkpoints"]) == flags["without_evidence"]:
        fail(
            EXIT_USAGE,
            "name what others have seen of this log with --checkpoint FILE|URL, or say --without-evidence: "
            "with an old copy of the database the log would fork",
        )
    notes = [_read(where) for where in flags["checkpoints"]]
    done = run(_take_over(settings, log_name, notes, fresh=fresh))
    print_result(flags["as_json"], done.to_json(), "\n".join(_lines(done)))
    if done.code != "good":
        sys.exit(EXIT_GUARD)


def _read(where: str) -> str:
    """Return a checkpoint from a file or an URL. Exits when it cannot be read."""
    from muniment.wire import NoAnswer

    try:
        note = _fetched(where) if "://" in where else _stored(Path(where))
        return note.decode("utf-8")
    except (OSError, UnicodeDecodeError, NoAnswer) as error:
        fail(EXIT_UNREACHABLE, f"cannot read the checkpoint {where}: {error}")


def _fetched(url: str) -> bytes:
    import httpx

    from muniment.wire import ask, bounded

    with bounded(httpx.Client(follow_redirects=False)) as client:
        status, _, body = ask(client, _LIMIT, _SECONDS, method="GET", url=url)
    if status != 200:
        raise OSError(f"it answers {status}, not 200")
    return body


def _stored(path: Path) -> bytes:
    with path.open("rb") as file:
        note = file.read(_LIMIT + 1)
    if len(note) > _LIMIT:
        raise OSError(f"it is larger than {_LIMIT} bytes")
    return note


async def _inspect(settings: Settings, name: str | None) -> list[Any]:
    from muniment.policy import Policy
    from muniment_server.instance.guard_admin import inspect
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        rows = [row for row in await store.catalog.logs() if name in (None, row.name)]
        if not rows:
            if name:
                raise SetupError(f"there is no log {name!r}")
            raise InstanceRefused("database_missing", "the database holds no log")
        policy = Policy.read(settings.policy)
        return [await inspect(settings, store, row, policy) for row in rows]
    finally:
        await store.close()


async def _take_over(settings: Settings, name: str, notes: list[str], *, fresh: bool) -> Any:
    from muniment.policy import Policy
    from muniment_server.instance.guard_admin import take, verified
    from muniment_server.storage.open import open_store

    store = await open_store(settings)
    try:
        row = next((row for row in await store.catalog.logs() if row.name == name), None)
        if row is None:
            raise SetupError(f"there is no log {name!r}")
        policy = Policy.read(settings.policy)
        seen = [verified(policy, row, note) for note in notes]
        return await take(settings, store, row, seen, fresh=fresh)
    finally:
        await store.close()
