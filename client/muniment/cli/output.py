"""What the commands print, and the one table from an error to an exit code.

Results go to stdout, everything else to stderr. With --json both are JSON, errors as {"error":
{"code", "message", "hint"}}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import click

from muniment.errors import (
    Behind,
    CannotHide,
    FormatError,
    Inconsistent,
    MunimentError,
    NoHeader,
    PayloadsClosed,
    Refused,
    SourceUnavailable,
    StateError,
    Unavailable,
    UnknownMember,
    Unproven,
    Unreachable,
    VerificationError,
)
from muniment.rowtext import inert_json
from muniment.verify import code_of, printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_YET = 3
EXIT_UNREACHABLE = 4
EXIT_GUARD = 5
EXIT_REFUSED = 6
EXIT_UNEXPECTED = 70
EXIT_INTERRUPTED = 130

_NOT_YET = {"not_published_yet", "no_checkpoint", "no_anchor", "anchor_queued"}
_GUARD = ("guard_", "database_behind", "database_damaged")


class CliError(Exception):
    """An error as the user will see it. `extra` is for --json alone."""

    def __init__(self, exit_code: int, code: str, message: str, hint: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.hint = hint
        self.extra = extra


def emit(value: Any) -> None:
    """Print a result as JSON."""
    click.echo(inert_json(json.dumps(value, indent=2, ensure_ascii=False)))


def show(text: str) -> None:
    """Print a text exactly; on a terminal with everything escaped that it might obey or hide."""
    if sys.stdout.isatty():
        text = "\n".join(map(printable, text.split("\n")))
    click.echo(text, nl=False)


def show_line(line: bytes) -> None:
    """Print a line of JSON as it is; on a terminal with everything escaped that it might obey."""
    if sys.stdout.isatty():
        sys.stdout.write(inert_json(line.decode()))
    else:
        sys.stdout.buffer.write(line)


def note(text: str) -> None:
    """Print a line that is not the result."""
    click.echo(text, err=True)


def note_json(value: Any) -> None:
    """Print what is not the result as a line of JSON."""
    note(inert_json(json.dumps(value, ensure_ascii=False)))


def report(error: CliError, as_json: bool) -> int:
    """Print an error and return its exit code."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint, **error.extra}
        note(inert_json(json.dumps({"error": body}, ensure_ascii=False)))
    else:
        text = f"muniment: {error.message}" + (f"\n{error.hint}" if error.hint else "")
        for line in text.split("\n"):
            note(printable(line))  # it may quote a server, or a file
    return error.exit_code


def explain(error: MunimentError) -> CliError:
    """Return how an error of the SDK is shown, and its exit code."""
    match error:
        case Refused():
            found = _refused(error)
        case Unavailable():
            found = _unavailable(error)
        case Inconsistent() | Unproven():
            found = _contradicted(error)
        case Behind():
            hint = (
                "A replica or a mirror catches up: try again in a moment."
                " A log that stays behind was rolled back: ask its operator."
            )
            found = CliError(EXIT_NOT_YET, "behind", str(error), hint, notes=list(error.notes))
        case PayloadsClosed():
            hint = "Reading what events say needs an API key with scope read (MUNIMENT_API_KEY or --api-key-file)."
            found = CliError(EXIT_REFUSED, code_of(error), str(error), hint)
        case Unreachable():
            hint = "Is it the right --url, and does the server run (muniment-server serve --data DIR)?"
            found = CliError(EXIT_UNREACHABLE, "unreachable", str(error), hint)
        case UnknownMember():
            found = CliError(
                EXIT_USAGE, code_of(error), str(error), 'Names are exact; one with a comma is written "a,b".'
            )
        case CannotHide():
            found = CliError(EXIT_USAGE, code_of(error), str(error), "Nothing was written. Pass on other receipts.")
        case NoHeader() | SourceUnavailable():
            hint = "A source of Bitcoin headers is --headers FILE, --bitcoin-rpc, --bitcoin-rest or --explorer."
            found = CliError(EXIT_UNREACHABLE, code_of(error), str(error), hint)
        case StateError():
            hint = (
                "Checkpoints seen are remembered in $XDG_STATE_HOME/muniment, by default ~/.local/state/muniment."
                " Move checkpoints.json away to forget them."
            )
            found = CliError(EXIT_USAGE, "state_error", str(error), hint)
        case VerificationError() | FormatError():
            hint = "Do not rely on this answer. Keep it, and ask the operator or another copy of the log."
            found = CliError(EXIT_FAILED, code_of(error), f"not proved: {error}", hint)
        case _:
            found = CliError(EXIT_UNEXPECTED, code_of(error), str(error))
    return found


def _problem_text(problem: Mapping[str, Any], status: int) -> str:
    return f"the server answers {status}: {problem.get('detail') or problem.get('title') or 'no reason given'}"


def _refused(error: Refused) -> CliError:
    hint = str(error.problem.get("hint", ""))
    if error.status in (401, 403):
        hint = f"Set MUNIMENT_API_KEY or give --api-key-file. {hint}".strip()
    exit_code = EXIT_NOT_YET if error.code in _NOT_YET else EXIT_REFUSED
    return CliError(exit_code, code_of(error), _problem_text(error.problem, error.status), hint, status=error.status)


def _unavailable(error: Unavailable) -> CliError:
    exit_code = EXIT_GUARD if error.code.startswith(_GUARD) else EXIT_UNREACHABLE
    message, hint = _problem_text(error.problem, error.status), str(error.problem.get("hint", ""))
    return CliError(exit_code, code_of(error), message, hint, status=error.status)


def _contradicted(error: Inconsistent | Unproven) -> CliError:
    from muniment.state import state_folder

    name, data = _kept(error)
    path = state_folder() / f"{name}-{sha256(data).hexdigest()[:16]}.{'json' if name == 'evidence' else 'txt'}"
    what = "The evidence is" if name == "evidence" else "Both checkpoints are"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        check = f" It convinces others, offline: muniment verify {path}" if name == "evidence" else ""
        hint = f"{what} kept in {path}.{check}"
    except OSError as failure:
        hint = f"{what} not kept ({path} cannot be written: {failure}):\n{data.decode()}"
    return CliError(EXIT_FAILED, code_of(error), str(error), hint, notes=list(error.notes))


def _kept(error: Inconsistent | Unproven) -> tuple[str, bytes]:
    """Return what is to be kept of two heads that do not fit: evidence where they make it, else both notes."""
    if isinstance(error, Inconsistent) and error.evidence is not None:
        with suppress(FormatError):  # a note that no JSON can hold
            return "evidence", bytes(error.evidence)
    return "checkpoints", "\n".join(error.notes).encode()
