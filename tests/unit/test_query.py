"""Queries: the examples of docs/search.md, what is refused and where, and an index that can't lose what the scan finds."""

from __future__ import annotations

import contextlib
import json
import operator
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment.errors import QueryError
from muniment.query import MAX_LENGTH, MAX_TERMS, indexed_words, is_digits, parse_query, scalars, words_of
from tests.unit.strategies import events, number_literals, texts
from tests.unit.strategies import scalars as values

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text("utf-8")
EVENTS = [json.loads(line) for line in re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()]  # type: ignore[index]
EXAMPLES = re.findall(r"^\| `(.+?)` \| ((?:\d ?)+|none|refused at \d+) \|", PAGE, re.MULTILINE)


def found(query: str, event: Any) -> bool:
    return parse_query(query).matches(event)


def quoted(text: str) -> str:
    return json.dumps(text)


@pytest.mark.parametrize(("query", "expected"), EXAMPLES)
def test_examples_of_the_page(query: str, expected: str) -> None:
    if expected.startswith("refused"):
        with pytest.raises(QueryError) as refused:
            parse_query(query)
        assert refused.value.position == int(expected.rsplit(maxsplit=1)[-1])
    else:
        assert [at for at, event in enumerate(EVENTS) if found(query, event)] == [
            int(at) for at in expected.split() if at != "none"
        ]


def test_every_row_of_the_page_is_an_example() -> None:
    table = PAGE.partition("## Examples")[2].partition("\n## ")[0]
    assert len(EXAMPLES) == table.count("\n| `") > 30


@pytest.mark.parametrize(
    ("query", "position"),
    [
        ("a: b", 2), ("a:b -", 5), ("- a:b", 1), ("a..b:c", 0), (".a:b", 0), ('"a"b', 3), ('a"b', 1), ('a:b"c"', 3),
        ('a:"b"*', 5), ('a:"b"c:d', 5), ('a:"\\x"', 3), ('"a\nb"', 2), ('"\\ud800"', 0), ("\ud800", 0), ("a:b \udfff", 4),
        ("a:>", 3), ("a:<=x", 4), ("a:>1e400", 3), ("a:>01", 3), ("a:>9007199254740992", 3), ("a:>true", 3),
        ('a:>"1"', 3), ("...", 0), ('a:b ""', 4), ('"\u200b"', 0), ('é:x "', 4), ("😀:x :y", 4),
    ],
)  # fmt: skip
def test_refused_with_the_position(query: str, position: int) -> None:
    with pytest.raises(QueryError, match="at position") as refused:
        parse_query(query)
    assert refused.value.position == position


@pytest.mark.parametrize(
    ("query", "event", "expected"),
    [
        ("", {"a": 1}, True),
        (" \u3000\t", {"a": 1}, True),
        ("a:b:c", {"a": "b:c"}, True),
        ("a:b**", {"a": "b*c"}, True),
        ("a:b**", {"a": "bc"}, False),
        ('a:"b*"', {"a": "b*"}, True),
        ('a:">1"', {"a": ">1"}, True),
        ("a:-1", {"a": -1}, True),
        ("a:-0", {"a": 0}, True),
        ("a:01", {"a": 1}, False),
        ("a:1e400", {"a": "1e400"}, True),
        ("a:true", {"a": 1}, False),
        ("a:1", {"a": True}, False),
        ("a:>0", {"a": True}, False),
        ("a:>0", {"a": "1"}, False),
        ("a:>0.1", {"a": [0, {"b": 9}, 0.25]}, True),
        ("a:<=9007199254740991", {"a": 2**53 - 1}, True),
        ("a:null", {"a": "null"}, True),
        ('a:"null"', {"a": None}, False),
        ("a:*", {"a": {"b": 1}}, False),
        ("a:*", {"a": []}, False),
        ('a:""', {"a": ""}, True),
        ('"":x', {"": "x"}, True),
        ('"".a:x', {"": {"a": "x"}}, True),
        ("a.b:x", {"a.b": "x"}, False),
        ('"a.b":x', {"a": {"b": "x"}}, False),
        ('"a:b\\"":x', {'a:b"': "x"}, True),
        ("from:x limit:y __proto__:z", {"from": "x", "limit": "y", "__proto__": "z"}, True),
        ('"\'; DROP TABLE logs; --"', {"a": "drop table logs"}, True),
        ("--x", {"a": "x"}, False),
        ('a:"\\u0000"', {"a": "\0"}, True),
        ("b", {"a": "a\0b"}, True),
        ("b", {"a": "\u202eb\u202c"}, True),
        ("STRASSE", {"a": "Straße"}, True),
        ("a", {"a": {"b": ["x", "A"]}}, True),
        ('"x y"', {"a": ["x", {"b": "y"}]}, True),
        ('"x y"', {"a": "x", "b": "y"}, False),
        ("12", {"a": "x-12"}, False),
        ("x-12", {"a": "12 x"}, True),
        ("12", {"a": "at\u300012"}, True),
        ('"12 13"', {"a": "12-13"}, False),
        ("12", {"a": 12}, False),
        ("true", {"a": True}, False),
        ("a", {"a": "b"}, False),
    ],
)
def test_what_is_found(query: str, event: dict[str, Any], expected: bool) -> None:
    assert found(query, event) is expected


def test_limits() -> None:
    assert len(parse_query("a " * MAX_TERMS).terms) == MAX_TERMS
    with pytest.raises(QueryError) as refused:
        parse_query("a " * MAX_TERMS + "a")
    assert refused.value.position == 2 * MAX_TERMS
    assert parse_query("a" * MAX_LENGTH).terms
    with pytest.raises(QueryError) as refused:
        parse_query("a" * (MAX_LENGTH + 1))
    assert refused.value.position == MAX_LENGTH


@given(events)
def test_an_event_is_found_by_each_of_its_values(event: dict[str, Any]) -> None:
    for path, value in scalars(event):
        where = ".".join(map(quoted, path))
        text = quoted(value) if isinstance(value, str) else json.dumps(value)
        for query in (f"{where}:{text}", f"{where}:*"):
            assert found(query, event)
            assert not found(f"-{query}", event)


@given(events, texts)
def test_an_event_is_found_by_each_of_its_words(event: dict[str, Any], text: str) -> None:
    event["text"] = text
    for word in indexed_words(text):
        assert found(quoted(word), event)
    words = words_of(text)
    if words and not all(map(is_digits, words)):
        assert found(quoted(text), event)


@given(texts)
def test_what_an_index_has_of_a_text_is_in_the_text(text: str) -> None:
    assert indexed_words(text) <= words_of(text)
    assert {word for word in words_of(text) if not is_digits(word)} <= indexed_words(text)


@given(number_literals, values)
def test_numbers_compare_as_numbers(literal: str, value: Any) -> None:
    """One of <, = and > holds of two numbers; none of another value."""
    try:
        holds = [found(f"a:{order}{literal}", {"a": value}) for order in ("<", ">", "<=", ">=")]
    except QueryError:
        return
    if type(value) in (int, float):
        assert holds == [
            value < float(literal),
            value > float(literal),
            value <= float(literal),
            value >= float(literal),
        ]
        assert found(f"a:{literal}", {"a": value}) is (value == float(literal))
    else:
        assert not any(holds)


@given(st.text(max_size=20) | st.text(alphabet='ab:."-*<>1 \\', max_size=20))
def test_any_text_is_a_query_or_refused_with_its_position(text: str) -> None:
    with contextlib.suppress(QueryError):
        parse_query(text).matches({"a": "b"})
        return
    with pytest.raises(QueryError) as refused:
        parse_query(text)
    assert 0 <= refused.value.position <= len(text)


def test_values_of_a_kind_are_told_apart() -> None:
    """A set of Python's holds 1, 1.0 and True as one value."""
    for event, yes, no in (
        ({"a": [True, "1"]}, ("a:true", 'a:"1"', "a:1"), ("a:1.5", "a:false", "a:null", 'a:"true"', "a:0")),
        ({"a": [1, None]}, ("a:1", "a:1.0", "a:null"), ("a:true", 'a:"1"', "a:false")),
        ({"a": ["true", 0]}, ("a:true", "a:0", 'a:"true"', "a:-0"), ("a:false", 'a:"0"')),
        ({"a": -0.0}, ("a:0", "a:-0"), ("a:false",)),
    ):
        assert [text for text in yes if not parse_query(text).matches(event)] == []
        assert [text for text in no if parse_query(text).matches(event)] == []


def test_many_values_of_one_member_are_asked_as_few_are() -> None:
    """They are put in order once for all terms: what holds must be what asking each value would say."""
    random = Random(5)
    numbers = [-3, -0.5, 0, 1, 1.5, 7, 2**53 - 1]
    texts = ["", "a", "ab", "abc", "b", "\U0010ffff", "a\U0010ffff", "é", "7", "true"]
    for _ in range(300):
        values = random.choices([*numbers, *texts, True, False, None], k=random.randrange(6))
        order, number = random.choice(["<", "<=", ">", ">="]), random.choice(numbers)
        start = random.choice([*texts[1:], "abcd", "\uffff"])
        holds = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[order]
        wanted = {
            f"n:{order}{number!r}": any(type(value) in (int, float) and holds(value, number) for value in values),
            f"n:{start}*": any(isinstance(value, str) and value.startswith(start) for value in values),
        }
        for query, expected in wanted.items():
            assert parse_query(query).matches({"n": values}) is expected, (query, values)


def test_words_with_and_without_digits_are_split_apart() -> None:
    """Both ways to split one member, in one query and in either order."""
    event = {"ref": "inv-19", "note": "order 18"}
    for query, expected in {
        "19": False,
        '"inv 19"': True,
        '"inv 19" -19': True,
        '-19 "inv 19"': True,
        '"inv 19" 19': False,
        '18 "order 18" -19': True,
    }.items():
        assert parse_query(query).matches(event) is expected, query
