"""What the entries of a log say about it: times that go back, own types that are not well-formed, anchors. Pure.

This is of Muniment logs alone, which take no entry of a reserved type from submitters. A log of others may: what such
an entry says there is its submitter's word. A Muniment log is known by its first entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from muniment.errors import FormatError
from muniment.event import ANCHOR_TYPE, GENESIS_TYPE, EventLeaf, OwnLeaf, format_time, parse_leaf, parse_time

AHEAD = 60_000
"""Milliseconds by which the clocks of log and monitor may differ before a time counts as in the future."""


@dataclass(slots=True)
class Watch:
    """What was seen in the entries of one read. Changed by its reader alone.

    `own` tells whether this is a Muniment log. `last` is the time of the last entry that has one, `first_new` that of
    the first entry of this read that has one, `anchored` that of the last anchor.
    """

    own: bool = False
    last: int = 0
    anchored: int = 0
    first_new: int | None = None
    found: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Code, detail and facts of each thing that does not fit. Of each code the first alone, with a count."""
    _counts: dict[str, int] = field(default_factory=dict)

    def take(self, leaves: Sequence[bytes], start: int, now: int) -> None:
        """Look at the leaves from index `start` on, which were read at `now`."""
        if not start and leaves:
            self.own = is_genesis(leaves[0])
        if not self.own:
            return
        for index, leaf in enumerate(leaves, start):
            try:
                content = parse_leaf(leaf)
            except FormatError as error:
                self._say("leaf", f"entry {index} is not well-formed: {error}", index)
                continue
            if isinstance(content, EventLeaf):
                self._time(content.logged_at, index, now)
            elif content is not None:
                self._own(content, index, now)

    def _time(self, when: int, index: int, now: int) -> None:
        if self.first_new is None:
            self.first_new = when
        if when < self.last:
            self._say(
                "time", f"entry {index} is of {format_time(when)}, the one before of {format_time(self.last)}", index
            )
        elif when > now + AHEAD:
            self._say("time", f"entry {index} is of {format_time(when)}, and was read at {format_time(now)}", index)
        self.last = when

    def _own(self, content: OwnLeaf, index: int, now: int) -> None:
        try:
            when = parse_time(content.value["logged_at"])
        except (KeyError, TypeError, FormatError):
            if content.typ in (GENESIS_TYPE, ANCHOR_TYPE):  # of types to come nothing is known
                self._say("leaf", f"entry {index} of type {content.typ} has no time", index)
            return
        self._time(when, index, now)
        if content.typ == ANCHOR_TYPE:
            self._anchor(content.value.get("anchor"), when, index)

    def _anchor(self, anchor: Any, when: int, index: int) -> None:
        size = anchor.get("tree_size") if isinstance(anchor, dict) else None
        if isinstance(size, int) and 0 < size <= index:
            self.anchored = when
        else:
            self._say("anchor", f"entry {index} anchors a tree that was not there before it", index)

    def _say(self, code: str, detail: str, index: int) -> None:
        count = self._counts[code] = self._counts.get(code, 0) + 1
        if count == 1:
            self.found.append((code, detail, {"index": index}))


def is_genesis(leaf: bytes) -> bool:
    """Tell whether a leaf is what a Muniment log begins with."""
    try:
        content = parse_leaf(leaf)
    except FormatError:
        return False
    return isinstance(content, OwnLeaf) and content.typ == GENESIS_TYPE
