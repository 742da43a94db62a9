"""`muniment verify`: offline. Needs receipts and a policy; neither the network nor the HTTP client is touched.

Only --check-anchors needs more: the library that reads proofs, and a source of block headers, which may be a file.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from muniment.cli.bundle import check_bundle, receipts_only
from muniment.cli.files import opened, read_leaf, rest_of_receipt
from muniment.cli.options import json_option, policy_option, read_policy
from muniment.cli.output import EXIT_FAILED, EXIT_NOT_YET, emit, note_json
from muniment.cli.shown import show_bundle, show_json, twice
from muniment.cli.sources import NO_SOURCE, SourceOptions, anchor_library, exit_code, source_options
from muniment.contradictions import Contradiction, Heads
from muniment.errors import FormatError, VerificationError
from muniment.evidence import Evidence, is_evidence
from muniment.evidence_report import ForkReport, report_fork
from muniment.plain import plain_bundle, plain_failure, plain_fork, plain_report
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.receipts import MAX_LINE
from muniment.receipts_report import BundleReport
from muniment.verify import Report, failure_json, limits_text, printable, verify_receipt

if TYPE_CHECKING:
    from muniment.anchor.check import AnchorCheck
    from muniment.anchor.sources import HeaderSource

Outcome = Report | BundleReport | ForkReport | FormatError | VerificationError


@dataclass(frozen=True, slots=True)
class _Trust:
    """What receipts are held to.

    `anchors` tells whether theirs are checked, and `headers` against what, if anything. `leaf` is what must have been
    logged, when the caller has it.
    """

    policy: Policy
    anchors: bool = False
    headers: HeaderSource | None = None
    leaf: bytes | None = None
    quiet: bool = False
    show: bool = False
    jobs: int = 1
    logs: dict[str, Heads] = field(default_factory=dict)
    """What the receipts that hold show of their logs, by origin. Filled by :func:`_check`."""


@click.command("verify", short_help="Check receipts offline.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--leaf", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE",
    help="What was logged, byte for byte: for a C2SP tlog-proof without its extra line.",
)  # fmt: skip
@click.option("--check-anchors", is_flag=True, help="Check the Bitcoin anchors in the receipts too.")
@click.option(
    "--state", "with_state", is_flag=True,
    help="Compare with the checkpoint of the same log that this user's commands remember.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=min(2, os.cpu_count() or 1), metavar="N",
    help="Processes that share a long bundle.  [default: 2, or 1 with one processor]",
)  # fmt: skip
@click.option("--plain", is_flag=True, help="Say it in plain words, for readers who know nothing of logs.")
@click.option("--show", is_flag=True, help="Print what the records say: a table, or one object a line with --json.")
@source_options
@policy_option
@json_option
def command(
    files: tuple[str, ...],
    leaf: str | None,
    check_anchors: bool,
    with_state: bool,
    jobs: int,
    plain: bool,
    show: bool,
    source: SourceOptions,
    policy_file: Path | None,
    as_json: bool,
) -> int:
    """Check receipts offline, and say what they prove and what they do not.

    FILES are receipts in JSON or C2SP tlog-proof text, bundles of receipts (`muniment export --format receipts`), or
    evidence that a log forked (`muniment evidence`); - is stdin. Nothing is trusted but the policy; no network is used.
    With --leaf the one receipt must be of exactly what is in that file.

    Of an event it says which members are shown and which are not: that these exist is proved, and nothing of what they
    say. With --plain all is said without technical words: what is proved, what is not, and who says when.

    With --show the records of a bundle are printed as a table, once all of it was proved: it is read twice, from a pipe
    by way of a temporary file. With --json they are one object a line, of receipts too, and the verdict goes to stderr.

    A bundle is read line by line and may be of any length. One with a range has every entry of that range; of any other
    nothing says that there are no more entries. One that was cut off does not hold. Several processes share a long one.
    A bundle without entries, as of a search that finds nothing, holds too (exit code 0): nothing in it fails. It proves
    nothing of any entry, as is said, and `entries` is 0 with --json.

    Receipts of one log that contradict each other are named: their heads come from two histories, and both files are
    the evidence (`muniment evidence` makes one file of them). With --state they are compared with the checkpoint that
    was seen last, too. That none contradicts is no proof of one history: `muniment consistency --since FILE` asks the
    log for that.

    With --check-anchors, say too before which Bitcoin block the entry existed, mined when, how deep, according to which
    source of block headers. With --headers FILE this is offline as well; the other sources are asked over the network.
    A receipt gets its anchor from `muniment receipt INDEX --anchored`, some hours after the entry was logged.

    \b
    Examples:
      muniment verify receipt.json --policy log-data/policy
      muniment verify receipts/*.json --policy log-data/policy --json
      muniment verify for-regulator.json --policy log-data/policy --plain
      muniment verify release.tlog-proof --leaf release.tar.gz --policy log-data/policy
      muniment verify evidence.ndjson --policy log-data/policy --show
      muniment verify fork.json --policy log-data/policy
      curl -s http://127.0.0.1:8080/entries/1/receipt | muniment verify - --policy log-data/policy
      muniment verify receipt.json --policy log-data/policy --check-anchors --headers headers.bin

    Exit code 0 when every receipt holds and all evidence proves what it claims, which is that a log forked; 1 when one
    does not, or when two receipts contradict each other. Evidence that fails shows nothing about the log. With
    --check-anchors also 1 when an anchor does not hold, 3 when one is missing, only promised or not deep enough, 4 when
    no source of headers answers.
    """
    if source.given and not check_anchors:
        raise click.UsageError("a source of headers is for --check-anchors")
    if plain and as_json:
        raise click.UsageError("--plain is for people, --json for programs: give one of them")
    if leaf is not None and (len(files) > 1 or files[0] == leaf):
        raise click.UsageError("--leaf FILE is for one receipt, which is another file")
    trust = _Trust(
        read_policy(policy_file, offline=True),
        leaf=None if leaf is None else read_leaf(leaf),
        quiet=as_json,
        show=show,
        jobs=jobs,
    )
    if check_anchors:
        anchor_library()
        trust = replace(trust, anchors=True, headers=source.open())
    outcomes = [(name, _outcome(name, trust)) for name in files]
    remarks = _compare_with_state(trust) if with_state else []
    contradictions = [found for heads in trust.logs.values() for found in heads.contradictions()]
    if as_json:
        (note_json if show else emit)(
            {
                "verified": not contradictions and not any(map(_failed, outcomes)),
                "results": [_json(name, outcome) for name, outcome in outcomes],
                "contradictions": [found._asdict() for found in contradictions],
            }
            | ({"state": remarks} if with_state else {})
        )
    else:
        _print(outcomes, plain=plain, hint=check_anchors and trust.headers is None)
        click.echo("".join(f"{line}\n" for line in (*remarks, *map(_contradiction, contradictions))), nl=False)
    return EXIT_FAILED if contradictions else _exit_code([outcome for _, outcome in outcomes])


def _contradiction(found: Contradiction) -> str:
    names = " and ".join(map(printable, found.names))
    return f"{names}: THESE HEADS CONTRADICT\n{printable(found.detail)}: keep both, they are the evidence."


def _compare_with_state(trust: _Trust) -> list[str]:
    """Take what was seen of each log before, and say of which nothing was, or nothing that can be compared offline."""
    from muniment.state import FileState, remembered

    state, remarks = FileState(), []
    for origin, heads in trust.logs.items():
        note = state.get(origin)
        if note is None:
            remarks.append(f"Nothing of {printable(origin)} is remembered.")
            continue
        head = remembered(trust.policy, origin, note).checkpoint
        if not heads.compared(head):
            remarks.append(
                f"Not compared with the checkpoint of size {head.size} of {printable(origin)} that is remembered:"
                " that takes a proof from the log (muniment consistency --since FILE)."
            )
        heads.add_head(head, f"the checkpoint of size {head.size} in {state.path}")
    return remarks


def _exit_code(outcomes: list[Outcome]) -> int:
    if any(isinstance(outcome, FormatError | VerificationError) for outcome in outcomes):
        return EXIT_FAILED
    reports = [outcome for outcome in outcomes if isinstance(outcome, Report)]
    found = exit_code(check for report in reports for check in report.anchors or ())
    return found or (EXIT_NOT_YET if any(report.anchors == () for report in reports) else 0)


def _failed(named: tuple[str, Outcome]) -> bool:
    return _exit_code([named[1]]) == EXIT_FAILED


def _print(outcomes: list[tuple[str, Outcome]], *, plain: bool, hint: bool) -> None:
    click.echo("\n".join((_plain if plain else _text)(name, outcome) for name, outcome in outcomes))
    held = [outcome for _, outcome in outcomes if isinstance(outcome, Report | BundleReport | ForkReport)]
    if held and not plain:
        click.echo(limits_text(limit for report in held for limit in report.limits), nl=False)
    if len(outcomes) > 1:
        click.echo(f"{len(held)} of {len(outcomes)} files hold.")
    if hint:
        click.echo(NO_SOURCE)


def _outcome(name: str, trust: _Trust) -> Outcome:
    with opened(name) as given, twice(name, given) if trust.show else nullcontext(given) as file:
        first = file.readline(MAX_LINE + 1)
        try:
            found = check_bundle(name, first, file, trust.policy, jobs=trust.jobs, quiet=trust.quiet)
            if found is not None and trust.show:
                show_bundle(name, file, trust.policy, as_json=trust.quiet)
        except (FormatError, VerificationError) as error:
            return error
        return _taken(name, found, trust) if found is not None else _single(name, first, file, trust)


def _single(name: str, first: bytes, file: IO[bytes], trust: _Trust) -> Outcome:
    data = rest_of_receipt(name, first, file)
    if not is_evidence(data):
        return _check(name, data, trust)
    _receipts_only(name, "evidence", trust)
    try:
        return report_fork(Evidence.parse(data), trust.policy)
    except (FormatError, VerificationError) as error:
        return error


def _receipts_only(name: str, what: str, trust: _Trust) -> None:
    if trust.leaf is not None or trust.anchors:
        raise receipts_only(name, what, "--check-anchors" if trust.anchors else "--leaf")


def _taken(name: str, found: BundleReport, trust: _Trust) -> BundleReport:
    """Take what a bundle shows of its log."""
    _receipts_only(name, "a bundle of receipts", trust)
    heads = trust.logs.setdefault(found.head.origin, Heads(found.head.origin))
    heads.add_head(found.head, name)
    for receipt in filter(None, (found.shown.first, found.shown.last)):
        heads.add_receipt(receipt, found.head, name)
    return found


def _check(name: str, data: bytes, trust: _Trust) -> Outcome:
    try:
        receipt = Receipt.parse(data, trust.leaf)
        report = verify_receipt(receipt, trust.policy)
        heads = trust.logs.setdefault(receipt.origin, Heads(receipt.origin))
        heads.add_receipt(receipt, report.verified.checkpoint, name)
        if trust.show and trust.quiet:
            show_json(name, [report.verified])
        return verify_receipt(receipt, trust.policy, _anchors(receipt, trust)) if trust.anchors else report
    except (FormatError, VerificationError) as error:
        return error


def _anchors(receipt: Receipt, trust: _Trust) -> list[AnchorCheck]:
    """Return what the anchors of a receipt that holds show.

    One that is malformed or of something else is a mismatch.
    """
    from muniment.anchor.check import AnchorCheck, check_receipt_anchor

    found = []
    for anchor in receipt.anchors:
        try:
            found.append(check_receipt_anchor(receipt, anchor, trust.policy, trust.headers))
        except (FormatError, VerificationError) as error:
            found.append(AnchorCheck("mismatch", mismatches=(str(error),)))
    return found


def _json(name: str, outcome: Outcome) -> dict[str, Any]:
    return {"file": name} | (
        failure_json(outcome) if isinstance(outcome, FormatError | VerificationError) else outcome.to_json()
    )


def _text(name: str, outcome: Outcome) -> str:
    if isinstance(outcome, FormatError | VerificationError):
        return f"{name}: NOT PROVED\n{printable(str(outcome))}"
    if isinstance(outcome, ForkReport):
        return f"{name}: OK, THIS PROVES A FORK\n{outcome.proved_text()}".rstrip("\n")
    if isinstance(outcome, BundleReport):
        verdict = "OK" if outcome.count else "OK, BUT EMPTY"
        return f"{name}: {verdict}\n{outcome.proved_text()}".rstrip("\n")
    verdict = "OK, BUT AN ANCHOR DOES NOT HOLD" if _failed((name, outcome)) else "OK"
    none = "" if outcome.anchors != () else "\nAnchor: none in this receipt (muniment receipt INDEX --anchored)."
    return f"{name}: {verdict}\n{outcome.proved_text()}".rstrip("\n") + none


def _plain(name: str, outcome: Outcome) -> str:
    if isinstance(outcome, BundleReport):
        verdict = "THIS HOLDS" if outcome.count else "THIS HOLDS, BUT NO RECORD IS IN IT"
        return f"{name}: {verdict}\n\n{plain_bundle(outcome)}"
    if isinstance(outcome, ForkReport):
        return f"{name}: THIS HOLDS, AND IT ACCUSES\n\n{plain_fork(outcome)}"
    if not isinstance(outcome, Report):
        return f"{name}: THIS DOES NOT HOLD\n\n{plain_failure(outcome)}"
    verdict = "THIS HOLDS, BUT A TIME STAMP IN IT DOES NOT" if _failed((name, outcome)) else "THIS HOLDS"
    return f"{name}: {verdict}\n\n{plain_report(outcome)}"
