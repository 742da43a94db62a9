"""The short way to check the receipts of a batch accepts what the strict one accepts, and raises what it raises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import event, strictjson
from muniment import paths as paths_module
from muniment._flows import answered
from muniment._flows.answered import Receipts, check_sent, opened_digest
from muniment._flows.writes import PreparedEntry
from muniment.encoding import b64url, parse_b64url
from muniment.errors import BadProof, FormatError, MunimentError
from muniment.event import Commitment, event_leaf, format_time, parse_leaf
from muniment.hashing import LeafHash
from muniment.paths import Paths
from muniment.proofs import verify_inclusion
from muniment.receipt import Receipt
from tests.client.fake_log import NOON, FakeLog
from tests.unit.strategies import events

Proof = tuple[bytes, ...]


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[type, str] | None:
    """What a check says: None when it accepts."""
    try:
        function(*args, **kwargs)
    except MunimentError as error:
        return type(error), str(error)
    return None


# --- inclusion ----------------------------------------------------------------------------------------------------------


def damaged(index: int, proof: Proof) -> Iterator[tuple[int, Proof]]:
    """Ways to spoil a proof."""
    for other in (index - 1, index + 1, index ^ 2, index + 1000, -1):
        yield other, proof
    yield index, (*proof, bytes(32))
    yield index, (*proof, proof[-1] if proof else b"")
    for at, part in enumerate(proof):
        yield index, proof[:at]
        yield index, proof[:at] + proof[at + 1 :]
        yield index, (*proof[:at], bytes([part[0] ^ 1]) + part[1:], *proof[at + 1 :])
        yield index, (*proof[:at], part[:31], *proof[at + 1 :])
        yield index, (*proof[:at], part + b"x", *proof[at + 1 :])
        if at + 1 < len(proof):
            yield index, (*proof[:at], *proof[at:][::-1])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 21])
def test_every_proof_of_a_small_tree_and_every_damage(size: int) -> None:
    log = FakeLog("raw")
    log.add_raw([b"leaf %d" % n for n in range(1, size)])
    receipts = [log.receipt(index) for index in range(size)]
    root = log.edge.root()
    paths = Paths(size, root)
    for receipt in (*receipts, *receipts[::-1]):
        paths.verify(receipt.index, receipt.leaf_hash, receipt.proof)
        for index, proof in damaged(receipt.index, receipt.proof):
            strict = outcome(verify_inclusion, index, size, receipt.leaf_hash, proof, root)
            assert outcome(paths.verify, index, receipt.leaf_hash, proof) == strict
            assert strict, "a damaged proof proves nothing"
        for leaf in (LeafHash(bytes(32)), LeafHash(b""), receipts[receipt.index - 1].leaf_hash):
            if leaf != receipt.leaf_hash:
                assert outcome(paths.verify, receipt.index, leaf, receipt.proof)


def test_neighbours_share_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    log, hashed = FakeLog("raw"), 0
    log.add_raw([b"%d" % n for n in range(255)])
    paths, real = Paths(256, log.edge.root()), paths_module.node_hash

    def counted(left: bytes, right: bytes) -> bytes:
        nonlocal hashed
        hashed += 1
        return real(left, right)

    monkeypatch.setattr(paths_module, "node_hash", counted)
    for index in range(256):
        receipt = log.receipt(index)
        paths.verify(index, receipt.leaf_hash, receipt.proof)
    assert hashed < 2 * 256 + 8


def test_a_proof_of_the_wrong_tree() -> None:
    log = FakeLog("raw")
    log.add_raw([b"a", b"b", b"c"])
    receipt = log.receipt(2)
    with pytest.raises(BadProof):
        Paths(4, FakeLog("raw", seed=1).edge.root()).verify(2, receipt.leaf_hash, receipt.proof)


# --- receipts -----------------------------------------------------------------------------------------------------------


def spoiled(receipt: Receipt, other: Receipt) -> Iterator[Receipt]:
    """Ways to answer with something else."""
    yield replace(receipt, origin="example.com/other")
    yield replace(receipt, tree_size=receipt.tree_size + 1)
    yield replace(receipt, checkpoint=receipt.checkpoint.replace("\n", "\n\n", 1))
    yield replace(receipt, leaf=other.leaf)
    yield replace(receipt, index=other.index, leaf=other.leaf, proof=other.proof)
    yield replace(receipt, commitment=other.commitment)
    yield replace(receipt, commitment=None)
    yield replace(receipt, disclosures=other.disclosures)
    yield replace(receipt, commitment=None, disclosures=None)
    yield other
    texts = receipt.disclosures or ()
    for at, text in enumerate(texts):
        for new in (
            text[:-1],
            text + "A",
            text[:40] + "!" + text[41:],
            text[:40] + "\ud800" + text[41:],
            "A" + text[1:],
            text[:31] + "=" + text[32:],
            text + "=",
        ):
            yield replace(receipt, disclosures=(*texts[:at], new, *texts[at + 1 :]))
        yield replace(receipt, disclosures=(*texts[:at], *texts[at + 1 :]))
        yield replace(receipt, disclosures=(*texts, text))
    yield replace(receipt, disclosures=texts[::-1])


def assert_alike(log: FakeLog, receipts: Receipts, body: bytes, receipt: Receipt, *, is_event: bool = True) -> None:
    strict = outcome(check_sent, log.policy, body, receipt, is_event=is_event)
    assert outcome(receipts.check_sent, body, receipt, is_event=is_event) == strict


@settings(max_examples=15, deadline=None)
@given(st.lists(events, min_size=2, max_size=3))
def test_any_event_and_any_lie_about_it(sent: list[dict[str, Any]]) -> None:
    log = FakeLog()
    bodies = [PreparedEntry.of(value).body for value in sent]
    indices = log.add_events([strictjson.parse(body) for body in bodies])
    receipts = Receipts(log.policy)
    found = [log.receipt(index) for index in indices]
    for body, receipt in zip(bodies, found, strict=True):
        assert outcome(receipts.check_sent, body, receipt, is_event=True) is None
        for wrong in (*bodies, b"{}", b"[]", b"{", body + b" ", body[:-1] + b',"x":1}'):
            assert_alike(log, receipts, wrong, receipt)
        for lie in spoiled(receipt, found[0] if receipt is not found[0] else found[1]):
            assert_alike(log, receipts, body, lie)


@pytest.mark.parametrize("salt", ["", "short", "a" * 22, "a" * 21 + '"', "é" * 11, "a" * 21 + "+", "\\" * 11, "a" * 44])
def test_salts_of_any_form(salt: str) -> None:
    log, sent = FakeLog(), {"a": 1, "b": "x"}
    texts = [b64url(strictjson.canonical([salt, name, value])) for name, value in sent.items()]
    commitment = Commitment.to(texts)
    log._grow([event_leaf(commitment.digest(), format_time(NOON))])
    receipt = replace(log.receipt(1), commitment=commitment, disclosures=tuple(texts))
    assert outcome(Receipts(log.policy).check_sent, strictjson.canonical(sent), receipt, is_event=True) is None
    told = opened_digest(texts, commitment.members, strictjson.canonical(sent))
    assert told == (commitment.digest() if salt == "a" * 22 else "")


@pytest.mark.parametrize(
    "body", [b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":{"c":1,"b":1}}', b'{"a":1.0}', b'{"a":1,"a":1}']
)
def test_what_is_not_canonical_is_not_what_was_sent(body: bytes) -> None:
    log = FakeLog()
    log.add_events([json.loads(body)])
    receipt = log.receipt(1)
    members = receipt.commitment.members if receipt.commitment else {}
    assert not opened_digest(receipt.disclosures or (), members, body)
    assert_alike(log, Receipts(log.policy), body, receipt)


def test_plain_events_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    log, sent = FakeLog(), {"a": [1, 2.5, None], "b": 'quo"te', "c": {"y": "é", "x": "\x01"}}
    log.add_events([sent])
    monkeypatch.setattr(answered, "check_sent", None)
    Receipts(log.policy).check_sent(strictjson.canonical(sent), log.receipt(1), is_event=True)


@pytest.mark.parametrize(
    "leaf", [b"x", b'{"typ":"muniment/event@v1"}', b'{"typ":"muniment/genesis@v1","a": 1}', b'{"typ":"other"}', b"{"]
)
def test_raw_leaves(leaf: bytes) -> None:
    log = FakeLog("raw")
    log.add_raw([leaf, b"other"])
    receipts, receipt, other = Receipts(log.policy), log.receipt(1), log.receipt(2)
    for body in (leaf, b"other", leaf + b" "):
        for lie in (receipt, *spoiled(receipt, other), replace(receipt, disclosures=())):
            assert_alike(log, receipts, body, lie, is_event=False)


# --- forms read the short way -------------------------------------------------------------------------------------------


def test_a_digest_is_what_base64url_says_it_is() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet + "+/= \n\u0661":
        for text in ("A" * 42 + last, "A" * 20 + last + "A" * 22, "A" * 41 + last, "A" * 43 + last):
            try:
                valid = len(parse_b64url(text, "", 32)) == 32
            except FormatError:
                valid = False
            assert bool(event._DIGEST.fullmatch(text)) == valid, text


def test_an_event_leaf_is_read_as_the_strict_way_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = event_leaf(b64url(bytes(range(32))), format_time(NOON))
    variants = [
        leaf,
        leaf + b" ",
        leaf + b"\n",
        leaf.replace(b"event@v1", b"event@v2"),
        leaf.replace(b"-", b"T", 1),
        leaf[:-1],
    ]
    variants += [leaf[:at] + bytes([byte]) + leaf[at + 1 :] for at in range(len(leaf)) for byte in b'A9"-:\x00\xff']
    short = [_read(variant) for variant in variants]
    monkeypatch.setattr(event, "_EVENT_LEAF", re.compile(rb"(?!)"))
    assert short == [_read(variant) for variant in variants]
    assert short[0] == repr(event.EventLeaf(b64url(bytes(range(32))), NOON))


def _read(leaf: bytes) -> str:
    try:
        return repr(parse_leaf(leaf))
    except MunimentError as error:
        return repr(error)
