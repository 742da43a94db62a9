"""Leaves: the log's own formats byte by byte, who may make them, and the times in them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muniment import strictjson
from muniment.encoding import b64url
from muniment.errors import FormatError
from muniment.event import (
    EVENT_TYPE,
    GENESIS_TYPE,
    EventLeaf,
    OwnLeaf,
    claims_reserved_type,
    event_leaf,
    format_time,
    genesis_leaf,
    may_be_reserved,
    parse_leaf,
    parse_time,
)
from tests.unit.samples import KEY, NOON, ORIGIN
from tests.unit.strategies import values

TIME = "2026-11-20T12:00:00.123Z"
DIGEST = b64url(bytes(range(32)))
LEAF = event_leaf(DIGEST, TIME)


# --- times --------------------------------------------------------------------------------------------------------------


def test_known_times() -> None:
    assert format_time(NOON) == TIME
    assert parse_time(TIME) == NOON
    for milliseconds, text in (
        (0, "1970-01-01T00:00:00.000Z"), (-1, "1969-12-31T23:59:59.999Z"), (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"), (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (-30_641_760_000_000, "0999-01-01T00:00:00.000Z"),
    ):  # fmt: skip
        assert format_time(milliseconds) == text
        assert parse_time(text) == milliseconds


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
@example(253_402_300_799_999)
@example(-62_135_596_800_000)
def test_times_round_trip(milliseconds: int) -> None:
    text = format_time(milliseconds)
    assert len(text) == 24
    assert parse_time(text) == milliseconds
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000 == pytest.approx(milliseconds)


@given(st.integers(0, 10**14), st.integers(0, 10**14))
def test_times_sort_as_text(one: int, other: int) -> None:
    assert (format_time(one) < format_time(other)) is (one < other)


@pytest.mark.parametrize(
    "text",
    [
        "", "2026-11-20", "2026-11-20T12:00:00Z", "2026-11-20T12:00:00.12Z", "2026-11-20T12:00:00.1234Z", "2026-11-20T12:00:00.123",
        "2026-11-20T12:00:00.123z", "2026-11-20t12:00:00.123Z", "2026-11-20 12:00:00.123Z", "2026-11-20T12:00:00.123+00:00",
        "2026-11-20T12:00:00,123Z", "2026-11-20T24:00:00.000Z", "2026-11-20T23:59:60.000Z", "2026-11-20T12:60:00.000Z",
        "2026-13-20T12:00:00.123Z", "2026-00-20T12:00:00.123Z", "2026-11-31T12:00:00.123Z", "2026-11-00T12:00:00.123Z",
        "2026-02-29T12:00:00.123Z", "0000-01-01T00:00:00.000Z", "10000-01-01T00:00:00.000Z", "-001-01-01T00:00:00.000Z",
        " 2026-11-20T12:00:00.123Z", "2026-11-20T12:00:00.123Z ", "2026-11-20T12:00:00.123Z\n", "2026-W47-5T12:00:00.123Z",
        "20261120T120000.123Z", "\uff12026-11-20T12:00:00.123Z", "\u0662026-11-20T12:00:00.123Z", "2026-11-20T12:00:00.1_3Z",
        "2026-11-20T12:00:00.123ZZ", "2026-11-20T12:00:00.123\ud800", "99:00-11-20T12:00:00Z",
    ],
    ids=ascii,
)  # fmt: skip
def test_other_spellings_of_times_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="not a time like"):
        parse_time(text)


@given(st.from_regex(r"\A[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\.[0-9]{3}Z\Z"))
def test_a_time_that_parses_is_its_own_spelling(text: str) -> None:
    try:
        milliseconds = parse_time(text)
    except FormatError:
        return
    assert format_time(milliseconds) == text


# --- the leaves of the log itself ---------------------------------------------------------------------------------------


def test_an_event_leaf_byte_by_byte() -> None:
    assert f'{{"commitment":"{DIGEST}","logged_at":"{TIME}","typ":"muniment/event@v1"}}'.encode() == LEAF
    assert strictjson.canonical(strictjson.parse(LEAF)) == LEAF
    assert len(LEAF) == 125
    assert parse_leaf(LEAF) == EventLeaf(DIGEST, NOON)


def test_a_genesis_leaf_byte_by_byte() -> None:
    leaf = genesis_leaf(ORIGIN, "event", [str(KEY.vkey)], TIME)
    assert (
        leaf
        == (
            f'{{"kind":"event","logged_at":"{TIME}","origin":"{ORIGIN}","typ":"muniment/genesis@v1","vkeys":["{KEY.vkey}"]}}'
        ).encode()
    )
    parsed = parse_leaf(leaf)
    assert isinstance(parsed, OwnLeaf)
    assert parsed.typ == GENESIS_TYPE
    assert parsed.value["origin"] == ORIGIN


@given(st.binary(min_size=32, max_size=32), st.integers(0, 253_402_300_799_999))
def test_event_leaves_round_trip(digest: bytes, milliseconds: int) -> None:
    leaf = event_leaf(b64url(digest), format_time(milliseconds))
    assert parse_leaf(leaf) == EventLeaf(b64url(digest), milliseconds)
    assert claims_reserved_type(leaf)


@pytest.mark.parametrize(
    "value",
    [
        {}, {"commitment": DIGEST}, {"logged_at": TIME}, {"commitment": DIGEST, "logged_at": TIME, "more": 1},
        {"commitment": DIGEST, "logged_at": NOON}, {"commitment": None, "logged_at": TIME}, {"commitment": DIGEST, "logged_at": [TIME]},
        {"commitment": DIGEST + "=", "logged_at": TIME}, {"commitment": b64url(bytes(31)), "logged_at": TIME},
        {"commitment": "", "logged_at": TIME}, {"commitment": DIGEST, "logged_at": "2026-11-20T12:00:00Z"},
        {"commitment": DIGEST, "logged_at": ""}, {"commitment": DIGEST[:-1] + "B", "logged_at": TIME},
    ],
    ids=str,
)  # fmt: skip
def test_a_leaf_that_says_event_but_is_none_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_leaf(strictjson.canonical(value | {"typ": EVENT_TYPE}))


def test_a_reserved_leaf_has_one_spelling() -> None:
    for leaf in (
        LEAF + b"\n", b" " + LEAF, LEAF.replace(b",", b", ", 1), LEAF.replace(b"typ", b"t\\u0079p"), LEAF.replace(b"muniment/", b"muniment\\/"),
        b'{"typ":"muniment/event@v1",' + LEAF[1:].replace(b',"typ":"muniment/event@v1"', b""),
    ):  # fmt: skip
        assert strictjson.canonical(strictjson.parse(leaf)) == LEAF
        with pytest.raises(FormatError, match="not canonical"):
            parse_leaf(leaf)
        assert claims_reserved_type(leaf)


@pytest.mark.parametrize(
    "leaf",
    [
        b"", b"{", b"hello muniment/", b'{"typ":"other/x"}', b'{"typ":["muniment/event@v1"]}', b'{"typ":null}', b'{"a":"muniment/event@v1"}',
        b'["typ","muniment/event@v1"]', b'"muniment/event@v1"', b'{"a":{"typ":"muniment/event@v1"}}', b'{"typ":"Muniment/event@v1"}',
        b'{"typ":" muniment/event@v1"}', b'{"typ":"muniment"}', b'{"typ":"x","typ2":"muniment/event@v1"}', b"\xff\xfe", b"\x00" * 9, b"\\",
    ],
)  # fmt: skip
def test_leaves_of_submitters_are_theirs(leaf: bytes) -> None:
    assert parse_leaf(leaf) is None
    assert not claims_reserved_type(leaf)


NESTED = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    "leaf",
    [
        b'{"typ":"muniment/x"}', b'{"typ":"muniment/"}', b' \t\r\n{"typ":"muniment/x"}', b'\n\n\n{ "typ" : "muniment/x" }\n',
        b'\xef\xbb\xbf{"typ":"muniment/x"}', b'{"\\u0074yp":"muniment/x"}', b'{"typ":"\\u006duniment/x"}', b'{"typ":"muniment\\/x"}',
        b'{"typ":"a","typ":"muniment/x"}', b'{"typ":"muniment/x","typ":"a"}', b'{"typ":"muniment/x","a":NaN}',
        b'{"typ":"muniment/x","a":1e400}', b'{"typ":"muniment/x","a":"\\ud800"}', b'{"typ":"muniment/x","a":"\xff"}',
        b'{"typ":"muniment/x","a":' + b"9" * 5000 + b"}", b'{"typ":"muniment/x"}{}', b'{"typ":"muniment/x"}\n{"a":1}',
        b'{"typ":"muniment/x"} trailing', b'{"typ":"muniment/x","a":"tab\tin it"}', b'{"TYP":"muniment/x"}', b'{"Typ":"muniment/x"}',
        b'{"typ":"muniment/x","a":' + NESTED + b"}", b'{"a":' + NESTED + b',"typ":"muniment/x"}', b'{"a":1,"b":[],"typ":"muniment/x"}',
        '{"typ":"muniment/x"}'.encode("utf-16"), '{"typ":"muniment/x"}'.encode("utf-16-le"), '{"typ":"muniment/x"}'.encode("utf-16-be"),
        '{"typ":"muniment/x"}'.encode("utf-32"), '\n{"typ":"muniment/x"}'.encode("utf-32-be"),
    ],
    ids=lambda leaf: str(leaf[:40]),
)  # fmt: skip
def test_leaves_that_any_reader_could_take_for_the_logs_own_are_recognised(leaf: bytes) -> None:
    assert may_be_reserved(leaf)
    assert claims_reserved_type(leaf)


@given(
    st.dictionaries(st.sampled_from(["typ", "a", "Typ"]), values, max_size=3),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_whatever_the_standard_library_reads_as_reserved_is_recognised(members: dict[str, Any], encoding: str) -> None:
    for typ in ("muniment/x", None, "other"):
        value = members | ({"typ": typ} if typ else {})
        leaf = json.dumps(value).encode(encoding)
        reserved = str(json.loads(leaf).get("typ", "")).startswith("muniment/")
        assert not reserved or claims_reserved_type(leaf)
        if not reserved:
            assert parse_leaf(leaf) is None


@given(st.binary(max_size=60) | st.text('{"typ:munime/x}\\ ', max_size=40).map(str.encode))
def test_only_format_errors_escape(leaf: bytes) -> None:
    try:
        parsed = parse_leaf(leaf)
    except FormatError:
        assert may_be_reserved(leaf)
        assert claims_reserved_type(leaf)
        return
    assert parsed is None or claims_reserved_type(leaf)
    assert parsed is None or may_be_reserved(leaf)
