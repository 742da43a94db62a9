"""The search index of a log: which entries may have a term (see :mod:`muniment_server.terms`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from muniment_server.terms import Range

MOST_TAIL = 400
"""Bytes of a tail; a longer one becomes a chunk."""


@dataclass(frozen=True, slots=True)
class IndexState:
    """How far an index is: entries below `size` are in it.

    `generation` are 16 random bytes, others with each rebuild; they are a secret. `erasures` counts what destroyed
    payloads: an erasure raises it in the same commit, and takes the postings of what is below `size` away. While rows
    of an older generation are `clearing`, nothing is added.
    """

    generation: bytes
    size: int = 0
    erasures: int = 0
    clearing: bool = False


class TermRow(NamedTuple):
    """A term and its last postings (see :mod:`postings`). `chunked`: it has others in chunks."""

    key: bytes
    tail: bytes
    chunked: bool


class StoredEntry(NamedTuple):
    """Leaf, payload and seed of an event."""

    index: int  # type: ignore[assignment]  # the column's name; tuple.index is not used
    leaf: bytes
    payload: bytes
    seed: bytes


class Search(Protocol):
    """The index. It is derived: what it lacks or has too much of is mended by a rebuild, and proves nothing."""

    async def index_state(self, log_id: int) -> IndexState | None:
        """Return how far the index is, or None where none was begun."""

    async def restart_index(self, log_id: int, generation: bytes) -> IndexState:
        """Begin the index, or begin it again: empty, in this generation, and clearing if there was one before."""

    async def clear_index(self, log_id: int, limit: int) -> bool:
        """Remove about `limit` rows of an index that is clearing; tell whether it is clearing still."""

    async def add_postings(
        self, log_id: int, expected: IndexState, size: int, postings: Mapping[bytes, Sequence[int]]
    ) -> bool:
        """Add the ascending indices of the entries [expected.size, size) to their terms, in one commit.

        Only if the state is still `expected`; tells whether it was. Requires `expected` not to be clearing.
        """

    async def index_terms(self, log_id: int, ranges: Sequence[Range], limit: int) -> list[list[TermRow]]:
        """Return the terms in each of these ranges, up to `limit` of each, by key."""

    async def index_chunks(self, log_id: int, keys: Sequence[bytes], start: int, stop: int) -> list[bytes]:
        """Return the chunks of these terms that have the indices [start, stop); they may have others besides."""

    async def stored_entries(self, log_id: int, indices: Sequence[int]) -> list[StoredEntry]:
        """Return those of these entries that have a payload, in the order of `indices`."""

    async def leaves_at(self, log_id: int, indices: Sequence[int]) -> list[bytes]:
        """Return the leaves of these entries, in the order of `indices`, as far as there are any."""
