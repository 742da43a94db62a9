"""Names of members in one text, as options of commands and URLs have them: ``action,"a name, with a comma"``.

Commas stand between names. A name may be a JSON string, and has to be one when it is empty, holds a comma or starts
with a quote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from muniment.errors import FormatError

_DECODER = json.JSONDecoder()
_PLAIN = re.compile(r"[\w.:/@$+-]+")
_WORDS = ("nothing", "none", "others")
"""What our own sentences have in the place of names."""


def parse_names(text: str) -> list[str]:
    """Return the names in `text`; none when it is empty. Raises FormatError."""
    if not text:
        return []
    names, at = [], 0
    while True:
        name, at = _quoted(text, at) if text.startswith('"', at) else _bare(text, at)
        names.append(name)
        if at == len(text):
            return names
        if text[at] != ",":
            raise FormatError(f"names of members: a comma is missing after character {at} of {text[:80]!r}")
        at += 1


def _quoted(text: str, at: int) -> tuple[str, int]:
    try:
        name, end = _DECODER.raw_decode(text, at)
    except ValueError as error:
        raise FormatError(f"names of members: what starts with a quote is no JSON string in {text[:80]!r}") from error
    return name, end


def _bare(text: str, at: int) -> tuple[str, int]:
    end = text.find(",", at)
    end = len(text) if end < 0 else end
    if end == at:
        raise FormatError(f'names of members: one is missing in {text[:80]!r}; the empty name is written ""')
    return text[at:end], end


def format_names(names: Iterable[str]) -> str:
    """Return the text that :func:`parse_names` reads as `names`, quoted where it has to be."""
    return ",".join(map(format_name, names))


def format_name(name: str) -> str:
    """Return one name as it is written: as it is, or as a JSON string."""
    plain = name and "," not in name and not name.startswith('"') and name.isprintable() and name == name.strip()
    return name if plain else json.dumps(name, ensure_ascii=not name.isprintable())


def named(name: str) -> str:
    """Return one name for people, who can give it again: quoted where it could be taken for anything else.

    A stranger chose it, and a whole sentence can be a name. Nothing in it is what a terminal might obey or hide.
    """
    if _PLAIN.fullmatch(name) and name.isprintable() and name not in _WORDS:
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


def listed_names(names: Collection[str]) -> str:
    """Return names for people, as many and as much of them as a reader takes in."""
    found = [named(name[:80]) for name in sorted(names)]
    return (", ".join(found[:32]) + (f" and {len(found) - 32} more" if len(found) > 32 else "")) or "none"


def name_set(names: Collection[str]) -> set[str]:
    """Return `names` as a set. One text is one name: its characters would be others, and those hidden or shown."""
    return {names} if isinstance(names, str) else set(names)
