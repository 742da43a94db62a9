"""Times as callers give them: which are taken, where their borders are, and what the others are told."""

from __future__ import annotations

import pytest

from muniment.errors import FormatError
from muniment.event import format_time
from muniment.times import check_span, milliseconds


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-20", "2026-11-20T00:00:00.000Z"),
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00.000Z"),
        ("2026-11-20T12:00:00.5Z", "2026-11-20T12:00:00.500Z"),
        ("2026-11-20T12:00:00.123Z", "2026-11-20T12:00:00.123Z"),
        ("2026-11-20T12:00:00.123000000Z", "2026-11-20T12:00:00.123Z"),
        ("2026-11-20T12:00:00.123000001Z", "2026-11-20T12:00:00.124Z"),
        ("2026-11-20T23:59:59.9999Z", "2026-11-21T00:00:00.000Z"),
        ("1969-12-31T23:59:59.9991Z", "1970-01-01T00:00:00.000Z"),
        ("1969-12-31T23:59:59.001Z", "1969-12-31T23:59:59.001Z"),
        ("2026-11-20T00:30:00+01:00", "2026-11-19T23:30:00.000Z"),
        ("2026-11-20T12:00:00-05:30", "2026-11-20T17:30:00.000Z"),
        ("2026-11-20T12:00:00-00:00", "2026-11-20T12:00:00.000Z"),
        ("0001-01-01", "0001-01-01T00:00:00.000Z"),
    ],
)
def test_a_time(text: str, same: str) -> None:
    assert format_time(milliseconds(text)) == same


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-11-20 12:00:00Z", "a T stands between"),
        ("2026-11-20T12:00:00 01:00", "%2B"),
        ("2026-11-20T12:00:00", "a time is like"),
        ("2026-11-20T12:00Z", "a time is like"),
        ("2026-11-20T12:00:00.Z", "a time is like"),
        ("2026-11-20T12:00:00.0000000001Z", "a time is like"),
        ("2026-11-20T12:00:00+24:00", "a time is like"),
        ("2026-11-20T12:00:00Z\n", "a time is like"),
        ("\u0662026-11-20", "a time is like"),
        ("2026-02-30", "there is no 2026-02-30"),
        ("2026-02-29T12:00:00Z", "there is no 2026-02-29"),
        ("0000-01-01", "there is no 0000-01-01"),
        ("2026-11-20T24:00:00Z", "no time 24:00:00"),
        ("2026-11-20T23:59:60Z", "no time 23:59:60"),
        ("0001-01-01T00:00:00+00:01", "between the years"),
        ("9999-12-31T23:59:59.9999Z", "between the years"),
        ("9999-12-31T23:59:59-00:01", "between the years"),
    ],
)
def test_no_time(text: str, told: str) -> None:
    with pytest.raises(FormatError, match=told):
        milliseconds(text)


def test_a_span() -> None:
    for span in ((None, None), (5, None), (None, 5), (5, 6)):
        check_span(*span)
    for span in ((5, 5), (6, 5)):
        with pytest.raises(FormatError, match="must be before"):
            check_span(*span)
