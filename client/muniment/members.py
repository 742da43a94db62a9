"""Typed access to the members of a receipt's JSON. Everything raises FormatError."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from muniment.encoding import MAX_SIZE, parse_hex
from muniment.errors import FormatError
from muniment.hashing import HASH_SIZE
from muniment.proofs import MAX_PROOF


def expect(condition: bool, problem: str) -> None:  # noqa: FBT001 - reads like the sentence it is
    """Raise FormatError unless `condition`."""
    if not condition:
        raise FormatError(f"receipt: {problem}")


def text(value: dict[str, Any], name: str) -> str:
    """Return a member that is text."""
    found = value.get(name)
    if not isinstance(found, str):
        raise FormatError(f"receipt: {name} is not text")
    return found


def integer(value: dict[str, Any], name: str, most: int = MAX_SIZE) -> int:
    """Return a member that is an integer in [0, most]."""
    found = value.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= most:
        raise FormatError(f"receipt: {name} is not an index or size")
    return found


def inclusion(value: dict[str, Any]) -> tuple[int, tuple[bytes, ...]]:
    """Return tree size and hashes, leaf sibling first, of the member `inclusion`."""
    found = value.get("inclusion")
    if not isinstance(found, dict):
        raise FormatError("receipt: inclusion is missing")
    return integer(found, "tree_size"), hashes(found)


def hashes(value: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the member `hashes`, leaf sibling first."""
    found = value.get("hashes")
    if not isinstance(found, list) or len(found) > MAX_PROOF:
        raise FormatError(f"receipt: hashes is not a list of at most {MAX_PROOF}")
    return tuple(map(_hash, found))


def is_texts(value: Any) -> bool:
    """Tell whether a member is a list of texts."""
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _hash(part: Any) -> bytes:
    if not isinstance(part, str):
        raise FormatError("receipt: a hash is not text")
    return _parsed(part)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> bytes:
    """Return a hash of a proof. Neighbouring entries have most of theirs in common, and then share one object."""
    return parse_hex(text, HASH_SIZE, "proof hash")
