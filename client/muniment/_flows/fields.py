"""Typed access to the members of a JSON answer. Everything raises FormatError."""

from __future__ import annotations

from typing import Any

from muniment.encoding import MAX_SIZE, parse_hex
from muniment.errors import FormatError
from muniment.hashing import HASH_SIZE
from muniment.proofs import MAX_PROOF


def text(value: dict[str, Any], name: str) -> str:
    """Return a member that is a string."""
    found = value.get(name)
    if not isinstance(found, str):
        raise FormatError(f"answer: {name} is not text")
    return found


def optional_text(value: dict[str, Any], name: str) -> str | None:
    """Return a member that is a string, null or absent."""
    return None if value.get(name) is None else text(value, name)


def integer(value: dict[str, Any], name: str) -> int:
    """Return a member that is an index or a size, in [0, 2**63 - 1]."""
    found = value.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= MAX_SIZE:
        raise FormatError(f"answer: {name} is not an index or size")
    return found


def optional_integer(value: dict[str, Any], name: str) -> int | None:
    """Return a member that is an index, a size, or null or absent."""
    return None if value.get(name) is None else integer(value, name)


def boolean(value: dict[str, Any], name: str) -> bool:
    """Return a member that is true or false."""
    found = value.get(name)
    if not isinstance(found, bool):
        raise FormatError(f"answer: {name} is not true or false")
    return found


def number(value: dict[str, Any], name: str) -> float:
    """Return a member that is a finite number."""
    found = value.get(name)
    if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) <= MAX_SIZE:  # nor is NaN
        raise FormatError(f"answer: {name} is not a number")
    return float(found)


def objects(value: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a member that is a list of objects."""
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise FormatError(f"answer: {name} is not a list of objects")
    return found


def texts(value: dict[str, Any], name: str) -> list[str]:
    """Return a member that is a list of strings."""
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise FormatError(f"answer: {name} is not a list of texts")
    return found


def json_object(value: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a member that is an object."""
    found = value.get(name)
    if not isinstance(found, dict):
        raise FormatError(f"answer: {name} is not an object")
    return found


def digest(value: dict[str, Any], name: str) -> bytes:
    """Return a member that is 32 bytes in lowercase hex."""
    return parse_hex(text(value, name), HASH_SIZE, name)


def proof(value: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the member `hashes`: at most 64 hashes."""
    found = texts(value, "hashes")
    if len(found) > MAX_PROOF:
        raise FormatError(f"answer: a proof has at most {MAX_PROOF} hashes, this one {len(found)}")
    return tuple(parse_hex(item, HASH_SIZE, "proof hash") for item in found)
