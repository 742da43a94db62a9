"""A server that lies, in every way thought of: nothing unproved is returned, and nothing but errors of ours is raised."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest

from muniment.encoding import b64
from muniment.errors import (
    BadDisclosure,
    BadProof,
    BadSignature,
    FormatError,
    Inconsistent,
    MunimentError,
    NotWhatWasSent,
    PolicyNotMet,
    Unreachable,
    VerificationError,
)
from muniment.event import event_leaf
from muniment.hashing import leaf_hash
from tests.client.colours import QUICK, Colours
from tests.client.fake_log import FakeLog, edit, instead

EVENT = {"actor": "alice", "n": 1}


def grown(kind: str = "event") -> FakeLog:
    log = FakeLog(kind)
    if kind == "event":
        log.add_events([{"n": n, "actor": f"a{n}"} for n in range(300)])
    else:
        log._grow([b"%d" % n for n in range(1, 301)])
    log.publish()
    return log


# --- answers to an append -----------------------------------------------------------------------------------------------


def test_the_receipt_of_another_event(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/entries", lambda _: log.receipt(7).to_json())
    with pytest.raises(NotWhatWasSent, match="another event"):
        colours.client(log).append(EVENT)


def test_the_receipt_of_an_equal_event_is_what_was_sent(colours: Colours) -> None:
    """Two equal events are told apart by nothing in them; the Idempotency-Key is between us and the log."""
    log = grown()
    log.add_events([EVENT])
    log.tamper = edit("/entries", lambda _: log.receipt(301).to_json())
    assert colours.client(log).append(EVENT).index == 301


def test_one_value_of_another_type(colours: Colours) -> None:
    log = FakeLog()
    log.add_events([{"n": 1}, {"n": "1"}, {"n": 1, "m": 2}, {"n": True}])
    for index in (2, 3, 4):
        log.tamper = edit("/entries", lambda _, index=index: log.receipt(index).to_json())
        with pytest.raises(NotWhatWasSent):
            colours.client(log).append({"n": 1})


def test_a_genesis_entry_for_an_event(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/entries", lambda _: log.receipt(0).to_json())
    with pytest.raises(NotWhatWasSent, match="no event"):
        colours.client(log).append(EVENT)


@pytest.mark.parametrize("member", ["commitment", "disclosures"])
def test_an_answer_that_hides_what_was_logged(colours: Colours, member: str) -> None:
    log = grown()
    log.tamper = edit("/entries", lambda value: [value.pop(member)])
    with pytest.raises((NotWhatWasSent, BadDisclosure)):
        colours.client(log).append(EVENT)


def test_one_hidden_member(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/entries", lambda value: value["disclosures"].pop())
    with pytest.raises(NotWhatWasSent, match="hides"):
        colours.client(log).append(EVENT)


def test_another_leaf_in_a_raw_log(colours: Colours) -> None:
    log = grown("raw")
    log.tamper = edit("/entries", lambda _: log.receipt(9).to_json())
    with pytest.raises(NotWhatWasSent, match="another leaf"):
        colours.client(log).append(b"mine")


def test_a_leaf_that_is_not_in_the_tree(colours: Colours) -> None:
    log = grown("raw")
    log.tamper = edit("/entries", lambda value: value.update(leaf=b64(b"mine!")))
    with pytest.raises(BadProof):
        colours.client(log).append(b"mine")


def test_an_event_leaf_in_a_raw_log_is_a_leaf_like_others(colours: Colours) -> None:
    log = FakeLog("raw")
    leaf = event_leaf("A" * 43, "2026-11-20T12:00:00.123Z")
    assert colours.client(log).append(leaf).leaf == leaf


def test_a_checkpoint_signed_by_somebody_else(colours: Colours) -> None:
    log, evil = FakeLog(), FakeLog(seed=9)
    with pytest.raises(BadSignature):
        colours.client(evil, policy=log.policy).append(EVENT)


def test_a_checkpoint_of_another_log(colours: Colours) -> None:
    log, other = FakeLog(), FakeLog(origin="example.com/other")
    with pytest.raises(PolicyNotMet, match=r"example\.com/other"):
        colours.client(other, policy=log.policy).append(EVENT)


def test_a_receipt_for_another_index(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/receipt", lambda _: log.receipt(7).to_json())
    for call in (lambda: colours.client(log).receipt(8), lambda: colours.client(log).entry(8)):
        with pytest.raises(NotWhatWasSent, match="asked for"):
            call()


def test_a_receipt_at_another_size(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/receipt", lambda _: log.receipt(8, 100).to_json())
    with pytest.raises(NotWhatWasSent):
        colours.client(log).receipt(8, tree_size=301)


# --- batches ------------------------------------------------------------------------------------------------------------

BATCH_LIES: dict[str, Callable[[Any], Any]] = {
    "swapped": lambda v: v["receipts"].reverse(),
    "swapped with indices": lambda v: (v["receipts"].reverse(), v["indices"].reverse()),
    "repeated": lambda v: v.update(receipts=[v["receipts"][0]] * 3),
    "repeated with indices": lambda v: v.update(receipts=[v["receipts"][0]] * 3, indices=[v["indices"][0]] * 3),
    "one fewer": lambda v: v["receipts"].pop(),
    "one fewer everywhere": lambda v: (v["receipts"].pop(), v["indices"].pop()),
    "one more": lambda v: v["receipts"].append(v["receipts"][0]),
    "none": lambda v: v.update(receipts=[], indices=[]),
    "no receipts": lambda v: v.pop("receipts"),
    "no indices": lambda v: v.pop("indices"),
    "a huge range": lambda v: v.update(indices=[[0, 2**62]]),
    "an empty range": lambda v: v["indices"].append([5, 5]),
    "a reversed range": lambda v: v["indices"].append([5, 4]),
    "negative": lambda v: v.update(indices=[[-3, 0]]),
    "floats": lambda v: v.update(indices=[[1.0, 4.0]]),
    "booleans": lambda v: v.update(indices=[[False, True], [1, 3]]),
    "texts": lambda v: v.update(indices=["ab", "cd", "ef"]),
}


@pytest.mark.parametrize("lie", BATCH_LIES)
@pytest.mark.parametrize("kind", ["event", "raw"])
def test_lies_about_a_batch(colours: Colours, lie: str, kind: str) -> None:
    log = grown(kind)
    log.tamper = edit("/batch", BATCH_LIES[lie])
    entries: list[Any] = [{"n": n} for n in range(3)] if kind == "event" else [b"x", b"y", b"z"]
    with pytest.raises((VerificationError, FormatError)):
        list(colours.client(log).append_many(entries))


# --- reads --------------------------------------------------------------------------------------------------------------


def rows(change: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    return lambda value: change(value["entries"]) and None


READ_LIES: dict[str, Callable[[Any], Any]] = {
    "another leaf": rows(lambda r: r[3].update(leaf=b64(b"evil"))),
    "two leaves swapped": rows(lambda r: (r[3].update(leaf=r[4]["leaf"]), r[4].update(leaf=r[3]["leaf"]))),
    "a gap": rows(lambda r: r.pop(3)),
    "a shifted page": rows(lambda r: [row.update(index=row["index"] + 1) for row in r]),
    "another event's commitment": rows(
        lambda r: r[3].update(commitment=r[4]["commitment"], disclosures=r[4]["disclosures"])
    ),
    "a changed disclosure": rows(lambda r: r[3].update(disclosures=r[4]["disclosures"])),
    "an empty page": lambda value: value.update(entries=[]),
    "one row of junk": rows(lambda r: r.insert(0, "x")),
}


@pytest.mark.parametrize("lie", READ_LIES)
def test_lies_about_entries(colours: Colours, lie: str) -> None:
    log = grown()
    log.tamper = edit("/entries", READ_LIES[lie])
    with pytest.raises((VerificationError, FormatError)):
        list(colours.client(log).entries())


def test_the_shown_event_does_not_count(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/entries", rows(lambda r: r[3].update(event={"n": "forged"})))
    assert list(colours.client(log).entries(0, 5))[3].event == {"n": 2, "actor": "a2"}


def test_a_flipped_byte_in_any_tile(colours: Colours) -> None:
    log = grown("raw")

    def flip(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if "/tile/" not in request.url.path:
            return response
        data = bytearray(response.content)
        data[len(data) // 2] ^= 1
        return httpx.Response(200, content=bytes(data))

    log.tamper = flip
    client = colours.client(log)
    for call in (
        lambda: client.tile(0, 0),
        lambda: client.tile(0, 1),
        lambda: client.tile(1, 0),
        lambda: client.bundle(0),
        lambda: list(client.entries(0, 1)),
    ):
        with pytest.raises((BadProof, FormatError)):
            call()


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 8191])
def test_a_tile_cut_short(colours: Colours, cut: int) -> None:
    log = grown("raw")
    log.tamper = lambda request, response: (
        httpx.Response(200, content=response.content[:cut]) if request.url.path == "/tile/0/000" else response
    )
    with pytest.raises(BadProof):
        colours.client(log).tile(0, 0)


def test_a_bundle_that_is_not_the_tile(colours: Colours) -> None:
    log = grown("raw")
    for lie in (b"", b"\x00", b"\x00\x01a" * 256, b"\xff\xff"):
        log.tamper = lambda request, response, lie=lie: (
            httpx.Response(200, content=lie) if "/tile/entries" in request.url.path else response
        )
        with pytest.raises((BadProof, FormatError)):
            colours.client(log).bundle(0)


def test_inclusion_of_something_else(colours: Colours) -> None:
    log = grown()
    client = colours.client(log)
    honest = json.loads(log._inclusion({"index": "8"}).content)
    log.tamper = edit("/inclusion", lambda _: honest)
    assert client.inclusion(8)
    with pytest.raises(NotWhatWasSent):
        client.inclusion(7)
    with pytest.raises(NotWhatWasSent):
        client.inclusion(leaf_hash=leaf_hash(log.leaves[9]))
    with pytest.raises(NotWhatWasSent):
        client.inclusion(8, tree_size=200)


@pytest.mark.parametrize("change", [{"next": 1}, {"next": -1}, {"next": True}, {"next": "5"}])
def test_a_feed_that_never_ends(colours: Colours, change: dict[str, Any]) -> None:
    log = grown()
    log.tamper = edit("/checkpoints", lambda value: value.update(change))
    with pytest.raises(FormatError):
        list(colours.client(log).checkpoints())


def test_a_feed_out_of_order(colours: Colours) -> None:
    log = grown()
    log.tamper = edit("/checkpoints", lambda value: value["checkpoints"].reverse())
    with pytest.raises(FormatError):
        list(colours.client(log).checkpoints())


@pytest.mark.parametrize(
    "change",
    [
        {"origin": "example.com/other"},
        {"vkeys": []},
        {"vkeys": ["x"]},
        {"kind": "scitt"},
        {"limits": None},
        {"open": 1},
    ],
)
def test_lies_about_the_log(colours: Colours, change: dict[str, Any]) -> None:
    log = grown()
    log.tamper = edit("/log", lambda value: value.update(change))
    with pytest.raises((PolicyNotMet, FormatError)):
        colours.client(log).log_info()


@pytest.mark.parametrize("vkeys", [[], ["x"], [str(FakeLog(origin="example.com/other").key.vkey)]])
def test_first_use_of_a_log_without_a_key(colours: Colours, vkeys: list[str]) -> None:
    log = grown()
    log.tamper = edit("/log", lambda value: value.update(vkeys=vkeys))
    with pytest.raises(PolicyNotMet):
        colours.trust_on_first_use(log)


# --- answers that are not ours ------------------------------------------------------------------------------------------

HTML = "<!doctype html><title>Sign in</title>"


def calls(client: Any) -> Iterator[Callable[[], Any]]:
    yield lambda: client.append(EVENT)
    yield lambda: list(client.append_many([EVENT]))
    yield lambda: client.entry(1)
    yield lambda: list(client.entries())
    yield lambda: client.receipt(1)
    yield lambda: client.inclusion(1)
    yield client.checkpoint
    yield lambda: list(client.checkpoints())
    yield lambda: client.tile(0, 0)
    yield lambda: client.bundle(0)
    yield client.log_info


NOT_OURS: dict[str, Callable[[], httpx.Response]] = {
    "html": lambda: httpx.Response(200, html=HTML),
    "html error": lambda: httpx.Response(502, html=HTML),
    "empty": lambda: httpx.Response(200),
    "no content": lambda: httpx.Response(204),
    "not JSON": lambda: httpx.Response(200, content=b"{", headers={"Content-Type": "application/json"}),
    "not UTF-8": lambda: httpx.Response(200, content=b"\xff\xfe", headers={"Content-Type": "application/json"}),
    "deep": lambda: httpx.Response(200, content=b"[" * 100_000, headers={"Content-Type": "application/json"}),
    "a list": lambda: httpx.Response(200, json=[1]),
    "a number": lambda: httpx.Response(200, content=b"9" * 5000, headers={"Content-Type": "application/json"}),
    "null": lambda: httpx.Response(200, json=None),
    "redirect": lambda: httpx.Response(302, headers={"Location": "http://evil.test/"}),
    "redirect that keeps the method": lambda: httpx.Response(307, headers={"Location": "http://evil.test/"}),
    "permanent redirect": lambda: httpx.Response(308, headers={"Location": "/elsewhere"}),
    "teapot": lambda: httpx.Response(418, content=b"\x1b[2J\x00 short and stout"),
    "compressed": lambda: httpx.Response(
        200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(gzip.compress(b"{}"))
    ),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_answers_that_are_not_ours(colours: Colours, name: str) -> None:
    log = grown()
    log.tamper = lambda _request, _response: NOT_OURS[name]()
    client = colours.client(log)
    for call in calls(client):
        with pytest.raises(MunimentError) as caught:
            call()
        assert not isinstance(caught.value, Inconsistent)
        assert "\x1b" not in str(caught.value)
    assert all(request.url.host == "log.test" for request in log.requests), "a redirect was followed"


@pytest.mark.parametrize("name", [name for name in NOT_OURS if "redirect" in name or name == "html"])
def test_what_no_retry_makes_better_is_not_retried(colours: Colours, name: str) -> None:
    log = FakeLog()
    log.tamper = lambda _request, _response: NOT_OURS[name]()
    with pytest.raises(Unreachable):
        colours.client(log).append(EVENT)
    assert len(log.requests) == 1


class Flood(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body without end. Counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.taken += 1
            yield b" " * 65_536

    async def __aiter__(self) -> Any:
        for chunk in self:
            yield chunk


def test_a_body_without_end(colours: Colours) -> None:
    log = grown()
    client = colours.client(log)
    for call in list(calls(client)):
        flood = Flood()
        log.tamper = lambda _r, _h, flood=flood: httpx.Response(
            200, headers={"Content-Type": "application/json"}, stream=flood
        )
        with pytest.raises(Unreachable, match="larger than"):
            call()
        assert flood.taken * 65_536 <= 200 * 1024 * 1024


def test_a_body_that_drips(colours: Colours, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 5))
    monkeypatch.setattr("muniment.wire.exchange.monotonic", lambda: next(clock))
    log = grown()
    log.tamper = lambda _request, _response: httpx.Response(
        200, headers={"Content-Type": "application/json"}, stream=Flood()
    )
    with pytest.raises(Unreachable, match="no whole answer within 30 seconds"):
        colours.client(log, timeout=30.0).checkpoint()


def test_a_truncated_answer(colours: Colours) -> None:
    log = grown()
    honest = log._honest(httpx.Request("GET", "http://log.test/entries/5/receipt")).content
    for cut in range(0, len(honest), 97):
        log.tamper = instead(
            "/receipt",
            lambda cut=cut: httpx.Response(200, content=honest[:cut], headers={"Content-Type": "application/json"}),
        )
        with pytest.raises(FormatError):
            colours.client(log).receipt(5)


# --- every place of every answer, replaced ------------------------------------------------------------------------------

JUNK: list[Any] = [None, True, 0, -1, 1, 2**70, 1.5, "", "x", "é\ud800", [], [None], {}, {"x": 1}, "00" * 32]


def mutations(value: Any) -> Iterator[Any]:
    """Yield the value with each place in it deleted, and replaced by each piece of junk. Lists: their first and last places."""

    def places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield path
        items: list[Any] = []
        if isinstance(node, dict):
            items = list(node.items())
        elif isinstance(node, list) and node:
            items = [(0, node[0]), (len(node) - 1, node[-1])]
        for key, below in items:
            yield from places(below, (*path, key))

    for path in places(value, ()):
        for junk in JUNK:
            if not path:
                yield junk
                continue
            changed = deepcopy(value)
            node = changed
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            yield changed
        if path:
            changed = deepcopy(value)
            node = changed
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            yield changed


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error of ours it raises; any other error fails the test."""
    try:
        return call()
    except MunimentError as error:
        return type(error)


ROUTES: dict[str, Callable[[Any], Any]] = {
    "/entries": lambda client: client.append(EVENT, idempotency_key="k"),
    "/batch": lambda client: list(client.append_many([EVENT, {"n": 2}])),
    "/receipt": lambda client: client.receipt(3),
    "/inclusion": lambda client: client.inclusion(3, tree_size=5),
    "/consistency": lambda client: client.consistency(client.receipt(1, tree_size=4)),
    "/checkpoints": lambda client: list(client.checkpoints()),
    "/log": lambda client: client.log_info(),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_place_of_every_answer_replaced(route: str) -> None:
    """Whatever is put in its place: the honest result, or an error of ours."""
    log = FakeLog()
    log.add_events([{"n": n, "actor": "bob"} for n in range(3)])
    log.publish()
    log.add_events([{"n": n, "actor": "bob"} for n in range(3)])
    log.publish()
    colours = Colours("sync")
    call = ROUTES[route]
    captured: list[Any] = []
    log.tamper = edit(route, lambda value: captured.append(deepcopy(value)))
    honest = call(colours.client(log.fork_with(log.tamper)))
    assert captured
    count = 0
    for changed in mutations(captured[0]):
        content = json.dumps(changed).encode()
        twin = log.fork_with(
            lambda request, response, content=content: (
                httpx.Response(200, content=content, headers={"Content-Type": "application/json"})
                if request.url.path.endswith(route)
                and request.method == ("POST" if route in ("/entries", "/batch") else "GET")
                else response
            )
        )
        found = outcome(lambda twin=twin: call(colours.client(twin, retries=QUICK)))
        if route != "/log":  # where nothing but origin and keys is anybody's proof
            assert isinstance(found, type) or honest_enough(route, comparable(found), comparable(honest)), changed
        count += 1
    assert count > 100
    colours.close()


def honest_enough(route: str, found: Any, honest: Any) -> bool:
    """A feed may leave checkpoints out, which nobody can prove; everything else must be as it was."""
    return all(one in honest for one in found) if route == "/checkpoints" else found == honest


def comparable(found: Any) -> Any:
    """A result without what its proof happens to look like."""
    if isinstance(found, list):
        return [comparable(item) for item in found]
    for name in ("verified", "leaf", "checkpoint", "newer"):
        if hasattr(found, name):
            return getattr(found, name)
    return found


@pytest.mark.parametrize("listed", [True, False])
def test_every_place_of_a_page_of_entries_replaced(listed: bool) -> None:
    log = FakeLog(listed_disclosures=listed)
    log.add_events([{"n": n, "actor": "bob"} for n in range(3)])
    log.publish()
    colours = Colours("sync")
    honest = [entry.leaf for entry in colours.client(log).entries()]
    page = json.loads(log._list(0, 4).content)
    for changed in mutations(page):
        content = json.dumps(changed).encode()
        log.tamper = instead(
            "/entries",
            lambda content=content: httpx.Response(200, content=content, headers={"Content-Type": "application/json"}),
        )
        found = outcome(lambda: list(colours.client(log).entries()))
        if isinstance(found, list):
            assert [entry.leaf for entry in found] == honest
            for entry in found:
                original = log.payloads[entry.index].event if entry.index else {}
                assert all(original[name] == value for name, value in (entry.event or {}).items())
    colours.close()


@pytest.mark.parametrize("text", ["", "\n", "x", "a\n1\n", "a\n1\nAAAA\n\n— a AAAA\n", "\ud800", "\x00"])
def test_checkpoints_that_are_none(colours: Colours, text: str) -> None:
    log = grown()
    log.tamper = instead("/checkpoint", lambda: httpx.Response(200, content=text.encode("utf-8", "surrogatepass")))
    with pytest.raises(FormatError):
        colours.client(log).checkpoint()


def test_every_byte_of_a_checkpoint_changed(colours: Colours) -> None:
    log = FakeLog()
    client = colours.client(log)
    note = log.note(1).encode()
    for at in range(len(note)):
        changed = note[:at] + bytes([note[at] ^ 1]) + note[at + 1 :]
        log.tamper = instead("/checkpoint", lambda changed=changed: httpx.Response(200, content=changed))
        with pytest.raises((FormatError, VerificationError)):
            client.checkpoint()
