"""`muniment append`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muniment.cli.files import write_output
from muniment.cli.options import Target, log_options
from muniment.cli.output import EXIT_GUARD, EXIT_UNREACHABLE, EXIT_USAGE, CliError, emit, explain
from muniment.errors import EventRefused, FormatError, MunimentError, Unavailable, Unreachable
from muniment.event import EventLeaf, format_time, parse_event, parse_leaf
from muniment.receipt import Receipt

if TYPE_CHECKING:
    from muniment.client import Client

MAX_INPUT = 16 * 1024 * 1024


@click.command("append", short_help="Append an entry and verify its proof.")
@click.argument("entry", nargs=-1, required=True)
@click.option(
    "--receipt",
    "receipt_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the receipt here.",
)
@click.option(
    "--idempotency-key", metavar="KEY", help="Repeat an append whose outcome is unknown without logging it twice."
)
@log_options
def command(target: Target, entry: tuple[str, ...], receipt_file: Path | None, idempotency_key: str | None) -> None:
    """Append one entry, verify the proof that comes back, and say where the entry is.

    ENTRY of an event log is name=value pairs (values are strings; name:=value is JSON), or a JSON object, or @FILE, or
    - for stdin. ENTRY of a raw log is the text of the leaf, or @FILE or - for its exact bytes.

    \b
    Examples:
      muniment append actor=alice action=invoice.approve amount:=1200 --receipt receipt.json
      muniment append '{"actor":"alice","action":"invoice.approve"}'
      muniment append @event.json
      echo hello | muniment append - --log releases
    """
    with target.open() as client:
        if client.log_info().kind == "raw":
            sent: Any = _raw(entry)
        else:
            sent = _event(entry)
        key = idempotency_key or _new_key()
        receipt = _append(client, sent, key, receipt_file)
    try:
        _keep(receipt, receipt_file)
        target.show(receipt.to_json(), _text(target, receipt, receipt_file))
    except OSError as error:
        error.add_note(
            f"Entry {receipt.index} of {receipt.origin} is logged: muniment receipt {receipt.index} gets its receipt."
        )
        raise


def _append(client: Client, sent: Any, key: str, receipt_file: Path | None) -> Receipt:
    try:
        return client.append(sent, idempotency_key=key)
    except EventRefused as error:
        raise _bad_event(error) from error
    except MunimentError as error:
        if error.receipts:
            raise _logged(explain(error), error.receipts[0], receipt_file) from error
        if isinstance(error, Unreachable | Unavailable):
            raise _unknown(explain(error), key) from error
        raise


def _logged(error: CliError, receipt: Receipt, receipt_file: Path | None) -> CliError:
    """Return the error for an entry that is logged, and proved by itself; its receipt reaches the caller."""
    _keep(receipt, receipt_file)
    kept = "" if receipt_file is None else f", receipt {receipt_file}"
    hint = f"{error.hint}\nThe entry is logged all the same: entry {receipt.index} of {receipt.origin}{kept}."
    found = error.extra | {"receipt": receipt.to_json()}
    return CliError(error.exit_code, error.code, error.message, hint.lstrip(), **found)


def _keep(receipt: Receipt, receipt_file: Path | None) -> None:
    """Write the receipt of an entry that is logged; where that fails, print it. Raises CliError."""
    if receipt_file is not None:
        try:
            write_output(receipt_file, str(receipt))
        except CliError as error:
            emit(receipt.to_json())
            error.hint = f"Entry {receipt.index} of {receipt.origin} is logged: its receipt is what was printed."
            raise


def _new_key() -> str:
    from muniment._flows.writes import new_key

    return new_key()


def _unknown(error: CliError, key: str) -> CliError:
    """Return the error for an append that may or may not have happened."""
    if error.exit_code not in (EXIT_UNREACHABLE, EXIT_GUARD):
        return error
    again = f"To try again without logging it twice, add --idempotency-key {key}"
    return CliError(error.exit_code, error.code, error.message, f"{error.hint}\n{again}".lstrip(), idempotency_key=key)


def _text(target: Target, receipt: Receipt, receipt_file: Path | None) -> str:
    entry = parse_leaf(receipt.leaf)
    when = f" at {format_time(entry.logged_at)}" if isinstance(entry, EventLeaf) else ""
    signer = receipt.checkpoint.rstrip("\n").rpartition("\n")[2].split(" ")[1]
    lines = [
        f"Logged: entry {receipt.index} of {receipt.origin}{when}.",
        f"Proved: signed by {signer}, included in the tree of size {receipt.tree_size}, exactly what was sent.",
    ]
    if receipt_file is not None:
        lines += [f"Receipt: {receipt_file}", f"Next: muniment verify {receipt_file}{_policy(target)}"]
    else:
        lines.append(target.suggest(f"receipt {receipt.index} -o receipt-{receipt.index}.json"))
    return "\n".join(lines)


def _policy(target: Target) -> str:
    return f" --policy {target.policy_file}" if " --policy " in target.flags else ""


# --- what to append ---------------------------------------------------------------------------------------------------


def _raw(entry: tuple[str, ...]) -> bytes:
    if len(entry) != 1:
        raise CliError(EXIT_USAGE, "usage", "a raw log takes one leaf: its text, @FILE, or - for stdin")
    found = _file(entry[0])
    leaf = entry[0].encode("utf-8", "surrogateescape") if found is None else found
    if not leaf:
        raise CliError(EXIT_USAGE, "empty_entry", "a leaf has at least one byte")
    return leaf


def _event(entry: tuple[str, ...]) -> dict[str, Any]:
    try:
        if len(entry) == 1:
            found = _file(entry[0])
            if found is not None:
                return parse_event(found)
            if entry[0].lstrip().startswith("{"):
                return parse_event(entry[0].encode("utf-8", "surrogatepass"))
        return dict(_pairs(entry))
    except EventRefused as error:
        raise _bad_event(error) from error


def _bad_event(error: FormatError) -> CliError:
    code = error.code if isinstance(error, EventRefused) else "bad_event"
    return CliError(
        EXIT_USAGE, code, f"not an event: {error}", "An event is a JSON object; muniment append --help shows examples."
    )


def _file(word: str) -> bytes | None:
    """Return the bytes that - or @FILE names, or None when `word` is neither."""
    try:
        if word == "-":
            data = sys.stdin.buffer.read(MAX_INPUT + 1)
        elif word.startswith("@"):
            with Path(word[1:]).open("rb") as file:
                data = file.read(MAX_INPUT + 1)
        else:
            return None
    except OSError as error:
        raise CliError(EXIT_USAGE, "unreadable", f"cannot read {word}: {error.strerror}") from error
    if len(data) > MAX_INPUT:
        raise CliError(
            EXIT_USAGE, "entry_too_large", f"{word} is larger than {MAX_INPUT} bytes: log a digest of it instead"
        )
    return data


def _pairs(words: tuple[str, ...]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name.removesuffix(":"):
            hint = "Write name=value, name:=JSON, a JSON object, @FILE, or - for stdin."
            raise CliError(EXIT_USAGE, "usage", f"not part of an event: {word!r}", hint)
        is_json = name.endswith(":")
        name = name.removesuffix(":")
        if name in event:
            raise CliError(EXIT_USAGE, "duplicate_name", f"{name!r} is given twice")
        event[name] = _json_value(word, value) if is_json else value
    return event


def _json_value(word: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise CliError(EXIT_USAGE, "invalid_json", f"not JSON after := in {word!r}") from error
