"""Batches in order: the next is on its way while the answer to the last is checked, and never sooner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from muniment import Client
from muniment._flows.steps import Response
from muniment._flows.writes import PreparedEntry
from muniment.client._ahead import Batch, in_order
from tests.client.colours import QUICK
from tests.client.fake_log import URL, FakeLog
from tests.live import PATIENCE

OK = Response(200, {}, b"")


class Diary:
    """Notes what happens in which order, and fails a step where it is told to."""

    def __init__(self, fail: str = "") -> None:
        self.steps: list[str] = []
        self._fail = fail
        self._lock = threading.Lock()

    def note(self, step: str) -> None:
        with self._lock:
            self.steps.append(step)
        if step == self._fail:
            raise RuntimeError(step)

    def source(self, count: int) -> Iterator[Batch]:
        for n in range(count):
            self.note(f"read {n}")
            yield [PreparedEntry(b"%d" % n, is_event=False)], str(n)
        self.note("end")

    def send(self, drafts: list[PreparedEntry], key: str) -> Response:
        assert drafts[0].body == key.encode()
        self.note(f"send {key}")
        self.note(f"answered {key}")
        return OK

    def check(self, drafts: list[PreparedEntry], answer: Response) -> list[Any]:
        assert answer is OK
        self.note(f"check {drafts[0].body.decode()}")
        return [drafts[0].body]

    def run(self, count: int) -> list[list[Any]]:
        found = []
        for receipts in in_order(self.source(count), self.send, self.check):
            found.append(receipts)
            self.note(f"taken {receipts[0].decode()}")
        return found

    def before(self, first: str, second: str) -> bool:
        return self.steps.index(first) < self.steps.index(second)


def test_each_batch_is_sent_after_the_answer_to_the_one_before() -> None:
    diary = Diary()
    assert diary.run(5) == [[b"0"], [b"1"], [b"2"], [b"3"], [b"4"]]
    for n in range(1, 5):
        assert diary.before(f"answered {n - 1}", f"send {n}")
        assert diary.before(f"check {n - 1}", f"check {n}")
        assert diary.before(f"taken {n - 1}", f"read {n + 1}" if n < 4 else "end"), "no more than two are read ahead"


def test_the_next_is_on_its_way_while_an_answer_is_checked() -> None:
    diary, sent = Diary(), threading.Event()

    def send(drafts: list[PreparedEntry], key: str) -> Response:
        if key == "1":
            sent.set()
        return diary.send(drafts, key)

    def check(drafts: list[PreparedEntry], answer: Response) -> list[Any]:
        assert sent.wait(PATIENCE), "the second batch is sent while the first is checked"
        return diary.check(drafts, answer)

    assert len(list(in_order(diary.source(2), send, check))) == 2


def test_nothing_to_send() -> None:
    assert Diary().run(0) == []


@pytest.mark.parametrize(
    ("fail", "taken", "never"),
    [
        ("read 0", 0, "send 0"),
        ("read 2", 2, "send 2"),
        ("end", 3, "send 3"),
        ("send 1", 1, "send 2"),
        ("answered 1", 1, "send 2"),
        ("check 0", 0, "send 2"),
        ("check 1", 1, "send 3"),
    ],
)
def test_what_precedes_an_error_is_taken_before_it_and_what_follows_is_not_sent(
    fail: str, taken: int, never: str
) -> None:
    diary = Diary(fail)
    with pytest.raises(RuntimeError, match=fail):
        diary.run(4 if fail != "end" else 3)
    assert [step for step in diary.steps if step.startswith("taken")] == [f"taken {n}" for n in range(taken)]
    assert never not in diary.steps


def wait_for_senders() -> None:
    for thread in threading.enumerate():
        if thread.name == "muniment-send":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_client_that_is_closed_lets_the_batch_on_its_way_arrive_and_sends_no_more() -> None:
    log, arrived, go_on, closed = FakeLog(), threading.Event(), threading.Event(), threading.Event()

    class Transport(httpx.MockTransport):
        def close(self) -> None:
            closed.set()

    def second_hangs(request: httpx.Request, honest: Callable[[], httpx.Response]) -> httpx.Response:
        arrived.set()
        assert go_on.wait(PATIENCE)
        assert not closed.is_set(), "its connection is not closed under it"
        honest()
        raise httpx.ReadError("reset", request=request)

    client = Client(URL, policy=log.policy, retries=QUICK, transport=Transport(log.handle))
    receipts = client.append_many([{"n": n} for n in range(30)], batch_entries=10)
    log.faults = [lambda _, honest: honest(), second_hangs]
    assert next(receipts).index == 1
    assert arrived.wait(PATIENCE)
    client.close()
    receipts.close()
    assert not closed.is_set()
    go_on.set()
    wait_for_senders()
    assert closed.is_set()
    assert (log.size, len(log.requests)) == (21, 2), "the lost answer is not asked for again"
