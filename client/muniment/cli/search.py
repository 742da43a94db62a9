"""`muniment search`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from muniment.cli import files
from muniment.cli.options import Target, log_options, overwrite_option, say_if_behind
from muniment.cli.output import EXIT_USAGE, CliError, note, show, show_line
from muniment.cli.read_as import read_as
from muniment.cli.spans import check_times, from_option, to_option
from muniment.cli.table import Row, table
from muniment.errors import QueryError
from muniment.event import format_time
from muniment.query import parse_query
from muniment.receipts import Header, ReceiptsWriter
from muniment.rowtext import inert_json
from muniment.verify import printable
from muniment.words import counted, entries_text

if TYPE_CHECKING:
    from muniment.client import Client, Hit, Hits

AT_ONCE = 100
"""Rows under one heading: their widths have to be known before the first is printed."""
_NEGATED = re.compile("-[^-].*", re.DOTALL)
_BEFORE, _AFTER = 60, 20
"""Characters of a query that are shown before and after the place that is wrong."""


class Searching(click.Command):
    """A command of which a word like -action:login is a term of the query: no option of it is written so."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put those words behind the options. Raises UsageError at a word that may be either."""
        end = args.index("--") if "--" in args else len(args)
        named = {name: param for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)}
        options, negated = list[str](), list[str]()
        for word, before in zip(args[:end], [None, *args], strict=False):
            option = named.get(before or "")
            is_value = isinstance(option, click.Option) and not option.is_flag
            is_term = _NEGATED.fullmatch(word) and word not in named and not is_value
            if is_term and (meant := _option_in(word, named)):
                raise click.UsageError(
                    f"{word} may be an option, or a term with a minus: write {meant}, or put the term behind --", ctx
                )
            (negated if is_term else options).append(word)
        return super().parse_args(ctx, [*options, "--", *negated, *args[end + 1 :]] if negated else args)


def _option_in(word: str, named: Container[str]) -> str | None:
    """Return the option that a word with one minus may be meant as: -limit, or -oFILE."""
    if f"-{word}" in named:
        return f"-{word}"
    return f"-o {word[2:]}" if re.fullmatch(r"-o[^:\s]+", word) else None


class Wanted(NamedTuple):
    """What is looked for, and how."""

    query: str
    start: str | None
    end: str | None
    newest: bool
    limit: int | None
    proved: bool

    def ask(self, client: Client) -> Hits:
        """Search."""
        return client.search(
            self.query,
            start_time=self.start,
            end_time=self.end,
            newest=self.newest,
            limit=self.limit,
            receipts=self.proved,
        )


@click.command("search", cls=Searching, short_help="Find events by what they say.")
@click.argument("query", nargs=-1, metavar="[QUERY]...")
@from_option
@to_option
@click.option("--oldest", is_flag=True, help="The oldest first, not the newest.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many. [default: all]")
@click.option("--verify", is_flag=True, help="Prove each event to be in the log before it is shown.")
@click.option("--receipts", is_flag=True, help="Write a bundle of receipts, which is evidence, instead of a table.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the bundle here."
)
@overwrite_option
@log_options
def command(
    target: Target,
    query: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int | None,
    output: Path | None,
    *,
    oldest: bool,
    verify: bool,
    receipts: bool,
    overwrite: bool,
) -> None:
    """Find events by what they say, the newest first. Needs an API key with scope read, unless payloads are open.

    QUERY is terms that must all hold; without one, every event is found. Several words are one query.

    \b
      actor:alice           the member is exactly this: a text, a number, true, false or null
      action:invoice.*      a text that begins so; actor:* is any value
      amount:>=100          numbers alone: > >= < <=
      user.team:billing     a member of a member; any element of a list
      note:"two words"      a value with spaces; "a.b":x is a name with a dot, n:"150" only the text
      approved              a word, in any member; letters of any case
      "bob call"            all these words in one member
      -action:login         a minus: the term does not hold

    \b
    Examples:
      muniment search 'actor:alice action:invoice.*' --from 2026-11-01 --to 2026-12-01
      muniment search 'amount:>=100 -action:login' --limit 20 --verify
      muniment search approved --json | jq .event.actor
      muniment search actor:alice --receipts -o evidence.ndjson

    The server says what it finds. --verify proves each event, as does the bundle, offline and for years (muniment
    verify FILE). That there are no others, nothing proves: `muniment export` takes whole ranges.
    """
    if output is not None and not receipts:
        raise click.UsageError("-o FILE is for a bundle: give --receipts too")
    text = " ".join(query)
    _check_query(text)
    check_times(since, until)
    if not overwrite:
        files.check_unused(output)
    proved = verify or receipts
    wanted = Wanted(text, since, until, not oldest, limit, proved)
    with target.open(long=proved) as client:
        if receipts:
            hits, count = _bundle(client, wanted, output)
        else:
            hits = wanted.ask(client)
            count = _print_json(hits) if target.as_json else _print_table(hits)
        _say(target, wanted, hits, count, output)
        if proved:
            say_if_behind(client)


# --- the query --------------------------------------------------------------------------------------------------------


def _check_query(text: str) -> None:
    """Raise CliError when a text is no query, with a caret under the place."""
    try:
        parse_query(text)
    except QueryError as error:
        hint = (
            f"{_pointed(text, error.position)}\nSee muniment search --help; put the query in single quotes in a shell."
        )
        raise CliError(EXIT_USAGE, "bad_query", error.detail, hint, query=text, position=error.position) from None


def _pointed(text: str, position: int) -> str:
    """Return the part of a text around a position, and a caret under it."""
    from rich.cells import cell_len

    before, after = printable(text[max(0, position - _BEFORE) : position]), printable(text[position:][:_AFTER])
    return f"  {before}{after}\n  {' ' * cell_len(before)}^"


# --- what is found ----------------------------------------------------------------------------------------------------


def _print_json(hits: Hits) -> int:
    count = 0
    for count, hit in enumerate(hits, 1):  # noqa: B007 - counts the hits
        show(inert_json(json.dumps(hit.to_json(), ensure_ascii=False)) + "\n")
    return count


def _print_table(hits: Hits) -> int:
    count = 0
    while some := list(islice(hits, AT_ONCE)):
        rows = [Row((str(hit.index), format_time(hit.logged_at)), hit.event) for hit in some]
        made = table(("index", "logged_at"), rows)
        show("\n".join(["", *made.lines] if count else made.lines) + "\n")
        if made.left_out:
            note(f"No room for {', '.join(made.left_out)}: --json shows them.")
        count += len(some)
    return count


def _say(target: Target, wanted: Wanted, hits: Hits, count: int, output: Path | None) -> None:
    """Say on stderr what was found, and of what."""
    covered, size = hits.complete_to or 0, hits.tree_size or 0
    if target.as_json:
        summary: dict[str, Any] = {"hits": count, "complete_to": covered, "tree_size": size, "proved": wanted.proved}
        if not count:
            summary["read_as"] = read_as(parse_query(wanted.query))
        note(json.dumps(summary | {"file": str(output) if output else None}))
        return
    what = "No event" if not count else counted(count, "event", "events")
    most = " (as many as --limit says)" if count == wanted.limit else ""
    how = "each proved to be in the log" if wanted.proved else "as the server says: --verify proves each"
    note(f"{what}{most} among {entries_text(covered)}{f', {how}' if count else ''}{f': {output}' if output else ''}")
    if not count:
        note("".join(f"Looked for: {line}\n" for line in read_as(parse_query(wanted.query))).rstrip("\n"))
    if covered < size:
        note(
            f"Not complete: the log has {entries_text(size)}, and those from {covered} on were not searched, because"
            " its index is behind. Search again in a while."
        )
    note("A search proves nothing about entries that it does not show.")


# --- the bundle -------------------------------------------------------------------------------------------------------


def _bundle(client: Client, wanted: Wanted, output: Path | None) -> tuple[Hits, int]:
    """Write the receipts of what is found, in order of index, and return their number.

    Without a limit the order of the search does not matter, so it is that of the bundle and nothing is kept in memory.
    """
    if wanted.limit is None:
        wanted = wanted._replace(newest=False)
    hits = wanted.ask(client)
    found: Iterable[Hit] = reversed(list(hits)) if wanted.newest else hits
    receipts = (hit.receipt for hit in found if hit.receipt is not None)
    first = next(receipts, None)
    head = client.policy.verify(client.checkpoint().note if first is None else first.checkpoint)
    with _opened(output) as write:
        writer = ReceiptsWriter(write, Header(head.checkpoint.origin, head.note))
        for receipt in chain(() if first is None else (first,), receipts):
            writer.add(receipt)
        writer.end()
    return hits, writer.count


@contextmanager
def _opened(output: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Yield what writes a line to a file, which gets its content only when it is complete, or to stdout."""
    if output is None:
        yield show_line
        return
    with files.output(output) as file:
        yield file.write
