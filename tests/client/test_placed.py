"""Batches whose receipts nobody keeps: proved all the same, and nothing is believed that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import muniment.client._sync
from muniment._flows.placed import Placed
from muniment._flows.writes import Draft, new_key
from muniment.client import Client
from muniment.errors import FormatError, Inconsistent, MunimentError, VerificationError
from tests.client.fake_log import FakeLog, answering, edit, fine, problem

LEAVES = [b"leaf %d" % n for n in range(13)]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muniment.client._sync.time, "sleep", lambda _: None)


def log_of(*leaves: bytes) -> FakeLog:
    log = FakeLog("raw")
    log.add_raw(list(leaves))
    log.publish()
    return log


def place(log: FakeLog, *batches: list[Any]) -> list[Placed]:
    drafts = (([Draft.of(entry) for entry in batch], new_key()) for batch in batches)
    with Client("https://log.example", policy=log.policy, transport=log.transport()) as client:
        return list(client.place_batches(drafts))


def asked_for_receipts(log: FakeLog) -> list[bool]:
    """Of each batch sent."""
    return ["receipts" in request.url.params for request in log.requests if request.method == "POST"]


def test_neighbours_take_two_proofs() -> None:
    log = log_of(b"before")
    assert place(log, LEAVES) == [Placed(list(range(2, 15)), 15)]
    assert log.leaves[2:] == LEAVES
    assert [path.partition("?")[0] for path in log.paths()] == [
        "/entries/batch",
        "/proof/inclusion",
        "/proof/inclusion",
    ]


def test_every_batch_in_its_order() -> None:
    log = log_of()
    found = place(log, LEAVES[:5], LEAVES[5:6], LEAVES[6:])
    assert [list(placed.indices) for placed in found] == [[1, 2, 3, 4, 5], [6], list(range(7, 14))]
    assert [placed.tree_size for placed in found] == [6, 7, 14]


def test_known_leaves_are_where_they_were() -> None:
    log = log_of(*LEAVES[:4])
    found = place(log, [LEAVES[9], *LEAVES[:4], LEAVES[8]])
    assert found == [Placed([5, 1, 2, 3, 4, 6], 7)]


def test_scattered_leaves_are_proved_by_their_receipts() -> None:
    log = log_of(*LEAVES)
    assert place(log, LEAVES[::-1]) == [Placed(list(range(13, 0, -1)), 14)]
    assert asked_for_receipts(log) == [False, True]


def test_events_are_proved_by_their_receipts() -> None:
    log = FakeLog("event")
    assert place(log, [{"n": 1}, {"n": 2}]) == [Placed([1, 2], 3)]
    assert asked_for_receipts(log) == [True]


def test_receipts_where_proofs_are_refused() -> None:
    log = log_of()
    log.faults = [fine, answering(403, "forbidden")]
    assert place(log, LEAVES) == [Placed(list(range(1, 14)), 14)]
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
        place(log, LEAVES)


def test_leaves_that_were_changed_on_the_way() -> None:
    log = log_of()

    def append_others(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
        indices = log.add_raw([leaf + b"!" for leaf in LEAVES])
        log.publish()
        body = {"indices": [[indices[0], indices[-1] + 1]], "count": len(indices), "checkpoint": log.note(log.size)}
        return httpx.Response(201, content=json.dumps(body), headers={"Content-Type": "application/json"})

    log.faults = [append_others]
    with pytest.raises(VerificationError):
        place(log, LEAVES)


def test_a_log_that_forks() -> None:
    log = log_of(*LEAVES)
    other = log.fork()
    with Client("https://log.example", policy=log.policy, transport=log.transport()) as client:
        list(client.place_batches([([Draft.of(b"here")], "")]))
        other.add_raw([b"there"])
        other.publish()
        log.faults = [lambda request, _: other.handle(request)] * 9
        with pytest.raises(Inconsistent):
            list(client.place_batches([([Draft.of(b"there too")], "")]))


def test_errors_are_those_of_every_append() -> None:
    log = log_of()
    log.tamper = lambda _request, _honest: problem(413, "too_large")
    with pytest.raises(MunimentError, match="too_large"):
        place(log, LEAVES)
