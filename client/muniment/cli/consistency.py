"""`muniment consistency`."""

from __future__ import annotations

import click

from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.cli.files import read_note
from muniment.cli.options import Target, log_options
from muniment.note import parse_note


@click.command("consistency", short_help="Prove that the log only grew.")
@click.option(
    "--since",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="A checkpoint or a receipt kept from earlier; - is stdin. [default: the last checkpoint seen from here]",
)
@log_options
def command(target: Target, since: str | None) -> None:
    """Prove that the log only grew: that today's tree contains an earlier one, unchanged.

    A log that cannot show it is reported with both signed checkpoints, which are the evidence, and exit code 1. A
    server that is behind what was seen before, as a replica may be, is waited for; exit code 3 when it stays behind.

    \b
    Examples:
      muniment consistency
      muniment consistency --since checkpoint.txt
      muniment consistency --since receipt.json
    """
    if since is None:
        _since_last_seen(target)
    else:
        _since_file(target, since)


def _since_file(target: Target, name: str) -> None:
    note = read_note(name)
    with target.open() as client:
        proof = client.consistency(note)
    value = {"consistent": True, **proof.to_json()}
    target.show(value, _sentence(proof.older.checkpoint, proof.newer.checkpoint))


def _since_last_seen(target: Target) -> None:
    if target.no_state:
        raise click.UsageError("--no-state leaves nothing to compare with: give --since FILE")
    state = target.memory()
    with target.open(state=state) as client:
        seen = {log.vkey.name: state.get(log.vkey.name) for log in client.policy.logs}
        latest = client.checkpoint()
    before = seen.get(latest.checkpoint.origin)
    value = {"consistent": True, "older": before, "newer": latest.note}
    if before is None:
        text = (
            f"First visit to {latest.checkpoint.origin}: nothing seen before to compare with. Its tree of size"
            f" {latest.checkpoint.size} is remembered.\n{target.suggest('consistency')}"
        )
    else:
        heads = sorted((parse_checkpoint(parse_note(before).text), latest.checkpoint), key=lambda head: head.size)
        text = _sentence(*heads)
    target.show(value, text)


def _sentence(older: Checkpoint, newer: Checkpoint) -> str:
    first = "the first entry" if older.size == 1 else f"the first {older.size} entries"
    same = f"{first} of {newer.origin} {'is' if older.size == 1 else 'are'} the same in the tree of size {newer.size}"
    return f"Consistent: {same}.\n  {older.size}: {older.root.hex()}\n  {newer.size}: {newer.root.hex()}"
