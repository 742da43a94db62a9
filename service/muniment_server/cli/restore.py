"""`muniment-server restore`: a log from a folder that `backup` wrote."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from muniment_server.cli.backup import progress_bar, refusals
from muniment_server.cli.common import data_options, json_option, print_result, run, settings_from
from muniment_server.errors import SetupError
from muniment_server.settings import FILE, Settings


@click.command()
@data_options
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of one log's backup.",
)
@click.option(
    "--policy", type=click.Path(dir_okay=False, path_type=Path), help="Policy to check it by; default: DATA/policy."
)
@click.option("--name", help="Name of the log in this instance; default: the name it had.")
@click.option("--no-payloads", is_flag=True, help="Leave out the payloads that the backup may hold.")
@click.option("--public/--private", default=None, help="Anyone may read the log, or reads need an API key.")
@click.option("--open/--closed", "open_payloads", default=None, help="Anyone may read the payloads of events, or not.")
@click.option(
    "--existing",
    is_flag=True,
    help="The log may be there already: go on with an interrupted restore, or bring an older copy up to date.",
)
@json_option
def restore(**flags: Any) -> None:
    """Rebuild a log from a backup: the same entries, indices, root and published checkpoints.

    Before the database is touched everything is checked against the signed checkpoint, and that against the policy.
    Exit code 1 names the file that is missing or wrong. Payloads that an erasure entry names are not brought back.

    It says which database it writes to, and refuses one that has the log already, unless told --existing. Who may read
    the log is what you say here: a backup that says more is not believed, and by itself nothing is public or open.

    To be extended, the log needs its signing key in DATA/keys and its guard, and the backup must hold all that was
    signed: exit code 5 when it does not. Without them it can be read.

    \b
    Example: muniment-server restore --from ./backup/default --data ./log-data --policy ./policy --public
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with refusals():
        done = run(_restore(settings, flags))
    if flags["database"] and not (settings.data / FILE).exists():
        from muniment_server.instance.files import write_new

        write_new(settings.data / FILE, f"database = {json.dumps(flags['database'])}\n", 0o600)
    from muniment_server.storage.open import place_of

    print_result(flags["as_json"], asdict(done) | {"database": place_of(settings)}, _text(settings, done))


def _text(settings: Settings, done: Any) -> str:
    from muniment_server.storage.open import place_of

    text = f"Log {done.log} is back with {done.tree_size} entries ({done.entries_added} added), root {done.root}."
    text += f"\nIt is in {place_of(settings)}."
    if done.payloads or done.payloads_erased:
        text += f"\n{done.payloads} payloads came back, {done.payloads_erased} stay erased."
    serve = f"muniment-server serve --data {settings.data}"
    if done.writable:
        return f"{text}\n\nNext:\n  {serve}"
    return (
        f"{text}\n\nKey or guard of this log are not here, so it can only be read:\n  {serve} --read-only\n"
        f"To extend it, put {settings.key_file(done.log)} and {settings.guard_file(done.log)} in place and restore "
        "again, into an empty database."
    )


async def _restore(settings: Settings, flags: dict[str, Any]) -> Any:
    from muniment_server.backup.restore import check, rebuild
    from muniment_server.backup.target import described, find, with_access
    from muniment_server.storage.open import open_new_store, place_of

    policy, place = _policy(settings, flags["policy"]), place_of(settings)
    click.echo(f"restoring into {place}", err=True)
    row, _ = described(flags["folder"], flags["name"])
    store = await open_new_store(settings)
    try:
        existing = await find(store, row, place, may_exist=flags["existing"])
        row = with_access(row, existing, public=flags["public"], open_payloads=flags["open_payloads"])
        with progress_bar() as progress:
            checked = await check(
                settings, flags["folder"], policy, progress, flags["name"], payloads=not flags["no_payloads"]
            )
            return await rebuild(settings, store, replace(checked, row=row), progress)
    finally:
        await store.close()


def _policy(settings: Settings, given: Path | None) -> Any:
    """Return the policy to trust: never the one in the backup by itself. Raises SetupError."""
    from muniment.errors import FormatError
    from muniment.policy import Policy

    path = given or settings.policy
    try:
        return Policy.read(path)
    except FileNotFoundError:
        raise SetupError(
            f"{path} is missing. Give --policy FILE with the policy that you got when the log was made: a policy from "
            "the backup itself would prove nothing"
        ) from None
    except (OSError, FormatError) as error:
        raise SetupError(f"the policy file cannot be read: {error}") from error
