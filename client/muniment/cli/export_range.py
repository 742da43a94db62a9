"""Which entries `muniment export` is asked for: by indices, by times, or all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from muniment.cli.options import Number
from muniment.cli.output import EXIT_NOT_YET, EXIT_USAGE, CliError
from muniment.cli.spans import check_times, from_option, to_option
from muniment.encoding import parse_decimal
from muniment.errors import FormatError
from muniment.words import entries_text

if TYPE_CHECKING:
    from muniment.client import Client

_DASHED = re.compile("([0-9]+)-([0-9]+)")


class Span(click.ParamType[tuple[int, int]]):
    """A range of indices, A..B without B."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return its two ends. Fails on any other spelling, and when it is empty."""
        low, dots, high = str(value).partition("..")
        if dashed := _DASHED.fullmatch(str(value)):
            self.fail(f"a range is A..B, from index A to before index B: write {dashed[1]}..{dashed[2]}", param, ctx)
        try:
            ends = parse_decimal(low), parse_decimal(high)
        except FormatError as error:
            self.fail(f"a range is A..B, two indices: {error}", param, ctx)
        if not dots or ends[0] >= ends[1]:
            self.fail("a range is A..B, from index A to before index B, so A is below B", param, ctx)
        return ends


_OPTIONS = (
    click.option("--start", type=Number(), help="First index.  [default: 0]"),
    click.option("--stop", type=Number(), help="Index after the last. [default: all that is published]"),
    click.option("--range", "span", type=Span(), metavar="A..B", help="Exactly the entries from A to before B."),
    from_option,
    to_option,
)


def range_options(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options that say which entries; the command gets them by name, for Asked."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which entries: those from `start` to before `stop`, exactly those of `span`, or those of some times.

    Raises UsageError when it is two of these, or when no time is in the span.
    """

    start: int | None
    stop: int | None
    span: tuple[int, int] | None
    since: str | None
    until: str | None

    def __post_init__(self) -> None:
        """See above."""
        indexed = self.start is not None or self.stop is not None
        if self.span is not None and indexed:
            raise click.UsageError("--range says both ends: give it alone, or --start and --stop")
        if self.stop is not None and (self.start or 0) >= self.stop:
            raise click.UsageError("--start is below --stop, the index after the last")
        if self.timed and (indexed or self.span is not None):
            raise click.UsageError("--from and --to say which entries: they go without --start, --stop and --range")
        check_times(self.since, self.until)

    @property
    def timed(self) -> bool:
        """Whether times say which entries."""
        return self.since is not None or self.until is not None

    def ends(self, client: Client, size: int) -> tuple[int, int | None]:
        """Return the first index, and the one after the last: None for the end of what is published, which is `size`.

        Raises CliError when they are not all published, or when a raw log is asked for times.
        """
        if self.timed:
            return self._of_times(client)
        first, last = self.span or (self.start or 0, self.stop)
        if self.span is not None and self.span[1] > size:
            raise not_yet(size)
        return first, last

    def _of_times(self, client: Client) -> tuple[int, int]:
        if client.log_info().kind == "raw":
            raise CliError(
                EXIT_USAGE, "wrong_kind", "the entries of a raw log have no time", "Leave --from and --to out."
            )
        return client.range_of_times(start_time=self.since, end_time=self.until)

    def none(self, size: int, first: int) -> CliError:
        """Return what says that there is no entry to prove. Requires that `first` is where it would be."""
        if not self.timed:
            return not_yet(size)
        message = f"no entry was logged {self.times}"
        if first >= size:
            return CliError(EXIT_NOT_YET, "no_entries", f"{message} so far", "More may be published in a second.")
        return CliError(EXIT_USAGE, "no_entries", message, "A bundle proves entries: name times that have one.")

    @property
    def times(self) -> str:
        """The times, in words."""
        if self.since is None:
            return f"before {self.until}"
        return f"from {self.since}" + (f" to before {self.until}" if self.until else "")


def not_yet(size: int) -> CliError:
    """Return what says that a range goes beyond what is published."""
    message = f"the published checkpoint covers {entries_text(size)}, and the range goes beyond that"
    hint = "An entry is published about a second after it was logged; `muniment checkpoint` shows how far the log is."
    return CliError(EXIT_NOT_YET, "not_published_yet", message, hint)
