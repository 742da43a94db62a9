"""Sends what waits in a table of events to the log. Knows no framework: rows have key, event, receipt and save()."""

from collections.abc import Iterable
from typing import Any

from muniment import Client


def send_pending(rows: Iterable[Any], log: Client) -> int:
    """Log each row, oldest first, and keep its receipt; return how many. Raises MunimentError and leaves the rest.

    A row that was logged while the answer was lost is sent again under its own Idempotency-Key: the log answers with the
    entry that it has.
    """
    sent = 0
    for row in rows:
        row.receipt = str(log.append(row.event, idempotency_key=str(row.key)))
        row.save()
        sent += 1
    return sent
