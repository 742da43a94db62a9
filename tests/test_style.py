"""What the linter does not see: lines that are too long to read, and sentences that do not say who acts."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("client", "service")
"""The folders that are held to this."""

WIDTH = 120
NO_ACTOR = re.compile(r"\b(?:whoever|whomever|somebody|someone|nobody)\b", re.IGNORECASE)
"""Words for an actor that has a name: caller, operator, reader, client, process."""


def sources(suffix: str) -> list[Path]:
    """Every file of the folders that has this suffix."""
    found = [path for root in ROOTS for path in sorted((ROOT / root).rglob(f"*{suffix}"))]
    assert found
    return found


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each comment, and of each string that is a statement by itself: what is read, not printed."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for at, line in enumerate(node.value.value.split("\n")):
                yield node.lineno + at, line


def test_no_line_is_too_long() -> None:
    """Comments and docstrings too: the formatter leaves them as they are."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for path in sources(".py")
        for number, line in enumerate(path.read_text().split("\n"), 1)
        if len(line) > WIDTH
    ]
    assert not wrong, "\n".join(wrong)


def test_comments_name_who_acts() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources(".py")
        for number, line in prose(path.read_text())
        if NO_ACTOR.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_pages_name_who_acts() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in sources(".md")
        for number, line in enumerate(path.read_text().split("\n"), 1)
        if NO_ACTOR.search(line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["# Whoever asks", '"""For\n\nsomebody."""', "def f():\n    '''Nobody.'''\n    pass\n"]
)
def test_such_words_are_found(text: str) -> None:
    assert [line for _, line in prose(text) if NO_ACTOR.search(line)]


def test_words_that_are_printed_are_not_comments() -> None:
    assert not [line for _, line in prose('print("nobody knows")\n') if NO_ACTOR.search(line)]
