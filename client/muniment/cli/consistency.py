"""`muniment consistency`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.cli.files import MAX_RECEIPT, check_text
from muniment.cli.options import Target, log_options
from muniment.cli.output import EXIT_USAGE, CliError
from muniment.errors import FormatError
from muniment.note import parse_note
from muniment.receipt import Receipt
from muniment.tlogproof import TLOG_PROOF_HEADER, TlogProof


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
    data = _read(name)
    check_text(name, data)
    note = _note(data)
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
    return (
        f"Consistent: the first {older.size} entries of {newer.origin} are the same in the tree of size {newer.size}.\n"
        f"  {older.size}: {older.root.hex()}\n"
        f"  {newer.size}: {newer.root.hex()}"
    )


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_RECEIPT)
        with Path(name).open("rb") as file:
            return file.read(MAX_RECEIPT)
    except OSError as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {name}: {error.strerror}") from error


def _note(data: bytes) -> str:
    """Return the checkpoint in a file: the file itself, or that of the receipt it is."""
    try:
        if data.startswith(TLOG_PROOF_HEADER.encode()):
            return TlogProof.parse(data).checkpoint
        if data.startswith(b"{"):
            return Receipt.parse(data).checkpoint
        return str(parse_note(data))
    except FormatError as error:
        hint = "Make one with `muniment checkpoint -o FILE` or `muniment receipt INDEX -o FILE`."
        raise CliError(EXIT_USAGE, "bad_since", f"neither a checkpoint nor a receipt: {error}", hint) from error
