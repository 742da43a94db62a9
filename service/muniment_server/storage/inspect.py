"""What a check of the whole database needs to see of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from muniment_server.storage.log import IdempotencyRow


class Inspect(Protocol):
    """Reads of a check of what is stored: rows as they are, wrong ones too."""

    async def entry_rows(self, log_id: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
        """Return (index, leaf) of the entries that are stored in [start, stop), in order.

        Behind them stands the leaf key, where it is a column.
        """

    async def tile_rows(self, log_id: int, after: tuple[int, int], limit: int) -> list[tuple[int, int, int]]:
        """Return (level, index, bytes) of up to `limit` tiles beyond `after`, a (level, index), in that order."""

    async def key_rows(self, log_id: int, after: tuple[str, str], limit: int) -> list[IdempotencyRow]:
        """Return up to `limit` idempotency rows beyond `after`, a (caller, key), in that order; expired ones too."""

    async def beyond(self, log_id: int, size: int) -> int | None:
        """Return the lowest index, `size` or larger, that an entry or a payload is stored under."""

    async def integrity(self) -> list[str]:
        """Return what the database itself finds wrong with its pages and indexes.

        Empty also where it has no such check.
        """

    async def leaf_key_damage(self) -> list[str]:
        """Return how what finds entries by leaf key differs from the entries.

        Empty where the database keeps that right by itself.
        """
