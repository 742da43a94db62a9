"""Entries as rows, and rows as lines of JSON: what the client and the server export, byte for byte alike."""

from __future__ import annotations

import json
import re
from typing import Any

from muniment.encoding import b64
from muniment.event import EventLeaf, OwnLeaf, format_time
from muniment.hashing import LeafHash, leaf_hash

_UNPRINTABLE = re.compile(r"[^ -~]")
"""At least what a terminal might obey; which of it does is asked of each character."""


def entry_row(
    index: int,
    leaf: bytes,
    content: EventLeaf | OwnLeaf | None,
    event: dict[str, Any] | None,
    hidden: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return an entry as a row: `event`, `own` or `leaf` (base64) says what it is.

    `content` is what its leaf says, `event` the members of an event that are open, and `hidden` the names of others.
    """
    value: dict[str, Any] = {"index": index, "leaf_hash": LeafHash(leaf_hash(leaf)).hex()}
    if isinstance(content, EventLeaf):
        value |= {"logged_at": format_time(content.logged_at), "event": event}
        if hidden:
            value["hidden"] = list(hidden)
    elif isinstance(content, OwnLeaf):
        value["own"] = content.value
    else:
        value["leaf"] = b64(leaf)
    return value


def closed_row(row: dict[str, Any], leaf: bytes) -> dict[str, Any]:
    """Return the row of an entry without what its event says: with its leaf instead. Others say nothing to hide."""
    if "event" not in row:
        return row
    return {name: row[name] for name in ("index", "leaf_hash", "logged_at")} | {"leaf": b64(leaf)}


def json_line(row: dict[str, Any]) -> str:
    """Return a row as a line, with its newline."""
    return inert_json(json.dumps(row, ensure_ascii=False)) + "\n"


def inert_json(text: str) -> str:
    """Return a JSON text of the same value, with everything escaped that a terminal might obey or hide."""
    return "\n".join(line if line.isprintable() else _UNPRINTABLE.sub(_escaped, line) for line in text.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return (
        found[0]
        if found[0].isprintable()
        else "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    )
