"""Batches whose receipts nobody keeps: proved all the same, and nothing is believed that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import muniment.client._sync
from muniment._flows import writes
from muniment._flows.without_receipts import Appended
from muniment._flows.writes import PreparedEntry, new_key
from muniment.client import Client
from muniment.encoding import b64, b64url
from muniment.errors import FormatError, Inconsistent, MunimentError, VerificationError
from muniment.event import event_leaf, format_time
from tests.client.fake_log import NOON, FakeLog, answering, edit, fine, problem

LEAVES = [b"leaf %d" % n for n in range(13)]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)


def log_of(*leaves: bytes) -> FakeLog:
    log = FakeLog("raw")
    log.add_raw(list(leaves))
    log.publish()
    return log


def appended(log: FakeLog, *batches: list[Any]) -> list[Appended]:
    drafts = (([PreparedEntry.of(entry) for entry in batch], new_key()) for batch in batches)
    with Client("https://log.example", policy=log.policy, transport=log.transport()) as client:
        return list(client.append_without_receipts(drafts))


def asked_for_receipts(log: FakeLog) -> list[bool]:
    """Of each batch sent."""
    return ["receipts" in request.url.params for request in log.requests if request.method == "POST"]


def test_neighbours_take_two_proofs() -> None:
    log = log_of(b"before")
    assert appended(log, LEAVES) == [Appended(list(range(2, 15)), 15)]
    assert log.leaves[2:] == LEAVES
    assert [path.partition("?")[0] for path in log.paths()] == [
        "/entries/batch",
        "/proof/inclusion",
        "/proof/inclusion",
    ]


def test_every_batch_in_its_order() -> None:
    log = log_of()
    found = appended(log, LEAVES[:5], LEAVES[5:6], LEAVES[6:])
    assert [list(appended.indices) for appended in found] == [[1, 2, 3, 4, 5], [6], list(range(7, 14))]
    assert [appended.tree_size for appended in found] == [6, 7, 14]


def test_known_leaves_are_where_they_were() -> None:
    log = log_of(*LEAVES[:4])
    found = appended(log, [LEAVES[9], *LEAVES[:4], LEAVES[8]])
    assert found == [Appended([5, 1, 2, 3, 4, 6], 7)]


def test_scattered_leaves_are_proved_by_their_receipts() -> None:
    log = log_of(*LEAVES)
    assert appended(log, LEAVES[::-1]) == [Appended(list(range(13, 0, -1)), 14)]
    assert asked_for_receipts(log) == [False, True]


EVENTS = [{"n": n, "who": f"user {n}", "more": {"a": [n, None]}} for n in range(13)]


def test_events_are_opened_by_their_receipts_and_proved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    log = FakeLog("event")
    monkeypatch.setattr(writes, "check_batch", None)
    assert appended(log, EVENTS[:1], EVENTS[1:]) == [Appended([1], 2), Appended(list(range(2, 14)), 14)]
    assert asked_for_receipts(log) == [True, True]


@pytest.mark.parametrize("event", [{"n": 1.5, "\u00e9": 1}, {"z\U0001f600": 1, "z\uff00": 2}])
def test_events_that_need_a_closer_look_get_it(event: dict[str, Any]) -> None:
    log = FakeLog("event")
    assert appended(log, [*EVENTS, event]) == [Appended(list(range(1, 15)), 15)]


def _of_each(change: Callable[[Any], Any], at: int) -> Callable[[Any], Any]:
    def lie(answer: Any) -> None:
        answer["receipts"][at] = answer["receipts"][at] | change(answer["receipts"][at])

    return lie


LIES_ABOUT_EVENTS: list[Callable[[Any], Any]] = [
    lambda answer: answer["receipts"].reverse(),
    lambda answer: answer["receipts"].pop(),
    lambda answer: answer["receipts"].append(answer["receipts"][0]),
    lambda answer: answer | {"receipts": []},
    lambda answer: (
        answer | {"indices": [[1, 13], [13, 14]], "receipts": [*answer["receipts"][1:], answer["receipts"][0]]}
    ),
    lambda answer: answer | {"indices": [[3, 16]]},
    lambda answer: answer | {"checkpoint": answer["checkpoint"].replace("15", "16", 1)},
    *(
        _of_each(change, at)
        for at in (0, 6, 12)
        for change in (
            lambda receipt: {"leaf": b64(b"something else")},
            lambda receipt: {"leaf": receipt["leaf"][:-1]},
            lambda receipt: {"leaf": b64(LEAF)},
            lambda receipt: {"disclosures": receipt["disclosures"][1:]},
            lambda receipt: {"disclosures": [*receipt["disclosures"][:-1], receipt["disclosures"][0]]},
            lambda receipt: {"disclosures": None},
        )
    ),
    *(
        _of_each(
            lambda receipt: {"inclusion": receipt["inclusion"] | {"hashes": receipt["inclusion"]["hashes"][1:]}}, at
        )
        for at in (0, 12)
    ),
]
LEAF = event_leaf(b64url(bytes(32)), format_time(NOON))


@pytest.mark.parametrize("lie", LIES_ABOUT_EVENTS)
def test_what_is_not_proved_of_an_event_is_not_believed(lie: Callable[[Any], Any]) -> None:
    log = FakeLog("event")
    log.add_events([{"before": 1}])
    log.publish()
    log.tamper = edit("/entries/batch", lie)
    with pytest.raises((VerificationError, FormatError)):
        appended(log, EVENTS)


def test_another_event_than_the_one_sent() -> None:
    log = FakeLog("event")

    def append_others(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
        indices = log.add_events([event | {"n": -1} for event in EVENTS])
        log.publish()
        body = {"indices": [[indices[0], indices[-1] + 1]], "count": len(indices), "checkpoint": log.note(log.size)}
        body["receipts"] = [log.receipt(index).to_json() for index in indices]
        return httpx.Response(201, content=json.dumps(body), headers={"Content-Type": "application/json"})

    log.faults = [append_others]
    with pytest.raises(VerificationError):
        appended(log, EVENTS)


def test_receipts_where_proofs_are_refused() -> None:
    log = log_of()
    log.faults = [fine, answering(403, "forbidden")]
    assert appended(log, LEAVES) == [Appended(list(range(1, 14)), 14)]
    assert asked_for_receipts(log) == [False, True]


def _indices(value: list[list[int]]) -> Callable[[Any], Any]:
    return lambda answer: answer | {"indices": value}


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        ("/entries/batch", _indices([[1, 14]])),  # other leaves, as many
        ("/entries/batch", _indices([[3, 16]])),
        ("/entries/batch", _indices([[2, 8], [2, 9]])),
        ("/entries/batch", _indices([[2, 14]])),
        ("/entries/batch", _indices([[2, 16]])),
        ("/entries/batch", lambda answer: answer | {"checkpoint": answer["checkpoint"].replace("15", "16", 1)}),
        ("/entries/batch", lambda answer: {"indices": answer["indices"]}),
        ("/proof/inclusion", lambda answer: answer | {"hashes": answer["hashes"][1:]}),
        ("/proof/inclusion", lambda answer: answer | {"hashes": [*answer["hashes"], "00" * 32]}),
        ("/proof/inclusion", lambda answer: answer | {"hashes": [answer["hashes"][1], *answer["hashes"][1:]]}),
        ("/proof/inclusion", lambda answer: answer | {"hashes": []}),
    ],
)
def test_what_is_not_proved_is_not_believed(path: str, lie: Callable[[Any], Any]) -> None:
    log = log_of(b"before")
    log.tamper = edit(path, lie)
    with pytest.raises((VerificationError, FormatError)):
        appended(log, LEAVES)


def test_leaves_that_were_changed_on_the_way() -> None:
    log = log_of()

    def append_others(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
        indices = log.add_raw([leaf + b"!" for leaf in LEAVES])
        log.publish()
        body = {"indices": [[indices[0], indices[-1] + 1]], "count": len(indices), "checkpoint": log.note(log.size)}
        return httpx.Response(201, content=json.dumps(body), headers={"Content-Type": "application/json"})

    log.faults = [append_others]
    with pytest.raises(VerificationError):
        appended(log, LEAVES)


def test_a_log_that_forks() -> None:
    log = log_of(*LEAVES)
    other = log.fork()
    with Client("https://log.example", policy=log.policy, transport=log.transport()) as client:
        list(client.append_without_receipts([([PreparedEntry.of(b"here")], "")]))
        other.add_raw([b"there"])
        other.publish()
        log.faults = [lambda request, _: other.handle(request)] * 9
        with pytest.raises(Inconsistent):
            list(client.append_without_receipts([([PreparedEntry.of(b"there too")], "")]))


def test_errors_are_those_of_every_append() -> None:
    log = log_of()
    log.tamper = lambda _request, _honest: problem(413, "too_large")
    with pytest.raises(MunimentError, match="too_large"):
        appended(log, LEAVES)
