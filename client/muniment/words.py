"""Counts and ranges in words for people."""

from __future__ import annotations


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its word."""
    return f"{count} {one if count == 1 else many}"


def entries_text(count: int) -> str:
    """Return how many entries, in words."""
    return counted(count, "entry", "entries")


def lines_text(count: int) -> str:
    """Return how many lines, in words."""
    return counted(count, "line", "lines")


def range_text(low: int, high: int) -> str:
    """Return where the entries [low, high) are, in words. Requires low < high."""
    return f"from {low} to {high - 1}" if high - low > 1 else f"at {low}"
