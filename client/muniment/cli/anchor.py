"""`muniment anchor`: the Bitcoin anchors of a log, listed, shown and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from muniment.anchored import MAX_OTS
from muniment.cli.files import write_output
from muniment.cli.headers import command as headers_command
from muniment.cli.options import Number, Target, log_options
from muniment.cli.output import EXIT_USAGE, CliError
from muniment.cli.sources import NO_SOURCE, SourceOptions, anchor_library, exit_code, source_options
from muniment.note import MAX_NOTE
from muniment.policy import Policy
from muniment.verify import printable

if TYPE_CHECKING:
    from muniment.anchor.check import AnchorCheck
    from muniment.anchor.sources import HeaderSource
    from muniment.client import AnchorInfo


_NONE = "No anchors. This log has none yet, or is not anchored: that is for its operator to set (anchor = true)."


@click.group("anchor", short_help="List, show and check Bitcoin anchors.")
def command() -> None:
    """Bitcoin anchors: proofs that a checkpoint of the log existed before a block was mined.

    They hold whatever the operator's clock says. A checkpoint is stamped through OpenTimestamps calendars; hours later
    their answers lead to a Bitcoin block. `list` and `show` print what the server says of it. `verify` believes
    nothing: it checks the proof against block headers from a source that you choose.

    \b
    Examples:
      muniment anchor list
      muniment anchor show 1000 -o checkpoint-1000
      muniment anchor headers sync headers.bin --rest http://127.0.0.1:8332
      muniment anchor verify 1000 --headers headers.bin
    """


command.add_command(headers_command)


@command.command("list", short_help="List the anchors and their states.")
@click.option("--start", type=Number(), default=0, help="From this size on.")
@log_options
def list_(target: Target, start: int) -> None:
    """List the anchors, oldest first, with the state the server says they are in.

    \b
    States:
      queued      its bytes are fixed; no calendar has them yet
      pending     a calendar's promise; proves nothing yet
      complete    leads to a Bitcoin block that is not deep enough yet
      confirmed   the server saw it in a Bitcoin block with 6 confirmations or more
      superseded  never submitted: a newer one covers it

    \b
    Examples:
      muniment anchor list
      muniment anchor list --start 100000 --json
    """
    with target.open() as client:
        found = list(client.anchors(start))
    lines = [f"{'size':>12}  {'state':<11} {'block':>8}  explanation"]
    lines += [
        f"{one.tree_size:>12}  {printable(one.state):<11} {one.block.height if one.block else '-':>8}"
        f"  {printable(one.explanation)}"
        for one in found
    ]
    text = "\n".join(lines) if found else _NONE
    if found:
        text += "\n" + target.suggest(f"anchor verify {found[-1].tree_size}")
    target.show([one.to_json() for one in found], text)


@command.command("show", short_help="Show one anchor; write its files.")
@click.argument("size", type=Number())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write the stamped checkpoint to FILE and its proof to FILE.ots.",
)  # fmt: skip
@log_options
def show(target: Target, size: int, output: Path | None) -> None:
    """Show what the server says of the anchor of the checkpoint of SIZE.

    With -o it writes the pair of files that stock tools read: `ots verify FILE.ots` needs a Bitcoin node,
    and nothing of this log.

    \b
    Examples:
      muniment anchor show 1000
      muniment anchor show 1000 -o checkpoint-1000
    """
    with target.open() as client:
        found = client.anchor(size)
        files = client.anchor_files(size) if output is not None else None
    value, text = found.to_json(), _text(found)
    if files is not None and output is not None:
        proof = output.with_name(f"{output.name}.ots")
        write_output(output, files.note)
        write_output(proof, files.ots)
        value |= {"files": [str(output), str(proof)]}
        text += f"\nWritten: {output} and {proof}"
    target.show(value, f"{text}\n{target.suggest(f'anchor verify {size}')}")


def _text(found: AnchorInfo) -> str:
    rows = [
        ("anchor", f"of the checkpoint of size {found.tree_size}, SHA-256 {found.digest.hex()}"),
        (
            "state",
            f"{found.state}: {found.explanation}{' (degraded: too few calendars hold it)' if found.degraded else ''}",
        ),
        ("created", found.created_at),
        ("submitted", found.submitted_at or "not yet"),
        ("confirmed", f"{found.confirmed_at or 'not yet'}, by the server's own clock"),
    ]
    if found.block is not None:
        rows.append(("block", f"{found.block.height}, {found.block.hash}"))
    for one in found.calendars:
        reason = f" ({one.last_reason})" if one.last_reason else ""
        rows.append(("calendar", f"{one.url}: {one.state}, {one.attempts} requests{reason}"))
    return "\n".join(f"{name:<10} {printable(value)}" for name, value in rows)


@command.command("verify", short_help="Check an anchor against block headers.")
@click.argument("size", type=Number(), required=False)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A stamped checkpoint, instead of SIZE.",
)
@click.option(
    "--file",
    "any_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Any stamped file, instead of SIZE. Weak hashes in its proof are named.",
)
@click.option(
    "--ots",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Its proof. [default: FILE.ots]",
)
@source_options
@log_options
def verify(
    target: Target,
    size: int | None,
    checkpoint: Path | None,
    any_file: Path | None,
    ots: Path | None,
    source: SourceOptions,
) -> int:
    """Check an anchor against Bitcoin block headers, and say exactly what it shows.

    SIZE is that of an anchored checkpoint: it and its proof are fetched, and it must be of the log's tree.
    With --checkpoint or --file nothing is fetched from the log. The claim is the earliest block whose Merkle
    root the proof leads to.

    \b
    Examples:
      muniment anchor verify 1000 --headers headers.bin
      muniment anchor verify --checkpoint checkpoint-1000 --bitcoin-rest http://127.0.0.1:8332
      muniment anchor verify --file contract.pdf --headers headers.bin

    Exit code 0 when it holds with 6 confirmations or more, 1 when it does not hold or when nothing in it is of a kind
    that is known here, 3 when there are only promises or
    too few confirmations, 4 without a source of headers that answers.
    """
    if sum(given is not None for given in (size, checkpoint, any_file)) != 1:
        raise click.UsageError("give one of SIZE, --checkpoint FILE and --file FILE")
    anchor_library()
    headers = source.open()
    if any_file is not None:
        name, check = str(any_file), _check_file(any_file, ots, headers)
    elif checkpoint is not None:
        name, check = str(checkpoint), _check_checkpoint(checkpoint, ots, headers, target.policy())
    else:
        name, check = f"anchor {size}", _check_size(target, size or 0, headers)
    hint = f"\n{NO_SOURCE}" if check.state == "no_source" and headers is None else ""
    target.show({"checked": name, **check.to_json()}, f"{name}: {check.state}\n{printable(check.claim)}{hint}")
    return exit_code([check])


def _check_file(path: Path, ots: Path | None, headers: HeaderSource | None) -> AnchorCheck:
    from muniment.anchor.check import check_file

    proof = _proof(path, ots)
    try:
        with path.open("rb") as file:
            return check_file(file, proof, headers)
    except OSError as error:
        raise _unreadable(path, error) from error


def _check_checkpoint(path: Path, ots: Path | None, headers: HeaderSource | None, policy: Policy) -> AnchorCheck:
    """Check a checkpoint that a log key of the policy signed; witnesses may have signed it after it was stamped."""
    from muniment.anchor.check import check_anchor

    note = _read(path, MAX_NOTE)
    Policy(policy.logs).verify(note)
    return check_anchor(note, _proof(path, ots), headers)


def _check_size(target: Target, size: int, headers: HeaderSource | None) -> AnchorCheck:
    from muniment.anchor.check import check_anchor

    with target.open() as client:
        files = client.anchor_files(size)
    return check_anchor(files.note, files.ots, headers)


def _proof(path: Path, ots: Path | None) -> bytes:
    return _read(ots or path.with_name(f"{path.name}.ots"), MAX_OTS)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > most:
        raise CliError(EXIT_USAGE, "unreadable", f"{path} is larger than {most} bytes")
    return data


def _unreadable(path: Path, error: OSError) -> CliError:
    return CliError(EXIT_USAGE, "unreadable", f"cannot read {path}: {error.strerror}")
