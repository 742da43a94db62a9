"""The grammar of URLs: made from the paths of a table of routes, for the application and for the fast path. Pure.

/[v1/][orgs/{org}/][logs/{log}/]<path of a route of a log>
/[v1/]<path of a route of the instance>
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")
_SEGMENT = r"[^/\n]+"  # no line feed: the rest of a path does not take one either, and no number has one


class Path(Protocol):
    """What a route says of its URLs. `v1` says that it has one under /v1 as well."""

    @property
    def method(self) -> str:
        """The method of HTTP."""

    @property
    def path(self) -> str:
        """The path below the prefix, with ``{name}`` for a segment and ``{name:path}`` for the rest."""

    @property
    def on(self) -> str:
        """Whether the route is of a "log" or of the "instance"."""

    @property
    def v1(self) -> bool:
        """See above."""


R = TypeVar("R", bound=Path)


def pattern(route: Path, *, orgs: bool = False, **parameters: str) -> str:
    """Return a regular expression of the URLs of a route, which names its parameters.

    `parameters` say how these are spelled.
    """
    version = "(?:/v1)?" if route.v1 else ""
    org = f"(?:/orgs/(?P<org>{_SEGMENT}))?" if orgs else ""
    log = f"(?:/logs/(?P<log>{parameters.get('log', _SEGMENT)}))?" if route.on == "log" else ""
    literals = _PARAMETER.split(route.path)  # text, name, ":path" or None, text, ...
    path = "".join(
        re.escape(literals[at])
        if at % 3 == 0
        else f"(?P<{literals[at]}>{parameters.get(literals[at], '.*' if literals[at + 1] else _SEGMENT)})"
        for at in range(len(literals))
        if at % 3 < 2
    )
    return f"{version}{org if route.on == 'log' else ''}{log}{path}"


class Found(NamedTuple, Generic[R]):
    """The route that a request is for, and the parameters of its path."""

    route: R
    parameters: Mapping[str, Any]


class Table(Generic[R]):
    """A table of routes. Of two that match, the first one counts.

    A path that one route spells out is that one's for every method: "batch" in /entries/batch is no index.
    """

    def __init__(self, routes: Sequence[R]) -> None:
        known = [(route.method, re.compile(pattern(route, orgs=True)), route) for route in routes]
        spelled = [(route.path, regex) for _, regex, route in known if "{" not in route.path]
        self._routes = [
            (method, regex, route, [other for path, other in spelled if "{" in route.path and regex.fullmatch(path)])
            for method, regex, route in known
        ]

    def find(self, method: str, path: str) -> Found[R] | None:
        """Return the route for a decoded path, or None."""
        for known, regex, route, spelled in self._routes:
            if known == method and (match := regex.fullmatch(path)) and not _is_one_of(path, spelled):
                given = {name: value for name, value in match.groupdict().items() if value is not None}
                # There are no organisations yet: what is under them is nowhere.
                return None if "org" in given else Found(route, given)
        return None

    def at(self, path: str) -> list[R]:
        """Return the routes of a path, whatever their method. Empty where there is no such path."""
        return [
            route
            for _, regex, route, spelled in self._routes
            if (match := regex.fullmatch(path)) and not match.groupdict().get("org") and not _is_one_of(path, spelled)
        ]


def _is_one_of(path: str, spelled: Sequence[re.Pattern[str]]) -> bool:
    return any(regex.fullmatch(path) for regex in spelled)


def methods_of(routes: Sequence[Path]) -> list[str]:
    """Return the methods that the routes of one path take, sorted; HEAD with GET, and OPTIONS."""
    methods = {route.method for route in routes}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()) | ({"OPTIONS"} if methods else set()))
