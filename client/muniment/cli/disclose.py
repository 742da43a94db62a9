"""`muniment disclose`: offline. Needs a receipt, or a bundle of them, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import click

from muniment import strictjson
from muniment.cli import files
from muniment.cli.bundle import bundle_lines
from muniment.cli.files import check_fuller, rest_of_receipt, write_output
from muniment.cli.options import Names, json_option
from muniment.cli.output import EXIT_USAGE, CliError, emit, note, show, show_line
from muniment.errors import FormatError
from muniment.names import named
from muniment.receipt import RECEIPT_MEMBERS, Receipt
from muniment.receipts import MAX_LINE, is_bundle
from muniment.receipts_part import PartOfBundle
from muniment.rowtext import inert_json
from muniment.signatures import PassedOn, passed_on
from muniment.tlogproof import TLOG_PROOF_HEADER
from muniment.words import counted, entries_text, lines_text


@click.command("disclose", short_help="Show part of a receipt or a bundle.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="RECEIPT")
@click.option("--only", type=Names(), multiple=True, metavar="NAMES", help="Show these members and no others.")
@click.option("--hide", type=Names(), multiple=True, metavar="NAMES", help="Show all members but these.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write here, not to stdout."
)
@click.option("--overwrite", is_flag=True, help="Also over a FILE that may show more.")
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

    RECEIPT is a receipt in JSON, or a bundle of receipts (`muniment export --format receipts`) of which every event is
    cut down, line by line; - is stdin. What opens the hidden members is not in the result, so its reader cannot
    work out their values. Their names stay: the proof needs them. Only what RECEIPT itself shows can be shown.

    NAMES are names of members with commas between them; the options can be repeated. A name that holds a comma is
    written as a JSON string. --only "" shows nothing. In a bundle it is enough that one entry has a name. Entries that
    are no events have no members, and are shown as they are.

    What this version does not know is left out, and said: a value that is to be hidden could stand in it. So only such
    signature lines of the checkpoint go on as a log or a witness writes, by name, and with a receipt its anchors.

    \b
    Examples:
      muniment disclose receipt.json --only action,resource -o for-regulator.json
      muniment disclose receipt.json --hide actor -o for-customer.json
      muniment disclose receipt.json --only action --only '"amount, net"'
      muniment receipt 17 | muniment disclose - --hide actor | muniment verify - --policy log-data/policy
      muniment disclose evidence.ndjson --only action,resource -o for-regulator.ndjson
    """
    if bool(only) == bool(hide):
        raise click.UsageError("give --only NAMES or --hide NAMES, one of them")
    wanted = _Wanted(
        file=file, names=set(chain(*(only or hide))), hiding=bool(hide), output=output, overwrite=overwrite
    )
    with files.opened(file) as source:
        first = source.readline(MAX_LINE + 1)
        if is_bundle(first):
            _disclose_bundle(wanted, first, source, as_json=as_json)
            return
        data = rest_of_receipt(file, first, source)
    _disclose_receipt(wanted, data, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is to be shown of a file, or with `hiding` not to be shown, and where the result goes."""

    file: str
    names: set[str]
    hiding: bool
    output: Path | None
    overwrite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeftOut:
    """What this version does not know or a reader does not need: values that are hidden could stand in it."""

    members: list[str] = field(default_factory=list)
    erasures: int = 0
    signatures: int = 0
    anchors: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what was left out, a line for each kind."""
        texts = {
            f"members that this version does not know: {_listed(self.members)}": self.members,
            f"the erasures that {lines_text(self.erasures)} stated, which this version cannot check": self.erasures,
            f"{lines_text(self.signatures)} of the checkpoint that no log or witness writes": self.signatures,
            f"{counted(self.anchors, 'anchor', 'anchors')} with such lines": self.anchors,
        }
        return [f"Left out: {text}." for text, there in texts.items() if there]


def _cosigned(checkpoint: PassedOn) -> list[str]:
    """Return who cosigned, by the words of the checkpoint: the caller sees what goes on unchecked."""
    return [f"Cosigned by {_listed([*checkpoint.cosigners])}: not checked."] if checkpoint.cosigners else []


def _kept_as_they_are(receipt: Receipt) -> list[str]:
    kept = _cosigned(passed_on(receipt.checkpoint))
    if receipt.anchors:
        kept.append(f"With {counted(len(receipt.anchors), 'anchor', 'anchors')}: passed on as before, not checked.")
    return kept


# --- a receipt --------------------------------------------------------------------------------------------------------


def _disclose_receipt(wanted: _Wanted, data: bytes, *, as_json: bool) -> None:
    whole = _parsed(wanted.file, data)
    receipt = whole.hide(wanted.names) if wanted.hiding else whole.disclose(wanted.names)
    if wanted.output is None:
        show(inert_json(str(receipt)))
    else:
        if not wanted.overwrite:
            check_fuller(wanted.output, receipt)
        write_output(wanted.output, str(receipt))
    left_out = _LeftOut(
        members=_unknown_members(data),
        signatures=passed_on(whole.checkpoint).left_out,
        anchors=len(whole.anchors) - len(receipt.anchors),
    )
    _say(receipt, left_out, wanted.output, as_json=as_json)


def _unknown_members(data: bytes) -> list[str]:
    """Return the members of a receipt in JSON that this version does not know, and so does not pass on."""
    return [] if data.startswith(TLOG_PROOF_HEADER.encode()) else sorted({*strictjson.parse(data)} - {*RECEIPT_MEMBERS})


def _parsed(file: str, data: bytes) -> Receipt:
    try:
        return Receipt.parse(data)
    except FormatError as error:
        hint = "`muniment receipt INDEX -o FILE` fetches one from the log."
        raise CliError(EXIT_USAGE, "not_a_receipt", f"{file} holds no receipt: {error}", hint) from error


def _say(receipt: Receipt, left_out: _LeftOut, output: Path | None, *, as_json: bool) -> None:
    """Say what is shown and what is not: on stdout, unless the receipt itself is there."""
    shown = sorted(receipt.opening())
    hidden = sorted(receipt.commitment.members.keys() - set(shown)) if receipt.commitment else ["*"]
    if as_json:
        value = {"origin": receipt.origin, "index": receipt.index, "shown": shown, "hidden": hidden}
        _say_json(value | {"left_out": left_out.to_json()}, output)
        return
    lines = [f"Shown: {_listed(shown)}.", f"Not shown: {_hidden(receipt, hidden)}."]
    lines += [*_kept_as_they_are(receipt), *left_out.lines()]
    if output is None:
        note("\n".join(lines))
        return
    where = f"Receipt of entry {receipt.index} of {named(receipt.origin)}: {output}"
    show("\n".join([where, *lines, f"Next: muniment verify {output}"]) + "\n")


def _say_json(value: dict[str, Any], output: Path | None) -> None:
    if output is None:
        note(inert_json(json.dumps(value, ensure_ascii=False)))
    else:
        emit({"file": str(output)} | value)


def _listed(names: list[str]) -> str:
    return ", ".join(map(named, names)) or "nothing"


def _hidden(receipt: Receipt, hidden: list[str]) -> str:
    if receipt.commitment is None:
        return "the event, and the names of its members"
    return f"{_listed(hidden)} (the names stay readable)" if hidden else "nothing"


# --- a bundle ---------------------------------------------------------------------------------------------------------


def _disclose_bundle(wanted: _Wanted, first: bytes, source: IO[bytes], *, as_json: bool) -> None:
    """Write a bundle that shows a part, whole or not at all; to stdout it comes without its last line when it fails."""
    with bundle_lines(f"Reading {wanted.file}", wanted.file, first, source, quiet=as_json) as lines:
        try:
            part = PartOfBundle(lines, wanted.names, hiding=wanted.hiding)
            _write_part(part, wanted)
        except FormatError as error:
            message = f"{wanted.file} is no bundle of receipts that is whole: {error}"
            hint = "`muniment export --format receipts -o FILE` fetches one from the log."
            raise CliError(EXIT_USAGE, "not_a_bundle", message, hint) from error
    _say_part(part, wanted.output, as_json=as_json)


def _write_part(part: PartOfBundle, wanted: _Wanted) -> None:
    if wanted.output is None:
        for line in part:
            show_line(line)
        return
    if not wanted.overwrite:
        files.check_same_log(wanted.output, part.header.origin)
    with files.output(wanted.output) as file:
        file.writelines(part)


def _say_part(part: PartOfBundle, output: Path | None, *, as_json: bool) -> None:
    left_out = _LeftOut(erasures=part.erasures, signatures=part.checkpoint.left_out)
    if as_json:
        value = {
            "origin": part.header.origin,
            "entries": part.count,
            "range": None if part.header.range is None else list(part.header.range),
            "shown": dict(part.shown.most_common()),
            "hidden": dict(part.hidden.most_common()),
            "unnamed": part.unnamed,
            "left_out": left_out.to_json(),
        }
        _say_json(value, output)
        return
    lines = [f"Shown: {_counted(part.shown)}.", f"Not shown: {_counted(part.hidden)} (the names stay readable)."]
    if part.unnamed:
        lines.append(f"Other members, too many or too long to be named: {part.unnamed} in all.")
    lines += [*_cosigned(part.checkpoint), *left_out.lines()]
    if output is None:
        note("\n".join(lines))
        return
    where = f"Bundle of {entries_text(part.count)} of {named(part.header.origin)}: {output}"
    show("\n".join([where, *lines, f"Next: muniment verify {output}"]) + "\n")


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{named(name)} in {count}" for name, count in names.most_common()) or "nothing"
