"""The options all commands share, and what they amount to: which log, trusted by which keys."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from muniment.cli.files import check_text
from muniment.cli.output import EXIT_USAGE, CliError, emit, note, show
from muniment.encoding import parse_decimal
from muniment.errors import FormatError
from muniment.names import parse_names
from muniment.policy import Policy

if TYPE_CHECKING:
    from muniment.client import Client
    from muniment.state import State

P = ParamSpec("P")
DEFAULT_URL = "http://127.0.0.1:8080"

_NO_POLICY = (
    "Give --policy FILE or set MUNIMENT_POLICY. `muniment-server init --data DIR` wrote one, DIR/policy;"
    " of a log of others, ask its operator for the vkey."
)
_FIRST_USE = " To start without: --trust-on-first-use pins and prints the key that the server names."


class Number(click.ParamType[int]):
    """An index or a size, spelled as a plain decimal."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the value. Fails on any other spelling."""
        try:
            return value if isinstance(value, int) else parse_decimal(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)


class Names(click.ParamType[list[str]]):
    """Names of members, with commas between them. One that holds a comma is a JSON string."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Return the names."""
        try:
            return value if isinstance(value, list) else parse_names(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, slots=True)
class Target:
    """Which log a command is about, and how it prints."""

    url: str
    log: str | None
    origin: str | None
    policy_file: Path | None
    api_key_file: Path | None
    trust_on_first_use: bool
    no_state: bool
    as_json: bool
    flags: str
    """Those of the options above that were given as flags: a suggested command repeats them."""

    def policy(self) -> Policy:
        """Return what is trusted. Raises CliError when nothing says so."""
        if self.trust_on_first_use:
            return self._pinned()
        return read_policy(self.policy_file)

    def _pinned(self) -> Policy:
        """Return the policy pinned for this log, pinning it now when this is the first use."""
        from muniment.client import Client
        from muniment.state import state_folder

        name = sha256(f"{self.url}\n{self.log or ''}".encode()).hexdigest()[:16]
        path = self.policy_file or state_folder() / "pins" / f"{name}.policy"
        if path.exists():
            return read_policy(path)
        policy = Client.trust_on_first_use(self.url, log=self.log, api_key=self.api_key())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(str(policy))
        except OSError as error:
            raise CliError(EXIT_USAGE, "policy_unwritable", f"cannot write the policy {path}: {error}") from error
        self._announce(policy, path)
        return policy

    def _announce(self, policy: Policy, path: Path) -> None:
        vkeys = [str(log.vkey) for log in policy.logs]
        if self.as_json:
            click.echo(_line({"trusted_on_first_use": {"vkeys": vkeys, "policy": str(path)}}), err=True)
            return
        note("Trusted on first use, on the server's word alone:")
        for vkey in vkeys:
            note(f"  {vkey}")
        note(f"Pinned in {path}. Compare the key with what the operator publishes; from now on give --policy {path}")

    def api_key(self) -> str | None:
        """Return the API key, from the file or from MUNIMENT_API_KEY.

        Never from the command line: others can read that.
        """
        if self.api_key_file is None:
            return os.environ.get("MUNIMENT_API_KEY", "").strip() or None
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(EXIT_USAGE, "api_key_unreadable", f"cannot read {self.api_key_file}: {error}") from error

    def open(self, *, long: bool = False, state: State | None = None) -> Client:
        """Return a client of the log that remembers checkpoints in the user's state folder.

        A person waits for most commands, so by default they give up after a second or two where no server answers. Long
        ones try more often, and wait longer for an answer: they move megabytes, perhaps over a slow line.
        """
        from muniment.client import Client, Retries
        from muniment.client._http import TIMEOUT

        policy = self.policy()
        try:
            return Client(
                self.url,
                log=self.log,
                origin=self.origin,
                policy=policy,
                api_key=self.api_key(),
                state=state or self.memory(),
                retries=Retries(tries=8 if long else 4),
                timeout=4 * TIMEOUT if long else TIMEOUT,
            )
        except FormatError as error:
            raise CliError(EXIT_USAGE, "usage", str(error)) from error

    def memory(self) -> State:
        """Return where checkpoints are remembered."""
        from muniment.cli.memory import memory

        return memory(keep=not self.no_state)

    def show(self, value: Any, text: str) -> None:
        """Print a result: `value` with --json, else `text`."""
        if self.as_json:
            emit(value)
        else:
            show(text.rstrip("\n") + "\n")

    def suggest(self, command: str) -> str:
        """Return a command to try next, with the flags of this one."""
        return f"Next: muniment {command}{self.flags}"


def _line(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def read_policy(path: Path | None, *, offline: bool = False) -> Policy:
    """Return the policy in a file. Raises CliError when there is none or it is not one.

    `offline` is for a command that asks no server, and so cannot trust one on first use.
    """
    hint = _NO_POLICY if offline else _NO_POLICY + _FIRST_USE
    if path is None:
        raise CliError(EXIT_USAGE, "no_policy", "no policy says which keys to trust", hint)
    try:
        return Policy.read(path)
    except OSError as error:
        raise CliError(EXIT_USAGE, "no_policy", f"cannot read the policy {path}: {error.strerror}", hint) from error
    except FormatError as error:
        check_text(str(path), path.read_bytes())
        hint = "A policy has a line `log <vkey>` for each trusted key and ends in `quorum none`."
        raise CliError(EXIT_USAGE, "bad_policy", f"not a policy: {error}", hint) from error


policy_option = click.option(
    "--policy",
    "policy_file",
    envvar="MUNIMENT_POLICY",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Which keys to trust: a C2SP tlog-policy file. [env: MUNIMENT_POLICY]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Also over a FILE that holds something.")

_OPTIONS = (
    click.option(
        "--url",
        envvar="MUNIMENT_URL",
        default=DEFAULT_URL,
        help=f"The server. [env: MUNIMENT_URL; default: {DEFAULT_URL}]",
    ),
    click.option(
        "--log", envvar="MUNIMENT_LOG", metavar="NAME", help="One of several logs of the server. [env: MUNIMENT_LOG]"
    ),
    policy_option,
    click.option("--origin", help="Which log of the policy it must be. [default: any of them]"),
    click.option(
        "--api-key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="File that holds the API key. [default: the key in MUNIMENT_API_KEY]",
    ),
    click.option(
        "--trust-on-first-use", is_flag=True, help="Without a policy: pin and print the key that the server names."
    ),
    click.option("--no-state", is_flag=True, help="Remember no checkpoints, and compare with none seen before."),
    json_option,
)


def log_options(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options of a command that talks to a log; the command gets them as its first argument, a Target."""

    @functools.wraps(command)
    def wrapped(
        *,
        url: str,
        log: str | None,
        origin: str | None,
        policy_file: Path | None,
        api_key_file: Path | None,
        trust_on_first_use: bool,
        no_state: bool,
        as_json: bool,
        **rest: Any,
    ) -> int | None:
        flags = _given(click.get_current_context())
        return command(
            Target(url, log or None, origin, policy_file, api_key_file, trust_on_first_use, no_state, as_json, flags),
            **rest,
        )

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _given(ctx: click.Context) -> str:
    """Return those of the shared options that were given on the command line, to be repeated in a suggestion."""
    flags = {
        "url": "--url",
        "log": "--log",
        "origin": "--origin",
        "policy_file": "--policy",
        "api_key_file": "--api-key-file",
    }
    given = ""
    for name, flag in flags.items():
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            given += f" {flag} {shlex.quote(str(ctx.params[name]))}"
    for name, flag in {"trust_on_first_use": "--trust-on-first-use", "no_state": "--no-state"}.items():
        given += f" {flag}" if ctx.params.get(name) else ""
    return given


def say_if_behind(client: Client) -> None:
    """Say what is not proved yet of an answer that a server gave which is behind."""
    if client.behind:
        note(
            "Note: this server is behind. It shows a smaller tree than one seen before, in which the answer is proved;"
            " that the two are one tree, it cannot show yet."
        )
