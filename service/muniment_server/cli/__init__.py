"""The `muniment-server` command. The only package of the server that prints or exits."""

from __future__ import annotations

import traceback
from importlib import import_module
from typing import Any

import click

from muniment_server import __version__

_COMMANDS = ("init", "serve", "migrate", "fsck", "guard", "backup", "restore", "log", "key", "anchor", "index", "push")


class _Lazy(click.Group):
    """A group that imports a command when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which an operator meets them."""
        _ = ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None when there is none of this name."""
        _ = ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"muniment_server.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What it does not expect is a bug: a traceback to report, and an exit code of its own."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click knows what these mean
        except Exception:  # noqa: BLE001 - the last resort of a program
            from muniment_server.cli.common import EXIT_BUG, fail  # loads what --help does without

            traceback.print_exc()
            fail(EXIT_BUG, "this is a bug: please report it with the command and the traceback above")


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Run a transparency log: every accepted entry is answered with a proof that a stranger can check offline.

    \b
    First time:
      muniment-server init --data ./log-data --origin example.com/log
      muniment-server serve --data ./log-data

    Settings come from flags, MUNIMENT_SERVER_* variables and DATA/muniment.toml, in this order.

    \b
    Exit codes: 0 good, 1 a check failed, 2 usage or set-up, 3 not yet, 4 something not reachable, \
5 refused by the guard, 70 a bug.
    """
