"""What is tried again, how often, after what wait; and that nothing is logged twice."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from muniment import AsyncClient
from muniment._flows.steps import Lost, Request, Response, Retries, Sleep, send
from muniment.errors import MunimentError, Refused, Unavailable, Unreachable
from tests.client.colours import QUICK, Colours
from tests.client.fake_log import URL, FakeLog, answering, fine, lost_after, lost_before

EVENT = {"actor": "alice"}


# --- the flow by itself: no clock, no network ---------------------------------------------------------------------------


def outcome(status: int, code: str = "", retry_after: str | None = None) -> Response:
    headers = {"content-type": "application/problem+json"} | (
        {"retry-after": retry_after} if retry_after is not None else {}
    )
    return Response(status, headers, b'{"code":"%s"}' % code.encode())


def run(
    outcomes: list[Response | Lost], retries: Retries, most: float = float("inf")
) -> tuple[Response | MunimentError, list[float]]:
    """Drive `send` with these outcomes; return what came of it, and the waits. None may be beyond `most`."""
    flow, waits = send(Request("GET", "/x"), retries), []
    left = list(outcomes)
    step = next(flow)
    try:
        while True:
            if isinstance(step, Sleep):
                waits.append(step.seconds)
                step = flow.send(step.seconds <= most)
            else:
                step = flow.send(left.pop(0))
    except StopIteration as stop:
        return stop.value, waits
    except MunimentError as error:
        return error, waits


OK = Response(200, {}, b"")


@pytest.mark.parametrize(
    "passing",
    [
        Lost("reset"),
        outcome(429),
        outcome(502),
        outcome(503, "outcome_unknown"),
        outcome(503, "overloaded"),
        outcome(504),
        outcome(409, "idempotency_running"),
        outcome(404, "not_published_yet"),
    ],
)
def test_what_may_pass_is_tried_again(passing: Response | Lost) -> None:
    assert run([passing, passing, OK], Retries(tries=3))[0] is OK
    assert isinstance(run([passing] * 3, Retries(tries=3))[0], Unreachable | Unavailable | Refused)


@pytest.mark.parametrize(
    ("final", "kind"),
    [
        (Lost("too large", again=False), Unreachable),
        (outcome(301), Unreachable),
        (outcome(304), Unreachable),
        (outcome(100), Unreachable),
        (outcome(999), Unreachable),
        (outcome(400), Refused),
        (outcome(404, "no_entry"), Refused),
        (outcome(409), Refused),
        (outcome(422, "idempotency_mismatch"), Refused),
        (outcome(500, "internal"), Unavailable),
        (outcome(503, "guard_root"), Unavailable),
        (outcome(503, "guard_missing", "30"), Unavailable),
        (outcome(503, "database_behind"), Unavailable),
        (outcome(503, "read_only", "30"), Unavailable),
        *((outcome(503, code, "30"), Unavailable) for code in ("key_unreadable", "signature", "database_replaced")),
        *((outcome(503, code, "30"), Unavailable) for code in ("witness_ahead", "witness_root")),
    ],
)
def test_what_lasts_is_not(final: Response | Lost, kind: type) -> None:
    error, waits = run([final, OK], Retries())
    assert type(error) is kind
    assert waits == []


def test_waits_double_with_jitter_up_to_a_bound() -> None:
    for _ in range(20):
        _, waits = run([Lost("")] * 8, Retries(tries=8, first_delay=0.2, longest_delay=2.0))
        assert len(waits) == 7
        for wait, full in zip(waits, [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0], strict=True):
            assert full / 2 <= wait <= full


def test_a_server_that_asks_for_a_wait_gets_it() -> None:
    _, waits = run([outcome(503, "", "7"), outcome(429, "", "3"), OK], Retries(first_delay=0.0))
    assert waits == [7.0, 3.0]


def test_a_wait_beyond_patience_is_the_callers_to_decide() -> None:
    error, waits = run([outcome(503, "", "61")], Retries(patience=60))
    assert isinstance(error, Unavailable)
    assert (error.retry_after, waits) == (61.0, [])


def test_a_wait_that_the_call_has_no_time_for_is_the_callers_too() -> None:
    error, waits = run([outcome(503, "", "20")] * 3, Retries(patience=60), most=10.0)
    assert isinstance(error, Unavailable)
    assert (error.retry_after, waits) == (20.0, [20.0])


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("", 0.0),
        ("nonsense", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("٣", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_odd_retry_after_headers(header: str, wait: float) -> None:
    _, waits = run([outcome(503, "", header), OK], Retries(first_delay=0.0))
    assert waits == [wait]


def test_a_number_of_a_million_digits_is_no_wait_for_ever() -> None:
    error, _ = run([outcome(503, "", "9" * 1_000_000)], Retries())
    assert isinstance(error, Unavailable)


def test_a_date_in_the_future() -> None:
    error, _ = run([outcome(503, "", "Fri, 01 Jan 2100 00:00:00 GMT")], Retries())
    assert isinstance(error, Unavailable)
    assert error.retry_after
    assert error.retry_after > 10**9


# --- through both clients: nothing lost, nothing doubled ----------------------------------------------------------------

FAULTS = {
    "lost before": [lost_before],
    "lost after": [lost_after],
    "lost after, twice": [lost_after, lost_after],
    "busy": [answering(429, "overloaded", 0)],
    "outcome unknown": [answering(503, "outcome_unknown", 0)],
    "running": [lost_after, answering(409, "idempotency_running", 0)],
    "lost before and after": [lost_before, lost_after, lost_before],
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", ["event", "raw"])
def test_a_retried_append_is_one_entry(colours: Colours, name: str, kind: str) -> None:
    log = FakeLog(kind, faults=list(FAULTS[name]))
    receipt = colours.client(log).append(EVENT if kind == "event" else b"leaf")
    assert (receipt.index, log.size) == (1, 2)
    assert len({request.headers.get("idempotency-key") for request in log.requests}) == 1
    assert len({request.content for request in log.requests}) == 1


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kind", ["event", "raw"])
def test_a_retried_batch_is_logged_once(colours: Colours, name: str, kind: str) -> None:
    log = FakeLog(kind, faults=[fine, *FAULTS[name]])
    entries: list[Any] = [{"n": n} if kind == "event" else b"%d" % n for n in range(20)]
    receipts = list(colours.client(log).append_many(entries, batch_entries=5))
    assert [receipt.index for receipt in receipts] == list(range(1, 21))
    assert log.size == 21
    if kind == "event":
        assert [log.payloads[index].event for index in range(1, 21)] == entries
    else:
        assert log.leaves[1:] == entries


def test_giving_up(colours: Colours) -> None:
    log = FakeLog(faults=[lost_before] * 10)
    with pytest.raises(Unreachable, match="connection refused"):
        colours.client(log).append(EVENT)
    assert len(log.requests) == QUICK.tries


def test_a_call_repeated_with_its_key_after_giving_up(colours: Colours) -> None:
    log = FakeLog(faults=[lost_after] * 4)
    client = colours.client(log)
    with pytest.raises(Unreachable):
        client.append(EVENT, idempotency_key="mine")
    assert client.append(EVENT, idempotency_key="mine").index == 1
    assert log.size == 2


def test_waiting_for_publication(colours: Colours) -> None:
    log = FakeLog(lag=True)
    client = colours.client(log)
    client.append(EVENT)

    def publish(request: httpx.Request, honest: Any) -> httpx.Response:
        response = honest()
        log.publish()
        return response

    log.faults = [publish]
    assert client.receipt(1).tree_size == 2


def test_an_entry_that_is_never_published(colours: Colours) -> None:
    log = FakeLog(lag=True)
    client = colours.client(log)
    client.append(EVENT)
    with pytest.raises(Refused) as caught:
        client.receipt(1)
    assert caught.value.code == "not_published_yet"


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectTimeout,
        httpx.ReadTimeout,
        httpx.WriteError,
        httpx.RemoteProtocolError,
        httpx.ProxyError,
        httpx.PoolTimeout,
    ],
)
def test_every_way_to_lose_a_connection(colours: Colours, error: type[httpx.TransportError]) -> None:
    def fault(request: httpx.Request, honest: Any) -> httpx.Response:
        raise error("gone", request=request)

    log = FakeLog(faults=[fault])
    assert colours.client(log).append(EVENT).index == 1
    log.faults = [fault] * 9
    with pytest.raises(Unreachable):
        colours.client(log).checkpoint()


# --- asyncio alone ------------------------------------------------------------------------------------------------------


async def test_appends_at_once_get_entries_of_their_own() -> None:
    log = FakeLog()
    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        receipts = await asyncio.gather(*(client.append({"n": n}) for n in range(50)))
    assert sorted(receipt.index for receipt in receipts) == list(range(1, 51))


async def test_a_slow_source_is_not_waited_for() -> None:
    log, gate = FakeLog(), asyncio.Event()

    async def source() -> Any:
        for n in range(3):
            yield {"n": n}
        await gate.wait()
        yield {"n": 3}

    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        receipts = client.append_many(source())
        first = [(await anext(receipts)).index for _ in range(3)]
        gate.set()
        rest = [receipt.index async for receipt in receipts]
    assert (first, rest) == ([1, 2, 3], [4])


async def test_a_fast_source_is_read_a_batch_ahead_and_no_further() -> None:
    log, read = FakeLog(), 0

    async def source() -> Any:
        nonlocal read
        for n in range(10_000):
            read += 1
            yield {"n": n}

    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        receipts = client.append_many(source(), batch_entries=10)
        for _ in range(15):
            await anext(receipts)
            await asyncio.sleep(0)
        assert (
            read <= 41
        )  # the batch taken, the one being taken, one on its way, one ahead, and the entry that waits for room
        await receipts.aclose()
    assert log.size <= 31


async def test_a_source_that_fails() -> None:
    log = FakeLog()

    async def source() -> Any:
        yield {"n": 0}
        yield {"n": 1}
        raise RuntimeError("source broke")

    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        receipts = client.append_many(source())
        assert [(await anext(receipts)).index, (await anext(receipts)).index] == [1, 2]
        with pytest.raises(RuntimeError, match="source broke"):
            await anext(receipts)


async def test_a_consumer_that_stops_leaves_no_task_behind() -> None:
    log = FakeLog()

    async def source() -> Any:
        while True:
            yield {"n": 0}

    async with AsyncClient(URL, policy=log.policy, transport=log.transport()) as client:
        receipts = client.append_many(source(), batch_entries=3)
        await anext(receipts)
        await receipts.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancelled_append_leaves_the_client_usable() -> None:
    log, gate = FakeLog(), asyncio.Event()

    async def stuck(request: httpx.Request) -> httpx.Response:
        if not gate.is_set():
            await asyncio.sleep(60)
        return log.handle(request)

    async with AsyncClient(URL, policy=log.policy, transport=httpx.MockTransport(stuck)) as client:
        tasks = [asyncio.create_task(client.append(EVENT)) for _ in range(40)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.set()
        assert (await client.append(EVENT)).index == 1
