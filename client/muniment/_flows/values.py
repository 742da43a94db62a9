"""Everyday Python values in events: what is no JSON value is named by its place, or converted by the caller's function.

An event is what the log hashes, so nothing is converted unasked: whether a time is text or a number is the caller's
to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, time
from enum import Enum
from math import isfinite
from typing import Any

from muniment.errors import EventRefused
from muniment.event import canonical_event
from muniment.strictjson import MAX_DEPTH, MAX_NUMBER, escape

Default = Callable[[Any], Any]
"""Returns a JSON value for one that is none, as the argument `default` of :func:`json.dumps` does."""

_REMEDIES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Enum,), "send its value"),
    ((date, time), "send its isoformat()"),
    ((bytes, bytearray, memoryview), "send it as base64 or hex"),
    ((set, frozenset), "send a sorted list"),
)


def event_body(event: Any, default: Default | None) -> bytes:
    """Return the canonical form of an event given as Python values. Raises EventRefused, with a pointer where it can.

    `default` converts values that are no JSON values; what it raises is raised.
    """
    value = dict(event) if isinstance(event, Mapping) else event
    try:
        return canonical_event(value)
    except EventRefused as refused:
        if refused.code != "invalid_json" or refused.pointer:
            raise
    return canonical_event(_json_value(value, "", 1, default))


def _json_value(value: Any, pointer: str, depth: int, default: Default | None) -> Any:
    if depth > MAX_DEPTH:
        raise EventRefused("too_deep", f"nested deeper than {MAX_DEPTH}", pointer)
    if isinstance(value, Mapping):
        return {
            name: _json_value(item, f"{pointer}/{escape(_name(name, pointer))}", depth + 1, default)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{pointer}/{at}", depth + 1, default) for at, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return _scalar(value, pointer)
    if default is None:
        remedy = next((words for types, words in _REMEDIES if isinstance(value, types)), "send str() of it")
        detail = f"a {type(value).__name__} is no JSON value: {remedy}, or give the client default=str or your own"
        raise EventRefused("invalid_json", detail, pointer)
    return _json_value(default(value), pointer, depth + 1, default)


def _name(name: Any, pointer: str) -> str:
    if not isinstance(name, str):
        raise EventRefused("invalid_json", f"the name {name!r} is a {type(name).__name__}, not text", pointer)
    return name


def _scalar(value: Any, pointer: str) -> Any:
    if isinstance(value, float) and not isfinite(value):
        raise EventRefused("invalid_json", f"{value} is not JSON: send null or text", pointer)
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise EventRefused("invalid_json", "an integer beyond 2^53-1 is not exact for every reader: send text", pointer)
    return value
