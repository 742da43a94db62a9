"""`muniment checkpoint`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from muniment.cli.files import check_kind, write_output
from muniment.cli.get import AGAIN
from muniment.cli.options import Number, Target, log_options
from muniment.cli.output import note, show
from muniment.errors import Behind, Unavailable, Unreachable
from muniment.rowtext import inert_json
from muniment.verify import printable

if TYPE_CHECKING:
    from muniment.client import Client
    from muniment.policy import VerifiedCheckpoint


@click.command("checkpoint", short_help="Fetch the signed tree head.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option(
    "--all", "every", is_flag=True, help="List all published checkpoints, each proved to be of the same tree."
)
@click.option("--follow", is_flag=True, help="Show each checkpoint when it is published, without an end.")
@click.option("--start", type=Number(), help="With --all or --follow: from this size on.")
@log_options
def command(target: Target, output: Path | None, every: bool, follow: bool, start: int | None) -> None:
    """Fetch the published checkpoint (the signed tree head), verified and consistent with all seen before.

    Keep one, and `muniment consistency --since FILE` shows later that nothing before it was changed.

    With --follow, each is shown as it is published: from the latest on, or from --start. A server that is away for a
    while is waited for. With --json each checkpoint is then one line.

    \b
    Examples:
      muniment checkpoint -o checkpoint.txt
      muniment checkpoint --all
      muniment checkpoint --follow --json
    """
    if follow and (every or output):
        raise click.UsageError("--follow has no end: it goes without --all and --output")
    if start is not None and not (every or follow):
        raise click.UsageError("--start goes with --all or --follow")
    with target.open() as client:
        if follow:
            _follow(client, start, as_json=target.as_json)
        if every:
            _list(target, list(client.checkpoints(start)))
            return
        signed = client.checkpoint()
    head, value = signed.checkpoint, _value(signed)
    if output is None:
        target.show(value, signed.note)
        return
    check_kind(output, receipts=False)
    write_output(output, signed.note)
    target.show(
        value | {"file": str(output)},
        f"Checkpoint of {head.origin}, size {head.size}: {output}\n" + target.suggest(f"consistency --since {output}"),
    )


def _follow(client: Client, start: int | None, *, as_json: bool) -> NoReturn:
    """Show the checkpoints of sizes from `start` on, each when it is published, until the caller interrupts."""
    latest = client.checkpoint().checkpoint.size  # raises when the log does not answer: it may be the wrong one
    at, lost = latest if start is None else start, False
    while True:
        try:
            for signed in client.checkpoints(at, follow=True):
                show(_line(signed) if as_json else f"{signed.note}\n")
                at, lost = signed.checkpoint.size + 1, False
        except (Behind, Unavailable, Unreachable) as error:
            if not lost:
                note(
                    printable(f"No checkpoint can be had: {error}. Going on beyond size {at - 1} as soon as that ends.")
                )
            lost = True
            time.sleep(AGAIN)


def _line(signed: VerifiedCheckpoint) -> str:
    return inert_json(json.dumps(_value(signed), ensure_ascii=False)) + "\n"


def _value(signed: VerifiedCheckpoint) -> dict[str, str | int]:
    head = signed.checkpoint
    return {"origin": head.origin, "tree_size": head.size, "root": head.root.hex(), "checkpoint": signed.note}


def _list(target: Target, found: list[VerifiedCheckpoint]) -> None:
    rows = [
        {"tree_size": one.checkpoint.size, "root": one.checkpoint.root.hex(), "checkpoint": one.note} for one in found
    ]
    width = max((len(str(row["tree_size"])) for row in rows), default=4)
    lines = [f"{'size':>{width}}  root", *(f"{row['tree_size']:>{width}}  {row['root']}" for row in rows)]
    target.show(rows, "\n".join(lines))
