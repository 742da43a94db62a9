"""Pushing to a webhook: each entry, in order, under ids that stay; whatever receiver, server and database do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from muniment.policy import LogKey, Policy
from muniment.receipts import ReceiptsReader
from muniment.webhook import check_signature
from muniment_server.errors import NotTaken, SetupError, StoreUnavailable
from muniment_server.follow.push import cutting, pusher
from muniment_server.follow.push.pusher import Pusher, delay
from muniment_server.follow.push.webhook import Webhook, retry_after
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.sinks import Sink
from muniment_server.storage.sinks import SinkState
from muniment_server.telemetry import Metrics
from muniment_server.write.admission import draft_event
from muniment_server.write.submission import Submission
from tests.bitcoin.web import Answer, Request, Web
from tests.client.hostile import Peer, certificates, hostile
from tests.live import PATIENCE
from tests.service.rig import Bench, Rig, genesis, raw

SECRET = b"0123456789abcdef0123456789abcdef"


class Receiver(Web):
    """Takes batches: what `status` says, kept with their bytes in the order in which they came."""

    def __init__(self) -> None:
        self.status, self.headers, self.secrets = 200, {}, [SECRET]
        self.taken: list[tuple[str, bytes]] = []
        super().__init__()

    def answer(self, request: Request) -> Answer:
        given = request.headers
        check_signature(self.secrets, given["muniment-timestamp"], given["muniment-signature"], request.body)
        if 200 <= self.status < 300:
            self.taken.append((given["muniment-id"], request.body))
        return Answer(self.status, b"", self.headers)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all batches, each batch once."""
        return [row for body in dict(self.taken).values() for row in json.loads(body)["rows"]]


@dataclass
class World:
    """A log with a publisher, a receiver, and a clock for its pushers."""

    rig: Rig
    bench: Bench
    log: Log
    receiver: Receiver
    secret: Path
    stack: contextlib.AsyncExitStack
    metrics: Metrics = field(default_factory=Metrics)
    time: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def sink(self, **changes: Any) -> Sink:
        return Sink(**({"url": f"{self.receiver.origin}/in", "secrets": (self.secret,)} | changes))

    def pusher(self, name: str = "siem", target: Any = None, store: Any = None, **changes: Any) -> Pusher:
        sink = self.sink(**changes)
        webhook = target or Webhook(sink, 5.0)
        made = Pusher(store or self.rig.store, self.log, name, sink, webhook, self.metrics, lambda: self.time)
        self.stack.push_async_callback(webhook.close)
        self.stack.push_async_callback(made.close)
        return made

    async def add(self, *events: dict[str, Any]) -> int:
        """Append events, publish, and return the published size."""
        if events:
            await self.log.append(Submission([draft_event(json.dumps(event).encode()) for event in events]))
        return await self.publish()

    async def publish(self) -> int:
        await self.log.publisher.publish()
        return (await self.log.heads.published()).size

    async def state(self, name: str = "siem") -> SinkState:
        found = await self.rig.store.sinks.sink(self.bench.log_id, name)
        assert found
        return found

    def metric(self, name: str, sink: str = "siem") -> float | None:
        return self.metrics.registry.get_sample_value(name, {"log": self.log.row.name, "sink": sink})


async def done(one: Pusher) -> None:
    """Run a pusher until it rests."""
    async with asyncio.timeout(PATIENCE):
        while not await one.run_once():
            pass


@pytest.fixture
async def world(rig: Rig, tmp_path: Path) -> AsyncIterator[World]:
    async with make(rig, tmp_path, "event") as made:
        yield made


@contextlib.asynccontextmanager
async def make(rig: Rig, folder: Path, kind: str) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        bench = await rig.log(kind)
        settings = Settings(data=folder, scrub_rate=0, search=())
        log = Log(rig.store, bench.row, settings, Metrics(), Cache(2**20), bench.new_sequencer())
        stack.push_async_callback(log.close)
        await log.start()
        await log.append(genesis(bench))
        secret = folder / "secret"
        secret.write_bytes(SECRET + b"\n")
        yield World(rig, bench, log, stack.enter_context(Receiver()), secret, stack)


EVENTS = [{"n": n, "who": "alice" if n % 3 else "bob"} for n in range(1, 601)]


# --- what is sent ---------------------------------------------------------------------------------------------------------


async def test_each_entry_comes_once_and_in_order(world: World) -> None:
    size = await world.add(*EVENTS)
    one = world.pusher(payloads=True)
    await done(one)
    bodies = [json.loads(body) for _, body in world.receiver.taken]
    assert [body["id"] for body in bodies] == [name for name, _ in world.receiver.taken]
    assert bodies[0]["id"] == f"{world.log.row.name}/siem/0-255"
    assert [(body["start"], body["stop"]) for body in bodies] == [(0, 256), (256, 512), (512, 601)]
    assert {body["tree_size"] for body in bodies} == {size} == {601}
    assert {(body["typ"], body["log"], body["origin"], body["sink"]) for body in bodies} == {
        ("muniment/push@v1", world.log.row.name, world.log.row.origin, "siem")
    }
    rows = world.receiver.rows()
    assert [row["index"] for row in rows] == [*range(601)]
    assert [row["event"] for row in rows[1:]] == EVENTS
    assert rows[0]["own"]["typ"] == "muniment/genesis@v1"
    await world.add({"n": 601})
    await done(one)
    assert world.receiver.taken[-1][0].endswith("/siem/601-601")


async def test_only_what_is_published_is_sent(world: World) -> None:
    await world.add({"n": 1})
    one = world.pusher()
    await done(one)
    world.log.publisher.last = world.log.sequencer.signed  # nothing more is published
    await world.log.append(Submission([draft_event(b'{"n":2}')]))
    world.log.publisher.last = world.log.sequencer.signed
    await done(one)
    assert [row["index"] for row in world.receiver.rows()] == [0, 1]
    world.log.publisher.last = None
    await world.publish()
    await done(one)
    assert [row["index"] for row in world.receiver.rows()] == [0, 1, 2]


async def test_what_events_say_is_sent_only_where_the_sink_may_have_it(world: World) -> None:
    await world.add({"secret": "swordfish"})
    await done(world.pusher())
    row = world.receiver.rows()[1]
    assert set(row) == {"index", "leaf_hash", "logged_at", "leaf"}
    assert not any(b"swordfish" in body for _, body in world.receiver.taken)


async def test_a_sink_of_a_raw_log_has_its_leaves(rig: Rig, tmp_path: Path) -> None:
    async with make(rig, tmp_path, "raw") as world:
        await world.log.append(raw(b"one", b"two"))
        await world.publish()
        await done(world.pusher(payloads=True))
        assert [row.get("leaf") for row in world.receiver.rows()[1:]] == ["b25l", "dHdv"]


async def test_a_query_leaves_no_gap_between_batches(world: World) -> None:
    await world.add(*EVENTS)
    one = world.pusher(payloads=True, query="who:bob n:>300")
    await done(one)
    await world.add({"n": 1}, {"n": 2})
    await done(one)
    await world.add({"n": 900, "who": "bob"})
    await done(one)
    assert [row["event"]["n"] for row in world.receiver.rows()] == [*range(303, 601, 3), 900]
    ranges = [(body["start"], body["stop"]) for body in map(json.loads, dict(world.receiver.taken).values())]
    assert ranges == [(0, 601), (601, 604)]


async def test_a_search_of_many_entries_is_not_begun_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "MOST_LOOKED", 100)
    monkeypatch.setattr(pusher, "MOST_LOOKED", 100)
    await world.add(*EVENTS)
    one = world.pusher(payloads=True, query="nothing")
    await done(one)
    await one.close()
    state = await world.state()
    assert state.start == 0
    assert state.looked >= 500
    await world.add({"n": "nothing"})
    read: list[int] = []
    payloads = world.log.entries.payloads

    async def spy(start: int, stop: int) -> Any:
        read.append(start)
        return await payloads(start, stop)

    monkeypatch.setattr(world.log.entries, "payloads", spy)
    await done(world.pusher(payloads=True, query="nothing"))
    assert min(read) == state.looked
    assert json.loads(world.receiver.taken[0][1])["start"] == 0


async def test_receipts_of_a_batch_are_a_bundle_that_proves_it_whole(world: World) -> None:
    await world.add(*EVENTS[:300])
    await done(world.pusher(payloads=True, receipts=True))
    policy = Policy((LogKey(world.bench.key.vkey),))
    for _, body in world.receiver.taken:
        value = json.loads(body)
        reader = ReceiptsReader((line + b"\n" for line in value["receipts"].encode().split(b"\n")[:-1]), policy)
        shown = [(receipt.index, verified.opened) for receipt, verified in reader]
        assert [index for index, _ in shown] == [row["index"] for row in value["rows"]]
        assert [opened for _, opened in shown if opened] == [row["event"] for row in value["rows"] if "event" in row]
        assert value["receipts"].count(f'"range":[{value["start"]},{value["stop"]}]') == 1


async def test_a_sink_begins_where_it_is_told(world: World) -> None:
    await world.add(*EVENTS[:10])
    await done(world.pusher("late", start=7))
    later = world.pusher("later", start=13)
    await done(later)
    assert [row["index"] for row in world.receiver.rows()] == [7, 8, 9, 10]
    assert await world.rig.store.sinks.sink(world.bench.log_id, "later") is None
    await world.add(*EVENTS[10:15])
    await done(later)
    assert [row["index"] for row in world.receiver.rows()] == [7, 8, 9, 10, 13, 14, 15]


async def test_a_batch_is_bounded_in_bytes(world: World) -> None:
    await world.add(*({"text": "x" * 60_000, "n": n} for n in range(20)))
    await done(world.pusher(payloads=True))
    assert [len(json.loads(body)["rows"]) for _, body in world.receiver.taken] == [6, 5, 5, 5]
    assert max(len(body) for _, body in world.receiver.taken) < 400_000


# --- again ----------------------------------------------------------------------------------------------------------------


async def test_after_a_crash_the_same_bytes_go_out_under_the_same_id(world: World) -> None:
    """However many entries there are by then, and whichever process goes on."""
    await world.add(*EVENTS[:20])
    one, forgot = world.pusher(payloads=True, receipts=True), []

    class Crash(Exception):
        pass

    async def crash(_id: int, expected: SinkState, state: SinkState) -> bool:
        if state.start > expected.start:
            forgot.append(state)
            raise Crash
        return await world.rig.store.sinks.move_sink(_id, expected, state)

    class Sinks:
        def __getattr__(self, name: str) -> Any:
            return crash if name == "move_sink" else getattr(world.rig.store.sinks, name)

    one = world.pusher(payloads=True, receipts=True, store=replace(world.rig.store, sinks=Sinks()))
    with pytest.raises(Crash):
        await done(one)
    await one.lease.release()
    await world.add(*EVENTS[20:40])
    await done(world.pusher(payloads=True, receipts=True, store=await world.rig.open()))
    (first, body), (again, same), (following, _) = world.receiver.taken
    assert (first, body) == (again, same)
    assert following.endswith("/21-40")
    assert [row["index"] for row in world.receiver.rows()] == [*range(41)]


async def test_two_processes_send_one_order(world: World) -> None:
    """Without their leases: what they would do after one of them was asleep for longer than that."""
    await world.add(*EVENTS)
    stores = [world.rig.store, await world.rig.open()]
    pushers = [world.pusher(payloads=True, store=store) for store in stores]

    async def always() -> bool:
        return True

    for one in pushers:
        one.lease.take = always  # type: ignore[method-assign]
    await asyncio.gather(*map(done, pushers))
    firsts = [*dict(world.receiver.taken)]
    assert len(world.receiver.taken) > len(firsts) or len(firsts) == 3
    assert [int(name.split("/")[2].split("-")[0]) for name in firsts] == [0, 256, 512]
    bodies: dict[str, set[bytes]] = {}
    for name, body in world.receiver.taken:
        bodies.setdefault(name, set()).add(body)
    assert {len(found) for found in bodies.values()} == {1}
    assert (await world.state()).start == 601


async def test_one_process_works_for_all(world: World) -> None:
    await world.add(*EVENTS[:5])
    one, two = world.pusher(), world.pusher(store=await world.rig.open())
    await done(one)
    await world.add({"n": 7})
    assert await two.run_once() == pusher._RETRY_SECONDS
    assert len(world.receiver.taken) == 1
    await one.close()
    await done(two)
    assert len(world.receiver.taken) == 2


# --- failures -------------------------------------------------------------------------------------------------------------


async def test_a_receiver_that_refuses_is_asked_again_later_and_then_all_of_it_comes(world: World) -> None:
    await world.add(*EVENTS[:5])
    one = world.pusher(payloads=True)
    for status in (500, 404, 301, 199 + 200, 429):
        world.receiver.status = status
        before = world.time
        await done(one)
        state = await world.state()
        assert state.last_error == f"the receiver answers {status}"
        assert state.under_way
        assert state.start == 0
        assert state.next_at > before
        world.time = state.next_at
    assert state.failures == 5
    assert world.metric("muniment_push_failures_total") == 5
    world.receiver.status = 204
    await done(one)
    state = await world.state()
    assert (state.failures, state.next_at, state.last_error, state.start) == (0, 0, "", 6)
    assert len(world.receiver.taken) == 1


async def test_one_that_waits_sends_nothing_before_its_time(world: World) -> None:
    await world.add({"n": 1})
    one = world.pusher()
    world.receiver.status, world.receiver.headers = 503, {"Retry-After": "120"}
    await done(one)
    assert (await world.state()).next_at == world.time + 120_000
    asked = len(world.receiver.requests)
    world.time += 119_000
    assert await one.run_once() == 1.0
    assert len(world.receiver.requests) == asked
    world.time += 1000
    await one.run_once()
    assert len(world.receiver.requests) == asked + 1
    world.time -= 10**10
    await one.run_once()
    assert len(world.receiver.requests) == asked + 2, "the clock was wrong"


async def test_the_operator_is_told_once_that_it_fails_and_once_that_it_goes_on(world: World) -> None:
    await world.add({"n": 1})
    one = world.pusher()
    world.receiver.down()
    with structlog.testing.capture_logs() as lines:
        for _ in range(4):
            await done(one)
            world.time = (await world.state()).next_at
        world.receiver.up()
        await done(one)
    assert [line["event"] for line in lines] == ["a sink takes nothing", "a sink takes entries again"]
    assert len(world.receiver.taken) == 1


@pytest.mark.parametrize("fault", ["hang", "drip", "redirect", "error", "reset"])
async def test_a_hostile_receiver_costs_a_try_and_nothing_else(world: World, fault: str) -> None:
    await world.add({"n": 1})
    sink = world.sink()
    one = world.pusher(target=Webhook(sink, 0.5))
    with Receiver() as elsewhere:
        world.receiver.fault, world.receiver.elsewhere = fault, f"{elsewhere.origin}/in"
        if fault == "drip":
            world.receiver.answer = lambda _: Answer(200, b"x" * 1000)  # type: ignore[method-assign]
        await done(one)
        assert (await world.state()).failures == 1
        assert not elsewhere.requests
    world.receiver.fault = ""
    world.receiver.answer = Receiver.answer.__get__(world.receiver)  # type: ignore[method-assign]
    world.time = (await world.state()).next_at
    await done(one)
    assert [row["index"] for row in world.receiver.rows()] == [0, 1]


def _endless(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        peer.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")


def _headers(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.send(b"X-More: " + b"x" * 1000 + b"\r\n")


def _half(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


def _slow(peer: Peer) -> None:
    for _ in range(100):
        peer.socket.recv(1)
        peer.pause()
    peer.stay()


def _packed(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx")


def _garbage(peer: Peer) -> None:
    peer.request()
    peer.send(b"\x00\xff I am no server\r\n\r\n")


@pytest.mark.parametrize("script", [_endless, _headers, _half, _slow, _packed, _garbage])
async def test_an_answer_without_end_or_sense_is_none(world: World, script: Any) -> None:
    await world.add(*({"text": "x" * 50_000, "n": n} for n in range(5)))
    with hostile(script) as server:
        webhook = Webhook(world.sink(url=f"{server.url}/in"), 1.0)
        await done(world.pusher(target=webhook, payloads=True))
        await webhook.close()
    state = await world.state()
    assert state.failures == 1
    assert state.start == 0
    assert state.last_error.isascii()
    assert state.last_error.isprintable()


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "hTTps"])
async def test_a_certificate_that_no_authority_vouches_for_is_refused(world: World, scheme: str) -> None:
    await world.add({"n": 1})
    seen: list[bytes] = []
    with hostile(lambda peer: seen.append(peer.request()), tls=True) as server:
        webhook = Webhook(world.sink(url=f"{scheme}://127.0.0.1:{server.port}/in"), 5.0)
        await done(world.pusher(target=webhook))
        await webhook.close()
    assert "CERTIFICATE_VERIFY_FAILED" in (await world.state()).last_error
    assert not any(seen)


async def test_an_authority_of_its_own_that_cannot_be_read_ends_the_start(world: World, tmp_path: Path) -> None:
    for path in (tmp_path / "none", world.secret):
        with pytest.raises(SetupError, match=path.name):
            Webhook(world.sink(ca=path))


async def test_several_secrets_sign_and_are_read_anew(world: World, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_bytes(b"another secret of 32 bytes, later")
    one = world.pusher(secrets=(world.secret, new))
    for secrets in ([SECRET], [new.read_bytes()]):
        world.receiver.secrets = secrets
        await world.add({"n": 1})
        await done(one)
    assert len(world.receiver.taken) == 2
    world.secret.write_bytes(b"short")
    await world.add({"n": 1})
    await done(one)
    assert "16 bytes or more" in (await world.state()).last_error
    world.secret.unlink()
    world.time = (await world.state()).next_at
    await done(one)
    assert "No such file" in (await world.state()).last_error
    assert len(world.receiver.requests) == 2
    assert b"short" not in (await world.state()).last_error.encode()


async def test_settings_that_change_what_is_sent_stop_a_sink(world: World) -> None:
    await world.add({"n": 1})
    begun = world.pusher()
    await done(begun)
    await begun.close()
    await world.add({"n": 2})
    with structlog.testing.capture_logs() as lines:
        one = world.pusher(payloads=True)
        assert await one.run_once() == await one.run_once() == pusher._RETRY_SECONDS
    assert [line["event"] for line in lines] == ["a sink cannot go on"]
    assert "another name" in lines[0]["detail"]
    assert len(world.receiver.taken) == 1
    await done(world.pusher(url=f"{world.receiver.origin}/moved"))
    assert len(world.receiver.taken) == 2, "the receiver may move"


async def test_a_database_that_was_put_back_stops_a_sink(world: World) -> None:
    await world.add({"n": 1})
    await done(world.pusher())
    await world.rig.sql("UPDATE sinks SET start = 9, looked = 9, stop = 9, tree_size = 9")
    with structlog.testing.capture_logs() as lines:
        assert await world.pusher().run_once() == pusher._RETRY_SECONDS
    assert "put back" in lines[0]["detail"]


async def test_a_log_that_must_not_be_written_is_not_pushed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add({"n": 1})
    monkeypatch.setattr(Log, "refusal", property(lambda _: object()))
    await done(world.pusher())
    assert not world.receiver.requests


async def test_a_follower_goes_on_after_the_database_was_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.add(*EVENTS[:3])
    monkeypatch.setattr(pusher, "_RETRY_SECONDS", 0.01)
    move, failed = world.rig.store.sinks.move_sink, []

    async def flaky(*values: Any) -> bool:
        if len(failed) < 3:
            failed.append(values)
            raise StoreUnavailable("away")
        return await move(*values)

    class Sinks:
        def __getattr__(self, name: str) -> Any:
            return flaky if name == "move_sink" else getattr(world.rig.store.sinks, name)

    one = world.pusher(store=replace(world.rig.store, sinks=Sinks()))
    one.start()
    async with asyncio.timeout(PATIENCE):
        while not world.receiver.taken:  # noqa: ASYNC110 - a receiver says nothing
            await asyncio.sleep(0.01)
    await one.close()
    assert len(failed) == 3
    assert [row["index"] for row in world.receiver.rows()] == [0, 1, 2, 3]


# --- how far it is --------------------------------------------------------------------------------------------------------


async def test_metrics_say_how_far_behind_a_sink_is(world: World) -> None:
    await world.add(*EVENTS[:9])
    world.receiver.status = 500
    one = world.pusher()
    await done(one)
    await one.run_once()
    published = (await world.log.heads.checkpoints(1, 1))[0].published_at
    assert world.metric("muniment_push_lag_entries") == 10
    assert world.metric("muniment_push_oldest_waiting_timestamp_seconds") == published / 1000
    assert world.metric("muniment_push_size") == 0
    world.receiver.status, world.time = 200, (await world.state()).next_at
    await done(one)
    assert world.metric("muniment_push_lag_entries") == 0
    assert world.metric("muniment_push_oldest_waiting_timestamp_seconds") == 0
    assert world.metric("muniment_push_size") == 10


def test_delays_grow_and_are_bounded() -> None:
    for failures in range(1, 2000):
        assert 0.5 <= delay(failures) <= 300
    assert all(delay(20) >= 150 for _ in range(50))
    assert delay(1, 77.0) == 77.0
    assert delay(1, 1e9) == 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("-1", 0),
        ("soon", 0),
        ("9" * 30, 0),
        ("1.5", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("٣", 0),
    ],
)
def test_what_a_receiver_asks_for(text: str, seconds: float) -> None:
    assert retry_after(text) == seconds


def test_a_date_that_a_receiver_asks_for() -> None:
    assert retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 86_000


def test_an_error_of_a_sink_says_how_long_to_wait() -> None:
    assert NotTaken("x").after == 0.0


async def test_an_authority_of_its_own_vouches_for_a_receiver(world: World, tmp_path: Path) -> None:
    await world.add({"n": 1})
    ca = tmp_path / "ca.pem"
    ca.write_text(ssl.DER_cert_to_PEM_cert(certificates().client.get_ca_certs(binary_form=True)[0]))

    def answer(peer: Peer) -> None:
        while peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with hostile(answer, tls=True) as server:
        sink = world.sink(url=f"{server.url}/in", ca=ca)
        webhook = Webhook(sink, 5.0)
        await done(world.pusher(target=webhook, ca=ca))
        await webhook.close()
    assert (await world.state()).start == 2
