"""Fills the search index of one log, behind its appends and never in their way.

It reads payloads, splits them a few at a time, and adds what it found if the index is still as it was: a crash at any
point, another process or an erasure in between costs the work of one step, and nothing is added twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from muniment_server.errors import Corrupt, StoreError
from muniment_server.follow.follower import Follower, Retry
from muniment_server.follow.lease import Lease
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import StoredPayload
from muniment_server.storage.search import IndexState
from muniment_server.telemetry import Metrics, get_logger
from muniment_server.terms import Members, mark_of, new_generation, terms_of

_SPLIT = 16  # payloads split without a pause: a millisecond
_CLEARED = 1000
_REST_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_LEASE = 4_000
"""Milliseconds. With one try to take it, it is for how long the index rests after a crash.

It is renewed only while there is something to add, so that a log at rest costs no writes.
"""
_OTHER_SECONDS = 30.0


class _Part(NamedTuple):
    """Postings of the entries [expected.size, size), of payloads that were read when the index was as `expected`."""

    expected: IndexState
    size: int
    postings: dict[bytes, list[int]]


class Indexer:
    """The follower that fills the index of a log with `members` of its events. One process does it, by a lease.

    Of servers with different members the one that was started last makes the index anew, once; the others leave it.
    """

    def __init__(self, store: Store, row: LogRow, metrics: Metrics, members: Members, first: float = 1.0) -> None:
        self._reads = store.reads
        self._search = store.search
        self._log_id = row.log_id
        self._name = row.name
        self._members = members
        self._lag = metrics.search_lag.labels(row.name)
        self._size = metrics.search_size.labels(row.name)
        self._part: _Part | None = None  # read ahead
        self._head = 0  # size of the log when it was looked at last
        self._ours = False  # whether the index had our members, at any time
        self._told = False  # whether the operator knows that it has others by now
        self.lease = Lease(store, row.log_id, "search", lasts=_LEASE)
        retry = Retry("indexing failed", _RETRY_SECONDS, (StoreError,))
        # Not at once: a start has better things to do.
        self._follower = Follower("indexer", row.name, self.run_once, retry, first=first)

    def start(self) -> None:
        """Begin."""
        self._follower.start()

    async def close(self) -> None:
        """Stop, in the middle of a step if need be, and let another process go on."""
        await self._follower.close()
        with contextlib.suppress(StoreError):
            await self.lease.release()

    async def run_once(self) -> float:
        """Take one step, if this process is the one that does; return how many seconds to rest. Raises StoreError."""
        began = time.monotonic()
        state = await self._search.index_state(self._log_id)
        was, self._head = self._head, (await self._reads.head(self._log_id)).size
        ours = state is not None and state.generation.endswith(mark_of(self._members))
        if state and not ours and self._ours:
            return await self._leave()
        # Where the log was put back without its index, or the state is damaged, it is ahead of what it can have. No
        # lease: a server with other members may have it for as long as it gets entries.
        if state is None or not ours or not 0 <= state.size <= (0 if state.clearing else self._head):
            await self.restart()
            return 0
        self._ours, self._told = True, False
        self._show(state.size)
        if state.size == self._head and not state.clearing:
            return _REST_SECONDS
        if not await self.lease.take():
            return _RETRY_SECONDS
        if state.clearing:
            await self._search.clear_index(self._log_id, state.generation, _CLEARED)
            return time.monotonic() - began
        size = await self._step(state)
        self._show(size)
        # While entries come in, appends get as much of the writer as the index does.
        return _REST_SECONDS if size == self._head else time.monotonic() - began if self._head > was else 0

    async def restart(self) -> IndexState:
        """Make the index anew. Raises StoreError."""
        state = await self._search.restart_index(self._log_id, new_generation(self._members))
        self._ours = True
        return state

    async def _leave(self) -> float:
        """Leave the index to the server that made it anew with other members; return how many seconds to rest.

        If each made it anew for itself, there would never be one.
        """
        if not self._told:
            hint = (
                "searches are answered index_missing here: give all servers of this log one setting `search`, then "
                "start this one anew, or run `muniment-server index rebuild`; what is started last decides"
            )
            get_logger().warning("the search index was made anew for other members", log=self._name, hint=hint)
        self._told = True
        self._show(0)
        await self.lease.release()
        return _OTHER_SECONDS

    def _show(self, size: int) -> None:
        self._size.set(size)
        self._lag.set(max(self._head - size, 0))

    async def _step(self, state: IndexState) -> int:
        """Add some entries to the index; return its size."""
        part, self._part = self._part, None
        if part is None or part.expected != state:
            part = await self._read(state)
        if part is None:
            return state.size
        adding = self._add(state, part)
        if self._search.elsewhere:  # the next part is read and split meanwhile: each takes about half of the time
            added, self._part = await asyncio.gather(adding, self._read(replace(state, size=part.size)))
        else:
            added = await adding
        return part.size if added else state.size

    async def _add(self, state: IndexState, part: _Part) -> bool:
        """Add a part; tell whether it was.

        An index that contradicts itself, as after its state was set back, is made anew: all of it is derived from the
        log.
        """
        try:
            return await self._search.add_postings(self._log_id, state, part.size, part.postings)
        except Corrupt as error:
            get_logger().error("the search index is damaged, and made anew", log=self._name, error=str(error))
            await self.restart()
            return False

    async def _read(self, state: IndexState) -> _Part | None:
        """Return what is to be added to an index in this state, if it is still in it by then; None for nothing.

        What is erased after its payload was read here is not added, as the state is another one by then.
        """
        stop = min(state.size + self._search.most_entries, self._head)
        if state.size >= stop:
            return None
        stored = await self._reads.payloads(self._log_id, state.size, stop)
        postings, reached = await self._split(stored, stop)
        return _Part(state, reached, postings)

    async def _split(self, stored: Sequence[StoredPayload], stop: int) -> tuple[dict[bytes, list[int]], int]:
        """Return the postings of these entries, and up to where they go: `stop`, or less if they have many terms."""
        postings: dict[bytes, list[int]] = {}
        terms = 0
        for at, one in enumerate(stored):
            if at % _SPLIT == 0:
                await asyncio.sleep(0)
            found = terms_of(one.payload, self._members)
            if terms and terms + len(found) > self._search.most_terms:
                return postings, one.index
            terms += len(found)
            for term in found:
                postings.setdefault(term, []).append(one.index)
        return postings, stop
