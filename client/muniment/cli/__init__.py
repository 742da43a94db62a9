"""The `muniment` command: append to a log, and check what it says."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from muniment import __version__
from muniment.cli.output import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USAGE, CliError, explain, report
from muniment.errors import MunimentError

_COMMANDS = {
    "append": "append",
    "import": "import_",
    "get": "get",
    "search": "search",
    "receipt": "receipt",
    "disclose": "disclose",
    "verify": "verify",
    "consistency": "consistency",
    "evidence": "evidence",
    "anchor": "anchor",
    "checkpoint": "checkpoint",
    "monitor": "monitor",
    "export": "export",
    "reconcile": "reconcile",
    "log": "log",
}


class _ReaderLeft(Exception):
    """The reader of our output has gone, and nothing is left to tell it."""


class _Lazy(click.Group):
    """A group that imports a command when it is named.

    The modules import the HTTP client later still, when they need it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which a newcomer meets them."""
        _ = ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None when there is none of this name."""
        _ = ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"muniment.cli.{_COMMANDS[cmd_name]}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises _ReaderLeft: at a closed pipe click itself ends with 1, which means "not proved"."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeft from error


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, package_name="muniment")
def cli() -> None:
    """Append to a transparency log, and check offline what it says. Nothing is believed: every answer is verified.

    \b
    First time, with a server on this machine (muniment-server init and serve):
      export MUNIMENT_POLICY=./log-data/policy
      muniment append actor=alice action=invoice.approve --receipt receipt.json
      muniment verify receipt.json
      muniment consistency

    \b
    Environment: MUNIMENT_URL, MUNIMENT_LOG, MUNIMENT_POLICY (as the options --url, --log, --policy) and
    MUNIMENT_API_KEY. Checkpoints seen are remembered in $XDG_STATE_HOME/muniment (~/.local/state/muniment).

    \b
    Exit codes: 0 good, 1 a verification failed, 2 usage, 3 not yet, 4 a needed source was not reachable,
    5 refused by the server's guard, 6 refused by the server, 70 unexpected, 130 interrupted.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Errors are reported on stderr."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in given
    if sys.stdout is None:  # else the first file that is opened would get its number, and what is printed
        hint = "Nothing was done. To see no output, send it to /dev/null."
        return report(CliError(EXIT_USAGE, "unwritable", "cannot write: standard output is closed", hint), as_json)
    try:
        result = cli.main(given, prog_name="muniment", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort of a program
        return _failed(error, as_json)
    return result if isinstance(result, int) else 0


_NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _failed(error: BaseException, as_json: bool) -> int:
    match error:
        case click.ClickException():
            return _usage(error, as_json)
        case BrokenPipeError() | _ReaderLeft():
            _drop_output()
            return EXIT_INTERRUPTED
        case CliError():
            found = error
        case MunimentError():
            found = explain(error)
        case KeyboardInterrupt() | click.Abort():
            found = CliError(EXIT_INTERRUPTED, "interrupted", "interrupted")
        case OSError() if error.errno in _NO_OUTPUT:
            _drop_output()
            hint = "\n".join(getattr(error, "__notes__", ["Make room, or write elsewhere, and run the command again."]))
            found = CliError(EXIT_USAGE, "unwritable", f"cannot write: {error.strerror}", hint)
        case _:
            found = _bug(error, as_json)
    return report(found, as_json)


def _drop_output() -> None:
    """Send what is left in the buffer nowhere: the interpreter would try once more at exit, and fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bug(error: BaseException, as_json: bool) -> CliError:
    if not as_json:
        traceback.print_exception(error)
    hint = "This is a bug in muniment: please report it with the command and this output."
    return CliError(EXIT_UNEXPECTED, "unexpected", f"{type(error).__name__}: {error}", hint)


def _usage(error: click.ClickException, as_json: bool) -> int:
    hint = f"See {error.ctx.command_path} --help." if isinstance(error, click.UsageError) and error.ctx else ""
    if (
        isinstance(error, click.NoSuchOption)
        and error.ctx
        and not error.option_name.startswith("--")  # a misspelled option
        and _takes_words(error.ctx.command)
    ):
        example = f"{error.ctx.command_path} -- {error.option_name}"
        hint += f" What begins with a minus and is no option comes behind --: {example}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EXIT_USAGE
    return report(CliError(EXIT_USAGE, "usage", error.format_message(), hint), as_json)


def _takes_words(command: click.Command) -> bool:
    """Tell whether a command takes texts or files, which may begin with a minus; an index cannot."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    return any(isinstance(param.type, click.Path | type(click.STRING)) for param in arguments)


def main() -> None:
    """Entry point of the `muniment` command."""
    sys.exit(run())
