"""Events as a table that fits the terminal: a heading, a row for each, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from muniment.names import named
from muniment.verify import printable

MOST = 40
"""Columns of the terminal for one member."""
LEAST = 8
_GAP = 2
_LONG = 200
"""Characters of a value that are looked at. More are never shown, and a value may have 64 KiB."""


class Row(NamedTuple):
    """What is always shown, and the members of an event."""

    fixed: tuple[str, ...]
    event: dict[str, Any]


class Table(NamedTuple):
    """The lines of a table, and the names of members for which it had no room."""

    lines: list[str]
    left_out: list[str]


def table(fixed: tuple[str, ...], rows: Sequence[Row]) -> Table:
    """Return rows as a table. The members that most events have come first, and the last ones are left out."""
    counted = Counter(name for row in rows for name in row.event)
    names = [name for name, _ in counted.most_common()]
    columns = [[head, *(row.fixed[at] for row in rows)] for at, head in enumerate(fixed)]
    columns += [_column(name, rows, fixed) for name in names[: _room()]]
    widths = _fitted([max(map(_width, column)) for column in columns], len(fixed))
    lines = ["  ".join(map(_cell, cells, widths)).rstrip() for cells in zip(*columns[: len(widths)], strict=True)]
    return Table(lines, [named(name[:_LONG]) for name in names[len(widths) - len(fixed) :]])


def _room() -> int:
    """Return how many members can have room at all."""
    return 1 + _terminal() // (1 + _GAP)


def _terminal() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _column(name: str, rows: Sequence[Row], fixed: tuple[str, ...]) -> list[str]:
    heading = f"event.{name}" if name in fixed else named(name[:_LONG])
    return [heading, *(_shown(row.event[name]) if name in row.event else "" for row in rows)]


def _shown(value: Any) -> str:
    """Return a value. A text is in quotes when it would look like nothing, or like a value of another kind."""
    if isinstance(value, str):
        bare = value and value == value.strip() and not value.startswith('"') and not _says_another(value[:_LONG])
        return printable(value[:_LONG]) if bare else printable(json.dumps(value[:_LONG], ensure_ascii=False))
    return printable(json.dumps(value, ensure_ascii=False)[:_LONG])


def _says_another(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# --- widths -----------------------------------------------------------------------------------------------------------


def _fitted(widths: list[int], fixed: int) -> list[int]:
    """Return widths that fit: members get narrower, the widest first; then the last ones go."""
    room = _terminal()
    widths = widths[:fixed] + [min(width, MOST) for width in widths[fixed:]]
    while len(widths) > fixed and sum(widths) + _GAP * (len(widths) - 1) > room:
        widest = max(range(fixed, len(widths)), key=widths.__getitem__)
        if widths[widest] > LEAST:
            widths[widest] -= 1
        elif len(widths) > fixed + 1:
            widths.pop()
        else:
            break
    return widths


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _cell(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width) if _width(text) <= width else set_cell_size(text, width - 1) + "…"
