"""`muniment receipt`."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muniment.cli.files import check_fuller, check_kind, write_output
from muniment.cli.options import Names, Number, Target, log_options, say_if_behind
from muniment.cli.output import EXIT_REFUSED, CliError, show
from muniment.errors import UnknownMember
from muniment.rowtext import inert_json
from muniment.verify import code_of

if TYPE_CHECKING:
    from muniment.client import Client
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
@click.option(
    "--only", type=Names(), multiple=True, metavar="NAMES", help="Open these members of the event and no others."
)
@click.option("--anchored", is_flag=True, help="With the earliest confirmed Bitcoin anchor that covers the entry.")
@log_options
def command(
    target: Target,
    index: int,
    output: Path | None,
    tlog_proof: bool,
    tree_size: int | None,
    only: tuple[list[str], ...],
    anchored: bool,
) -> None:
    """Fetch the receipt of an entry, verified.

    A receipt is the proof that works without this server, for as long as the key is trusted. An entry is covered by a
    published checkpoint about a second after it was logged; this waits for it. A Bitcoin anchor covers it hours later:
    until then --anchored ends with exit code 3. What the anchor shows, `muniment verify --check-anchors` says.

    With --only the receipt opens these members and no others: names with commas between them, one that holds a comma
    as a JSON string; the option can be repeated. `muniment disclose` does the same with a receipt that is there.

    \b
    Examples:
      muniment receipt 17 -o receipt-17.json
      muniment receipt 17 --only action,resource -o for-regulator.json
      muniment receipt 17 --anchored -o receipt-17.json
      muniment receipt 17 --tlog-proof -o entry-17.tlog-proof
    """
    if anchored and (tlog_proof or tree_size is not None):
        raise click.UsageError("--anchored goes with neither --tlog-proof, which cannot hold anchors, nor --tree-size")
    if only and tlog_proof:
        raise click.UsageError("--only does not go with --tlog-proof, which opens no members")
    members = set(chain(*only)) if only else None
    with target.open() as client:
        receipt = _fetch(client, index, tree_size, members, anchored=anchored)
        say_if_behind(client)
    data = receipt.to_tlog_proof() if tlog_proof else str(receipt)
    if output is None:
        show(data if tlog_proof else inert_json(data))
        return
    check_kind(output, receipts=True)
    check_fuller(output, replace(receipt, commitment=None, disclosures=None) if tlog_proof else receipt)
    write_output(output, data)
    value = {"file": str(output), "origin": receipt.origin, "index": receipt.index, "tree_size": receipt.tree_size}
    policy = f" --policy {target.policy_file}" if " --policy " in target.flags else ""
    target.show(
        value,
        f"Receipt of entry {index} of {receipt.origin}, as of size {receipt.tree_size}: {output}\n"
        f"Next: muniment verify {output}{policy}{' --check-anchors --headers FILE' if anchored else ''}",
    )


def _fetch(client: Client, index: int, tree_size: int | None, members: set[str] | None, *, anchored: bool) -> Receipt:
    try:
        if not anchored:
            return client.receipt(index, tree_size=tree_size, members=members)
        receipt = client.anchored_receipt(index)
        return receipt if members is None else receipt.disclose(members)
    except UnknownMember as error:
        hint = (
            "Names are exact. To see the members of an event takes an API key with scope read (MUNIMENT_API_KEY or"
            " --api-key-file)."
        )
        raise CliError(EXIT_REFUSED, code_of(error), str(error), hint) from error
