"""The options of `muniment monitor`, checked and put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from muniment.cli.options import json_option, policy_option
from muniment.cli.output import EXIT_USAGE, CliError
from muniment.errors import FormatError

if TYPE_CHECKING:
    from muniment.monitor.follower import Settings
    from muniment.monitor.rules import Rule

DEFAULT_INTERVAL = 1.0
DEFAULT_GRACE = 60.0


class Seconds(click.FloatRange):
    """Seconds: a number that is finite and not negative."""

    name = "seconds"

    def __init__(self, low: float = 0) -> None:
        super().__init__(min=low, max=10**9)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Fails on one that is none: it compares with nothing."""
        found = float(super().convert(value, param, ctx))
        if found != found:  # noqa: PLR0124 - that is what tells it
            self.fail(f"{value} is no number of seconds", param, ctx)
        return found


_FILE = click.Path(dir_okay=False, path_type=Path)
state_option = click.option(
    "--state",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the monitor remembers what it saw, and keeps its findings.",
)
key_option = click.option(
    "--api-key-file",
    type=_FILE,
    metavar="FILE",
    help="File that holds the API key. [default: the key in MUNIMENT_API_KEY]",
)
_OPTIONS = (
    policy_option,
    state_option,
    click.option("--once", is_flag=True, help="Look once, say by the exit code what was found, and end."),
    click.option("--interval", type=Seconds(0.1), default=DEFAULT_INTERVAL, metavar="S",
                 help="Seconds between two looks.  [default: 1]"),
    click.option("--grace", type=Seconds(), default=DEFAULT_GRACE, metavar="S",
                 help="How long an answer that nothing signs may look wrong before it is a finding.  [default: 60]"),
    click.option("--stale", type=Seconds(), metavar="S",
                 help="Report that there was no new checkpoint for so long. Of a log that promises them."),
    click.option("--max-delay", type=Seconds(), metavar="S",
                 help="Report entries published later than so long after their time.  [default: what the log says]"),
    click.option("--anchors", type=Seconds(), metavar="S",
                 help="Report that no anchor was entered in the log for so long."),
    click.option("--rules", "rules_file", type=_FILE, metavar="FILE",
                 help="Entries to look for, in TOML: see docs/monitor.md."),
    click.option("--webhook", metavar="URL", help="Send each finding here too, signed."),
    click.option("--webhook-secret-file", type=_FILE, metavar="FILE", help="File with the secret that signs them."),
    click.option("--metrics-file", type=_FILE, metavar="FILE",
                 help="Write metrics for the textfile collector of Prometheus's node exporter here."),
    key_option,
    json_option,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """What was asked for."""

    policy_file: Path | None
    folder: Path
    once: bool
    interval: float
    grace: float
    stale: float | None
    max_delay: float | None
    anchors: float | None
    rules_file: Path | None
    webhook: str | None
    webhook_secret_file: Path | None
    metrics_file: Path | None
    api_key_file: Path | None
    as_json: bool

    def settings(self) -> Settings:
        """Return how each log is followed. Raises CliError."""
        from muniment.monitor.follower import Settings

        return Settings(
            grace=round(self.grace * 1000),
            stale=_milliseconds(self.stale),
            delay=_milliseconds(self.max_delay),
            anchors=_milliseconds(self.anchors),
            rules=self._rules(),
        )

    def _rules(self) -> tuple[Rule, ...]:
        from muniment.monitor.rules import read_rules

        if self.rules_file is None:
            return ()
        try:
            return read_rules(self.rules_file)
        except OSError as error:
            raise _unreadable(self.rules_file, error) from error
        except FormatError as error:
            raise CliError(EXIT_USAGE, "bad_rules", str(error), "docs/monitor.md has examples.") from error

    def secret(self) -> bytes | None:
        """Return the secret of the webhook, None without a webhook. Raises CliError."""
        from muniment.webhook import parse_secret

        if (self.webhook is None) != (self.webhook_secret_file is None):
            raise click.UsageError("--webhook URL and --webhook-secret-file FILE go together")
        if self.webhook is None or self.webhook_secret_file is None:
            return None
        if urlsplit(self.webhook).scheme not in ("http", "https"):
            raise click.UsageError(f"--webhook is an http or https URL: {self.webhook}")
        try:
            return parse_secret(self.webhook_secret_file.read_bytes())
        except OSError as error:
            raise _unreadable(self.webhook_secret_file, error) from error
        except FormatError as error:
            raise CliError(EXIT_USAGE, "bad_secret", str(error)) from error


def api_key_for(urls: tuple[str, ...], path: Path | None) -> str | None:
    """Return the API key, when there is one. Raises CliError when it would be sent to more than one server."""
    try:
        key = path.read_text("utf-8").strip() if path else os.environ.get("MUNIMENT_API_KEY", "").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(EXIT_USAGE, "api_key_unreadable", f"cannot read {path}: {error}") from error
    servers = {urlsplit(url)[:2] for url in urls}
    if key and len(servers) > 1:
        hint = "Run a monitor for each server, or without an API key."
        raise CliError(EXIT_USAGE, "key_for_several", "one API key would be sent to several servers", hint)
    return key


def monitor_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of a monitor; the command gets its URLs, and the options as MonitorOptions."""

    def wrapped(urls: tuple[str, ...], **options: Any) -> int:
        return command(urls, MonitorOptions(**options))

    wrapped.__doc__ = command.__doc__
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _unreadable(path: Path, error: OSError) -> CliError:
    return CliError(EXIT_USAGE, "unreadable", f"cannot read {path}: {error.strerror}")
