"""--from and --to: the times of logging that a search and an export are limited to, read alike."""

from __future__ import annotations

from typing import Any

import click

from muniment.errors import FormatError
from muniment.times import check_span, milliseconds


class Time(click.ParamType[str]):
    """A time with its zone, or a day in UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is. Fails on any other spelling."""
        try:
            milliseconds(str(value))
        except FormatError as error:
            self.fail(str(error), param, ctx)
        return str(value)


from_option = click.option(
    "--from",
    "since",
    type=Time(),
    metavar="TIME",
    help="Logged then or later: 2026-11-01 or 2026-11-01T09:30:00+01:00.",
)
to_option = click.option("--to", "until", type=Time(), metavar="TIME", help="Logged before this time.")


def check_times(since: str | None, until: str | None) -> None:
    """Raise UsageError when no time is between the two."""
    try:
        check_span(*(None if time is None else milliseconds(time) for time in (since, until)))
    except FormatError as error:
        raise click.UsageError(f"{error} (--from {since} --to {until})") from None
