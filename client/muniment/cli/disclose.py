"""`muniment disclose`: offline. Needs a receipt and nothing else."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import click

from muniment.cli.files import check_fuller, read_receipt, write_output
from muniment.cli.options import Names, json_option
from muniment.cli.output import EXIT_USAGE, CliError, emit, inert_json, note, show
from muniment.errors import FormatError
from muniment.names import format_name
from muniment.receipt import Receipt


@click.command("disclose", short_help="Show part of a receipt.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="RECEIPT")
@click.option("--only", type=Names(), multiple=True, metavar="NAMES", help="Show these members and no others.")
@click.option("--hide", type=Names(), multiple=True, metavar="NAMES", help="Show all members but these.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option("--overwrite", is_flag=True, help="Also over a FILE that shows more of the same entry.")
@json_option
def command(
    file: str,
    only: tuple[list[str], ...],
    hide: tuple[list[str], ...],
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a receipt that shows some members of an event and hides the others, and is a proof all the same.

    RECEIPT is a receipt in JSON; - is stdin. What opens the hidden members is not in the result, so its reader cannot
    work out their values. Their names stay: the proof needs them. Only what RECEIPT itself shows can be shown.

    NAMES are names of members with commas between them; the options can be repeated. A name that holds a comma is
    written as a JSON string. --only "" shows nothing.

    \b
    Examples:
      muniment disclose receipt.json --only action,resource -o for-regulator.json
      muniment disclose receipt.json --hide actor -o for-customer.json
      muniment disclose receipt.json --only action --only '"amount, net"'
      muniment receipt 17 | muniment disclose - --hide actor | muniment verify - --policy log-data/policy
    """
    if bool(only) == bool(hide):
        raise click.UsageError("give --only NAMES or --hide NAMES, one of them")
    whole = _parsed(file)
    receipt = whole.disclose(set(chain(*only))) if only else whole.hide(set(chain(*hide)))
    if output is None:
        show(inert_json(str(receipt)))
    else:
        if not overwrite:
            check_fuller(output, receipt)
        write_output(output, str(receipt))
    _say(receipt, output, as_json=as_json)


def _parsed(file: str) -> Receipt:
    try:
        return Receipt.parse(read_receipt(file))
    except FormatError as error:
        hint = "`muniment receipt INDEX -o FILE` fetches one from the log."
        raise CliError(EXIT_USAGE, "not_a_receipt", f"{file} holds no receipt: {error}", hint) from error


def _say(receipt: Receipt, output: Path | None, *, as_json: bool) -> None:
    """Say what is shown and what is not: on stdout, unless the receipt itself is there."""
    shown = sorted(receipt.opening())
    hidden = sorted(receipt.commitment.members.keys() - set(shown)) if receipt.commitment else ["*"]
    if as_json:
        value = {"origin": receipt.origin, "index": receipt.index, "shown": shown, "hidden": hidden}
        _say_json(value, output)
        return
    lines = [f"Shown: {_listed(shown)}.", f"Not shown: {_hidden(receipt, hidden)}."]
    if output is None:
        note("\n".join(lines))
        return
    where = f"Receipt of entry {receipt.index} of {receipt.origin}: {output}"
    show("\n".join([where, *lines, f"Next: muniment verify {output}"]) + "\n")


def _say_json(value: dict[str, Any], output: Path | None) -> None:
    if output is None:
        note(inert_json(json.dumps(value, ensure_ascii=False)))
    else:
        emit({"file": str(output)} | value)


def _listed(names: list[str]) -> str:
    return ", ".join(map(format_name, names)) or "nothing"


def _hidden(receipt: Receipt, hidden: list[str]) -> str:
    if receipt.commitment is None:
        return "the event, and the names of its members"
    return f"{_listed(hidden)} (the names stay readable)" if hidden else "nothing"
