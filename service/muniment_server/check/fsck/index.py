"""Compares the search index of a log with its payloads, both ways.

Each posting, a term with an entry, is hashed, and the hashes are summed up by blocks of entries: once of the payloads,
once of the index. So each is read once, and in little memory. Blocks with another sum are looked at posting by posting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import chain, pairwise

from muniment_server.check.fsck.chunk import UNREADABLE, is_damage
from muniment_server.check.fsck.report import Report
from muniment_server.errors import Corrupt, StoreUnavailable
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.postings import decode
from muniment_server.storage.search import IndexState, WholeTerm
from muniment_server.terms import Members, mark_of, new_generation, terms_of

CODES = frozenset({"index_lacks", "index_extra", "index_list", "index_ahead", "index_members"})
"""Of the findings that a rebuild mends."""
_BLOCK = 1024
_TERMS = 32  # each may have some megabytes
_TRIES = 3
_NAMED = 3
"""Blocks of which the postings are named."""
_MASK = 2**64 - 1

Posting = tuple[bytes, int]


async def check_index(store: Store, log: LogRow, members: Members, report: Report) -> None:
    """Check the index of an event log, and add what is wrong to `report`.

    An index that was not begun, or is being made anew, or lacks the latest entries, is as it may be. It may run beside
    a server. Raises StoreError.
    """
    try:
        await _check_state(store, log, members, report)
    except (StoreUnavailable, *UNREADABLE) as error:
        if not is_damage(error):
            raise
        report.add_one("database_pages", None, f"the database cannot read its own pages: {error}")


async def repair_index(store: Store, log: LogRow, members: Members, report: Report) -> list[str]:
    """Begin the index anew if it was found wrong, and return "search_index": a server fills it. Raises StoreError."""
    if not any(finding.code in CODES for finding in report.findings):
        return []
    await store.search.restart_index(log.log_id, new_generation(members))
    return ["search_index"]


async def _check_state(store: Store, log: LogRow, members: Members, report: Report) -> None:
    for _ in range(_TRIES):
        state = await store.search.index_state(log.log_id)
        if state is None or (state.clearing and not state.size):
            return
        found = replace(report, total=0, findings=[])
        await _check(store, log.log_id, members, state, found)
        now = await store.search.index_state(log.log_id)
        if now and (now.generation, now.erasures) == (state.generation, state.erasures):
            report.add(*found.findings)
            report.total += found.total - len(found.findings)
            return
    report.unreachable.append("the search index, which was changed meanwhile")


async def _check(store: Store, log_id: int, members: Members, state: IndexState, report: Report) -> None:
    size = (await store.reads.head(log_id)).size
    if state.clearing:
        report.add_one("index_ahead", 0, f"the search index is empty, and says that it has {state.size} entries")
    elif state.size > size:
        report.add_one("index_ahead", size, f"the search index has {state.size} entries, the log has {size}")
    elif not state.generation.endswith(mark_of(members)):
        report.add_one("index_members", None, "the search index is of other members than the setting `search` names")
    else:
        there, highest = _Sums(), -1
        async for key, index in _indexed(store, log_id, report):
            highest = max(highest, index)
            if index < state.size:
                there.add(key, index)
        await _check_end(store, log_id, state, highest, report)
        right = _Sums()
        async for key, index in _payloads(store, log_id, members, range(state.size)):
            right.add(key, index)
        for block in sorted(right.differ(there))[:_NAMED]:
            await _name(store, log_id, members, range(block, min(block + _BLOCK, state.size)), report)


async def _check_end(store: Store, log_id: int, state: IndexState, highest: int, report: Report) -> None:
    """Check that the index has nothing beyond its size, as it has when that was set back: it would be added twice."""
    now = await store.search.index_state(log_id)  # as of after its rows were read
    if now and now.generation == state.generation and highest >= now.size:
        report.add_one("index_extra", highest, f"the search index has entry {highest}, and says that it has {now.size}")


class _Sums:
    """Sums of the hashes of postings, by the first index of their block."""

    def __init__(self) -> None:
        self._sums: dict[int, int] = {}

    def add(self, key: bytes, index: int) -> None:
        block = index - index % _BLOCK
        self._sums[block] = self._sums.get(block, 0) + hash((key, index)) & _MASK

    def differ(self, other: _Sums) -> set[int]:
        return {
            block for block in self._sums.keys() | other._sums.keys() if self._sums.get(block) != other._sums.get(block)
        }


async def _payloads(store: Store, log_id: int, members: Members, part: range) -> AsyncIterator[Posting]:
    """Yield the postings that the payloads make."""
    for start in range(part.start, part.stop, _BLOCK):
        for stored in await store.reads.payloads(log_id, start, min(start + _BLOCK, part.stop)):
            try:
                terms = terms_of(stored.payload, members)
            except ValueError:
                continue  # a finding of its own
            for key in terms:
                yield key, stored.index


async def _indexed(
    store: Store, log_id: int, report: Report, wanted: Callable[[int], bool] = lambda _: True
) -> AsyncIterator[Posting]:
    """Yield the postings of the index; lists that cannot be read, or are out of place, are told."""
    after = b""
    while page := await store.search.whole_terms(log_id, after, _TERMS):
        for term in page:
            try:
                indices = _all(term)
            except Corrupt as error:
                report.add_one("index_list", None, f"a term of the search index cannot be read: {error}")
                continue
            for index in indices:
                if wanted(index):
                    yield term.key, index
        after = page[-1].key
        await asyncio.sleep(0)


def _all(term: WholeTerm) -> list[int]:
    """Return the postings of a term, which a search finds only where they stand in order. Raises Corrupt."""
    stop, lists = 0, []
    for start, (stop, body) in zip((0, *(stop for stop, _ in term.chunks)), term.chunks, strict=False):
        lists.append(part := decode(body))
        if not part or part[0] < start or part[-1] >= stop:
            raise Corrupt("a chunk has entries of another one")
    lists.append(decode(term.tail))
    indices = list(chain.from_iterable(lists))
    if any(after <= before for before, after in pairwise(indices)) or (lists[-1] and lists[-1][0] < stop):
        raise Corrupt("its entries are not in order")
    return indices


async def _name(store: Store, log_id: int, members: Members, part: range, report: Report) -> None:
    """Add a finding for each entry of a block that the index has wrong."""
    right = {posting async for posting in _payloads(store, log_id, members, part)}
    ignored = replace(report, findings=[])  # lists that cannot be read were told before
    there = {posting async for posting in _indexed(store, log_id, ignored, part.__contains__)}
    for index in sorted({index for _, index in right - there}):
        report.add_one("index_lacks", index, f"a search does not find event {index} by all that it has")
    for index in sorted({index for _, index in there - right}):
        report.add_one("index_extra", index, f"the search index has a value for entry {index} that it does not have")
