"""Times as people and programs give them, for searches and exports: the client and the server read them alike.

A time is RFC 3339 with Z or an offset and up to 9 digits of a second, or a day in UTC, which is its beginning. What the
log itself writes has one spelling, that of :func:`muniment.event.format_time`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from muniment.errors import FormatError

Moment = datetime | date | str
"""A datetime with its zone, a text like 2026-11-20T12:00:00Z, or the beginning of a day: a date, or 2026-11-20."""

_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:(T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:Z|([+-])([01][0-9]|2[0-3]):([0-5][0-9])))?"
)
_SPACED = re.compile(r"[0-9-]{10} .*|.* [0-9]{2}:[0-9]{2}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def milliseconds(moment: Moment) -> int:
    """Return a time in milliseconds since 1970 UTC: the first that is not before it. Raises FormatError.

    The log's times have milliseconds. So what is logged from this number on is what was logged at `moment` or later,
    and what is logged before it is all the rest, also where `moment` lies between two milliseconds.
    """
    found = _of_datetime(moment) if isinstance(moment, datetime) else _of_text(str(moment))
    if not _FIRST <= found <= _LAST:
        raise FormatError("a time is between the years 0001 and 9999 in UTC")
    return found


def check_span(since: int | None, until: int | None) -> None:
    """Raise FormatError when nothing can lie between two times: an answer would look as if nothing was found."""
    if since is not None and until is not None and since >= until:
        raise FormatError("no time is in this span: `from` must be before `to`")


def _of_datetime(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise FormatError("a datetime needs its time zone: datetime(2026, 11, 20, tzinfo=UTC)")
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


def _of_text(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise FormatError(_unreadable(text))
    day, clock, fraction, sign, hours, minutes = found.groups()
    whole = _seconds(day, clock or "T00:00:00")
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        whole += offset if sign == "-" else -offset
    return whole * 1000 - (-int((fraction or "").ljust(9, "0")) // 10**6)


def _seconds(day: str, clock: str) -> int:
    try:
        date.fromisoformat(day)
    except ValueError:
        raise FormatError(f"a time needs a day that exists: there is no {day}") from None
    try:
        if clock.startswith("T24"):  # newer Pythons take it
            raise ValueError  # noqa: TRY301 - one message
        return (datetime.fromisoformat(day + clock).replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
    except ValueError:
        raise FormatError(f"a day has no time {clock[1:]}: it has 00:00:00 to 23:59:59") from None


def _unreadable(text: str) -> str:
    hint = "; a T stands between day and time, no space, and + is %2B in a URL" if _SPACED.fullmatch(text) else ""
    return f"a time is like 2026-11-20T12:00:00Z, 2026-11-20T13:00:00.5+01:00 or 2026-11-20, not {text[:40]!r}{hint}"
