"""Search answers what reading every event would, on both stores, wherever the index is."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson
import pytest

from muniment.event import format_time
from muniment.query import parse_query
from muniment.strictjson import canonical
from muniment_server.check.fsck.index import check_index
from muniment_server.check.fsck.report import Report
from muniment_server.errors import Corrupt, Refused, StoreUnavailable
from muniment_server.follow import lease
from muniment_server.follow.indexer import Indexer
from muniment_server.read import search
from muniment_server.read.entries import Entries
from muniment_server.read.heads import Heads
from muniment_server.read.search import Asked, Search
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.postings import encode
from muniment_server.storage.search import IndexState
from muniment_server.telemetry import Metrics
from muniment_server.terms import MOST_TERMS, Members
from muniment_server.write.admission import commit
from muniment_server.write.submission import Submission
from tests.service.rig import NOW, Bench, Rig, genesis
from tests.service.searching import events_of, queries_of


@dataclass
class Searched:
    """A log with events, its search, and what fills its index. Entry 0 is the genesis entry."""

    bench: Bench
    indexer: Indexer
    search: Search
    members: Members = None
    events: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    async def of(cls, rig: Rig, members: Members = None) -> Searched:
        seconds = itertools.count(NOW // 1000)
        bench = await rig.log()
        bench.clock = lambda: float(next(seconds))
        sequencer = bench.sequencer()
        await sequencer.start()
        await sequencer.run([genesis(bench)])
        heads = Heads(rig.store, bench.row, sequencer, lambda: None)
        fills = Indexer(rig.store, bench.row, Metrics(), members)
        return cls(
            bench,
            fills,
            Search(rig.store, bench.log_id, heads, Entries(rig.store, bench.log_id, heads), members),
            members,
        )

    async def append(self, events: list[dict[str, Any]]) -> None:
        for at in range(0, len(events), 250):
            part = events[at : at + 250]
            drafts = [commit(event, canonical(event), bytes(32)) for event in part]
            (outcome,) = await self.bench.sequencers[0].run([Submission(drafts)])
            self.events.update(zip(outcome.indices, part, strict=True))
        signed = self.bench.sequencers[0].signed
        assert signed
        await self.bench.rig.store.checkpoints.publish(self.bench.log_id, Published(signed.size, signed.note, NOW))

    async def fill(self, to: int | None = None) -> None:
        """Let the follower work until it has nothing to do, or the index has `to` entries."""
        while (state := await self.state()) is None or state.clearing or state.size < (to or len(self.events) + 1):
            await self.indexer.run_once()

    async def state(self) -> IndexState | None:
        return await self.bench.rig.store.search.index_state(self.bench.log_id)

    async def found(self, query: str, limit: int = 1000, **asked: Any) -> list[int]:
        """The hits of all pages."""
        what, cursor, hits = Asked(query, parse_query(query), **asked), None, []
        while True:
            page = await self.search.page(what, limit, cursor)
            hits += [hit["index"] for hit in page.hits]
            cursor = page.next
            if cursor is None:
                return hits

    def truth(self, query: str, *, newest: bool = True) -> list[int]:
        """What reading every event finds."""
        parsed = parse_query(query)
        there = [
            index
            for index, event in self.events.items()
            if parsed.matches(
                {name: value for name, value in event.items() if self.members is None or name in self.members}
            )
        ]
        return sorted(there, reverse=newest)


@pytest.fixture
async def log(rig: Rig) -> AsyncIterator[Searched]:
    return await Searched.of(rig)


async def test_random_queries_find_what_a_scan_finds(log: Searched, monkeypatch: pytest.MonkeyPatch):
    """With the border between index and scan anywhere, in windows and pages of any size."""
    random = Random(19)
    await log.append(events_of(random, 600))
    await log.fill(400)
    monkeypatch.setattr(search, "_AT_ONCE", 250)  # fewer round trips
    hits = 0
    for number, query in enumerate(queries_of(random, 110)):
        monkeypatch.setattr(search, "_WINDOW", random.choice((1, 100, 8192)))
        monkeypatch.setattr(search, "_MOST_KEYS", random.choice((1, 1000)))
        monkeypatch.setattr(search, "MOST_READ", random.choice((100, 10_000)))
        newest = random.random() < 0.7
        limit = random.choice((50, 400, 1000))
        expected = log.truth(query, newest=newest)
        assert await log.found(query, limit, newest=newest) == expected, query
        hits += bool(expected)
        if number == 70:
            await log.fill()
    assert hits > 50


async def test_lists_in_chunks_are_searched(log: Searched):
    await log.append([{"a": "x", "b": n % 7, "c": n % 500} for n in range(2500)])
    await log.fill()
    for query in ("a:x", "a:x b:3", "a:x b:3 c:3", "b:>=5 -a:y", "c:7", "x", "a:y"):
        assert await log.found(query) == log.truth(query), query


async def test_a_page_says_how_far_it_is_complete(log: Searched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "MOST_BEHIND", 20)
    await log.append([{"n": n} for n in range(99)])
    await log.fill()
    await log.append([{"n": n} for n in range(99, 199)])
    what = Asked("", parse_query(""))
    page = await log.search.page(what, 5)
    assert (page.complete_to, page.size) == (120, 200)
    assert [hit["index"] for hit in page.hits] == [119, 118, 117, 116, 115]
    await log.fill()
    rest = await log.search.page(what, 1000, page.next)
    assert (rest.hits[0]["index"], len(rest.hits), rest.next, rest.complete_to) == (114, 114, None, 120)
    assert (await log.search.page(what, 5)).complete_to == 200


async def test_times_are_borders(log: Searched):
    await log.append([{"n": n} for n in range(10)])
    await log.append([{"n": n} for n in range(10, 20)])
    await log.fill(11)
    times = {}
    for hit in (await log.search.page(Asked("", parse_query("")), 99)).hits:
        times.setdefault(hit["logged_at"], []).append(hit["index"])
    moments = sorted(orjson.loads(b"[%d]" % _milliseconds(text))[0] for text in times)
    assert len(moments) == 2
    first, second = moments
    assert await log.found("", since=second) == [*range(20, 10, -1)]
    assert await log.found("", until=second) == [*range(10, 0, -1)]
    assert await log.found("", since=first, until=second) == [*range(10, 0, -1)]
    assert await log.found("", since=second + 1) == await log.found("", until=first) == []
    assert await log.found("n:<3", since=0, until=2**60, newest=False) == [1, 2, 3]


def _milliseconds(text: str) -> int:
    return next(moment for moment in range(NOW, NOW + 100_000, 1000) if format_time(moment) == text)


async def test_cursors_are_of_one_search(log: Searched, rig: Rig):
    await log.append([{"n": n} for n in range(30)])
    await log.fill()
    what = Asked("n:>3", parse_query("n:>3"))
    cursor = (await log.search.page(what, 5)).next
    assert cursor
    assert (await log.search.page(what, 5, cursor)).hits
    other = await Searched.of(rig)
    await other.append([{"n": n} for n in range(30)])
    await other.fill()
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    for wrong in ("", "x", cursor[:-4], cursor + "AAAA", flipped, "B" + cursor[1:], "é", cursor + "="):
        with pytest.raises(Refused, match="not of this search"):
            await log.search.page(what, 5, wrong)
    for asked in (
        Asked("n:>4", parse_query("n:>4")),
        Asked("n:>3", what.query, newest=False),
        Asked("n:>3", what.query, since=0),
        Asked("n:>3", what.query, until=2**50),
    ):
        with pytest.raises(Refused, match="not of this search"):
            await log.search.page(asked, 5, cursor)
    with pytest.raises(Refused, match="not of this search"):
        await other.search.page(what, 5, cursor)
    await log.indexer.restart()
    with pytest.raises(Refused, match="not of this search"):
        await log.search.page(what, 5, cursor)
    await log.fill()
    assert await log.found("n:>3") == log.truth("n:>3")


async def test_entries_with_many_terms_are_found_too(log: Searched):
    many = {"tags": [f"t{n}" for n in range(MOST_TERMS + 5)], "a": "x"}
    await log.append([many, {"a": "x"}, {"tags": "t7"}, many, *({"n": [*range(900)]} for _ in range(9))])
    await log.fill()
    for query in ("tags:t7", "a:x", "tags:t1004 a:x", "t7", "-a:x tags:*", "n:5", "a:y"):
        assert await log.found(query) == log.truth(query), query


async def test_a_step_that_fails_or_happened_is_done_once(log: Searched, rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """Before the commit, after it, and where another process or an erasure was quicker."""
    await log.append([{"n": n, "a": "x"} for n in range(600)])
    real = rig.store.search.add_postings
    faults = itertools.cycle(("before", "after", "raced", "none"))

    async def faulty(log_id: int, expected: IndexState, size: int, postings: Any) -> bool:
        fault = next(faults)
        if fault == "before":
            raise StoreUnavailable("not done")
        if fault == "raced":
            assert await real(log_id, expected, expected.size + 1, {})
            await rig.sql(f"UPDATE search_state SET size = {expected.size}, erasures = erasures + 1")
        done = await real(log_id, expected, size, postings)
        if fault == "after":
            raise StoreUnavailable("done, and not told")
        return done

    monkeypatch.setattr(type(rig.store.search), "add_postings", lambda _, *values: faulty(*values))
    while (state := await log.state()) is None or state.size < 601:
        try:
            await log.indexer.run_once()
        except StoreUnavailable:
            continue
    for query in ("a:x", "n:>=300", "n:17"):
        assert await log.found(query) == log.truth(query), query
    ((bodies, tails),) = await rig.sql(
        "SELECT (SELECT count(*) FROM search_chunks), (SELECT count(*) FROM search_terms)"
    )
    assert (bodies, tails) == (2, 602), "nothing twice: 600 numbers, one value, one word; the last two in chunks"


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_follower_that_dies_at_any_step_is_followed_by_one_that_goes_on(
    log: Searched, rig: Rig, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """At the first begin, while an older index is cleared, and while entries are added: each step, once in two."""
    await log.append([{"n": n, "a": "x"} for n in range(400)])
    await log.fill()
    await log.indexer.restart()
    turns = itertools.count()

    def dying(real: Any) -> Any:
        async def step(self: Any, *values: Any) -> Any:
            dies = next(turns) % 2 == 0
            if dies and moment == "before":
                raise StoreUnavailable("killed")
            done = await real(self, *values)
            if dies:
                raise StoreUnavailable("killed")
            return done

        return step

    kind = type(rig.store.search)
    for name in ("restart_index", "clear_index", "add_postings"):
        monkeypatch.setattr(kind, name, dying(getattr(kind, name)))
    deaths = 0
    while (state := await log.state()) is None or state.clearing or state.size < 401:
        try:
            await log.indexer.run_once()
        except StoreUnavailable:
            deaths += 1
            await log.indexer.lease.release()  # it would end by itself
            log.indexer = Indexer(rig.store, log.bench.row, Metrics(), None)
    assert deaths > 1
    for query in ("a:x", "n:>=300", "n:17", "-n:>5"):
        assert await log.found(query) == log.truth(query), query
    assert await check(log) == []


async def check(log: Searched) -> list[str]:
    """What fsck finds of the index."""
    report = Report("log", "origin", 0)
    await check_index(log.bench.rig.store, log.bench.row, log.members, report)
    return [finding.code for finding in report.findings]


async def test_damaged_rows_give_an_error_or_what_is_right(log: Searched, rig: Rig):
    """A list that ends too soon is never taken for a shorter one, and a hit too many is compared with its payload."""
    await log.append([{"n": n % 3, "a": "x"} for n in range(600)])
    await log.fill()
    ends = rig.blob(b"\x05\x64\x01")
    spoils = {
        "UPDATE search_terms SET tail = " + ends: 4,
        "UPDATE search_chunks SET body = " + ends: 1,
        f"UPDATE search_terms SET tail = {rig.blob(encode([7, 8, 9, 2**39]))}": 0,
    }
    for spoil, least in spoils.items():
        await rig.sql(spoil)
        errors = []
        for query in ("a:x", "n:1", "n:>=1 a:x", "x"):
            try:
                found = await log.found(query)
            except Corrupt as error:
                errors.append(str(error))
            else:
                assert found == log.truth(query) or not least, query
                assert set(found) <= set(log.truth(query)), query
        assert len(errors) >= least, spoil
        assert all("index rebuild" in error for error in errors)
        assert "index_list" in await check(log)
        await log.indexer.restart()
        await log.fill()
        assert await log.found("a:x") == log.truth("a:x")
        assert await check(log) == []


async def test_an_index_that_is_ahead_is_made_anew(log: Searched, rig: Rig):
    await log.append([{"n": n} for n in range(30)])
    await log.fill()
    await rig.sql("UPDATE search_state SET size = 99")
    assert (await log.search.page(Asked("n:3", parse_query("n:3")), 9)).complete_to == 31
    await log.indexer.run_once()
    await log.fill()
    assert await log.found("n:<5") == log.truth("n:<5")
    assert (await log.state()).size == 31


@pytest.mark.parametrize("size", [0, 1, 299])
async def test_an_index_whose_state_was_set_back_finds_what_is_right(log: Searched, rig: Rig, size: int):
    """It is filled over what it has, so that lists do not ascend: it is made anew, or fsck says so."""
    await log.append([{"a": "x", "n": n} for n in range(300)])
    await log.fill()
    was = await log.state()
    await rig.sql(f"UPDATE search_state SET size = {size}")
    await log.fill()
    await log.append([{"a": "x", "n": n} for n in range(600)])
    await log.fill()
    assert await log.found("a:x") == log.truth("a:x")
    anew = (await log.state()).generation != was.generation
    assert anew == (await check(log) == [])
    assert anew or rig.engine == "postgres"
    await log.indexer.restart()
    await log.fill()
    assert await check(log) == []


async def test_any_state_is_mended_by_a_server_that_is_started(log: Searched, rig: Rig):
    """Or else a search finds what is right, and fsck says what is not."""
    random = Random(19)
    await log.append([{"a": "x", "n": n} for n in range(300)])
    await log.fill()
    ours, states = (await log.state()).generation, ["DELETE FROM search_state"]
    for _ in range(12):
        generation = rig.blob(random.choice((ours, random.randbytes(16))))
        size = random.choice((0, 1, 150, 300, 301, 302, 2**62, random.randrange(302)))
        clearing = random.choice(("true", "false"))
        states.append(
            f"UPDATE search_state SET generation = {generation}, size = {size}, clearing = {clearing}, "
            f"erasures = {random.randrange(-(2**63), 2**63)}"
        )
    for state in states:
        await rig.sql(state)
        told = await check(log)
        log.indexer = Indexer(rig.store, log.bench.row, Metrics(), None)
        await log.indexer.run_once()
        await log.fill()
        await log.append([{"a": "x", "n": n} for n in range(3)])
        await log.fill()
        for query in ("a:x", "n:2", "x"):
            assert await log.found(query) == log.truth(query), (state, query)
        assert (await check(log)) == [] or told, state
        await log.indexer.restart()
        await log.fill()
        assert await check(log) == [], state
        await log.indexer.close()


async def test_at_rest_it_takes_no_lease(log: Searched):
    await log.append([{"a": "x"}])
    await log.fill()
    await log.indexer.close()
    assert not log.indexer.lease.held
    await log.indexer.run_once()
    assert not log.indexer.lease.held, "a log at rest costs no writes"


async def test_another_process_goes_on_soon_after_one_that_died(log: Searched, rig: Rig, monkeypatch):
    await log.append([{"a": "x"}])
    await log.fill()
    await log.append([{"a": "y"}])
    other = Indexer(rig.store, log.bench.row, Metrics(), None)
    await other.run_once()
    assert (await log.state()).size == 2, "the first one has the lease"
    later = lease.now() + 4_000
    monkeypatch.setattr(other.lease, "_clock", lambda: later)
    await other.run_once()
    assert (await log.state()).size == 3


async def test_only_named_members_are_searched(rig: Rig):
    log = await Searched.of(rig, frozenset({"actor", "user"}))
    await log.append(events_of(Random(3), 150))
    await log.fill(100)
    for query in ("actor:*", "alice", "-actor:*", "note:*", "user.actor:*", "17"):
        assert await log.found(query) == log.truth(query), query
    assert not await log.found("note:*")
    # Another setting: another index, and no answer from this one.
    other = Search(rig.store, log.bench.log_id, log.search._heads, log.search._entries, None)
    with pytest.raises(Refused, match="no search index"):
        await other.page(Asked("", parse_query("")), 9)
    before = log.indexer
    await log.append([{"note": "held"}])
    await before.run_once()
    assert before.lease.held, "the one that was started later does not wait for it, as there may be no end"
    log.indexer = Indexer(rig.store, log.bench.row, Metrics(), None)
    log.search, log.members = other, None
    await log.indexer.run_once()
    await log.fill()
    assert await log.found("note:*") == log.truth("note:*") != []
    # The server with the setting of before leaves the index to the one that was started later.
    await log.append([{"note": "more"}])
    state = await log.state()
    assert [await before.run_once() > 1 for _ in range(3)] == [True] * 3
    assert await log.state() == state
    assert not before.lease.held
    await log.fill()
    assert await log.found("note:more") == log.truth("note:more") != []


async def test_a_server_that_could_not_make_it_anew_tries_again(log: Searched, monkeypatch: pytest.MonkeyPatch):
    """It does not take an index of before for that of a server which was started later."""
    await log.append([{"a": "x"}])
    await log.fill()
    log.indexer = Indexer(log.bench.rig.store, log.bench.row, Metrics(), frozenset({"b"}))

    async def away(*_: Any) -> IndexState:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(log.bench.rig.store.search), "restart_index", away)
        with pytest.raises(StoreUnavailable):
            await log.indexer.run_once()
    was = await log.state()
    await log.indexer.run_once()
    assert (await log.state()).generation != was.generation
