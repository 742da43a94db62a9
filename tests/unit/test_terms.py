"""The search index can't lose what a scan finds: what matches a query has a term in each of its groups."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given

from muniment.query import parse_query, scalars, words_of
from muniment.strictjson import canonical
from muniment_server.terms import CROWDED, MOST_TERMS, groups_of, terms_of
from tests.service.searching import events_of, queries_of
from tests.unit.strategies import events, numbers


def proposed(query: str, event: Any) -> bool:
    """Whether the index would propose the event."""
    terms = terms_of(canonical(event))
    groups = groups_of(parse_query(query))
    return all(any(first <= term < last for term in terms for first, last in group) for group in groups)


@pytest.mark.parametrize(
    ("query", "event"),
    [
        ("a:x", {"a": "y"}),
        ("a:x", {"b": "x"}),
        ('a:"1"', {"a": 1}),
        ("a:true", {"a": "True"}),
        ("a:>1", {"a": 1}),
        ("a:<1", {"a": 1}),
        ("a:<1", {"a": "0"}),
        ("a:<0", {"a": -0.0}),
        ("a:x*", {"a": "wx"}),
        ("a:*", {"a": {"b": 1}}),
        ("x", {"a": "xy"}),
        ("x", {"a": 1, "b": "y x2"}),
        ("17", {"a": "inv-17"}),
    ],
)
def test_what_does_not_match_is_not_proposed(query: str, event: dict[str, Any]) -> None:
    assert not proposed(query, event)


LONG = "x" * 47 + "é" + "y" * 40


@pytest.mark.parametrize(
    ("query", "event"),
    [
        (f"a:{LONG}", {"a": LONG}),
        (f"a:{LONG[:50]}*", {"a": LONG}),
        (f"a:{LONG[:60]}*", {"a": LONG[:61]}),
        (f"a:{LONG[:47]}*", {"a": LONG}),
        (LONG, {"a": LONG.upper()}),
        (LONG[:48], {"a": LONG[:48]}),
        ("a:<=-0.0", {"a": 0}),
        ("a:>=0", {"a": -0.0}),
        ("a:>-1", {"a": -0.5}),
        ("a:*", {"a": None}),
        ("a:**", {"a": "*"}),
        ("inv-17", {"a": "inv-17"}),
        ('"17 18"', {"a": "18 17"}),
    ],
)
def test_what_matches_is_proposed(query: str, event: dict[str, Any]) -> None:
    assert parse_query(query).matches(event)
    assert proposed(query, event)


@given(events)
def test_an_event_is_proposed_for_each_of_its_values_and_words(event: dict[str, Any]) -> None:
    for path, value in scalars(event):
        where = ".".join(map(json.dumps, path))
        texts = [f"{where}:*", f"{where}:{json.dumps(value, ensure_ascii=False)}"]
        if isinstance(value, str):
            texts += [json.dumps(word) for word in words_of(value)]
        for text in texts:
            assert proposed(text, event) or not parse_query(text).matches(event)


def test_random_queries_are_proposed_where_they_match() -> None:
    random = Random(19)
    there = events_of(random, 60)
    for query in queries_of(random, 300):
        for event in there:
            if parse_query(query).matches(event):
                assert proposed(query, event), (query, event)


@given(numbers, numbers)
def test_numbers_have_the_order_of_their_terms(one: float, two: float) -> None:
    for small, large in pairwise(sorted((one, two))):
        (low,), (high,) = terms_of(canonical({"a": small})), terms_of(canonical({"a": large}))
        assert (low < high) == (small < large)


def test_an_entry_with_too_many_terms_is_a_candidate_of_every_query() -> None:
    values = list(range(MOST_TERMS))
    assert len(terms_of(canonical({"a": values}))) == MOST_TERMS
    assert terms_of(canonical({"a": [*values, -1]})) == {CROWDED}
