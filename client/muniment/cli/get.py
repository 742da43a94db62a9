"""`muniment get`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from muniment.cli.options import Number, Target, log_options, say_if_behind
from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.verify import printable

if TYPE_CHECKING:
    from muniment.client import Entry


@click.command("get", short_help="Show entries, proved to be in the log.")
@click.argument("indices", nargs=-1, required=True, type=Number(), metavar="INDEX...")
@log_options
def command(target: Target, indices: tuple[int, ...]) -> None:
    """Show entries by index, each proved to be in the signed tree.

    What an event says is shown as far as the log opens it to your API key.

    \b
    Examples:
      muniment get 17
      muniment get 0 1 2 --json
    """
    with target.open() as client:
        entries = [client.entry(index) for index in indices]
        origin = client.origin
        say_if_behind(client)
    text = "\n".join(_text(entry, origin) for entry in entries)
    text += "\n" + target.suggest(f"receipt {entries[-1].index} -o receipt-{entries[-1].index}.json")
    value = [entry.to_json() for entry in entries]
    target.show(value[0] if len(value) == 1 else value, text)


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
