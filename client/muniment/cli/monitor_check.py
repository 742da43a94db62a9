"""`muniment monitor check`: tie a receipt to what a monitor saw."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muniment.cli.files import read_receipt
from muniment.cli.monitor_options import api_key_for, key_option, state_option
from muniment.cli.options import json_option, policy_option, read_policy
from muniment.cli.output import EXIT_FAILED, EXIT_NOT_YET, EXIT_UNREACHABLE, EXIT_USAGE, CliError, emit, show
from muniment.errors import RequestError, StateError
from muniment.receipt import Receipt
from muniment.verify import printable

if TYPE_CHECKING:
    from muniment.monitor.ties import Tie


@click.command("check", short_help="Tie a receipt to what was seen.")
@click.argument("receipt", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@state_option
@policy_option
@key_option
@json_option
def command(receipt: str, folder: Path, policy_file: Path | None, api_key_file: Path | None, as_json: bool) -> int:
    """Verify a receipt, and say whether its tree is the one that a monitor read into DIR.

    A receipt by itself is the operator's signed promise. This ties it to the history that the monitor followed: the
    root at its size is computed from what was read. Where that takes the entries of one bundle, they are fetched from
    the log, and compared with what was read.

    A receipt of another history is a fork: evidence is kept in DIR/evidence. Exit code 1 then, 3 when the monitor has
    not read that far yet, 4 when the log that is needed is not reachable. A monitor may be running meanwhile.

    \b
    Example:
      muniment monitor check receipt.json --policy policy --state monitor
    """
    from muniment.monitor.ties import tie

    policy = read_policy(policy_file)
    given = Receipt.parse(read_receipt(receipt))
    verified = given.verify(policy)
    try:
        found = asyncio.run(tie(folder, given, policy, lambda url: api_key_for((url,), api_key_file)))
    except RequestError as error:
        hint = "The root at the receipt's size takes the entries of one bundle, which the log has."
        raise CliError(EXIT_UNREACHABLE, "unreachable", str(error), hint) from error
    except StateError as error:
        raise CliError(EXIT_USAGE, "state_error", str(error), "What a monitor remembers is in --state DIR.") from error
    _say(found, as_json=as_json, value={"origin": given.origin, "index": verified.index, "tree_size": given.tree_size})
    return {"tied": 0, "not_yet": EXIT_NOT_YET, "forked": EXIT_FAILED}[found.outcome]


def _say(found: Tie, *, as_json: bool, value: dict[str, Any]) -> None:
    if as_json:
        emit(value | {"outcome": found.outcome, "detail": found.detail, "seen": found.seen} | found.evidence)
    else:
        show(printable(found.detail) + "\n" + "".join(f"Evidence: {path}\n" for path in found.evidence.values()))
