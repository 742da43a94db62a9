"""`muniment get`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from muniment.cli.options import Target, log_options, say_if_behind
from muniment.cli.output import EXIT_REFUSED, CliError, note, show
from muniment.encoding import parse_decimal
from muniment.errors import Behind, FormatError, Unavailable, Unreachable
from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.rowtext import inert_json
from muniment.verify import printable
from muniment.words import entries_text

if TYPE_CHECKING:
    from muniment.client import Client, Entry

AGAIN = 1.0
"""Seconds until a log that does not answer is asked again."""


class Place(NamedTuple):
    """Entries that were named: [start, stop), without a `stop` to the end; `one` of them when no range was written."""

    start: int
    stop: int | None
    one: bool = False


class Places(click.ParamType[Place]):
    """An index, or a half-open range of them: 10..20, or 10.. to the end."""

    name = "index"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        """Return what is named. Fails on any other spelling, and on a range of nothing."""
        if isinstance(value, Place):
            return value
        first, dots, last = str(value).partition("..")
        try:
            start = parse_decimal(first, "index")
            stop = parse_decimal(last, "the end of the range") if last else None
        except FormatError as error:
            self.fail(str(error), param, ctx)
        if stop is not None and stop <= start:
            self.fail(f"{value} names no entry: the end of a range is the index after its last entry", param, ctx)
        return Place(start, stop) if dots else Place(start, start + 1, one=True)


@click.command("get", short_help="Show entries, proved to be in the log.")
@click.argument("places", nargs=-1, type=Places(), metavar="[INDEX|FROM..TO]...")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="The last N entries that are published.")
@click.option("--follow", is_flag=True, help="Go on with entries as they are published, until Ctrl-C.")
@log_options
def command(target: Target, places: tuple[Place, ...], last: int | None, follow: bool) -> None:
    """Show entries by index, each proved to be in the signed tree.

    What an event says is shown as far as the log opens it to your API key. A range is half-open: 10..20 are the ten
    entries from 10 to 19, and 10.. goes to the end of what is published.

    With --follow, new entries are shown as they are published: from now on, or after those of --last or of a range
    without an end. A server that is away for a while is waited for, and no entry is left out. With --json each entry is
    then one line.

    \b
    Examples:
      muniment get 17
      muniment get 0 1 2 --json
      muniment get 10..20
      muniment get --last 5 --follow
      muniment get 100.. --follow --json
    """
    _check_usage(places, last, follow=follow)
    with target.open() as client:
        if follow:
            _follow(client, _start(client, places, last), as_json=target.as_json)
        else:
            _show(client, target, places, last)


def _check_usage(places: tuple[Place, ...], last: int | None, *, follow: bool) -> None:
    if places and last is not None:
        raise click.UsageError("--last N goes without an INDEX")
    if not places and last is None and not follow:
        raise click.UsageError("name entries: INDEX, FROM..TO, --last N or --follow")
    if follow and places and (len(places) > 1 or places[0].stop is not None):
        raise click.UsageError("--follow has no end: with it goes one range without an end, FROM..")


# --- entries that are there -------------------------------------------------------------------------------------------


def _show(client: Client, target: Target, places: tuple[Place, ...], last: int | None) -> None:
    if last is not None:
        size = client.checkpoint().checkpoint.size
        places = (Place(max(0, size - last), size),)
    single = len(places) == 1 and places[0].one
    found = chain.from_iterable(_entries(client, place) for place in places)
    if target.as_json:
        values = [entry.to_json() for entry in found]
        target.show(values[0] if single else values, "")
    else:
        index = 0
        for entry in found:
            show(_text(entry, client.origin) + "\n")
            index = entry.index
        show(target.suggest(f"receipt {index} -o receipt-{index}.json") + "\n")
    say_if_behind(client)


def _entries(client: Client, place: Place) -> Iterator[Entry]:
    """Yield the entries of a place. Raises CliError when the log does not have them all: a gap would go unnoticed."""
    if place.one:
        yield client.entry(place.start)
        return
    size = client.checkpoint().checkpoint.size
    if size <= place.start or size < (place.stop or 0):
        wanted = f"{place.start}..{'' if place.stop is None else place.stop}"
        message = f"{entries_text(size)} {'is' if size == 1 else 'are'} published: {wanted} is not all there"
        raise CliError(EXIT_REFUSED, "no_entry", message, "Indices start at 0; --last N shows the last ones.")
    yield from client.entries(place.start, size if place.stop is None else place.stop)


# --- entries to come --------------------------------------------------------------------------------------------------


def _start(client: Client, places: tuple[Place, ...], last: int | None) -> int:
    """Return the first index to show. Raises when the log does not answer: it may be the wrong one."""
    size = client.checkpoint().checkpoint.size
    return places[0].start if places else max(0, size - (last or 0))


def _follow(client: Client, at: int, *, as_json: bool) -> None:
    """Show the entries from `at` on, each when it is published, until the caller interrupts."""
    lost = False
    while True:
        try:
            for entry in client.follow(at):
                show(_line(entry) if as_json else _text(entry, client.origin) + "\n")
                at, lost = entry.index + 1, False
        except (Behind, Unavailable, Unreachable) as error:
            if not lost:
                note(printable(f"No entry can be had: {error}. Going on with entry {at} as soon as that ends."))
            lost = True
            time.sleep(AGAIN)


def _line(entry: Entry) -> str:
    return inert_json(json.dumps(entry.to_json(), ensure_ascii=False)) + "\n"


def _text(entry: Entry, origin: str) -> str:
    lines = [f"Entry {entry.index} of {origin}", f"  leaf hash: {entry.leaf_hash.hex()}"]
    if isinstance(entry.content, EventLeaf):
        lines.append(f"  logged at: {format_time(entry.content.logged_at)}")
    shown = entry.content.value if isinstance(entry.content, OwnLeaf) else entry.event or {}
    lines += [
        f"  {printable(name)} = {printable(json.dumps(value, ensure_ascii=False))}" for name, value in shown.items()
    ]
    if entry.hidden == ("*",):
        lines.append("  hidden: the event. Reading it needs an API key with scope read.")
    elif entry.hidden:
        lines.append(f"  hidden: {', '.join(map(printable, entry.hidden))}")
    if entry.content is None:
        lines.append(f"  leaf: {printable(entry.leaf[:500].decode('utf-8', 'backslashreplace'))}")
    return "\n".join(lines)
