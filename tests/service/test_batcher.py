"""The batcher before a sequencer that the test drives by hand: who waits, who is refused, and who is told what."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from muniment.hashing import EMPTY_ROOT
from muniment_server.errors import (
    ClockRefused,
    HeadMoved,
    OutcomeUnknown,
    ReadOnly,
    Refused,
    StoreError,
    StoreUnavailable,
)
from muniment_server.telemetry import Metrics
from muniment_server.write.batcher import Batcher
from muniment_server.write.submission import Draft, Outcome, Signed, Submission
from tests.live import PATIENCE
from tests.service.audit import audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import Rig, event, raw


class Sequencer:
    """Answers each batch when the test says so."""

    lost = False  # its state: the batcher would recover
    next_look = None  # no refusal that ends

    def __init__(self) -> None:
        self.batches: list[list[Submission]] = []
        self.gates: list[asyncio.Future[Any]] = []
        self.size = 0

    async def run(self, batch: Sequence[Submission]) -> list[Outcome | Refused]:
        self.batches.append(list(batch))
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        wrong = await gate
        if isinstance(wrong, Exception):
            raise wrong
        answers: list[Outcome | Refused] = []
        for submission in batch:
            count = len(submission.drafts)
            answers.append(Outcome(range(self.size, self.size + count), (), count, Signed(0, EMPTY_ROOT, "")))
            self.size += count
        return answers if wrong is None else wrong(answers)

    def doubt(self) -> None:
        """Nothing is known here that could be dropped."""

    def release(self, wrong: Any = None) -> None:
        """Let the batch in flight end: well, with an exception, or with its answers changed by a function."""
        self.gates[-1].set_result(wrong)


@pytest.fixture
def sequencer() -> Sequencer:
    return Sequencer()


@pytest.fixture
async def make(sequencer: Sequencer) -> AsyncIterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def start(**limits: float) -> Batcher:
        batcher = Batcher(
            sequencer,
            "log",
            Metrics(),
            **{"max_commit": 100, "max_entries": 1000, "max_bytes": 10**6, "max_age": 60.0} | limits,
        )
        batcher.start()
        made.append(batcher)
        return batcher

    yield start
    for batcher in made:
        closing = asyncio.create_task(batcher.close())
        while not closing.done():
            await settle()
            for gate in sequencer.gates:
                if not gate.done():
                    gate.set_result(None)
        await closing


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def go(batcher: Batcher, submission: Submission) -> asyncio.Task[Outcome]:
    return asyncio.create_task(batcher.submit(submission))


async def refusal(awaitable: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    assert caught.value.hint
    return caught.value


# --- batching -----------------------------------------------------------------------------------------------------------


async def test_one_batch_is_in_flight_and_the_next_is_what_came_meanwhile(make, sequencer: Sequencer):
    batcher = make()
    first = go(batcher, raw(b"0"))
    await settle()
    assert [len(batch) for batch in sequencer.batches] == [1], "nobody waits for company"
    later = [go(batcher, raw(b"%d" % n)) for n in range(1, 8)]
    await settle()
    assert len(sequencer.batches) == 1
    assert not first.done()
    sequencer.release()
    await settle()
    assert first.done()
    assert [len(batch) for batch in sequencer.batches] == [1, 7]
    assert not any(task.done() for task in later)
    sequencer.release()
    outcomes = await asyncio.gather(*later)
    assert [list(outcome.indices) for outcome in outcomes] == [[n] for n in range(1, 8)], "in the order they came"


async def test_a_commit_takes_so_many_entries_and_no_more(make, sequencer: Sequencer):
    batcher = make(max_commit=5)
    tasks = [go(batcher, raw(b"hold"))]
    await settle()
    sizes = [2, 2, 2, 5, 1, 9, 1, 1]
    tasks += [go(batcher, raw(*[b"%d" % n for n in range(size)])) for size in sizes]
    await settle()
    for _ in range(20):
        if all(task.done() for task in tasks):
            break
        sequencer.release()
        await settle()
    taken = [[len(submission.drafts) for submission in batch] for batch in sequencer.batches]
    assert taken == [[1], [2, 2], [2], [5], [1], [9], [1, 1]], "a submission is never split; one too large goes alone"


async def test_nothing_is_sequenced_before_start(sequencer: Sequencer):
    batcher = Batcher(sequencer, "log", Metrics(), max_commit=10, max_entries=10, max_bytes=10**6, max_age=60.0)
    task = go(batcher, raw(b"a"))
    await settle()
    assert not sequencer.batches
    batcher.start()
    await settle()
    sequencer.release()
    await task
    await batcher.close()


# --- waiters ------------------------------------------------------------------------------------------------------------


async def test_one_impatient_waiter_does_not_cancel_ninety_nine(make, sequencer: Sequencer):
    batcher = make()
    hold = go(batcher, raw(b"hold"))
    await settle()
    waiters = [go(batcher, raw(b"%d" % n)) for n in range(100)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiters.pop(50), 0.01)
    sequencer.release()
    await settle()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiters.pop(10), 0.01)  # also while its batch is in flight
    sequencer.release()
    await hold
    await settle()
    assert [waiter.done() for waiter in waiters] == [True] * 98, "every other waiter has its answer"
    await asyncio.gather(*waiters)
    assert len(sequencer.batches[1]) == 100, "who left is logged all the same"


async def test_a_cancelled_waiter_gets_its_key_back_when_its_batch_ends(make, sequencer: Sequencer):
    batcher = make()
    task = go(batcher, event(1, key="k"))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await refusal(batcher.submit(event(1, key="k")))).code == "idempotency_running"
    sequencer.release()
    await settle()
    again = go(batcher, event(1, key="k"))
    await settle()
    sequencer.release()
    await again


# --- refusals -----------------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_names_a_time(make, sequencer: Sequencer):
    batcher = make(max_entries=10)
    tasks = [go(batcher, raw(b"in flight"))]
    await settle()
    tasks += [go(batcher, raw(*[b"%d" % n for n in range(4)])), go(batcher, raw(*[b"%d" % n for n in range(6)]))]
    await settle()
    refused = await refusal(batcher.submit(raw(b"one more")))
    assert refused.code == "overloaded"
    assert refused.extra["retry_after"] >= 1
    sequencer.release()
    await settle()
    tasks.append(go(batcher, raw(b"room again")))  # what is in flight no longer counts
    await settle()
    sequencer.release()
    await settle()
    sequencer.release()
    await asyncio.gather(*tasks)


async def test_a_queue_is_bounded_in_bytes_too(make, sequencer: Sequencer):
    batcher = make(max_bytes=1000)
    tasks = [go(batcher, raw(b"in flight"))]
    await settle()
    tasks.append(go(batcher, raw(bytes(600))))
    await settle()
    assert (await refusal(batcher.submit(raw(bytes(401))))).code == "overloaded"
    tasks.append(go(batcher, raw(bytes(400))))
    await settle()
    assert (await refusal(batcher.submit(raw(b"x")))).code == "overloaded"
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*tasks)
    assert batcher._bytes == batcher._entries == 0


async def test_a_queue_is_bounded_in_age_too(make, sequencer: Sequencer):
    batcher = make(max_age=0.02)
    tasks = [go(batcher, raw(b"in flight"))]
    await settle()
    tasks.append(go(batcher, raw(b"waits")))
    await settle()
    await asyncio.sleep(0.03)
    refused = await refusal(batcher.submit(raw(b"late")))
    assert refused.code == "overloaded"
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*tasks)
    tasks = [go(batcher, raw(b"again"))]
    await settle()
    sequencer.release()
    await asyncio.gather(*tasks)


async def test_it_says_beforehand_that_there_is_no_room(make, sequencer: Sequencer):
    batcher = make(max_entries=2)
    batcher.check_room()
    tasks = [go(batcher, raw(b"in flight"))]
    await settle()
    for number in range(2):
        batcher.check_room()
        tasks.append(go(batcher, raw(b"%d" % number)))
        await settle()
    with pytest.raises(Refused, match="too many entries"):
        batcher.check_room()
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*tasks)
    batcher.check_room()
    await batcher.close()
    with pytest.raises(Refused) as caught:
        batcher.check_room()
    assert caught.value.code == "shutting_down"


async def test_what_is_larger_than_the_queue_is_taken_alone(make, sequencer: Sequencer):
    batcher = make(max_entries=3, max_bytes=1000)
    large = [go(batcher, raw(*[b"%d" % n for n in range(7)]))]
    await settle()
    large.append(go(batcher, raw(bytes(5000))))
    await settle()
    assert (await refusal(batcher.submit(raw(b"x")))).code == "overloaded"
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*large)


async def test_a_key_that_is_running_is_refused_and_others_are_not(make, sequencer: Sequencer):
    batcher = make()
    tasks = [go(batcher, event(1, key="k"))]
    await settle()
    tasks.append(go(batcher, event(2, key="queued")))
    await settle()
    for key in ("k", "queued"):
        refused = await refusal(batcher.submit(event(1, key=key)))
        assert refused.code == "idempotency_running"
        assert refused.extra["retry_after"] >= 1
    tasks += [go(batcher, event(1, key="k", caller="bob")), go(batcher, event(1))]
    await settle()
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*tasks)


FAILURES = {
    "database_unavailable": StoreUnavailable("test"),
    "outcome_unknown": OutcomeUnknown("test"),
    "guard_root": ReadOnly("guard_root", "/secret/path"),
    "clock": ClockRefused("off by a year"),
}


@pytest.mark.parametrize("code", FAILURES)
async def test_a_failure_is_the_answer_of_all_in_the_batch_and_of_nobody_else(make, sequencer: Sequencer, code: str):
    batcher = make()
    failing = [go(batcher, event(1, key="a"))]
    await settle()
    healthy = [go(batcher, event(n, key=f"b{n}")) for n in range(3)]
    await settle()
    sequencer.release(FAILURES[code])
    refused = await refusal(failing[0])
    assert refused.code == code
    assert refused.extra["retry_after"] >= 1
    assert "/secret/path" not in refused.detail + refused.hint
    await settle()
    again = go(batcher, event(1, key="a"))  # the mark died with the batch
    await settle()
    for _ in range(2):
        sequencer.release()
        await settle()
    await asyncio.gather(*healthy, again)


@pytest.mark.parametrize("error", [HeadMoved("test"), StoreError("others won 100 times")])
async def test_losing_every_race_says_that_nothing_was_written(make, sequencer: Sequencer, error: Exception):
    batcher = make()
    task = go(batcher, raw(b"a"))
    await settle()
    sequencer.release(error)
    assert (await refusal(task)).code == "database_unavailable"


BUGS = {
    "an exception": ValueError("bug"),
    "an answer missing": lambda answers: answers[:-1],
    "an answer too many": lambda answers: [*answers, answers[0]],
    "no list at all": lambda answers: None,
}


@pytest.mark.parametrize("bug", BUGS)
async def test_a_bug_in_the_sequencer_fails_its_batch_alone(make, sequencer: Sequencer, bug: str):
    batcher = make()
    failing = [go(batcher, event(1, key="a")), go(batcher, event(2, key="b"))]
    await settle()
    sequencer.release(BUGS[bug])
    await settle()
    while not all(task.done() for task in failing):  # the second one is a batch of its own
        sequencer.release(BUGS[bug])
        await settle()
    for task in failing:
        assert (await refusal(task)).code == "outcome_unknown"
    healthy = go(batcher, event(1, key="a"))
    await settle()
    sequencer.release()
    assert (await healthy).new == 1


async def test_a_refusal_for_one_is_no_refusal_for_its_neighbours(make, sequencer: Sequencer):
    batcher = make()
    hold = go(batcher, raw(b"hold"))
    await settle()
    tasks = [go(batcher, event(n, key=f"k{n}")) for n in range(3)]
    await settle()
    sequencer.release()
    await settle()
    no = Refused("idempotency_mismatch", "test", "hint")
    sequencer.release(lambda answers: [answers[0], no, answers[2]])
    await hold
    assert (await tasks[0]).new == 1
    assert await refusal(tasks[1]) is no
    assert (await tasks[2]).new == 1


# --- shutdown -----------------------------------------------------------------------------------------------------------


async def test_close_answers_what_was_taken_and_refuses_the_rest(make, sequencer: Sequencer):
    batcher = make(max_commit=2)
    tasks = [go(batcher, raw(b"%d" % n)) for n in range(7)]
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    refused = await refusal(batcher.submit(raw(b"too late")))
    assert refused.code == "shutting_down"
    assert refused.extra["retry_after"] >= 1
    while not closing.done():
        assert not all(task.done() for task in tasks)
        sequencer.release()
        await settle()
    assert [list((await task).indices) for task in tasks] == [[n] for n in range(7)]
    await batcher.close()


async def test_close_answers_also_when_the_last_batch_fails(make, sequencer: Sequencer):
    batcher = make()
    task = go(batcher, raw(b"a"))
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    sequencer.release(OutcomeUnknown("test"))
    await closing
    assert (await refusal(task)).code == "outcome_unknown"


async def test_close_of_an_idle_batcher_returns(make):
    batcher = make()
    await asyncio.wait_for(batcher.close(), PATIENCE)
    assert (await refusal(batcher.submit(raw(b"a")))).code == "shutting_down"


async def test_what_was_answered_is_not_kept_until_the_next_batch(make, sequencer: Sequencer):
    batcher = make()

    class Drafts(list[Draft]):
        """Drafts that can be watched."""

    drafts = Drafts(raw(b"0").drafts)
    watched = weakref.ref(drafts)
    answered = go(batcher, Submission(drafts))
    del drafts
    await settle()
    sequencer.batches.clear()
    sequencer.release()
    await answered
    del answered
    await settle()
    assert watched() is None


# --- on a real log ------------------------------------------------------------------------------------------------------


async def test_a_storm_on_a_real_log(rig: Rig):
    """Three hundred submitters, a third of them impatient, on a store that fails now and then: each answer is true."""
    bench = await rig.log("raw")
    faulty = Faulty(rig.store)
    for n in range(6):
        fault = [Fault(StoreUnavailable("t")), Fault(OutcomeUnknown("t"), after=True), Fault(OutcomeUnknown("t"))][
            n % 3
        ]
        faulty.plan("append", None, None, fault)
    sequencer = bench.sequencer(store=faulty)
    await sequencer.start()
    batcher = Batcher(sequencer, "log", Metrics(), max_commit=20, max_entries=10_000, max_bytes=10**6, max_age=60.0)
    batcher.start()
    found: dict[bytes, int] = {}
    codes: set[str] = set()

    async def submit(number: int) -> None:
        leaf = b"%d" % (number % 200)  # some leaves come twice
        await asyncio.sleep(0.0005 * number)
        for _ in range(50):
            try:
                if number % 3 == 0:
                    outcome = await asyncio.wait_for(batcher.submit(raw(leaf)), 0.003)
                else:
                    outcome = await batcher.submit(raw(leaf))
            except TimeoutError:
                continue
            except Refused as refused:
                codes.add(refused.code)
                continue
            assert found.setdefault(leaf, outcome.indices[0]) == outcome.indices[0]
            return

    await asyncio.gather(*map(submit, range(300)))
    await batcher.close()
    leaves = await audit(bench)
    assert len(leaves) == 200
    assert codes <= {"database_unavailable", "outcome_unknown"}
    assert all(leaves[index] == leaf for leaf, index in found.items())
