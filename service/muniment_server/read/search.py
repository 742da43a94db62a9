"""Search in one log: candidates from the index, each compared with its payload; behind the index, all of them."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from typing import Any, NamedTuple

import orjson

from muniment.encoding import b64url, parse_b64url
from muniment.errors import FormatError
from muniment.event import format_time
from muniment.hashing import LeafHash, leaf_hash
from muniment.query import Query
from muniment_server.errors import Refused
from muniment_server.read.entries import Entries, logged_at
from muniment_server.read.heads import Heads
from muniment_server.storage import Store
from muniment_server.storage.postings import decode
from muniment_server.storage.search import IndexState, StoredEntry
from muniment_server.storage.search import Search as SearchStore
from muniment_server.terms import CROWDED, Group, Members, Range, groups_of, mark_of, searched

MOST_BEHIND = 10_000
"""Entries that the index lacks and that are read instead. What is beyond them is not answered: see `complete_to`."""
MOST_READ = 10_000
"""Entries that are read for one page. It may be short then, or empty, and the next one goes on."""
MOST_BYTES = 4 * 2**20
"""Of the payloads of one page."""
MOST_READ_BYTES = 32 * 2**20
"""Of the payloads that are read for it."""
_MOST_KEYS = 1000
"""Terms of one group. With more, all entries are read that the other groups leave."""
_AT_ONCE = 64
_COMPARED = 16
"""Payloads that are compared without a pause, and entries that are made hits: a millisecond."""
_EXPORTED = 128
"""Hits of an export that are held at a time. The terms of its query are read anew for each so many."""
_SECONDS = 1.0
"""That a page takes at most, save for one event: it may be short then, as above."""
_DECODED = 8192
_EACH = 16
"""Bytes of lists that are decoded without a pause, and what each counts besides: a millisecond."""
_LARGE = 4096
"""Bytes of a payload that has a turn of its own: it may hold thousands of values."""
_WINDOW = 8192
_WIDEST = 2**18
_MAC = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """What a search looks for: the query and its text, times [since, until) in milliseconds, and the order."""

    text: str
    query: Query
    since: int | None = None
    until: int | None = None
    newest: bool = True

    def digest(self) -> bytes:
        """Return what a cursor is bound to."""
        return sha256(orjson.dumps([self.text, self.since, self.until, self.newest])).digest()


class Found(NamedTuple):
    """A page of hits as JSON values. Once `next` is None, all hits below `complete_to` were answered."""

    hits: list[dict[str, Any]]
    next: str | None
    complete_to: int
    size: int


class _Place(NamedTuple):
    """Where a page begins: the entries [start, stop) are still to be searched, of `complete_to` in all."""

    start: int
    stop: int
    complete_to: int


class Search:
    """Searches one log by `members` of its events."""

    def __init__(self, store: Store, log_id: int, heads: Heads, entries: Entries, members: Members) -> None:
        self._store = store.search
        self._log_id = log_id
        self._heads = heads
        self._entries = entries
        self._members = members

    async def page(self, asked: Asked, limit: int, cursor: str | None = None) -> Found:
        """Return up to `limit` hits, from the beginning or from a cursor. Raises Refused."""
        state, head = await asyncio.gather(self._state(), self._heads.latest())
        size = head.size
        place = self._read(cursor, asked, state) if cursor is not None else await self._whole(asked, state, size)
        hits, rest = await self._hits(asked, place, min(state.size, size), limit)
        again = await self._state()
        if again.generation != state.generation:  # terms may have gone while they were read
            raise _not_there()
        return Found(await _values(hits), rest and self._write(rest, asked, state), place.complete_to, size)

    async def ready(self) -> None:
        """Raise Refused unless there is an index to search in."""
        await self._state()

    async def hits(self, asked: Asked, start: int, stop: int) -> AsyncGenerator[list[StoredEntry]]:
        """Yield all hits among the entries [start, stop), oldest first, some at a time. Raises Refused.

        What the index lacks is read, however much it is: none is left out.
        """
        place: _Place | None = _Place(start, stop, stop)
        while place is not None:
            state = await self._state()
            found, place = await self._hits(asked, place, min(state.size, stop), _EXPORTED)
            if (await self._state()).generation != state.generation:
                raise _not_there()
            yield found

    async def _state(self) -> IndexState:
        state = await self._store.index_state(self._log_id)
        if state is None or not state.generation.endswith(mark_of(self._members)):
            raise _not_there()
        return state

    async def _whole(self, asked: Asked, state: IndexState, size: int) -> _Place:
        """Return all that can be searched: as far as the index goes and some further, within the times."""
        complete_to = min(size, state.size + MOST_BEHIND)
        start = 0 if asked.since is None else await self._entries.border(asked.since, complete_to)
        stop = complete_to if asked.until is None else await self._entries.border(asked.until, complete_to)
        return _Place(start, stop, complete_to)

    # --- cursors ------------------------------------------------------------------------------------------------------

    def _write(self, place: _Place, asked: Asked, state: IndexState) -> str:
        data = b"".join(number.to_bytes(8, "big") for number in place)
        return b64url(data + self._mac(data, asked, state))

    def _read(self, cursor: str, asked: Asked, state: IndexState) -> _Place:
        """Return what a cursor says that this index gave for this search of this log. Raises Refused for any other."""
        try:
            data = parse_b64url(cursor)
        except FormatError:
            data = b""
        if len(data) != 24 + _MAC or not hmac.compare_digest(self._mac(data[:24], asked, state), data[24:]):
            hint = "A cursor continues the search it came from, until the index is made anew: leave it out to begin."
            raise Refused("bad_cursor", "this cursor is not of this search", hint)
        return _Place(*(int.from_bytes(data[at : at + 8], "big") for at in (0, 8, 16)))

    def _mac(self, data: bytes, asked: Asked, state: IndexState) -> bytes:
        text = self._log_id.to_bytes(8, "big") + asked.digest() + data
        return hmac.digest(state.generation, text, "sha256")[:_MAC]

    # --- hits ---------------------------------------------------------------------------------------------------------

    async def _hits(
        self, asked: Asked, place: _Place, indexed: int, limit: int
    ) -> tuple[list[StoredEntry], _Place | None]:
        """Return the hits of a page, and what is left behind it."""
        hits: list[StoredEntry] = []
        read = read_bytes = held = 0
        began = time.monotonic()
        async for candidates in self._candidates(asked, place, indexed):
            for at, stored in enumerate(await self._store.stored_entries(self._log_id, candidates)):
                read_bytes += len(stored.payload)
                if len(stored.payload) > _LARGE or at % _COMPARED == 0:
                    await asyncio.sleep(0)
                if asked.query.matches(searched(orjson.loads(stored.payload), self._members)):
                    hits.append(stored)
                    held += len(stored.payload)
                if len(hits) == limit or held > MOST_BYTES or time.monotonic() - began > _SECONDS:
                    return hits, _behind(place, stored.index, newest=asked.newest)
            read += len(candidates)
            if read >= MOST_READ or read_bytes >= MOST_READ_BYTES:
                return hits, _behind(place, candidates[-1], newest=asked.newest)
        return hits, None

    async def _candidates(self, asked: Asked, place: _Place, indexed: int) -> AsyncIterator[list[int]]:
        """Yield what may match, in order, some at a time."""
        border = max(place.start, min(indexed, place.stop))
        behind, inside = range(border, place.stop), range(place.start, border)
        terms = await _Terms.load(self._store, self._log_id, groups_of(asked.query)) if inside else None
        parts = (behind, inside) if asked.newest else (inside, behind)
        for part in parts:
            windows = (
                terms.windows(part, newest=asked.newest)
                if terms and part is inside
                else _all(part, newest=asked.newest)
            )
            async for found in windows:
                for at in range(0, len(found), _AT_ONCE):
                    yield list(found[at : at + _AT_ONCE])


class _Terms:
    """What the index has for the groups of a query, as it was read once; chunks are read window by window."""

    def __init__(self, store: SearchStore, log_id: int, groups: list[tuple[list[int], list[bytes]]]) -> None:
        self._store = store
        self._log_id = log_id
        self._groups = groups  # of each: the indices in the tails, and the terms that have chunks too

    @classmethod
    async def load(cls, store: SearchStore, log_id: int, groups: Sequence[Group]) -> _Terms | None:
        """Read the terms of some groups; None where none of these says anything."""
        ranges = [Range(CROWDED, CROWDED + b"\0"), *chain.from_iterable(groups)]
        rows = iter(await store.index_terms(log_id, ranges, _MOST_KEYS + 1))
        crowded = next(rows)
        found = [[*crowded, *chain.from_iterable(islice(rows, len(group)))] for group in groups]
        # Of a group with too many terms nothing is used: all entries are read that the others leave.
        few = [group for group in found if len(group) <= _MOST_KEYS + len(crowded)]
        if not few:
            return None
        tails = [[*chain.from_iterable(await _decoded([row.tail for row in group]))] for group in few]
        chunked = [[row.key for row in group if row.chunked] for group in few]
        return cls(store, log_id, list(zip(tails, chunked, strict=True)))

    async def windows(self, part: range, *, newest: bool) -> AsyncIterator[Sequence[int]]:
        """Yield what all groups have, in order: of few entries first, then of more."""
        width = _WINDOW if any(chunked for _, chunked in self._groups) else len(part)
        while part:
            at = max(len(part) - width, 0) if newest else min(width, len(part))
            window, part = (part[at:], part[:at]) if newest else (part[:at], part[at:])
            start, stop = window.start, window.stop
            found = await self._common(start, stop)
            yield sorted([index for index in found if start <= index < stop], reverse=newest)
            width = min(4 * width, _WIDEST)

    async def _common(self, start: int, stop: int) -> set[int]:
        """Return what all groups have of the entries [start, stop), and some of what they have elsewhere."""
        common: set[int] | None = None
        for tails, chunked in self._groups:
            lists = [tails]
            if chunked:
                lists += await _decoded(await self._store.index_chunks(self._log_id, chunked, start, stop))
            found = chain.from_iterable(lists)
            common = set(found) if common is None else common.intersection(found)
            if not common:
                break
        return common or set()


async def _decoded(lists: Sequence[bytes]) -> list[list[int]]:
    """Return the indices in each of many lists; other requests have their turns in between."""
    found, decoded = [], 0
    for data in lists:
        found.append(decode(data))
        decoded += len(data) + _EACH
        if decoded > _DECODED:
            await asyncio.sleep(0)
            decoded = 0
    return found


async def _all(part: range, *, newest: bool) -> AsyncIterator[Sequence[int]]:
    yield part[::-1] if newest else part


def _behind(place: _Place, index: int, *, newest: bool) -> _Place | None:
    """Return what is left of a place when all up to an index is done; None for nothing."""
    left = place._replace(stop=index) if newest else place._replace(start=index + 1)
    return left if left.start < left.stop else None


async def _values(hits: Sequence[StoredEntry]) -> list[dict[str, Any]]:
    """Return hits as JSON values; other requests have their turns in between."""
    found: list[dict[str, Any]] = []
    for at, stored in enumerate(hits):
        if at % _COMPARED == 0:
            await asyncio.sleep(0)
        found.append(_hit(stored))
    return found


def _hit(stored: StoredEntry) -> dict[str, Any]:
    return {
        "index": stored.index,
        "leaf_hash": LeafHash(leaf_hash(stored.leaf)).hex(),
        "logged_at": format_time(logged_at(stored.leaf)),
        "event": orjson.Fragment(stored.payload),
    }


def _not_there() -> Refused:
    hint = (
        "It is being made, or a server that was started later has another setting `search`: retry later. "
        "`muniment-server index status` says how far it is."
    )
    return Refused("index_missing", "this log has no search index yet, or another one by now", hint, retry_after=2)
