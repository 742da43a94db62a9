"""Events: what can be one, and how its members are committed to, opened, hidden and erased."""

from __future__ import annotations

import hmac
import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment import strictjson
from muniment.encoding import b64url, parse_b64url
from muniment.errors import BadDisclosure, EventRefused, FormatError
from muniment.event import (
    MAX_MEMBERS,
    Commitment,
    Disclosure,
    canonical_event,
    check_event,
    digest_of,
    disclose,
    event_leaf,
    parse_event,
    salt_of,
)
from tests.unit.strategies import events

SEED = bytes(range(32))
EVENT = {"actor": "alice", "action": "invoice.approve", "resource": "inv-17"}


def refusal(data: bytes) -> str:
    with pytest.raises(EventRefused) as caught:
        parse_event(data)
    return caught.value.code


# --- what an event is ---------------------------------------------------------------------------------------------------


def test_an_event_is_a_non_empty_object() -> None:
    for data in (b"[]", b"[{}]", b'"a"', b"1", b"null", b"true"):
        assert refusal(data) == "not_an_object"
    assert refusal(b"{}") == "empty_event"
    assert refusal(b" {\n} ") == "empty_event"
    assert parse_event(b'{"":null}') == {"": None}


def test_an_event_has_at_most_256_members() -> None:
    members = {f"m{number}": number for number in range(MAX_MEMBERS)}
    assert MAX_MEMBERS == 256
    assert parse_event(json.dumps(members).encode()) == members
    assert refusal(json.dumps(members | {"one more": 1}).encode()) == "too_many_members"
    nested = {"a": members | {"one more": 1}}
    assert parse_event(json.dumps(nested).encode()) == nested


def test_an_event_passes_the_json_gate() -> None:
    for data, code in (
        (b"", "invalid_json"), (b'{"a":1,"a":2}', "duplicate_name"), (b'{"a":NaN}', "invalid_number"), (b"\xff", "invalid_utf8"),
        (b'{"a":9007199254740992}', "number_range"), (b'{"a":"\\ud800"}', "lone_surrogate"), (b'{"a":"\xef\xbf\xbf"}', "noncharacter"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "too_deep"),
    ):  # fmt: skip
        assert refusal(data) == code


@given(events)
def test_the_canonical_form_is_the_same_from_bytes_and_from_python(event: dict[str, Any]) -> None:
    data = canonical_event(event)
    assert data == strictjson.canonical(parse_event(json.dumps(event).encode()))
    assert canonical_event(parse_event(data)) == data


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({}, "empty_event"), ([1], "not_an_object"), ({"a": 1e300}, "number_range"), ({"a": "\uffff"}, "noncharacter"), ({1: 2}, "invalid_json"),
        ({"a": {1, 2}}, "invalid_json"), ({"a": float("nan")}, "invalid_json"), ({"a": 2**53}, "invalid_json"),
        ({str(number): 0 for number in range(257)}, "too_many_members"), ({"a": "\ud800"}, "invalid_json"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_python_values_that_are_no_event_are_refused(event: Any, code: str) -> None:
    with pytest.raises(EventRefused) as caught:
        canonical_event(event)
    assert caught.value.code == code


def test_deep_python_values_are_refused() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(EventRefused) as caught:
        canonical_event({"a": deep})
    assert caught.value.code == "too_deep"


def test_check_event_returns_what_it_was_given() -> None:
    assert check_event(EVENT) is EVENT


# --- disclosures --------------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_rfc_9901() -> None:
    text = "WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsICJmYW1pbHlfbmFtZSIsICJNw7ZiaXVzIl0"
    assert digest_of(text) == "X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0"
    with pytest.raises(FormatError, match="not canonical JSON"):  # RFC 9901 takes any spelling; here there is one
        Disclosure.parse(text)


def test_a_disclosure_byte_by_byte() -> None:
    salt = b64url(hmac.digest(SEED, b"actor", "sha256")[:16])
    expected = b64url(f'["{salt}","actor","alice"]'.encode())
    texts = disclose(SEED, EVENT)
    assert [Disclosure.parse(text).name for text in texts] == ["action", "actor", "resource"]
    assert texts[1] == expected
    assert Disclosure.parse(expected) == Disclosure(salt, "actor", "alice")
    assert len(salt) == 22
    assert digest_of(expected) == b64url(sha256(expected.encode()).digest())


@given(events, st.binary(min_size=32, max_size=32))
def test_every_member_opens(event: dict[str, Any], seed: bytes) -> None:
    texts = disclose(seed, event)
    commitment = Commitment.to(texts)
    assert commitment.open(texts) == event
    assert commitment.open(texts[::-1]) == event
    assert commitment.open([]) == {}
    assert Commitment.parse(strictjson.parse(strictjson.canonical(commitment.value()))) == commitment
    names = [Disclosure.parse(text).name for text in texts]
    assert strictjson.canonical(dict.fromkeys(names)) == strictjson.canonical(dict.fromkeys(event))
    assert names == list(strictjson.parse(strictjson.canonical(event))), "canonical member order"
    for text, name in zip(texts, names, strict=True):
        assert Disclosure.parse(text).salt == salt_of(seed, name)
        assert commitment.open([text]) == {name: event[name]}


def test_salts_differ_by_name_and_by_seed() -> None:
    salts = {salt_of(bytes([number]) * 32, name) for number in range(20) for name in ("a", "b", "", "é", "aa")}
    assert len(salts) == 100


def test_a_seed_has_32_bytes() -> None:
    for length in (0, 16, 31, 33):
        with pytest.raises(AssertionError, match="32 bytes"):
            disclose(bytes(length), EVENT)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"null", b'["s","n"]', b'["s","n",1,2]', b'[1,"n",2]', b'["s",2,3]', b'[null,"n",1]', b'["s",["n"],1]', b'["s","n", 1]',
        b' ["s","n",1]', b'["s","n",1]\n', b'["s","n",1.0]', b'["s","n",1e0]', b'["\\u0073","n",1]', b'["s","n",{"b":1,"a":2}]',
        b'["s","n",{"a":1,"a":1}]', b'["s","n",NaN]', b'["s","n",9007199254740992]', b'["s","n","\\ud800"]', b'["s","n",1', b"\xff",
    ],
)  # fmt: skip
def test_what_is_not_a_canonical_disclosure_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Disclosure.parse(b64url(data))


def test_a_disclosure_has_one_spelling() -> None:
    text = disclose(SEED, EVENT)[0]
    for other in (text + "=", text + "==", text + "\n", " " + text, text[:-1], text + "A", text.replace(text[5], "é")):
        with pytest.raises(FormatError):
            Disclosure.parse(other)


# --- commitments --------------------------------------------------------------------------------------------------------


def test_a_commitment_byte_by_byte() -> None:
    texts = disclose(SEED, {"b": 1, "a": 2})
    commitment = Commitment.to(texts)
    form = f'{{"alg":"sha-256","members":{{"a":"{digest_of(texts[0])}","b":"{digest_of(texts[1])}"}}}}'
    assert strictjson.canonical(commitment.value()) == form.encode()
    assert commitment.digest() == b64url(sha256(form.encode()).digest())


def test_the_order_of_members_does_not_matter() -> None:
    texts = disclose(SEED, EVENT)
    assert Commitment.to(texts).digest() == Commitment.to(texts[::-1]).digest()
    value = Commitment.to(texts).value()
    turned = {"members": dict(reversed(value["members"].items())), "alg": "sha-256"}
    assert Commitment.parse(turned).digest() == Commitment.to(texts).digest()


GOOD_DIGEST = b64url(bytes(32))


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"alg": "sha-256"}, {"members": {"a": GOOD_DIGEST}}, {"alg": "sha-512", "members": {"a": GOOD_DIGEST}},
        {"alg": "SHA-256", "members": {"a": GOOD_DIGEST}}, {"alg": None, "members": {"a": GOOD_DIGEST}},
        {"alg": "sha-256", "members": {"a": GOOD_DIGEST}, "more": 1}, {"alg": "sha-256", "members": {}}, {"alg": "sha-256", "members": []},
        {"alg": "sha-256", "members": None}, {"alg": "sha-256", "members": {"a": None}}, {"alg": "sha-256", "members": {"a": [GOOD_DIGEST]}},
        {"alg": "sha-256", "members": {"a": ""}}, {"alg": "sha-256", "members": {"a": GOOD_DIGEST + "="}},
        {"alg": "sha-256", "members": {"a": GOOD_DIGEST[:-1] + "B"}}, {"alg": "sha-256", "members": {"a": b64url(bytes(31))}},
        {"alg": "sha-256", "members": {"a": b64url(bytes(33))}}, {"alg": "sha-256", "members": {"a": "00" * 32}},
        {"alg": "sha-256", "members": {str(number): GOOD_DIGEST for number in range(257)}},
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_is_not_a_commitment_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        Commitment.parse(value)


def test_a_commitment_holds_256_members() -> None:
    members = {str(number): GOOD_DIGEST for number in range(256)}
    assert Commitment.parse({"alg": "sha-256", "members": members}).members == members


def test_two_disclosures_of_one_member_make_no_commitment() -> None:
    one, other = disclose(SEED, {"a": 1})[0], disclose(SEED, {"a": 2})[0]
    with pytest.raises(AssertionError, match="two disclosures"):
        Commitment.to([one, other])


def test_a_member_opens_once_and_only_as_committed() -> None:
    texts = disclose(SEED, EVENT)
    commitment = Commitment.to(texts)
    with pytest.raises(BadDisclosure, match="twice"):
        commitment.open([texts[0], texts[1], texts[0]])
    wrong_value = b64url(strictjson.canonical([salt_of(SEED, "actor"), "actor", "mallory"]))
    wrong_salt = b64url(strictjson.canonical([salt_of(SEED, "action"), "actor", "alice"]))
    wrong_name = b64url(strictjson.canonical([salt_of(SEED, "actor"), "action", "alice"]))
    unknown = b64url(strictjson.canonical([salt_of(SEED, "actor"), "nobody", "alice"]))
    for text in (wrong_value, wrong_salt, wrong_name, unknown, disclose(bytes(32), EVENT)[0]):
        with pytest.raises(BadDisclosure, match="does not match"):
            commitment.open([text])
        with pytest.raises(BadDisclosure):
            commitment.open([*texts, text])


@given(events, st.binary(min_size=32, max_size=32), st.integers(0, 10_000))
def test_a_disclosure_with_one_character_changed_does_not_open(event: dict[str, Any], seed: bytes, number: int) -> None:
    texts = disclose(seed, event)
    commitment = Commitment.to(texts)
    text = texts[number % len(texts)]
    at = number % len(text)
    changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
    with pytest.raises((BadDisclosure, FormatError)):
        commitment.open([changed])


def test_erasing_a_member_leaves_leaf_and_commitment_as_they_were() -> None:
    texts = disclose(SEED, EVENT)
    commitment = Commitment.to(texts)
    leaf = event_leaf(commitment.digest(), "2026-11-20T12:00:00.123Z")
    remaining = [text for text in texts if Disclosure.parse(text).name != "actor"]
    stored = Commitment.parse(strictjson.parse(strictjson.canonical(commitment.value())))
    assert event_leaf(stored.digest(), "2026-11-20T12:00:00.123Z") == leaf
    assert stored.open(remaining) == {"action": "invoice.approve", "resource": "inv-17"}
    assert not any(b"alice" in parse_b64url(text) for text in remaining)
    assert replace(stored, members=stored.members | {"actor": GOOD_DIGEST}).digest() != commitment.digest()


@pytest.mark.parametrize(
    "data",
    [
        *(b'["s","n",%b]' % value for value in (
            b'"v"', b'""', b"0", b"-0", b"00", b"01", b"-1", b"+1", b"1.0", b"1.5", b"1e3", b"1E3", b"999999999999999",
            b"9007199254740991", b"9007199254740992", b"-9007199254740993", b"true", b"false", b"null", b"True", b"nul",
            b'"a b"', b'"a\\"b"', b'"\\u0041"', b'"\\n"', b'"\x7f"', b'"\x1f"', b'"\n"', b'"\xc3\xa9"', b'"\xff"', b"[]",
            b'{"a":1}', b"[1, 2]", b"1 ", b" 1", b"", b"1]", b'"v","w"',
        )),
        b'["s","n"]', b'["s","n",1]\n', b' ["s","n",1]', b'["s","n",1],', b'["s" ,"n",1]', b'["s",1,1]', b'[1,"n",1]',
        b'["","",1]', b'["\\u0061","n",1]', b'["s","\\"",1]', b'["s","\xc3\xa9",1]', b'["s","a\\\\",1]', b"",
    ],
)  # fmt: skip
def test_the_short_way_to_a_disclosure_takes_what_the_long_way_takes(data: bytes) -> None:
    try:
        value = strictjson.parse_canonical(data)
        wanted = value if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], str) else None
    except FormatError:
        wanted = None
    try:
        found = Disclosure.parse(b64url(data))
    except FormatError:
        assert wanted is None
    else:
        assert [found.salt, found.name, found.value] == wanted
        assert type(found.value) is type(wanted[2])
