"""Receipts cut down: what is shown is what the event says, and what is hidden is in no byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import strictjson
from muniment.encoding import parse_b64url
from muniment.errors import BadDisclosure, FormatError, UnknownMember
from muniment.event import Disclosure
from muniment.names import format_names, parse_names
from muniment.receipt import Receipt
from tests.unit.samples import POLICY, SampleLog, event_log, logged_event, policy_of, raw_log
from tests.unit.strategies import events, texts
from tests.unit.test_receipt import ANCHORED

RECEIPT = event_log().receipt(1)
TRICKY = [
    "", "a,b", "a", "b", "x.y", 'say "hi"', '"', '"a,b"', "__proto__", "constructor", "é", "\x00", "\u202e", " a ", "*", "-",
]  # fmt: skip


def receipt_of(event: dict[str, Any]) -> Receipt:
    return SampleLog([logged_event(event, 1), logged_event({"other": True}, 2)]).receipt(0)


def searchable(receipt: Receipt) -> bytes:
    """Every byte of a receipt, and what its base64url texts hold."""
    data = str(receipt).encode() + strictjson.canonical(receipt.to_json()) + receipt.to_tlog_proof().encode()
    return data + b"\n".join(
        Disclosure.parse(text).salt.encode() + parse_b64url(text) for text in receipt.disclosures or ()
    )


@settings(max_examples=40, deadline=None)
@given(events, st.data())
def test_what_is_shown_is_the_event_and_what_is_hidden_is_nowhere(event: dict[str, Any], data: st.DataObject) -> None:
    event = {name: [value, f"value-{at:03}"] for at, (name, value) in enumerate(event.items())}
    whole = receipt_of(event)
    shown = set(data.draw(st.lists(st.sampled_from(sorted(event)), unique=True)))
    cut = whole.disclose(shown)
    assert cut == whole.hide(event.keys() - shown) == whole.hide(event.keys() - shown).disclose(shown)
    assert Receipt.parse(str(cut)) == cut
    verified = cut.verify(POLICY)
    assert verified.opened == {name: event[name] for name in shown}
    assert verified.hidden == tuple(sorted(event.keys() - shown))
    everything = searchable(cut)
    for text in whole.disclosures or ():
        member = Disclosure.parse(text)
        for secret in (text, member.salt, member.value[1]):
            assert (secret.encode() in everything) == (member.name in shown)


@pytest.mark.parametrize("name", TRICKY)
def test_names_that_look_like_something_else(name: str) -> None:
    event = {other: f"value of {at}" for at, other in enumerate(TRICKY)}
    cut = receipt_of(event).disclose({name})
    assert cut.verify(POLICY).opened == {name: event[name]}
    assert name not in receipt_of(event).hide([name]).verify(POLICY).opened
    assert parse_names(format_names([name])) == [name]


def test_a_name_given_as_one_text_is_one_name() -> None:
    receipt = receipt_of({"s": 1, "n": 2, "ssn": 3})
    assert receipt.hide("ssn").verify(POLICY).opened == {"s": 1, "n": 2}
    assert receipt.disclose("ssn").verify(POLICY).opened == {"ssn": 3}


def test_nothing_shown_is_a_receipt_too() -> None:
    closed = RECEIPT.disclose(())
    assert closed == RECEIPT.hide(["action", "actor", "resource"])
    assert closed.verify(POLICY).hidden == ("action", "actor", "resource")
    assert '"disclosures": []' in str(closed)


def test_anchors_stay() -> None:
    assert ANCHORED.disclose({"actor"}).anchors == ANCHORED.anchors


def test_unknown_names_are_told_those_there_are() -> None:
    with pytest.raises(UnknownMember, match="no member amount: it opens action, actor, resource"):
        RECEIPT.disclose({"actor", "amount"})
    with pytest.raises(UnknownMember, match='no member "a,b": it has action, actor, resource'):
        RECEIPT.hide({"a,b"})
    part = RECEIPT.disclose({"actor"})
    with pytest.raises(UnknownMember, match=r"no member resource: it opens actor$"):
        part.disclose({"resource"})
    assert part.hide({"resource"}) == part, "it is hidden already"
    with pytest.raises(UnknownMember, match=r"it opens none$"):
        RECEIPT.disclose(()).disclose({"actor"})
    many = receipt_of({f"m{at:03}": at for at in range(256)})
    with pytest.raises(UnknownMember, match=r"m031 and 224 more$"):
        many.disclose({"x"})


def test_what_opens_nothing_stays_closed() -> None:
    bare = Receipt.parse(RECEIPT.to_tlog_proof())
    assert bare.disclose(()) == bare.hide(()) == bare
    for call in (bare.disclose, bare.hide):
        with pytest.raises(UnknownMember, match=r"none$"):
            call({"actor"})


@pytest.mark.parametrize("receipt", [event_log().receipt(0), raw_log().receipt(0)], ids=["genesis", "raw"])
def test_what_is_no_event_cannot_be_hidden(receipt: Receipt) -> None:
    receipt.verify(policy_of(event_log(), raw_log()))
    for call in (receipt.disclose, receipt.hide):
        for names in ((), {"actor"}):
            with pytest.raises(UnknownMember, match="is no event"):
                call(names)


def test_what_does_not_belong_is_not_passed_on() -> None:
    own, other = RECEIPT.disclosures or (), event_log().receipt(5).disclosures or ()
    for spoiled in (other, (*own, own[0]), (*own[:2], other[2])):
        with pytest.raises(BadDisclosure):
            replace(RECEIPT, disclosures=spoiled).disclose({"actor"})
    with pytest.raises(FormatError):
        replace(RECEIPT, disclosures=("W10",)).disclose(())


def test_members_that_readers_ignore_are_not_passed_on() -> None:
    text = str(RECEIPT).replace('"index"', '"event": {"resource": "inv-17"}, "index"', 1)
    assert "inv-17" not in str(Receipt.parse(text).disclose({"actor"}))


# --- names in one text ------------------------------------------------------------------------------------------------


@given(st.lists(texts))
def test_names_round_trip(names: list[str]) -> None:
    assert parse_names(format_names(names)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []), ("a", ["a"]), ("a,b.c", ["a", "b.c"]), ('""', [""]), ('"a,b",c', ["a,b", "c"]), ('a"b', ['a"b']),
        (r'"\"",__proto__', ['"', "__proto__"]), (" a , b", [" a ", " b"]), (r'"\u0041"', ["A"]), ("a:b", ["a:b"]),
    ],
)  # fmt: skip
def test_names_as_people_write_them(text: str, names: list[str]) -> None:
    assert parse_names(text) == names


@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b", '"a', '"a"b', '"a" ,b', '"\n"', r'"\x"', '"'])
def test_what_is_no_list_of_names(text: str) -> None:
    with pytest.raises(FormatError, match=r"^names of members: "):
        parse_names(text)
