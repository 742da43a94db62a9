"""CSV (RFC 4180), both ways: records of a text that is imported, and entries as a text that is exported.

Of entries there is a column for each member that occurs, and no cell that a spreadsheet would obey. Where rows are
sent as they are read, which members will occur is not known: there each entry has the same columns. What is put into
cells of an export, so that none is a formula, is taken out where it is imported; cells of others are left alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from muniment.errors import FormatError
from muniment.rowtext import inert_json
from muniment.verify import printable

_FIXED = ("index", "leaf_hash", "logged_at")
_OURS = (*_FIXED, "own", "leaf", "hidden")
COLUMNS = ("index", "leaf_hash", "logged_at", "event", "own", "leaf")
"""Of rows that are sent as they are read. `event` and `own` are JSON."""
_SIGN = "[=+@\u2212\ufe62\ufe63\ufe66\ufe6b\uff0b\uff0d\uff1d\uff20-]"
"""With what formulas begin, also as other scripts write it."""
_BLANK = r"\s'\"\x00-\x1f\x7f-\xa0\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
"""What may be dropped before a sign: white space, quotes, and what is not seen."""
_FIRST = re.compile(f"[{_BLANK}]*+{_SIGN}|'*+[\t\r\n]")
_SEPARATOR = re.compile("[;\t\r\n]")
"""Where a cell is cut whose reader separates by something else than commas: a quote behind a comma is none to it."""
_RUN = re.compile(f"([{_BLANK};]++)({_SIGN}?)")
"""Taken whole even where no sign follows: a long run is looked at once, and not from each of its places."""
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
    csv.writer(text, lineterminator="\r\n").writerow(map(defused, cells))
    return text.getvalue().removesuffix("\r\n") + "\n"


def fixed_line(row: dict[str, Any]) -> str:
    """Return a row (see :mod:`muniment.rowtext`) as a line with the cells of COLUMNS. No cell has a line break."""
    return csv_line(
        value if isinstance(value, str) else inert_json(_json(value))
        for value in (row.get(name, "") for name in COLUMNS)
    )


# --- no formula -------------------------------------------------------------------------------------------------------


def defused(cell: str) -> str:
    """Return a cell that is shown and not computed, also by readers that separate by semicolons, tabs or line breaks.

    An apostrophe is put before a cell that begins with a sign of formulas, with a tab or with a line break, and before
    each sign behind a semicolon, a tab or a line break; blanks, quotes and what is not seen may stand before the sign.
    A number is as it is. :func:`restored` undoes it: apostrophes change nothing of which places these are.
    """
    if _NUMBER.fullmatch(cell):
        return cell
    inner = _RUN.sub(_with_mark, cell) if _SEPARATOR.search(cell) else cell
    return f"'{inner}" if _FIRST.match(cell) else inner


def restored(cell: str) -> str:
    """Return the cell that :func:`defused` made this one of."""
    whole = cell[1:] if cell.startswith("'") and _FIRST.match(cell) else cell
    return _RUN.sub(_without_mark, whole) if _SEPARATOR.search(whole) else whole


def is_exported(names: Sequence[str]) -> bool:
    """Tell whether columns of these names are of an export, so that its cells are to be restored."""
    return tuple(names[: len(_FIXED)]) == _FIXED


def _with_mark(found: re.Match[str]) -> str:
    return f"{found[1]}'{found[2]}" if found[2] and _SEPARATOR.search(found[1]) else found[0]


def _without_mark(found: re.Match[str]) -> str:
    return found[1].removesuffix("'") + found[2] if found[2] and _SEPARATOR.search(found[1]) else found[0]


def _json(value: Any) -> str:
    """Return a value as JSON in which no semicolon leads to a sign: it is escaped, and the value is the same."""
    text = json.dumps(value, ensure_ascii=False)
    return _RUN.sub(_escaped, text) if ";" in text else text


def _escaped(found: re.Match[str]) -> str:
    return found[0].replace(";", "\\u003b") if found[2] else found[0]


# --- rows -------------------------------------------------------------------------------------------------------------


def _flat(row: dict[str, Any]) -> dict[str, str]:
    flat = {name: str(row[name]) for name in _FIXED if name in row}
    for name, value in (row.get("event") or {}).items():
        flat[_column(name)] = value if isinstance(value, str) else _json(value)
    for name in ("own", "hidden"):
        if name in row:
            flat[name] = _json(row[name])
    if "leaf" in row:
        flat["leaf"] = row["leaf"]
    return flat


def _column(name: str) -> str:
    """Return the column of a member. Those named like one of ours, or like what that makes of them, get a prefix."""
    return f"event.{name}" if name in _OURS or name.startswith("event.") else name
