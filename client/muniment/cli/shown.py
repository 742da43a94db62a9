"""What the records of a verified file say, for `muniment verify --show`.

A bundle is read twice: records are printed only once all of it was proved. To print them as they hold would be one
reading less, but readers, and programs behind a pipe, act on what they see before the verdict comes. The second reading
verifies again, since the file may have changed meanwhile; so no line is printed that was not proved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from tempfile import TemporaryFile
from typing import IO, Any

from muniment.cli.output import note, show
from muniment.cli.search import AT_ONCE
from muniment.cli.table import Row, table
from muniment.encoding import b64
from muniment.errors import FormatError, VerificationError
from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.policy import Policy
from muniment.receipt import Verified
from muniment.receipts import ReceiptsReader, lines_of
from muniment.receipts_report import kind_of
from muniment.rowtext import inert_json

_FIXED = ("index", "logged_at", "shown")
"""`shown` tells a member that is hidden from one that the event does not have."""


@contextmanager
def twice(name: str, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield what can be read a second time: the file, or a copy of a pipe that is removed afterwards."""
    if name != "-" and file.seekable():
        yield file
        return
    with TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def show_bundle(name: str, file: IO[bytes], policy: Policy, *, as_json: bool) -> None:
    """Print the records of a bundle that holds. Raises as the reader when it does not hold any more."""
    file.seek(0)
    found = (verified for _, verified in ReceiptsReader(lines_of(file), policy))
    try:
        (show_json if as_json else _show_table)(name, found)
    except (FormatError, VerificationError):
        note(f"{name} changed while it was read: do not rely on what stands above.")
        raise


def show_json(name: str, found: Iterable[Verified]) -> None:
    """Print an object for each record, one a line."""
    for verified in found:
        show(inert_json(json.dumps({"file": name} | _value(verified), ensure_ascii=False)) + "\n")


def _show_table(name: str, found: Iterable[Verified]) -> None:
    """Print tables under the name of the file: there may be several."""
    rows, count = iter(found), 0
    while some := list(islice(rows, AT_ONCE)):
        made = table(_FIXED, [Row(_fixed(verified), _members(verified)) for verified in some])
        show("\n".join(["" if count else f"{name}:", *made.lines]) + "\n")
        if made.left_out:
            note(f"No room for {', '.join(made.left_out)}: --json shows them.")
        count += len(some)
    if count:
        show("\n")


def _fixed(verified: Verified) -> tuple[str, ...]:
    entry = verified.entry
    time = format_time(entry.logged_at) if isinstance(entry, EventLeaf) else ""
    return str(verified.index), time, kind_of(verified)


def _members(verified: Verified) -> dict[str, Any]:
    """Return what stands in the columns of a record."""
    if isinstance(verified.entry, EventLeaf):
        return dict(verified.opened)
    if isinstance(verified.entry, OwnLeaf):
        return {"own": verified.entry.value}
    return {"leaf": verified.leaf.decode("utf-8", "backslashreplace")}


def _value(verified: Verified) -> dict[str, Any]:
    entry, value = verified.entry, {"index": verified.index, "shown": kind_of(verified)}
    if isinstance(entry, EventLeaf):
        time = format_time(entry.logged_at)
        return value | {"logged_at": time, "event": verified.opened, "hidden": list(verified.hidden)}
    return value | ({"own": entry.value} if isinstance(entry, OwnLeaf) else {"leaf": b64(verified.leaf)})
