"""CSV (RFC 4180), both ways: records of a text that is imported, and entries as a text that is exported.

Of entries there is a column for each member that occurs, and no cell that a spreadsheet would obey. Where rows are
sent as they are read, which members will occur is not known: there each entry has the same columns.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from muniment.errors import FormatError
from muniment.rowtext import inert_json
from muniment.verify import printable

_FIXED = ("index", "leaf_hash", "logged_at")
_OURS = (*_FIXED, "own", "leaf", "hidden")
COLUMNS = ("index", "leaf_hash", "logged_at", "event", "own", "leaf")
"""Of rows that are sent as they are read. `event` and `own` are JSON."""
_FORMULA = re.compile("[=+@\t\r\n-]|[\uff1d\uff0b\uff20\uff0d]")
"""How a cell begins that spreadsheets take for a formula, in full width too."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def records(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the records in lines, each with its line end; a record may have several. Raises FormatError."""
    try:
        yield from csv.reader(lines, strict=True, delimiter=delimiter)
    except csv.Error as error:
        raise FormatError(str(error)) from error


def write_csv(file: IO[str], rows: Iterable[dict[str, Any]]) -> int:
    """Write rows with a column for each member that occurs, and return their number.

    Which ones do is known only at the end, so rows wait on disk.
    """
    columns: set[str] = set()
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        for row in rows:
            flat = _flat(row)
            columns |= flat.keys()
            spool.write(json.dumps(flat) + "\n")
            count += 1
        spool.seek(0)
        names = [*_FIXED, *sorted(columns - set(_FIXED))]
        shown = printable if file.isatty() else str
        file.write(csv_line(map(shown, names)))
        for line in spool:
            flat = json.loads(line)
            file.write(csv_line(shown(flat.get(name, "")) for name in names))
    return count


def csv_line(cells: Iterable[str]) -> str:
    """Return cells as a line, with its newline: each is shown as it is, and none is a formula to a spreadsheet."""
    # With "\r\n" at the end the csv module quotes cells that hold a "\r"; with "\n" alone it would split the row there.
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(map(_inert, cells))
    return text.getvalue().removesuffix("\r\n") + "\n"


def fixed_line(row: dict[str, Any]) -> str:
    """Return a row (see :mod:`muniment.rowtext`) as a line with the cells of COLUMNS. No cell has a line break."""
    return csv_line(
        value if isinstance(value, str) else inert_json(json.dumps(value, ensure_ascii=False))
        for value in (row.get(name, "") for name in COLUMNS)
    )


def _inert(cell: str) -> str:
    """Return a cell that is shown and not computed. A number may begin with a sign."""
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def _flat(row: dict[str, Any]) -> dict[str, str]:
    flat = {name: str(row[name]) for name in _FIXED if name in row}
    for name, value in (row.get("event") or {}).items():
        flat[_column(name)] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for name in ("own", "hidden"):
        if name in row:
            flat[name] = json.dumps(row[name], ensure_ascii=False)
    if "leaf" in row:
        flat["leaf"] = row["leaf"]
    return flat


def _column(name: str) -> str:
    """Return the column of a member. Those named like one of ours, or like what that makes of them, get a prefix."""
    return f"event.{name}" if name in _OURS or name.startswith("event.") else name
