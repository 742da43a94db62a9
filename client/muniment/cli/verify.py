"""`muniment verify`: offline. Needs receipts and a policy; neither the network nor the HTTP client is touched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from muniment.cli.options import json_option, policy_option, read_policy
from muniment.cli.output import EXIT_FAILED, EXIT_USAGE, CliError, emit
from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.verify import Report, failure_json, limits_text, printable, verify_receipt

MAX_RECEIPT = 64 * 1024 * 1024

Outcome = Report | FormatError | VerificationError


@click.command("verify", short_help="Check receipts offline.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@policy_option
@json_option
def command(files: tuple[str, ...], policy_file: Path | None, as_json: bool) -> int:
    """Check receipts offline, and say what they prove and what they do not.

    FILES are receipts in JSON or C2SP tlog-proof text; - is stdin. Nothing is trusted but the policy; no network is used.

    \b
    Examples:
      muniment verify receipt.json --policy log-data/policy
      muniment verify receipts/*.json --policy log-data/policy --json
      curl -s http://127.0.0.1:8080/entries/1/receipt | muniment verify - --policy log-data/policy

    Exit code 0 when every receipt holds, 1 when one does not.
    """
    policy = read_policy(policy_file)
    outcomes = [(name, _check(_read(name), policy)) for name in files]
    failed = sum(not isinstance(outcome, Report) for _, outcome in outcomes)
    if as_json:
        emit({"verified": not failed, "results": [_json(name, outcome) for name, outcome in outcomes]})
    else:
        click.echo("\n".join(_text(name, outcome) for name, outcome in outcomes))
        held = [outcome for _, outcome in outcomes if isinstance(outcome, Report)]
        if held:
            click.echo(limits_text(limit for report in held for limit in report.limits), nl=False)
        if len(files) > 1:
            click.echo(f"{len(held)} of {len(files)} receipts hold.")
    return EXIT_FAILED if failed else 0


def _read(name: str) -> bytes:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_RECEIPT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_RECEIPT + 1)
    except OSError as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {name}: {error.strerror}") from error
    if len(data) > MAX_RECEIPT:
        raise CliError(EXIT_USAGE, "unreadable", f"{name} is larger than any receipt")
    return data


def _check(data: bytes, policy: Policy) -> Outcome:
    try:
        return verify_receipt(Receipt.parse(data), policy)
    except (FormatError, VerificationError) as error:
        return error


def _json(name: str, outcome: Outcome) -> dict[str, Any]:
    return {"file": name} | (outcome.to_json() if isinstance(outcome, Report) else failure_json(outcome))


def _text(name: str, outcome: Outcome) -> str:
    if isinstance(outcome, Report):
        return f"{name}: OK\n{outcome.proved_text()}".rstrip("\n")
    return f"{name}: NOT PROVED\n{printable(str(outcome))}"
