"""Cells of CSV: none is a formula, wherever a reader cuts the line, and each is the same again where it is imported."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.csvtext import csv_line, defused, fixed_line, is_exported, restored, write_csv

SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212"
BLANKS = " \t\r\n\v\f'\"\0\x1b\x7f\x85\xa0\xad\u200b\u200f\u202e\u2066\u3000\ufeff"
TEXTS = st.text(st.sampled_from(SIGNS + BLANKS + ";;;,|a1")) | st.text()


def computed(line: str) -> list[str]:
    """The pieces that a reader would compute: one that knows no quotes, and drops what is blank or unseen."""
    pieces = [piece.lstrip(BLANKS.replace("'", "")) for piece in re.split("[;\t\r\n]", line)]
    return [piece for piece in pieces if piece and piece[0] in SIGNS]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("", ""),
        ("plain; text", "plain; text"),
        ("=1", "'=1"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        (" =1", "' =1"),
        ("\ufeff=1", "'\ufeff=1"),
        ('"=1"', '\'"=1"'),
        ("\uff1d1", "'\uff1d1"),
        ("\tx", "'\tx"),
        ("-5", "-5"),
        ("-1.5e-7", "-1.5e-7"),
        ("-5x", "'-5x"),
        ("+49 30", "'+49 30"),
        (";=1", ";'=1"),
        ("x;=1", "x;'=1"),
        ("x; =1;\t@y", "x; '=1;\t'@y"),
        ("x;-5", "x;'-5"),
        ("x;'=1", "x;''=1"),
        ('x;"=1', "x;\"'=1"),
        ("x\n=1", "x\n'=1"),
        ("x\r\n- y", "x\r\n'- y"),
        ("x\t\uff20y", "x\t'\uff20y"),
        ("a=b; c-d", "a=b; c-d"),
        ("\t=1", "'\t'=1"),
    ],
)
def test_a_cell(cell: str, shown: str) -> None:
    assert (defused(cell), restored(shown)) == (shown, cell)


@given(TEXTS)
def test_a_cell_is_the_same_again(cell: str) -> None:
    assert restored(defused(cell)) == cell
    assert restored(defused(defused(cell))) == defused(cell)


@given(st.lists(TEXTS, max_size=4))
def test_no_piece_of_a_line_is_computed(cells: list[str]) -> None:
    """A row begins with an index, a heading with its name."""
    line = csv_line(["0", *cells])
    assert computed(line) == []
    read = next(csv.reader(io.StringIO(line, newline=""), strict=True))
    assert [restored(cell) for cell in read] == ["0", *cells]
    numbers = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
    assert not [
        cell for cell in read if cell[:1] in [*SIGNS, "\t", "\r", "\n"] and cell and not numbers.fullmatch(cell)
    ]


JSON = st.recursive(TEXTS | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))


@given(st.dictionaries(TEXTS, JSON, max_size=3))
def test_json_in_a_cell_is_the_same_value(event: dict[str, object]) -> None:
    line = fixed_line({"index": 0, "leaf_hash": "00", "logged_at": "2026", "event": event})
    assert computed(line) == []
    assert json.loads(next(csv.reader([line], strict=True))[3]) == event


@given(st.lists(st.dictionaries(TEXTS, JSON, max_size=3), max_size=3))
def test_a_table_is_the_same_again(events: list[dict[str, object]]) -> None:
    file = io.StringIO(newline="")
    fixed = ({"index": at, "leaf_hash": "00", "logged_at": "2026"} for at in range(len(events)))
    assert write_csv(file, ({**row, "event": event} for row, event in zip(fixed, events, strict=True))) == len(events)
    assert computed(file.getvalue()) == []
    names, *rows = csv.reader(io.StringIO(file.getvalue(), newline=""), strict=True)
    assert is_exported(names)
    for row, event in zip(rows, events, strict=True):
        cells = dict(zip(map(restored, names), map(restored, row), strict=True))
        for name, value in event.items():
            ours = name in ("index", "leaf_hash", "logged_at", "own", "leaf", "hidden") or name.startswith("event.")
            cell = cells[f"event.{name}" if ours else name]
            assert (cell if isinstance(value, str) else json.loads(cell)) == value


@pytest.mark.parametrize("part", ["\n", ";", "'", "\t;", " ", ";'"])
def test_a_long_run_is_looked_at_once(part: str) -> None:
    """From each of its places it would take minutes, which the server does not have."""
    cell = part * 300_000
    assert restored(defused(cell)) == cell
    assert restored(defused(f"{cell}=")) == f"{cell}="
    assert fixed_line({"event": {"a": cell}}).endswith("\n")


def test_cells_of_others_are_left_alone() -> None:
    assert is_exported(["index", "leaf_hash", "logged_at", "x"])
    for names in ([], ["index"], ["name", "index", "leaf_hash", "logged_at"], ["index", "logged_at", "leaf_hash"]):
        assert not is_exported(names)
