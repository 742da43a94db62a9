"""The hostile corpus by itself: the same for a seed every time, all of its classes in use, and a judge that can say no."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rigs.hostile import sender
from tests.rigs.hostile.case import Case, Referred
from tests.rigs.hostile.paths import tile_exists
from tests.rigs.hostile.sender import Tally, judge
from tests.rigs.suite.hostile_http import MIX, Deck
from tests.service.http_audit import tile_paths
from tests.service.http_raw import Answer

RECEIPT: dict[str, Any] = {
    "typ": "muniment/receipt@v1",
    "origin": "example.com/log",
    "index": 5,
    "leaf": "bGVhZg==",
    "inclusion": {"tree_size": 9, "hashes": [f"{n:064x}" for n in range(4)]},
    "checkpoint": "example.com/log\n9\nAAAA\n\n— example.com/log AAAA\n",
    "commitment": {"alg": "sha-256", "members": {"a": "A" * 43}},
    "disclosures": ["WyJh"],
}
WORLD = Referred([RECEIPT, RECEIPT | {"index": 6}], ["c2sp.org/tlog-proof@v1\nindex 5\n"], {"append": "mk_" + "x" * 43})


@pytest.fixture(scope="module")
def deck() -> Deck:
    return Deck(WORLD)


def test_a_seed_is_always_the_same(deck: Deck) -> None:
    again = Deck(WORLD)
    for seed in (0, 1, 999):
        assert deck.of(seed) == again.of(seed)
    assert deck.of(0) != deck.of(1)


def test_a_seed_has_five_hundred_cases_of_all_classes(deck: Deck) -> None:
    for seed in range(3):
        cases = deck.of(seed)
        assert len(cases) == 500
        assert 60 < sum(case.alone for case in cases) < 100
        assert sum(case.lie for case in cases) > 50
    assert all(len({case.name for case in module.table(WORLD)}) > 200 for module, _, _ in MIX)


@pytest.mark.parametrize("size", [1, 255, 256, 301, 65_535, 65_537])
def test_which_tiles_exist(size: int) -> None:
    there = list(tile_paths(size))
    assert all(tile_exists(path, size) for _, _, _, path in there)
    for level, _index, width, path in there:
        if width < 256:
            assert not tile_exists(path.replace(f".p/{width}", f".p/{width + 1}"), size)
            assert not tile_exists(path.partition(".p/")[0], size)
        assert not tile_exists(path.replace(f"{level}/", f"0{level}/", 1), size)


GOOD = {
    "type": "urn:muniment:error:invalid_json",
    "title": "The body is not JSON",
    "status": 422,
    "code": "invalid_json",
    "detail": "x",
    "hint": "y",
}
HEADERS = {"content-type": "application/problem+json", "cache-control": "no-store"}


def answer(line: int = 422, headers: dict[str, str] | None = None, **changes: Any) -> Answer:
    """A refusal with this status on its first line."""
    return Answer(line, HEADERS | (headers or {}), json.dumps(GOOD | changes).encode())


CASE = Case("x", b"POST /entries HTTP/1.1\r\n\r\n{", frozenset({422, 500, 405}))


def test_a_refusal_as_it_should_be_is_good() -> None:
    tally = Tally()
    judge(CASE, answer(), tally)
    assert tally.counts == {"4xx": 1}


@pytest.mark.parametrize(
    "bad",
    [
        answer(500, status=500),
        answer(400, status=400),
        answer(status=400),
        answer(code="nonsense"),
        answer(code="internal"),
        answer(hint=""),
        answer(detail=""),
        answer(headers={"cache-control": "max-age=9"}),
        answer(headers={"content-type": "text/html"}),
        answer(headers={"content-type": "text/plain"}),
        answer(headers={"allow": "GET"}),
        answer(405, status=405),
        Answer(302, {}, b""),
    ],
)
def test_any_other_is_not(bad: Answer) -> None:
    with pytest.raises(AssertionError):
        judge(CASE, bad, Tally())


def test_a_lie_that_is_believed_is_found() -> None:
    case = Case("x", b"POST /verify HTTP/1.1\r\n\r\n{}", lie=True)
    judge(case, Answer(200, {"content-type": "application/json"}, b'{"verified":false}'), Tally())
    with pytest.raises(AssertionError, match="BELIEVED"):
        judge(case, Answer(200, {"content-type": "application/json"}, b'{"verified":true}'), Tally())


def test_what_answers_announce() -> None:
    tally = Tally()
    kind, text = {"content-type": "application/json"}, {"content-type": "text/plain; charset=utf-8"}
    append = Case("x", b"POST /entries HTTP/1.1\r\n\r\n{}")
    judge(append, Answer(201, kind, b'{"origin":"o","index":7}'), tally)
    judge(append, Answer(201, kind, b'{"indices":[[8,10],[12,13]],"count":3,"checkpoint":"o\\n13\\n"}'), tally)
    judge(append, Answer(200, text, b"4"), tally)
    judge(append, Answer(201, text, b"c2sp.org/tlog-proof@v1\nextra x\nindex 3\nabc\n\np\n13\n"), tally)
    assert tally.announced == {"o": {7, 8, 9, 12}, sender.RAW: {4}, "p": {3}}
