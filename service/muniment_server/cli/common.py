"""What every command shares: reading the settings, printing, and turning errors into exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from muniment_server.database_url import has_password
from muniment_server.errors import (
    Corrupt,
    GuardRefused,
    GuardUnavailable,
    InstanceRefused,
    LogReadOnly,
    Mismatch,
    Refused,
    SchemaError,
    SettingsError,
    SetupError,
    StoreError,
)
from muniment_server.settings import Settings, read_settings

T = TypeVar("T")

EXIT_FAILED, EXIT_USAGE, EXIT_PENDING, EXIT_UNREACHABLE, EXIT_GUARD, EXIT_BUG = 1, 2, 3, 4, 5, 70


def fail(code: int, message: str) -> NoReturn:
    """Say what is wrong on standard error, and exit."""
    click.echo(f"muniment-server: {message}", err=True)
    sys.exit(code)


def run(work: Coroutine[Any, Any, T], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a coroutine; turn the errors a user can act on into a message and an exit code."""
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(work)
    except (SettingsError, SchemaError) as error:
        fail(EXIT_USAGE, str(error))
    except InstanceRefused as error:
        fail(EXIT_GUARD, str(error))
    except SetupError as error:
        fail(EXIT_USAGE, str(error))
    except GuardRefused as error:
        fail(EXIT_GUARD, f"{error.code}: {error}")
    except Corrupt as error:
        fail(EXIT_FAILED, str(error))
    except Mismatch as error:
        fail(EXIT_FAILED, f"database_damaged: {error} (from entry {error.index}): run `muniment-server fsck`")
    except Refused as error:
        fail(EXIT_GUARD if isinstance(error, LogReadOnly) else EXIT_UNREACHABLE, f"{error.code}: {error}")
    except GuardUnavailable as error:
        fail(EXIT_UNREACHABLE, str(error))
    except StoreError as error:
        fail(EXIT_UNREACHABLE, str(error))
    except OSError as error:
        fail(EXIT_UNREACHABLE, f"{error}. Nothing is half done that running this again would not finish")


def settings_from(**flags: Any) -> Settings:
    """Return the settings as of these flags, or exit saying which one is wrong."""
    if os.environ.get("PGPASSWORD") == "":
        del os.environ["PGPASSWORD"]  # none, as in libpq: the driver would not look into PGPASSFILE
    try:
        if flags.get("database") and has_password(flags["database"]):
            fail(
                EXIT_USAGE,
                "no password on a command line: others on this machine can read it. "
                "Set MUNIMENT_SERVER_DATABASE, or PGPASSWORD or PGPASSFILE",
            )
        return read_settings(flags)
    except SettingsError as error:
        fail(EXIT_USAGE, str(error))


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name an instance."""
    data = click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Folder of this instance.")
    database = click.option("--database", metavar="URL", help="Postgres URL instead of the embedded SQLite.")
    return data(database(command))


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_result(as_json: bool, value: Any, text: str) -> None:
    """Print a result: as JSON, or the text for people."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)


def need_instance(settings: Settings) -> None:
    """Exit unless `init` has made this folder an instance."""
    if not settings.policy.exists():
        fail(
            EXIT_USAGE,
            f"{settings.data} is not an instance: "
            f"run `muniment-server init --data {settings.data} --origin NAME` first",
        )


@contextmanager
def progress_bar() -> Iterator[Any]:
    """Give a bar on standard error, which shows on a terminal alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar
