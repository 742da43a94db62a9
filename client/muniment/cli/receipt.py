"""`muniment receipt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from muniment.cli.files import MAX_RECEIPT, write_output
from muniment.cli.options import Number, Target, log_options, say_if_behind
from muniment.cli.output import EXIT_USAGE, CliError, inert_json, show
from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipt import Receipt


@click.command("receipt", short_help="Fetch the proof of one entry.")
@click.argument("index", type=Number())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option(
    "--tlog-proof", is_flag=True, help="C2SP tlog-proof text instead of JSON. It cannot hold what opens an event."
)
@click.option("--tree-size", type=Number(), help="At the published checkpoint of this size. [default: the latest]")
@click.option("--anchored", is_flag=True, help="With the earliest confirmed Bitcoin anchor that covers the entry.")
@log_options
def command(
    target: Target, index: int, output: Path | None, tlog_proof: bool, tree_size: int | None, anchored: bool
) -> None:
    """Fetch the receipt of an entry, verified.

    A receipt is the proof that works without this server, for as long as the key is trusted. An entry is covered by a
    published checkpoint about a second after it was logged; this waits for it. A Bitcoin anchor covers it hours later:
    until then --anchored ends with exit code 3. What the anchor shows, `muniment verify --check-anchors` says.

    \b
    Examples:
      muniment receipt 17 -o receipt-17.json
      muniment receipt 17 --anchored -o receipt-17.json
      muniment receipt 17 --tlog-proof -o entry-17.tlog-proof
    """
    if anchored and (tlog_proof or tree_size is not None):
        raise click.UsageError("--anchored goes with neither --tlog-proof, which cannot hold anchors, nor --tree-size")
    with target.open() as client:
        receipt = client.anchored_receipt(index) if anchored else client.receipt(index, tree_size=tree_size)
        say_if_behind(client)
    data = receipt.to_tlog_proof() if tlog_proof else str(receipt)
    if output is None:
        show(data if tlog_proof else inert_json(data))
        return
    _check_fuller(output, receipt, {} if tlog_proof else receipt.verify(target.policy()).opened, target.policy())
    write_output(output, data)
    value = {"file": str(output), "origin": receipt.origin, "index": receipt.index, "tree_size": receipt.tree_size}
    policy = f" --policy {target.policy_file}" if " --policy " in target.flags else ""
    target.show(
        value,
        f"Receipt of entry {index} of {receipt.origin}, as of size {receipt.tree_size}: {output}\n"
        f"Next: muniment verify {output}{policy}{' --check-anchors --headers FILE' if anchored else ''}",
    )


def _check_fuller(path: Path, receipt: Receipt, opened: dict[str, Any], policy: Policy) -> None:
    """Raise CliError when a file holds a receipt of the same entry that opens what this one does not.

    What it opens may exist nowhere else: an API key without the right to payloads gets receipts that open nothing.
    """
    if lost := sorted(_opened(path, receipt, policy).keys() - opened.keys()):
        message = f"{path} holds a receipt of this entry that opens more: {', '.join(map(repr, lost))}"
        hint = "Give another FILE, or move that one away; an API key with scope read gets receipts that open all."
        raise CliError(EXIT_USAGE, "fuller_receipt", message, hint)


def _opened(path: Path, receipt: Receipt, policy: Policy) -> dict[str, Any]:
    """Return what the receipt in a file opens: nothing when there is none, of that entry, that holds."""
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            kept = Receipt.parse(file.read(MAX_RECEIPT))
        same = (kept.origin, kept.index) == (receipt.origin, receipt.index)
        return kept.verify(policy).opened if same else {}
    except (OSError, FormatError, VerificationError):
        return {}
