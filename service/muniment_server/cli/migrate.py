"""`muniment-server migrate`: the schema of a Postgres database."""

from __future__ import annotations

from typing import Any

import click

from muniment_server.cli.common import data_options, json_option, print_result, run, settings_from


@click.command()
@data_options
@click.option("--dry-run", is_flag=True, help="Only say what would be applied.")
@json_option
def migrate(**flags: Any) -> None:
    """Bring a Postgres database to the schema of this release.

    `init` and `restore` do so with an empty one; SQLite migrates by itself.
    """
    settings = settings_from(data=flags["data"], database=flags["database"])
    if not settings.database:
        print_result(flags["as_json"], {"applied": []}, "The embedded database migrates by itself on init and serve.")
        return
    from muniment_server.storage.postgres.connect import migrate as migrate_postgres

    names = run(migrate_postgres(settings.database, dry_run=flags["dry_run"]))
    verb = "Would apply" if flags["dry_run"] else "Applied"
    text = f"{verb}: {', '.join(names)}." if names else "Nothing to do: the schema is current."
    print_result(flags["as_json"], {"applied" if not flags["dry_run"] else "pending": names}, text)
