"""Published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint: its tree size, the note, and when it was published."""

    size: int
    note: str
    published_at: int


EdgeTile = tuple[int, int, bytes]
"""Level and index of a tile of a right edge, and its hashes: 32 to 8,160 bytes."""


class Checkpoints(Protocol):
    """What was published of a log."""

    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """Store a checkpoint if it is larger than every published one. Durable when it returns True.

        Among racing writers sizes never go back. `edge` is the right edge of its tree: raises OtherTree, in the same
        statement, when the stored tiles do not begin with it. Raises OutcomeUnknown; calling again is always safe.
        """

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """As publish, for several checkpoints in the order of their sizes, in one commit: all of them, or none."""

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """Return the published checkpoint of `size`, or the largest one."""

    async def checkpoints(self, log_id: int, start: int, limit: int, *, newest: bool = False) -> list[Published]:
        """Return up to `limit` published checkpoints with size >= start, smallest first.

        With `newest` those with size <= start, largest first.
        """
