"""Logs on both stores, searched at random, against an evaluator that looks at every event: see rig `search`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

import orjson

from muniment.event import parse_time
from muniment.query import parse_query
from muniment_server.read import search
from muniment_server.read.search import Asked
from muniment_server.terms import Members
from tests.service.rig import Rig
from tests.service.search_hostile import events_of, query_of
from tests.service.search_oracle import Looked, evaluator
from tests.service.test_search import Searched

STAGES = ((0.6, 0.02), (0.9, 0.08), (0.98, 0.2), (0.998, 0.2), (1, 0.5))
"""How much of the log the index has, and how many of the queries are asked then."""
_MOST_PAGES = 6
_ENOUGH = 100
"""Hits after which no more than so many pages are asked for. Half of the queries have fewer."""


@dataclass
class Same:
    """The same log on some databases, and what the evaluator knows of it."""

    logs: list[Searched]
    looked: dict[int, Looked]
    times: list[int]

    @classmethod
    async def of(cls, rigs: list[Rig], events: list[dict[str, Any]], members: Members) -> Same:
        logs = [await Searched.of(rig, members) for rig in rigs]
        for log in logs:
            await log.append(events)
        looked = {
            index: Looked({name: value for name, value in event.items() if members is None or name in members})
            for index, event in logs[0].events.items()
        }
        leaves = [json.loads(await logs[0].search._entries.leaf(index)) for index in range(len(events) + 1)]
        return cls(logs, looked, [parse_time(leaf["logged_at"]) for leaf in leaves])

    @property
    def size(self) -> int:
        return len(self.times)

    async def fill(self, share: float) -> None:
        """Fill the indices up to some share of the log, to the same entry."""
        size = round(self.size * share)
        for log in self.logs:
            while (state := await log.state()) is None or state.size < size:
                left = min(256, size - (state.size if state else 0))
                log.indexer._part = None  # what was read ahead may go beyond it
                with patch.object(type(log.indexer._search), "most_entries", left):
                    await log.indexer.run_once()

    def truth(self, query: str, asked: Asked, complete_to: int) -> list[int]:
        """What there is to be found below a size."""
        matches = evaluator(query)
        since, until = asked.since, asked.until
        there = [
            index
            for index, event in self.looked.items()
            if index < complete_to
            and (since is None or self.times[index] >= since)
            and (until is None or self.times[index] < until)
            and matches(event)
        ]
        return there[::-1] if asked.newest else there


async def compare(rigs: list[Rig], seed: int, entries: int, queries: int) -> Counter[str]:
    """Ask a log of so many entries so many queries; return what is worth counting. Raises AssertionError."""
    random = Random(seed)
    events = events_of(random, entries - 1)
    members = frozenset(("actor", "note", "user", "a.b", "İ")) if seed % 4 == 3 else None
    same = await Same.of(rigs, events, members)
    seen = [one.event for one in same.looked.values() if one.event]
    counts: Counter[str] = Counter()
    for share, part in STAGES:
        await same.fill(share)
        for _ in range(round(queries * part)):
            counts += await _ask(same, random, query_of(random, random.choice((events, seen, seen))))
    return counts


async def _ask(same: Same, random: Random, query: str) -> Counter[str]:
    """Ask one query at all databases, in pieces and pages of any size."""
    since, until = (
        random.choice(same.times) + random.choice((0, 0, 1)) if random.random() < 0.2 else None for _ in "ab"
    )
    asked = Asked(query, parse_query(query), since, until, newest=random.random() < 0.7)
    behind = 10_000 if random.random() < 0.8 else random.randrange(200)
    limit = random.choice((1, 3, 10, 100, 100, 100, 1000))
    settings = {
        "MOST_BEHIND": behind,
        "MOST_READ": random.choice((100, 10_000, 10_000)),
        "_WINDOW": random.choice((1, 100, 8192)),
        "_MOST_KEYS": random.choice((1, 20, 1000)),
        "_AT_ONCE": random.choice((32, 250)),
        "_SECONDS": 300.0,  # on a slow machine one store would have shorter pages than the other
    }
    with patch.multiple(search, **settings):
        answers = [await _pages(log, asked, limit) for log in same.logs]
    where = f"{query!r} {asked.since} {asked.until} newest={asked.newest} limit={limit} {settings}"
    state = await same.logs[0].state()
    assert state is not None
    complete_to = min(same.size, state.size + behind)
    answer = answers[0]
    assert answer.extents == {(complete_to, same.size)}, where
    expected = same.truth(query, asked, complete_to)
    found = [hit["index"] for hit in answer.hits]
    assert found == (expected if answer.done else expected[: len(found)]), f"{where}: {found[:9]}, not {expected[:9]}"
    assert all(other == answer for other in answers), f"{where}: the stores differ"
    counts = {"hits": len(found), "queries with hits": bool(expected), "behind": state.size < same.size}
    return Counter(counts | {"not to the end": not answer.done})


@dataclass
class _Answer:
    """The hits of some pages, whether these are all, and how far the pages said that they go."""

    hits: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    extents: set[tuple[int, int]] = field(default_factory=set)


async def _pages(log: Searched, asked: Asked, limit: int) -> _Answer:
    answer, cursor = _Answer(), None
    for number in itertools.count(1):
        page = await log.search.page(asked, limit, cursor)
        answer.hits += json.loads(orjson.dumps(page.hits))
        answer.extents.add((page.complete_to, page.size))
        cursor = page.next
        if cursor is None or len(answer.hits) > (_ENOUGH if number >= _MOST_PAGES else 3 * _ENOUGH):
            break
    answer.done = cursor is None
    return answer
