"""Whether a client was given what it takes: a mistake in a program is a TypeError that says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from muniment._flows.steps import Retries
from muniment.policy import Policy

_NO_POLICY = (
    "{name}() needs a policy, which says which keys to trust: policy=Policy.read(path)."
    " To start without one, {name}.trust_on_first_use(url) pins the keys that the server names"
)
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "policy": (Policy, "Policy.read({value!r})"),
    "log": (str, "the name of a log"),
    "origin": (str, "the name on the first line of the log's checkpoints"),
    "api_key": (str, "the key as text"),
    "timeout": ((int, float), "seconds"),
    "retries": (Retries, "Retries(tries=...)"),
}
_METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "state": (("get", "swap"), "FileState({value!r})"),
    "default": (("__call__",), "a function, such as str"),
}
_NAMES = (*_TYPES, *_METHODS)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that is missing, misspelt or of another type. `name` is that of the client."""
    for option, value in options.items():
        if option not in _NAMES:
            close = get_close_matches(option, _NAMES, 1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(_NAMES)}"
            raise TypeError(f"{name}() has no option {option!r}: {meant}")
        if value is not None:
            _check(name, option, value)
    if options.get("policy") is None:
        raise TypeError(_NO_POLICY.format(name=name))
    if options.get("timeout", 0) is None:
        raise TypeError(f"{name}(timeout=None): seconds, at most a day, and never without end")


def _check(name: str, option: str, value: Any) -> None:
    if option in _TYPES:
        kind, meant = _TYPES[option]
        right = isinstance(value, kind) and not isinstance(value, bool)
    else:
        methods, meant = _METHODS[option]
        right = all(callable(getattr(value, method, None)) for method in methods)
    if not right:
        shown = value if isinstance(value, str) and option != "api_key" else "..."
        found = f"{option} is not a {type(value).__name__}"
        raise TypeError(f"{name}(): {found}; give {meant.format(value=shown)}")
