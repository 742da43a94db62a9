"""A batch: some rows of one log for one sink, and the JSON in which a webhook gets them. See docs/push.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PUSH_TYPE = "muniment/push@v1"


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of the entries [start, stop) of a log that a sink wants, each a line of JSON.

    They are of the published tree of `tree_size`; `receipts` is a bundle at its checkpoint, where it was asked for.
    `whole` says that every entry has a row.
    """

    log: str
    origin: str
    sink: str
    start: int
    stop: int
    tree_size: int
    lines: Sequence[bytes]
    whole: bool
    receipts: bytes | None = None

    @property
    def id(self) -> str:
        """The same each time that this batch is sent, and of no other one: ``log/sink/first-last``."""
        return f"{self.log}/{self.sink}/{self.start}-{self.stop - 1}"

    def body(self) -> bytes:
        """Return the body of its delivery: the same bytes each time."""
        head = {
            "typ": PUSH_TYPE,
            "id": self.id,
            "log": self.log,
            "origin": self.origin,
            "sink": self.sink,
            "start": self.start,
            "stop": self.stop,
            "tree_size": self.tree_size,
        }
        rows = b",".join(line.rstrip(b"\n") for line in self.lines)
        more = b"" if self.receipts is None else b',"receipts":' + json.dumps(self.receipts.decode()).encode()
        return json.dumps(head).encode()[:-1] + b', "rows": [%b]%b}' % (rows, more)


class Target(Protocol):
    """What takes batches."""

    async def take(self, batch: Batch) -> None:
        """Take a batch, durably when it returns; one that it has, in part or as a whole, under the same id.

        Raises NotTaken.
        """
