"""`muniment checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muniment.cli.files import write_output
from muniment.cli.options import Number, Target, log_options

if TYPE_CHECKING:
    from muniment.policy import VerifiedCheckpoint


@click.command("checkpoint", short_help="Fetch the signed tree head.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option(
    "--all", "every", is_flag=True, help="List all published checkpoints, each proved to be of the same tree."
)
@click.option("--start", type=Number(), default=0, help="With --all: from this size on.")
@log_options
def command(target: Target, output: Path | None, every: bool, start: int) -> None:
    """Fetch the published checkpoint (the signed tree head), verified and consistent with all seen before.

    Keep one, and `muniment consistency --since FILE` shows later that nothing before it was changed.

    \b
    Examples:
      muniment checkpoint -o checkpoint.txt
      muniment checkpoint --all
    """
    with target.open() as client:
        if every:
            _list(target, list(client.checkpoints(start)))
            return
        signed = client.checkpoint()
    head = signed.checkpoint
    value = {"origin": head.origin, "tree_size": head.size, "root": head.root.hex(), "checkpoint": signed.note}
    if output is None:
        target.show(value, signed.note)
        return
    write_output(output, signed.note)
    target.show(
        value | {"file": str(output)},
        f"Checkpoint of {head.origin}, size {head.size}: {output}\n" + target.suggest(f"consistency --since {output}"),
    )


def _list(target: Target, found: list[VerifiedCheckpoint]) -> None:
    rows = [
        {"tree_size": one.checkpoint.size, "root": one.checkpoint.root.hex(), "checkpoint": one.note} for one in found
    ]
    width = max((len(str(row["tree_size"])) for row in rows), default=4)
    lines = [f"{'size':>{width}}  root", *(f"{row['tree_size']:>{width}}  {row['root']}" for row in rows)]
    target.show(rows, "\n".join(lines))
