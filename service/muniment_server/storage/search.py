"""The search index of a log: which entries may have a term (see :mod:`muniment_server.terms`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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


class WholeTerm(NamedTuple):
    """A term with all of its postings, as of one moment: its tail, and (stop, body) of its chunks in order."""

    key: bytes
    tail: bytes
    chunks: list[tuple[int, bytes]]


class StoredEntry(NamedTuple):
    """Leaf, payload and seed of an event."""

    index: int  # type: ignore[assignment]  # the column's name; tuple.index is not used
    leaf: bytes
    payload: bytes
    seed: bytes


class Search(Protocol):
    """The index. It is derived: what it lacks or has too much of is mended by a rebuild, and proves nothing.

    `most_entries` is how many are best added at once, and `most_terms` how many terms of them. `elsewhere` says that
    another process adds them: in this one, the write lock would only be held longer for what runs beside it.
    """

    most_entries: int
    most_terms: int
    elsewhere: bool

    async def index_state(self, log_id: int) -> IndexState | None:
        """Return how far the index is, or None where none was begun."""

    async def restart_index(self, log_id: int, generation: bytes) -> IndexState:
        """Begin the index, or begin it again: empty, in this generation, and clearing.

        Also where it has no state: rows may be there all the same, if that was lost.
        """

    async def clear_index(self, log_id: int, generation: bytes, limit: int) -> bool:
        """Remove about `limit` rows of an index that is clearing; tell whether it is clearing still.

        Only if it is still of this generation: what was cleared by another process meanwhile may be filled by now.
        """

    async def add_postings(
        self, log_id: int, expected: IndexState, size: int, postings: Mapping[bytes, Sequence[int]]
    ) -> bool:
        """Add the ascending indices of the entries [expected.size, size) to their terms, in one commit.

        Only if the state is still `expected`; tells whether it was. Requires `expected` not to be clearing. Raises
        Corrupt where what the index has contradicts its state, as far as that is seen.
        """

    async def index_terms(self, log_id: int, ranges: Sequence[Range], limit: int) -> list[list[TermRow]]:
        """Return the terms in each of these ranges, up to `limit` of each, by key."""

    async def index_chunks(self, log_id: int, keys: Sequence[bytes], start: int, stop: int) -> list[bytes]:
        """Return the chunks of these terms that have the indices [start, stop); they may have others besides."""

    async def stored_entries(self, log_id: int, indices: Sequence[int]) -> list[StoredEntry]:
        """Return those of these entries that have a payload, in the order of `indices`."""

    async def leaves_at(self, log_id: int, indices: Sequence[int]) -> list[bytes]:
        """Return the leaves of these entries, in the order of `indices`, as far as there are any."""

    async def whole_terms(self, log_id: int, after: bytes, limit: int) -> list[WholeTerm]:
        """Return up to `limit` terms behind a key, by key, as a check wants them: with all that a search sees."""


def gathered(rows: Iterable[Sequence[Any]]) -> list[WholeTerm]:
    """Return terms of rows of key, tail, and stop and body of one of its chunks, by key and stop."""
    terms: list[WholeTerm] = []
    for key, tail, stop, body in rows:
        if not terms or terms[-1].key != key:
            terms.append(WholeTerm(key, tail, []))
        if stop is not None:
            terms[-1].chunks.append((stop, body))
    return terms
