"""What the clients do when the log is honest."""

from __future__ import annotations

from itertools import islice
from typing import Any

import httpx
import pytest

from muniment import Client, Policy
from muniment.errors import Behind, EventRefused, FormatError, Inconsistent, PolicyNotMet, Refused, UnknownMember
from muniment.hashing import leaf_hash
from muniment.receipt import Receipt
from tests.client.colours import Colours
from tests.client.fake_log import ORIGIN, URL, FakeLog, edit

EVENT = {"actor": "alice", "action": "invoice.approve", "n": 17}


def events(count: int) -> list[dict[str, Any]]:
    return [{"n": n, "actor": "bob"} for n in range(count)]


def test_append_returns_a_receipt_that_holds_offline(colours: Colours) -> None:
    log = FakeLog()
    receipt = colours.client(log).append(EVENT)
    assert receipt.index == 1
    assert receipt.verify(log.policy).opened == EVENT
    request = log.requests[0]
    assert request.headers["content-type"] == "application/json"
    assert request.content == b'{"action":"invoice.approve","actor":"alice","n":17}'


def test_equal_events_are_different_entries(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    assert [client.append(EVENT).index for _ in range(3)] == [1, 2, 3]


def test_an_own_key_makes_a_repeated_call_one_entry(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    assert {client.append(EVENT, idempotency_key="k 1").index for _ in range(3)} == {1}
    assert log.requests[0].headers["idempotency-key"] == '"k 1"'


@pytest.mark.parametrize("key", ["", 'a"b', "a\\b", "é", "\n", "x" * 256])
def test_a_key_that_does_not_fit_a_header(colours: Colours, key: str) -> None:
    client = colours.client(FakeLog())
    if key:
        with pytest.raises(FormatError):
            client.append(EVENT, idempotency_key=key)
    else:
        assert client.append(EVENT, idempotency_key=key).index == 1  # no key: one is made


def test_append_to_a_raw_log(colours: Colours) -> None:
    log = FakeLog("raw")
    client = colours.client(log)
    assert client.append(b"leaf").index == 1
    assert client.append(b"leaf").index == 1
    assert client.append(bytearray(b"other")).index == 2
    assert "idempotency-key" not in log.requests[0].headers
    assert log.requests[0].headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("entry", [b"", b"x" * 65_536])
def test_a_raw_leaf_has_bounds(colours: Colours, entry: bytes) -> None:
    log = FakeLog("raw")
    with pytest.raises(FormatError):
        colours.client(log).append(entry)
    assert not log.requests


@pytest.mark.parametrize(
    "event", [{}, {"n": float("nan")}, {"n": 2**53}, {"s": {1, 2}}, {1: 2}, {"a": "\ud800"}, 5, "x"]
)
def test_what_is_no_event_is_not_sent(colours: Colours, event: Any) -> None:
    log = FakeLog()
    with pytest.raises(EventRefused):
        colours.client(log).append(event)
    assert not log.requests


def test_append_many_in_batches(colours: Colours) -> None:
    log = FakeLog()
    receipts = list(colours.client(log).append_many(events(25), batch_entries=10))
    assert [receipt.index for receipt in receipts] == list(range(1, 26))
    assert log.paths() == ["/entries/batch"] * 3
    keys = [request.headers["idempotency-key"] for request in log.requests]
    assert len(set(keys)) == 3


def test_append_many_respects_bytes(colours: Colours) -> None:
    log = FakeLog()
    entries = [{"text": "x" * 500} for _ in range(10)]
    assert len(list(colours.client(log).append_many(entries, batch_bytes=1100))) == 10
    assert len(log.requests) == 5


def test_append_many_of_raw_leaves(colours: Colours) -> None:
    log = FakeLog("raw")
    leaves = [b"a", b"b", b"a", b"\x00" * 300]
    assert [r.index for r in colours.client(log).append_many(leaves)] == [1, 2, 1, 3]


def test_append_many_of_nothing(colours: Colours) -> None:
    log = FakeLog()
    assert list(colours.client(log).append_many([])) == []
    assert not log.requests


def test_append_many_reads_no_further_than_a_batch_ahead(colours: Colours) -> None:
    read = 0

    def source() -> Any:
        nonlocal read
        for event in events(100):
            read += 1
            yield event

    log = FakeLog()
    receipts = colours.client(log).append_many(source(), batch_entries=10)
    assert len(list(islice(receipts, 11))) == 11
    assert read in (20, 30), "the batch being taken, and perhaps one on its way"
    receipts.close()
    assert log.size in (21, 31)


def test_what_precedes_a_bad_entry_is_logged(colours: Colours) -> None:
    log = FakeLog()
    receipts = colours.client(log).append_many([{"n": 1}, {"n": 2}, {}, {"n": 4}])
    assert [next(receipts).index, next(receipts).index] == [1, 2]
    with pytest.raises(EventRefused):
        next(receipts)
    assert log.size == 3


def test_events_and_leaves_do_not_mix(colours: Colours) -> None:
    log = FakeLog()
    with pytest.raises(FormatError, match="not both"):
        list(colours.client(log).append_many([{"n": 1}, b"leaf"]))
    assert log.size == 2


def test_entry(colours: Colours) -> None:
    log = FakeLog()
    log.add_events([EVENT])
    log.publish()
    entry = colours.client(log).entry(1)
    assert (entry.index, entry.event, entry.hidden) == (1, EVENT, ())
    assert entry.leaf_hash == leaf_hash(log.leaves[1])
    genesis = colours.client(log).entry(0)
    assert genesis.event is None
    assert genesis.content.typ == "muniment/genesis@v1"


def test_an_entry_whose_payload_is_closed(colours: Colours) -> None:
    log = FakeLog(readable=False)
    log.add_events([EVENT])
    log.publish()
    client = colours.client(log)
    assert client.entry(1).hidden == ("*",)
    assert [entry.event for entry in client.entries()] == [None, {}]


@pytest.mark.parametrize("listed", [True, False])
def test_entries(colours: Colours, listed: bool) -> None:
    log = FakeLog(listed_disclosures=listed)
    sent = events(20)
    log.add_events(sent)
    log.publish()
    entries = list(colours.client(log).entries())
    assert [entry.index for entry in entries] == list(range(21))
    assert [entry.event for entry in entries[1:]] == sent


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (5, 5), (250, 260), (255, 1100), (1029, None), (2000, None), (0, 1)]
)
def test_entries_over_many_tiles(colours: Colours, start: int, stop: int | None) -> None:
    log = FakeLog("raw")
    log._grow([b"%d" % n for n in range(1, 1030)])
    log.publish()
    entries = list(colours.client(log).entries(start, stop))
    assert [entry.index for entry in entries] == list(range(start, min(1030, stop or 1030)))
    assert all(entry.leaf == log.leaves[entry.index] for entry in entries)


def test_entries_include_what_this_client_just_appended(colours: Colours) -> None:
    log = FakeLog(lag=True)
    client = colours.client(log)
    client.append(EVENT)
    assert log.published == 1
    assert [entry.index for entry in client.entries()] == [0, 1]


def test_receipt(colours: Colours) -> None:
    log = FakeLog()
    log.add_events(events(5))
    log.publish()
    log.add_events(events(5))
    log.publish()
    client = colours.client(log)
    assert client.receipt(3).tree_size == 11
    assert client.receipt(3, tree_size=6).tree_size == 6
    with pytest.raises(Refused, match="no_checkpoint"):
        client.receipt(3, tree_size=7)


def test_a_receipt_of_some_members(colours: Colours) -> None:
    log = FakeLog()
    log.add_events([{"actor": "alice", "a,b": "secret", "": 0, "s": 1, "ssn": 2}])
    log.publish()
    client = colours.client(log)
    for members, shown in ((["actor"], {"actor"}), ({"a,b", ""}, {"a,b", ""}), ((), set()), ("ssn", {"ssn"})):
        found = client.receipt(1, members=members)
        assert found == log.receipt(1).disclose(shown)
    assert client.receipt(1, members=["s"], tree_size=2).verify(log.policy).opened == {"s": 1}
    with pytest.raises(Refused, match="unknown_member"):
        client.receipt(1, members=["actors"])
    log.readable = False
    with pytest.raises(UnknownMember, match="it opens none"):
        client.receipt(1, members=["actor"])
    assert client.receipt(1, members=()).verify(log.policy).hidden == ("*",)


def test_a_server_that_opens_other_members_than_asked_for(colours: Colours) -> None:
    log = FakeLog()
    log.add_events([{"actor": "alice", "secret": "s"}])
    log.publish()
    whole = log.receipt(1)
    log.tamper = edit("/receipt", lambda value: value.update(whole.to_json()))
    found = colours.client(log).receipt(1, members=["actor"])
    assert found == whole.disclose({"actor"}), "what was not asked for is not passed on"
    log.tamper = edit("/receipt", lambda value: value.update(whole.disclose({"secret"}).to_json()))
    with pytest.raises(UnknownMember, match="no member actor"):
        colours.client(log).receipt(1, members=["actor"])


def test_inclusion(colours: Colours) -> None:
    log = FakeLog()
    log.add_events(events(9))
    client = colours.client(log)
    assert client.inclusion(3).tree_size == 10
    assert client.inclusion(3, tree_size=7).tree_size == 7
    assert client.inclusion(leaf_hash=leaf_hash(log.leaves[4])).index == 4
    for arguments in ({}, {"index": 1, "leaf_hash": bytes(32)}):
        with pytest.raises(FormatError):
            client.inclusion(**arguments)


def test_consistency_since_what_was_saved(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    saved = client.checkpoint()
    receipt = client.append(EVENT)
    log.add_events(events(7))
    log.publish()
    for since in (saved, saved.note, receipt, receipt.checkpoint):
        proof = client.consistency(since=since)
        assert proof.newer.checkpoint.size == 9
        assert proof.older.checkpoint.size in (1, 2)
        assert proof.to_json()["second"] == 9


def test_consistency_with_a_newer_one_than_published(colours: Colours) -> None:
    log = FakeLog(lag=True)
    client = colours.client(log)
    receipt = client.append(EVENT)
    proof = client.consistency(since=receipt)
    assert (proof.older.checkpoint.size, proof.newer.checkpoint.size) == (1, 2)


def test_checkpoints(colours: Colours) -> None:
    log = FakeLog()
    for _ in range(8):
        log.add_events(events(3))
        log.publish()
    client = colours.client(log)
    assert [one.checkpoint.size for one in client.checkpoints()] == log.published_sizes
    assert [one.checkpoint.size for one in client.checkpoints(start=8)] == [10, 13, 16, 19, 22, 25]
    assert list(client.checkpoints(start=26)) == []


def test_tiles_and_bundles(colours: Colours) -> None:
    log = FakeLog("raw")
    log._grow([b"%d" % n for n in range(1, 600)])
    log.publish()
    client = colours.client(log)
    assert client.tile(0, 0) == [leaf_hash(leaf) for leaf in log.leaves[:256]]
    assert len(client.tile(1, 0)) == 2
    assert len(client.tile(0, 2)) == 600 - 512
    assert client.bundle(1) == log.leaves[256:512]
    assert client.bundle(2) == log.leaves[512:]
    for level, index in ((0, 3), (2, 0), (1, 1)):
        with pytest.raises(FormatError):
            client.tile(level, index)


def test_a_mirror_that_dropped_partial_tiles(colours: Colours) -> None:
    log = FakeLog("raw")
    log._grow([b"%d" % n for n in range(1, 300)])
    log.publish()
    log._grow([b"%d" % n for n in range(300, 512)])

    def drop(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return (
            httpx.Response(404)
            if "/tile/" in request.url.path and ".p/" in request.url.path and request.url.path[-2:] != "/1"
            else response
        )

    log.tamper = drop
    assert colours.client(log).bundle(1) == log.leaves[256:300]


def test_log_info(colours: Colours) -> None:
    log = FakeLog("raw")
    info = colours.client(log).log_info()
    assert (info.origin, info.kind, info.max_batch_entries) == (ORIGIN, "raw", 10000)


def test_without_a_policy(colours: Colours) -> None:
    with pytest.raises(TypeError, match=r"policy=Policy\.read"):
        Client(URL)
    with pytest.raises(PolicyNotMet, match="lists no log"):
        colours.client(FakeLog(), policy=Policy(())).checkpoint()


def test_trust_on_first_use(colours: Colours) -> None:
    log = FakeLog()
    policy = colours.trust_on_first_use(log)
    assert str(policy) == f"log {log.key.vkey} {URL}\nquorum none\n"
    assert colours.client(log, policy=policy).checkpoint().checkpoint.size == 1


def test_one_of_several_logs_of_a_server(colours: Colours) -> None:
    log = FakeLog("raw")
    asked = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return log.handle(
            httpx.Request(request.method, str(request.url).replace("/base/logs/releases", ""), content=request.content)
        )

    client = colours.client(
        None, policy=log.policy, url=f"{URL}/base/", log="releases", transport=httpx.MockTransport(handle)
    )
    assert client.append(b"leaf").index == 1
    assert client.url == f"{URL}/base/logs/releases"
    assert asked == ["/base/logs/releases/entries"]


@pytest.mark.parametrize(
    "url", ["", "example.com", "ftp://x", "http://", "http://x?y=1", "http://x/#f", "http://x y", "http://[::1"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(FormatError):
        Client(url, policy=Policy(()))


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "-a", "a" * 64, "ä"])
def test_what_is_no_log_name(name: str) -> None:
    with pytest.raises(FormatError):
        Client(URL, policy=Policy(()), log=name)


def test_the_api_key_goes_in_the_header_and_nowhere_else(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log, api_key="mk_secret")
    client.append(EVENT)
    assert log.requests[0].headers["authorization"] == "Bearer mk_secret"
    assert "secret" not in repr(client.url) + repr(client) + str(log.requests[0].url)
    with pytest.raises(FormatError):
        colours.client(log, api_key="a\r\nb")


def test_a_receipt_round_trips_through_its_text(colours: Colours) -> None:
    log = FakeLog()
    receipt = colours.client(log).append(EVENT)
    assert Receipt.parse(str(receipt)) == receipt


@pytest.mark.parametrize("size", [1, 5, 256, 257, 600])
def test_receipts_at_one_checkpoint(colours: Colours, size: int) -> None:
    log = FakeLog()
    log.add_events([{"n": n} for n in range(size - 1)])
    log.publish()
    client = colours.client(log)
    spans = [(0, size), (size - 1, size), (0, 1), (max(0, size - 300), size), (size, size)]
    for start, stop in spans:
        assert list(client.receipts(start, stop)) == [log.receipt(index, size) for index in range(start, stop)]


def test_receipts_at_an_older_checkpoint(colours: Colours) -> None:
    log = FakeLog()
    log.add_events([{"n": n} for n in range(299)])
    log.publish()
    log.add_events([{"n": n} for n in range(500)])
    log.publish()
    client = colours.client(log)
    assert list(client.receipts(290, at=log.note(300))) == [log.receipt(index, 300) for index in range(290, 300)]
    twin = FakeLog()
    twin.add_events([{"other": n} for n in range(299)])
    with pytest.raises(Inconsistent):
        list(client.receipts(at=twin.note(300)))
    behind = colours.client(FakeLog(), policy=log.policy)
    with pytest.raises(Behind):
        list(behind.receipts(at=log.note(300)))


def test_receipts_when_the_pages_hold_no_disclosures(colours: Colours) -> None:
    log = FakeLog(listed_disclosures=False)
    log.add_events([{"n": 1}, {"n": 2}])
    log.publish()
    assert list(colours.client(log).receipts()) == [log.receipt(index) for index in range(3)]
    log.readable = False
    bare = list(colours.client(log).receipts())
    assert [receipt.commitment for receipt in bare] == [None] * 3
    assert [receipt.verify(log.policy).hidden for receipt in bare] == [(), ("*",), ("*",)]
