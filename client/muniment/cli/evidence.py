"""`muniment evidence`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muniment.cli.files import check_unused, read_note, write_output
from muniment.cli.options import Target, log_options, overwrite_option
from muniment.cli.output import EXIT_FAILED, CliError, show
from muniment.errors import Unproven
from muniment.evidence import make
from muniment.rowtext import inert_json

if TYPE_CHECKING:
    from muniment.evidence import Evidence, Fork
    from muniment.policy import Policy


@click.command("evidence", short_help="Make evidence of two heads that contradict each other.")
@click.argument("first", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("second", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@overwrite_option
@log_options
def command(target: Target, first: str, second: str, output: Path | None, *, overwrite: bool) -> None:
    """Make evidence of two heads that one log signed and that contradict each other: a file that convinces others.

    FIRST and SECOND are checkpoints, receipts or bundles of receipts, in any order; - is stdin. Of two sizes, the proof
    comes from the log at --url, which has to be the server, or a copy of it, that shows the larger of the two trees. Of
    one size nothing is asked. `muniment verify FILE` checks the result offline.

    Two heads that belong to one growing tree are no evidence: exit code 1, as for a log that cannot show which it is.

    \b
    Examples:
      muniment evidence checkpoint.txt receipt.json -o fork.json
      muniment evidence mine.txt theirs.txt --url https://log.example -o fork.json
    """
    if first == second:
        raise click.UsageError("FIRST and SECOND are two files")
    if not overwrite:
        check_unused(output)
    evidence, fork = _found(target, target.policy(), read_note(first), read_note(second))
    data = bytes(evidence).decode()
    if output is None:
        show(inert_json(data))
        return
    write_output(output, data)
    sizes = {"first": fork.first.size, "second": fork.second.size}
    policy = f" --policy {target.policy_file}" if " --policy " in target.flags else ""
    text = f"Proved: {fork.statement}.\nEvidence: {output}\nNext: muniment verify {output}{policy}"
    target.show({"file": str(output), "origin": evidence.origin, "sizes": sizes, "proves": fork.statement}, text)


def _found(target: Target, policy: Policy, one: str, other: str) -> tuple[Evidence, Fork]:
    first, second = (policy.signed(note).checkpoint for note in (one, other))
    if first.size == second.size and first.root != second.root:
        return make(one, other, (), policy)
    found = None if first == second else _asked(target, one, other)
    if found is None:
        message = f"no contradiction: the heads of sizes {first.size} and {second.size} belong to one growing tree"
        raise CliError(EXIT_FAILED, "no_contradiction", message, "There is nothing to show.")
    return make(found.first, found.second, found.hashes, policy)


def _asked(target: Target, one: str, other: str) -> Evidence | None:
    from muniment.state import MemoryState

    try:
        with target.open(state=MemoryState()) as client:  # what is remembered has no part in it
            return client.evidence(one, other)
    except Unproven as error:
        hint = "Ask the server that shows the larger of the two trees, or a copy of it: --url."
        raise CliError(EXIT_FAILED, "unproven", str(error), hint, notes=list(error.notes)) from error
