"""Searches by the clients: all pages in order, nothing that was not asked for, and with receipts nothing unproved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from typing import Any

import httpx
import pytest

from muniment.checkpoint import parse_checkpoint, sign_checkpoint
from muniment.encoding import b64
from muniment.errors import (
    BadDisclosure,
    BadProof,
    FormatError,
    Inconsistent,
    NotWhatWasSent,
    PayloadsClosed,
    PolicyNotMet,
    QueryError,
    Refused,
    Unavailable,
)
from muniment.event import format_time
from muniment.note import parse_note
from muniment.policy import Policy
from muniment.receipt import Receipt
from muniment.wire import Deadline
from tests.client.colours import Colours
from tests.client.fake_log import NOON, FakeLog, edit, edit_line, instead, problem

ALICE = "actor:alice n:>=10"


@cache
def grown() -> FakeLog:
    made = FakeLog()
    made.add_events([{"actor": "alice" if n % 3 else "bob", "n": n, "note": "a b"} for n in range(1, 300)])
    made.publish()
    return made


@pytest.fixture
def log() -> FakeLog:
    return grown().fork()


def found(hits: Any) -> list[int]:
    return [hit.index for hit in hits]


def expected(*, newest: bool = True) -> list[int]:
    return [n for n in (range(299, 9, -1) if newest else range(10, 300)) if n % 3]


@pytest.mark.parametrize("newest", [True, False])
def test_all_hits_over_all_pages(colours: Colours, log: FakeLog, newest: bool) -> None:
    log.searched_at_once = 70
    hits = colours.client(log).search(ALICE, newest=newest)
    assert (hits.complete_to, hits.tree_size) == (None, None)
    assert found(hits) == expected(newest=newest)
    assert (hits.complete_to, hits.tree_size) == (300, 300)
    assert len(log.paths()) > 4


def test_a_hit(colours: Colours, log: FakeLog) -> None:
    hit = next(iter(colours.client(log).search("n:7")))
    assert (hit.index, hit.leaf_hash, hit.logged_at) == (7, log.receipt(7).leaf_hash, NOON + 7)
    assert (hit.event, hit.receipt) == (log.payloads[7].event, None)
    assert list(hit.to_json()) == ["index", "leaf_hash", "logged_at", "event"]


@pytest.mark.parametrize(("limit", "requests"), [(0, 0), (1, 1), (100, 1), (101, 2), (10_000, 2)])
def test_limit(colours: Colours, log: FakeLog, limit: int, requests: int) -> None:
    assert found(colours.client(log).search(ALICE, limit=limit)) == expected()[:limit]
    assert len(log.paths()) == requests, "no page is asked for that is not needed"


def test_the_index_is_behind(colours: Colours, log: FakeLog) -> None:
    log.searchable = 20
    hits = colours.client(log).search("")
    assert found(hits) == list(range(19, 0, -1))
    assert (hits.complete_to, hits.tree_size) == (20, 300)


def test_pages_without_hits_are_not_the_end(colours: Colours, log: FakeLog) -> None:
    log.searched_at_once = 5
    assert found(colours.client(log).search("n:2")) == [2]
    hits = colours.client(log).search("nothing")
    assert found(hits) == []
    assert hits.complete_to == 300


def test_each_page_has_the_time_of_a_call(colours: Colours, log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search through millions of entries that finds nothing takes many requests, and none of them waits long."""
    made = []
    within = Deadline.within
    monkeypatch.setattr(Deadline, "within", lambda seconds: made.append(seconds) or within(seconds))
    log.searched_at_once = 10
    assert found(colours.client(log).search("nothing")) == []
    assert made.count(max(made)) == len(log.paths()) == 30, "calls, beside exchanges"


# --- times ------------------------------------------------------------------------------------------------------------


def test_times(colours: Colours, log: FakeLog) -> None:
    search = colours.client(log).search
    low, high = datetime.fromtimestamp(NOON // 1000, UTC), timedelta(milliseconds=NOON % 1000)
    for start in (low + high + timedelta(milliseconds=290), format_time(NOON + 290)):
        assert found(search("", start_time=start)) == list(range(299, 289, -1))
        assert found(search("", end_time=start)) == list(range(289, 0, -1))
    late = low + high + timedelta(milliseconds=290, microseconds=1)
    assert found(search("", start_time=late, newest=False))[0] == 291, "290 was before that"
    assert found(search("", end_time=late))[0] == 290
    elsewhere = late.astimezone(timezone(timedelta(hours=-11)))
    assert found(search("", start_time=elsewhere, newest=False))[0] == 291
    assert (
        len(found(search("", start_time="2026-11-20"))) == len(found(search("", start_time=date(2026, 11, 20)))) == 299
    )
    assert found(search("", end_time="2026-11-20")) == []
    assert found(search("", start_time="0001-01-01", end_time=date(9999, 12, 31)))


@pytest.mark.parametrize("time", ["yesterday", "", "2026-11-20T12:00:00", datetime(2026, 11, 20), "2026-02-30", 17])  # noqa: DTZ001 - is refused
def test_no_time(colours: Colours, log: FakeLog, time: Any) -> None:
    for name in ("start_time", "end_time"):
        with pytest.raises(FormatError, match="time"):
            next(iter(colours.client(log).search("", **{name: time})))
    assert log.paths() == []


def test_no_query(colours: Colours, log: FakeLog) -> None:
    with pytest.raises(QueryError) as caught:
        next(iter(colours.client(log).search("actor:alice é:")))
    assert caught.value.position == 14
    assert log.paths() == [], "the server is not asked"


# --- receipts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", [True, False])
def test_receipts_are_at_one_checkpoint(colours: Colours, log: FakeLog, newest: bool) -> None:
    def grow(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path.endswith(("receipt", "export")):
            log.add_events([{"later": True}])
            log.publish()
        return response

    log.tamper = grow
    hits = list(colours.client(log).search("actor:bob", newest=newest, receipts=True))
    assert found(hits) == [n for n in (range(299, 0, -1) if newest else range(300)) if n % 3 == 0 and n]
    assert {hit.receipt.tree_size for hit in hits} == {300}
    assert len({hit.receipt.checkpoint for hit in hits}) == 1
    for hit in hits:
        verified = hit.receipt.verify(log.policy)
        assert (verified.index, verified.opened) == (hit.index, hit.event)


@pytest.mark.parametrize("newest", [True, False])
def test_receipts_wait_until_the_hits_are_published(colours: Colours, log: FakeLog, newest: bool) -> None:
    log.lag = True
    log.add_events([{"actor": "carol"}])

    def publish_late(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if response.status_code == 404:
            log.publish()
        return response

    log.tamper = publish_late
    [hit] = colours.client(log).search("actor:carol", newest=newest, receipts=True)
    assert (hit.index, hit.receipt.tree_size) == (300, 301)


def test_a_checkpoint_that_got_more_signatures(colours: Colours, log: FakeLog) -> None:
    """The notes of one head may differ in what others signed. A bundle has one text of it."""
    log.searched_at_once, count = 2, iter(range(100))
    log.tamper = edit_line(None, lambda value: value | {"checkpoint": cosigned(value["checkpoint"], next(count))})
    hits = list(colours.client(log).search("n:<4", receipts=True))
    assert (found(hits), next(count)) == ([3, 2, 1], 2)
    assert {hit.receipt.checkpoint for hit in hits} == {log.note(300)}
    assert all(hit.receipt.verify(log.policy) for hit in hits)


def cosigned(note: str, number: int) -> str:
    return f"{note}— other.example {b64(bytes([number]) * 80)}\n"


@pytest.mark.parametrize("receipts", [True, False])
def test_no_hit_needs_no_receipt(colours: Colours, log: FakeLog, receipts: bool) -> None:
    assert found(colours.client(log).search("n:7 n:8", receipts=receipts)) == []


@pytest.mark.parametrize(("limit", "pages"), [(1, 1), (100, 1), (101, 2), (None, 2)])
def test_receipts_take_one_request_a_page(colours: Colours, log: FakeLog, limit: int | None, pages: int) -> None:
    assert len(list(colours.client(log).search(ALICE, receipts=True, limit=limit))) == (limit or len(expected()))
    asked = [path.rsplit("/")[-1] for path in log.paths()]
    assert (asked.count("search"), asked.count("export"), asked.count("receipt")) == (pages, pages, 1)


# --- lies -------------------------------------------------------------------------------------------------------------


def first(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda answer: change(answer["hits"][0]) and None


def swap(answer: dict[str, Any]) -> None:
    answer["hits"][3:5] = answer["hits"][4:2:-1]


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no hits": lambda answer: answer.pop("hits"),
    "hits are no list": lambda answer: answer.update(hits={}),
    "a hit is no object": lambda answer: answer["hits"].append(17),
    "no index": first(lambda hit: hit.pop("index")),
    "an index below 0": first(lambda hit: hit.update(index=-1)),
    "an index that is none": first(lambda hit: hit.update(index=True)),
    "beyond the end": first(lambda hit: hit.update(index=300)),
    "far beyond the end": first(lambda hit: hit.update(index=2**63 - 1)),
    "no event": first(lambda hit: hit.pop("event")),
    "an event that is null": first(lambda hit: hit.update(event=None)),
    "an event that is a list": first(lambda hit: hit.update(event=[])),
    "an event with a number too large": first(lambda hit: hit["event"].update(x=2**60)),
    "no leaf hash": first(lambda hit: hit.pop("leaf_hash")),
    "a short leaf hash": first(lambda hit: hit.update(leaf_hash="00")),
    "no time": first(lambda hit: hit.pop("logged_at")),
    "another time": first(lambda hit: hit.update(logged_at="yesterday")),
    "times that go back": first(lambda hit: hit.update(logged_at="2026-11-19T00:00:00.000Z")),
    "out of order": swap,
    "one hit twice": lambda answer: answer["hits"].insert(1, answer["hits"][0]),
    "more hits than asked for": lambda answer: answer["hits"].append(answer["hits"][-1] | {"index": 1}),
    "no size": lambda answer: answer.pop("tree_size"),
    "a smaller size": lambda answer: answer.update(tree_size=299),
    "no complete_to": lambda answer: answer.pop("complete_to"),
    "complete beyond the end": lambda answer: answer.update(complete_to=301),
    "next is a number": lambda answer: answer.update(next=100),
}


@pytest.mark.parametrize("lie", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_page(colours: Colours, log: FakeLog, lie: Callable[[dict[str, Any]], Any]) -> None:
    log.tamper = edit("/search", lambda answer: lie(answer) and None)
    with pytest.raises(FormatError):
        list(colours.client(log).search(ALICE))


def test_an_event_with_half_a_pair(colours: Colours, log: FakeLog) -> None:
    def halve(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        body = response.content.replace(b'"alice"', b'"alice","x":"\\ud800"', 1)
        return httpx.Response(200, content=body, headers={"Content-Type": "application/json"})

    log.tamper = halve
    with pytest.raises(FormatError, match="is no event"):
        list(colours.client(log).search(ALICE))


def test_lies_that_need_two_pages(colours: Colours, log: FakeLog) -> None:
    def again(answer: dict[str, Any]) -> None:
        answer["next"] = answer["next"] and "0"

    def shrink(answer: dict[str, Any]) -> None:
        answer["complete_to"] -= len(answer["hits"]) < 100

    for lie, what in ((again, "not in order"), (shrink, "stay the same")):
        log.tamper = edit("/search", lie)
        with pytest.raises(FormatError, match=what):
            list(colours.client(log).search(ALICE))


def test_cursors_that_lead_nowhere(colours: Colours, log: FakeLog) -> None:
    """A page without hits and with a next one is honest; without an end it is not."""
    log.searchable, count = 20, iter(range(10**6))
    log.tamper = edit("/search", lambda answer: answer | {"hits": [], "next": "0"})
    with pytest.raises(FormatError, match="lead nowhere"):
        list(colours.client(log).search(""))
    log.tamper = edit("/search", lambda answer: answer | {"hits": [], "next": str(next(count) % 20)})
    with pytest.raises(FormatError, match="lead nowhere"):
        list(colours.client(log).search(""))


@pytest.mark.parametrize(
    ("query", "event"),
    [
        ("actor:alice", {"actor": "bob"}),
        ("actor:alice", {"actor": "alice@example.com"}),
        ("n:1", {"n": "1 "}),
        ("alice", {"actor": "bob"}),
        ("actor:alice n:1", {"actor": "alice"}),
        ("actor:alice -actor:bob", {"actor": ["alice", "bob"]}),
        ("alice -bob", {"note": "alice and bob"}),
        ("actor:alice -actor:*", {"actor": "alice"}),
    ],
)
def test_a_hit_that_is_none(colours: Colours, log: FakeLog, query: str, event: dict[str, Any]) -> None:
    hit = {"index": 1, "leaf_hash": log.receipt(1).leaf_hash.hex(), "logged_at": format_time(NOON), "event": event}
    log.tamper = edit("/search", lambda answer: answer | {"hits": [hit], "next": None})
    with pytest.raises(NotWhatWasSent, match="not what the query asks for"):
        list(colours.client(log).search(query))


def test_a_log_that_is_searched_by_some_members(colours: Colours, log: FakeLog) -> None:
    """A query sees no other member there, so that a negated term may hold of it all the same: that is no lie."""
    for query in ("actor:alice -note:*", "actor:alice -a", "-actor:* -n:* -note:*"):
        hit = next(iter(colours.client(log).search("n:7"))).to_json()
        log.tamper = edit("/search", lambda answer, hit=hit: answer | {"hits": [hit], "next": None})
        assert found(colours.client(log).search(query)) == [7]
        log.tamper = None


def test_a_hit_of_another_time(colours: Colours, log: FakeLog) -> None:
    honest = log.fork()
    for times in ({"start_time": format_time(NOON + 8)}, {"end_time": format_time(NOON + 7)}):
        log.tamper = lambda request, response: (
            honest.handle(httpx.Request("GET", "http://log.test/search?q=n:7&limit=100"))
            if request.url.path == "/search"
            else response
        )
        with pytest.raises(NotWhatWasSent, match="another time"):
            list(colours.client(log).search("n:7", **times))


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another value": lambda hit: hit["event"].update(note="c"),
    "another kind of number": lambda hit: hit["event"].update(n="7"),
    "a member more": lambda hit: hit["event"].update(x=1),
    "a member less": lambda hit: hit["event"].pop("note"),
    "another index": lambda hit: hit.update(index=8),
    "another time": lambda hit: hit.update(logged_at=format_time(NOON + 8)),
    "another leaf hash": lambda hit: hit.update(leaf_hash="00" * 32),
    "the genesis entry": lambda hit: hit.update(index=0),
}


@pytest.mark.parametrize("lie", FORGED.values(), ids=FORGED)
def test_a_hit_that_its_receipt_does_not_prove(
    colours: Colours, log: FakeLog, lie: Callable[[dict[str, Any]], Any]
) -> None:
    log.tamper = edit("/search", first(lie))
    assert list(colours.client(log).search("n:7")), "without a receipt nothing tells"
    with pytest.raises(NotWhatWasSent, match="not the one that its receipt proves"):
        list(colours.client(log).search("n:7", receipts=True))


def test_a_receipt_that_opens_less_or_other_things(colours: Colours, log: FakeLog) -> None:
    part = log.receipt(7).hide({"note"}).to_json()["disclosures"]
    log.tamper = edit_line(7, lambda line: line | {"disclosures": part})
    with pytest.raises(NotWhatWasSent):
        list(colours.client(log).search("n:7", receipts=True))
    other = Receipt.from_json(log.receipt(8).to_json())
    log.tamper = edit_line(7, lambda line: line | {"disclosures": list(other.disclosures or ())})
    with pytest.raises(BadDisclosure):
        list(colours.client(log).search("n:7", receipts=True))


SPOILED: dict[str, tuple[int | None, Callable[[dict[str, Any]], Any], type[Exception]]] = {
    "another leaf": (7, lambda line: line | {"leaf": b64(b"another")}, BadProof),
    "another proof": (7, lambda line: line | {"hashes": line["hashes"][::-1]}, BadProof),
    "another index": (7, lambda line: line | {"index": 9}, BadProof),
    "no leaf": (7, lambda line: line.pop("leaf") and None, FormatError),
    "an older checkpoint": (None, lambda line: line | {"checkpoint": grown().note(200)}, NotWhatWasSent),
    "another origin": (None, lambda line: line | {"origin": "example.com/other"}, BadProof),
    "no bundle": (None, lambda line: line | {"typ": "muniment/receipt@v1"}, FormatError),
}


@pytest.mark.parametrize(("index", "change", "error"), SPOILED.values(), ids=SPOILED)
def test_a_bundle_that_does_not_hold(
    colours: Colours, log: FakeLog, index: int | None, change: Callable[[dict[str, Any]], Any], error: type[Exception]
) -> None:
    log.tamper = edit_line(index, change)
    with pytest.raises(error):
        list(colours.client(log).search("n:7", receipts=True))


def test_a_bundle_of_a_fork_is_evidence(colours: Colours, log: FakeLog) -> None:
    fork = FakeLog()
    fork.add_events([{"actor": "mallory", "n": n} for n in range(1, 300)])
    fork.publish()
    log.tamper = lambda request, response: fork.handle(request) if request.url.path == "/export" else response
    with pytest.raises(Inconsistent):
        list(colours.client(log).search("n:7", receipts=True))


def test_a_bundle_of_another_trusted_log_is_no_fork(colours: Colours, log: FakeLog) -> None:
    other = FakeLog(origin="example.com/other", seed=5)
    other.add_events([{"actor": "alice", "n": n} for n in range(1, 300)])
    other.publish()
    both = Policy((*log.policy.logs, *other.policy.logs))
    log.tamper = lambda request, response: other.handle(request) if request.url.path == "/export" else response
    with pytest.raises(PolicyNotMet, match=r"example\.com/other"):
        list(colours.client(log, policy=both).search("n:7", receipts=True))


@pytest.mark.parametrize("damage", ["cut", "empty", "not text", "an entry less"])
def test_a_bundle_that_is_none(colours: Colours, log: FakeLog, damage: str) -> None:
    whole = log.handle(
        httpx.Request("GET", "http://log.test/export?q=n:%3C4&format=receipts&start=1&stop=4&tree_size=300")
    )
    lines = whole.read().splitlines(keepends=True)
    count = lines[-1].replace(b"3", b"2")
    body = {"cut": b"".join(lines[:-1]), "empty": b"", "not text": b"\xff" * 100}.get(
        damage, b"".join([*lines[:2], lines[3], count])
    )
    log.tamper = instead("/export", lambda: httpx.Response(200, content=body))
    with pytest.raises((FormatError, NotWhatWasSent)):
        list(colours.client(log).search("n:<4", receipts=True))


def test_an_extension_line_is_no_contradiction(colours: Colours, log: FakeLog) -> None:
    """The head of the bundle has another text than the one that was seen before, and the same tree."""
    head = parse_checkpoint(parse_note(log.receipt(7).checkpoint).text)
    other = str(sign_checkpoint(replace(head, extensions=("another line",)), log.key))
    log.tamper = edit_line(None, lambda line: line | {"checkpoint": other})
    assert sorted(found(colours.client(log).search("n:>6 n:<9", receipts=True))) == [7, 8]


def closed(value: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name not in ("commitment", "disclosures")}


def test_payloads_become_closed_during_a_search(colours: Colours, log: FakeLog) -> None:
    """A receipt that opens nothing is a matter of permission; of another entry it is a contradiction all the same."""
    log.tamper = edit_line(7, closed)
    hits = iter(colours.client(log).search("n:>6 n:<9", receipts=True, limit=2))
    with pytest.raises(PayloadsClosed, match="nothing of the event at index 7 is opened") as caught:
        list(hits)
    assert caught.value.index == 7
    log.tamper = instead("/export", lambda: problem(403, "payloads_closed"))
    with pytest.raises(PayloadsClosed):
        list(colours.client(log).search("n:7", receipts=True))
    log.tamper = edit("/search", first(lambda hit: hit.update(index=8)))
    honest = log.tamper
    log.tamper = lambda request, response: edit_line(8, closed)(request, honest(request, response))
    with pytest.raises(NotWhatWasSent):
        list(colours.client(log).search("n:7", receipts=True))


def test_refusals_are_told(colours: Colours, log: FakeLog) -> None:
    for status, code, kind in (
        (400, "bad_cursor", Refused),
        (404, "not_searchable", Refused),
        (503, "index_missing", Unavailable),
    ):
        log.tamper = lambda _request, _response, answer=(status, code): problem(*answer, retry_after=0)
        with pytest.raises(kind) as caught:
            list(colours.client(log).search("n:7"))
        assert caught.value.code == code
