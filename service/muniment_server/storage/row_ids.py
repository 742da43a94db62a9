"""The number that an entry is stored under, in both databases: log and index in one."""

from __future__ import annotations

MOST = 1 << 40
"""A log has fewer entries."""


def row_id(log_id: int, index: int) -> int:
    """Return the row id of an entry. An index that none can have becomes the nearest end of the log."""
    return log_id * MOST + max(0, min(index, MOST))


def row_ids(log_id: int, start: int, stop: int) -> tuple[int, int]:
    """Return the row ids of the entries [start, stop), half-open as well."""
    return row_id(log_id, start), row_id(log_id, stop)
