"""Admission: the fast way to a canonical event is the strict way, byte for byte; and what no log takes.

Many more events than here are those of the rig `fuzz`.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from muniment import event as definition
from muniment import strictjson
from muniment.encoding import b64url
from muniment.errors import EventRefused
from muniment.event import Commitment, disclose, event_leaf
from muniment.hashing import leaf_hash
from muniment.tiles import MAX_ENTRY
from muniment_server.errors import Refused
from muniment_server.web.handlers import write
from muniment_server.web.problems import CODES
from muniment_server.write import admission
from muniment_server.write.admission import canonicalize, commit, draft_event, draft_plain, draft_raw
from tests.service.http_check import bundle, ndjson
from tests.unit import strategies as json_strategies

SEED = bytes(range(32))


def strictly(body: bytes) -> Any:
    """What muniment.event makes of a body: the value and its canonical form, or the refusal."""
    try:
        value = definition.parse_event(body)
        return value, strictjson.canonical(value)
    except EventRefused as refused:
        return refused.code, refused.pointer


def quickly(body: bytes) -> Any:
    try:
        return canonicalize(body)
    except EventRefused as refused:
        return refused.code, refused.pointer


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down: 1 is not 1.0 and not true."""
    return repr(one) == repr(other)


def check(body: bytes) -> None:
    fast, strict = quickly(body), strictly(body)
    if isinstance(fast[0], str):
        assert fast == strict
        return
    assert not isinstance(strict[0], str), f"refused as {strict[0]} by the definition alone"
    assert fast[1] == strict[1]
    assert sorted(fast[0].items(), key=repr) == sorted(strict[0].items(), key=repr)
    check_commitment(*fast)


def check_commitment(value: dict[str, Any], payload: bytes) -> None:
    draft = commit(value, payload, SEED)
    expected = disclose(SEED, value)
    assert draft.disclosures == expected
    made = Commitment.to(expected)
    assert draft.members == made.members
    assert list(draft.members) == list(made.members)
    assert draft.commitment == made.digest()
    assert (draft.payload, draft.seed) == (payload, SEED)
    logged_at = "2026-11-20T12:00:00.123Z"
    assert draft.leaf(logged_at) == event_leaf(made.digest(), logged_at)
    assert len(draft.leaf(logged_at)) == 125
    assert made.open(draft.disclosures) == value


# --- the two ways -------------------------------------------------------------------------------------------------------

SPELLINGS = st.sampled_from(
    [
        lambda value: json.dumps(value, separators=(",", ":")),
        lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
        lambda value: json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False),
        json.dumps,
        lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    ]
)
plain_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) - 2, 2**53 + 2) | plain_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_texts, inner, max_size=4),
    max_leaves=10,
)


@given(json_strategies.events, SPELLINGS)
def test_any_event_in_any_spelling(value: dict[str, Any], spell: Any):
    check(spell(value).encode())


@given(json_strategies.values, SPELLINGS)
def test_any_value_that_may_be_no_event(value: Any, spell: Any):
    check(spell(value).encode())


@given(st.dictionaries(plain_texts, plain_values, max_size=5))
def test_plain_events_the_way_clients_send_them(value: dict[str, Any]):
    check(json.dumps(value).encode())
    check(json.dumps(value).encode() + b"\n")
    with contextlib.suppress(TypeError):  # an integer that orjson cannot write
        check(orjson.dumps(value))


TOKENS = st.sampled_from(
    [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"0", b"1", b"-", b".", b"e", b"E400", b"-0", b"1e-400", b"\\u0061",
     b"\\ud800", b"\\u0000", b"\x00", b"\x7f", b"\x80", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"NaN", b"Infinity", b"true",
     b"null", b"9007199254740992", b"9007199254740991", b'"a":1,', b"[" * 32, b'{"a":' * 31, b"\xef\xbf\xbf", b"/", b"//", b"\t", b"\\/"]
)  # fmt: skip


@given(json_strategies.events | st.dictionaries(plain_texts, plain_values, max_size=4), SPELLINGS, st.data())
def test_bytes_that_were_changed_on_the_way(value: dict[str, Any], spell: Any, data: st.DataObject):
    body = bytearray(spell(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        to = data.draw(st.integers(at, min(len(body), at + 6)))
        body[at:to] = data.draw(TOKENS | st.binary(max_size=3))
    check(bytes(body))


@given(st.binary(max_size=40))
@example(b"")
@example(b"{}")
@example(b"[]")
@example(b"null")
@example(b"\xef\xbb\xbf{}")
def test_any_bytes(body: bytes):
    check(body)


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":' * depth + inner + "}" * depth


NASTY = [
    '{"a":1}', '{"a":-1}', '{"a":0}', '{"a":-0}', '{"a":-0,"b":10}', '{"a":0.0}', '{"a":-0.0}', '{"a":1.0}', '{"a":1e0}', '{"a":10E-1}',
    '{"a":9007199254740991}', '{"a":-9007199254740991}', '{"a":9007199254740992}', '{"a":-9007199254740992}', '{"a":9007199254740991.0}',
    '{"a":9007199254740991.4}', '{"a":9007199254740991.5}', '{"a":9.007199254740992e15}', '{"a":1e308}', '{"a":1e309}', '{"a":1e-324}',
    '{"a":5e-324}', '{"a":0e-999}', '{"a":0.00000001}', '{"a":1e-7}', '{"a":123456789012345678}', '{"a":18446744073709551615}',
    '{"a":18446744073709551616}', '{"a":01}', '{"a":+1}', '{"a":.5}', '{"a":1.}', '{"a":0x1}', '{"a":1_0}', '{"a":NaN}', '{"a":-Infinity}',
    '{"a":1,"a":1}', '{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '{"a":{"b":1,"b":1}}', '{"a":[{"b":1,"b":1}]}', '{"a":"x","a":"xx"}',
    '{"":1}', '{"":1,"":1}', '{" ":1}', '{"a" :1}', '{"a":1 }', ' {"a":1}', '{"a":1}\n', '{"a":1}}', '{"a":1},', '{"a":1,}', "{'a':1}",
    '{"b":1,"a":2}', '{"a":2,"B":1}', '{"10":1,"9":2}', '{"\u00e9":1,"e\u0301":2}', '{"\U0001f600":1,"\uffee":2}', '{"\ud7ff":1,"\U00010000":2}',
    '{"a":"\x7f"}', '{"a":"\\u007f"}', '{"a":"\\u0000"}', '{"a":"\x00"}', '{"a":"\t"}', '{"a":"\\t\\b\\f\\n\\r\\u000b"}', '{"a":"\\/"}', '{"a":"/"}',
    '{"a":"\u2028\u2029"}', '{"a":"\\u2028"}', '{"a":"\ufeff"}', '{"a":"\\ud83d\\ude00"}', '{"a":"\\ude00\\ud83d"}', '{"a":"\\ud83d"}',
    '{"\\ud83d":1}', '{"a":"\uffff"}', '{"a":"\\ufdd0"}', '{"\uffff":1}', '{"a":"\U0001fffe"}', '{"a~b/c":{"d":NaN}}', '{"a":"\\x41"}',
    '{"a":[]}', '{"a":{}}', '{"a":[[],[{}]]}', '{"a":[1,]}', '{"a":tru}', '{"a":True}', '{"a":null}', "{}", "[]", '""', "1", "null", "", " ",
    nested(32), nested(33), nested(31, "[]"), nested(31, "[[]]"), nested(32, "[]"), nested(31, "[1]"), nested(2000), "[" * 100_000, nested(32, "1.5"),
    "{" + ",".join(f'"{n}":{n}' for n in range(256)) + "}", "{" + ",".join(f'"{n}":{n}' for n in range(257)) + "}",
    '{"a":{' + ",".join(f'"{n}":{n}' for n in range(300)) + "}}", '{"a":"' + "x" * 70_000 + '"}', '{"' + "n" * 3000 + '":1}',
    '{"__proto__":1,"constructor":2}', '{"a":"\\u00e9"}', '{"a":"\\\\"}', '{"a":"\\""}', '{"a":1}\x00', "\ufeff" + '{"a":1}',
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_what_readers_disagree_about(text: str):
    check(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig"])
def test_other_encodings(encoding: str):
    check('{"é":1}'.encode(encoding))


def test_the_fast_way_is_taken_at_all(monkeypatch: pytest.MonkeyPatch):
    """Otherwise the tests above compare the strict way with itself."""

    def never(*_: object) -> None:
        raise AssertionError("not the fast way")

    monkeypatch.setattr(admission.definition, "parse_event", never)
    monkeypatch.setattr(admission.strictjson, "canonical", never)
    body = b'{"resource":"inv-17","actor":"alice","n":[1,-5,{"b":null,"a":true}]}'
    value, payload = canonicalize(body)
    assert payload == b'{"actor":"alice","n":[1,-5,{"a":true,"b":null}],"resource":"inv-17"}'
    commit(value, payload, SEED)
    assert canonicalize(json.dumps(value).encode()) == (value, payload)
    assert canonicalize(body + b"\n") == (value, payload)
    for other in (
        b'{"a":1.5}',
        '{"a":"é"}'.encode(),
        b'{"a":"\\n"}',
        b'{"a" : 1}',
        b'{"a":1,"a":1}',
        b'{"a": 1, "a": 1}',
    ):
        with pytest.raises(AssertionError):
            canonicalize(other)


def test_any_text_is_escaped_as_in_canonical_form():
    """So the fast way may write any text, once the strict way has taken it."""
    for plane in range(17):
        start = plane << 16
        text = "".join(map(chr, [*range(start, start + 0xD800), *range(start + 0xE000, start + 0x10000)]))
        assert orjson.dumps(text) == rfc8785.dumps(text)


@given(st.dictionaries(plain_texts, json_strategies.values, max_size=5), st.text(max_size=3))
def test_a_commitment_to_any_text(value: dict[str, Any], name: str):
    with contextlib.suppress(EventRefused):
        check_commitment(*canonicalize(json.dumps({**value, "n": name}).encode()))
    with contextlib.suppress(EventRefused):
        check_commitment(*canonicalize(json.dumps({**value, "n": {name: 1, "\ue000": 2, "\U0001f600": 3}}).encode()))


# --- salts --------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), json_strategies.texts)
def test_salts_are_those_of_the_definition(seed: bytes, name: str):
    draft = commit({name: 1}, strictjson.canonical({name: 1}), seed)
    (disclosure,) = draft.disclosures
    opened = definition.Disclosure.parse(disclosure)
    assert opened.salt == b64url(hmac.digest(seed, name.encode(), "sha256")[:16]) == definition.salt_of(seed, name)
    assert draft.members == {name: b64url(sha256(disclosure.encode()).digest())}


def test_a_draft_takes_no_more_memory_than_what_is_in_it():
    body = b'{"action":"%b"}' % (b"x" * 300)
    draft_event(body)  # what is made once
    tracemalloc.start()
    drafts = [draft_event(body) for _ in range(100)]
    taken = tracemalloc.get_traced_memory()[0] / len(drafts)
    tracemalloc.stop()
    assert taken < 2_000, "orjson leaves 4 kB to each of its texts"


def test_no_two_drafts_share_a_seed():
    drafts = [draft_event(b'{"a":1}') for _ in range(50)]
    assert len({draft.seed for draft in drafts}) == len({draft.commitment for draft in drafts}) == 50
    assert {len(draft.seed) for draft in drafts} == {32}
    assert {draft.payload for draft in drafts} == {b'{"a":1}'}


# --- events that are refused --------------------------------------------------------------------------------------------

REFUSED = {
    "invalid_utf8": (b'{"a":"\xff"}', ""),
    "invalid_json": (b"{", ""),
    "not_an_object": (b"[1]", ""),
    "empty_event": (b"{}", ""),
    "too_many_members": (("{" + ",".join(f'"{n}":1' for n in range(257)) + "}").encode(), ""),
    "duplicate_name": (b'{"a":{"b/c":1,"b/c":2}}', "/a/b~1c"),
    "invalid_number": (b'{"a":[1,NaN]}', "/a/1"),
    "number_range": (b'{"a":{"~":9007199254740993}}', "/a/~0"),
    "lone_surrogate": (b'{"a":"\\ud800"}', "/a"),
    "noncharacter": (b'{"a":"\\uffff"}', "/a"),
    "too_deep": (nested(33).encode(), "/a" * 32),
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refused_event_is_told_where_and_what_to_do(code: str):
    body, pointer = REFUSED[code]
    with pytest.raises(Refused) as caught:
        draft_event(body)
    refused = caught.value
    assert (refused.code, refused.extra) == (code, {"pointer": pointer})
    assert refused.hint.endswith(".")
    assert refused.__suppress_context__


def test_every_refusal_of_the_definition_has_a_hint():
    assert set(admission._HINTS) == set(REFUSED)
    assert all(hint.endswith(".") for hint in admission._HINTS.values())


# --- raw entries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf",
    [b"\x00", b"x", b"{", b"{}", b"null", bytes(65_535), bytes(range(1, 256)) * 257, b"\n", b'{"typ":"other"}', b'{"typ":1}', b'{"TYP":["muniment/"]}',
     b'["muniment/event@v1"]', b'"muniment/"', b"muniment/event@v1", b'{"a":{"typ":"muniment/x"}}', b'{"typ":"muniment"}', b'{"typ":"a muniment/"}',
     b'{"type":"muniment/x"}', b'x{"typ":"muniment/x"}', b'{"typ":"Muniment/x"}'],
    ids=lambda leaf: str(leaf[:24]),
)  # fmt: skip
def test_any_bytes_are_a_leaf(leaf: bytes):
    draft = draft_raw(leaf)
    assert (draft.leaf, draft.hash) == (leaf, leaf_hash(leaf))
    assert draft.hash == sha256(b"\x00" + leaf).digest()


@given(
    st.lists(
        st.binary(max_size=4) | st.sampled_from([b"{", b"\\", b"muniment/", b"x", bytes(70_000), b"\x00"]), min_size=1
    )
)
def test_leaves_that_need_no_closer_look_are_drafted_together(leaves: list[bytes]):
    closer = any(not 0 < len(leaf) <= MAX_ENTRY or definition.may_be_reserved(leaf) for leaf in leaves)
    assert draft_plain(leaves) == (None if closer else list(map(draft_raw, leaves)))


def test_a_leaf_has_a_byte():
    with pytest.raises(Refused) as caught:
        draft_raw(b"")
    assert (CODES[caught.value.code][0], caught.value.code) == (422, "empty_entry")


@pytest.mark.parametrize("length", [65_536, 65_537, 10**6])
def test_a_leaf_fits_a_bundle(length: int):
    with pytest.raises(Refused) as caught:
        draft_raw(bytes(length))
    assert (CODES[caught.value.code][0], caught.value.code) == (413, "entry_too_large")
    assert str(length) in caught.value.detail


RESERVED = [
    b'{"typ":"muniment/event@v1"}', b'{"typ":"muniment/"}', b' \n\t{"typ" : "muniment/x"} ', b'{"typ":"muniment\\/x"}', b'{"t\\u0079p":"muniment/x"}',
    b'{"typ":"\\u006duniment/x"}', b'{"a":1,"typ":"muniment/x"}', b'{"typ":"x","typ":"muniment/x"}', b'{"typ":"muniment/x","typ":"x"}',
    b'{"typ":"muniment/x"}garbage', b'{"TYP":"muniment/x"}', b'{"Typ":"muniment/x"}', b'\xef\xbb\xbf{"typ":"muniment/x"}', b'{"typ":"muniment/x","a":NaN}',
    '{"typ":"muniment/x"}'.encode("utf-16"), '{"typ":"muniment/x"}'.encode("utf-16-le"), '{"typ":"muniment/x"}'.encode("utf-16-be"),
    '{"typ":"muniment/x"}'.encode("utf-32"), '{"typ":"muniment/x"}'.encode("utf-32-be"), b'{"typ":"muniment/\xff"}', b'{"a":1e999,"typ":"muniment/x"}',
    b'{"a":"\x01","typ":"muniment/x"}', b'{"muniment/":' + b"[" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("leaf", RESERVED, ids=range(len(RESERVED)))
def test_nobody_posts_an_entry_of_the_log_itself(leaf: bytes):
    with pytest.raises(Refused) as caught:
        draft_raw(leaf[:65_535])
    assert (CODES[caught.value.code][0], caught.value.code) == (422, "reserved_leaf")


def test_no_leaf_the_log_makes_can_be_posted():
    for leaf in (
        event_leaf("A" * 43, "2026-11-20T12:00:00.123Z"),
        definition.genesis_leaf("example.com/log", "raw", ["v"], "2026-11-20T12:00:00.123Z"),
    ):
        with pytest.raises(Refused) as caught:
            draft_raw(leaf)
        assert caught.value.code == "reserved_leaf"


@pytest.mark.parametrize("kind", ["raw", "event"])
def test_a_batch_is_understood_a_few_entries_at_a_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counted(make: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def draft(body: bytes) -> Any:
            nonlocal made
            made += 1
            return make(body)

        return draft

    def counted_all(leaves: list[bytes]) -> Any:
        nonlocal made
        made += len(leaves)
        return admission.draft_plain(leaves)

    monkeypatch.setattr(write, "draft_event", counted(draft_event))
    monkeypatch.setattr(write, "draft_plain", counted_all)
    log: Any = SimpleNamespace(settings=SimpleNamespace(max_batch_entries=10_000, max_event_bytes=100))
    if kind == "raw":
        work, most = write._raw_drafts(bundle(*(b"%d" % n for n in range(10_000))), log), 100
    else:
        work, most = write._line_drafts(ndjson(*({"n": n} for n in range(10_000))), log), 10
    drafts, steps = None, [0]
    while drafts is None:
        try:
            work.send(None)
        except StopIteration as end:
            drafts = end.value
        steps.append(made)
    assert len(drafts) == made == 10_000
    assert max(after - before for before, after in itertools.pairwise(steps)) <= most
