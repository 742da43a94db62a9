"""Which signature lines of a checkpoint go on with a part of a receipt: those that a log or a witness can have written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from muniment.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from muniment.encoding import b64
from muniment.errors import BadSignature, CannotHide, FormatError
from muniment.note import SignatureLine, parse_note
from muniment.signatures import is_passed_on, passed_on
from tests.unit.samples import KEY, ORIGIN, POLICY, event_log
from tests.unit.test_receipt import ANCHORED

RECEIPT = event_log().receipt(1)
NOTE = RECEIPT.checkpoint
TEXT = parse_note(NOTE).text
SECRET = b"inv-17 of alice@example.com"
WITNESSES = [
    SignatureLine("witness.example/1", b"1234", bytes(72)),
    SignatureLine("witness.example/2", b"1234", bytes(2428)),
]


def line(name: str = "stranger", length: int = 72, *, key_id: bytes = b"abcd") -> SignatureLine:
    return SignatureLine(name, key_id, SECRET.ljust(length, b"\0")[:length])


def test_lines_of_the_log_and_of_witnesses_stay() -> None:
    assert passed_on(NOTE) == (NOTE, 0, ())
    note = NOTE + "".join(map(str, WITNESSES))
    assert passed_on(note) == (note, 0, ("witness.example/1", "witness.example/2"))
    assert is_passed_on(note)
    second_key = NOTE + str(line(ORIGIN, 64)) + str(line(ORIGIN, 2428, key_id=b"efgh"))
    assert passed_on(second_key) == (second_key, 0, ())


@pytest.mark.parametrize(
    "other",
    [
        *(line(length=length) for length in (1, 27, 63, 64, 65, 71, 73, 2427, 2429, 100_000)),
        *(line(ORIGIN, length) for length in (1, 63, 65)),
        line("n" * 256),
        line("é" * 128),
        line(ORIGIN, 64, key_id=KEY.vkey.key_id),
        replace(WITNESSES[0], signature=line().signature),
    ],
    ids=lambda other: f"{other.name[:12]}-{len(other.signature)}",
)
def test_no_other_line_goes_on(other: SignatureLine) -> None:
    kept = NOTE + "".join(map(str, WITNESSES))
    assert passed_on(kept + str(other)) == (kept, 1, ("witness.example/1", "witness.example/2"))
    assert not is_passed_on(kept + str(other))
    cut = replace(RECEIPT, checkpoint=kept + str(other)).disclose({"actor"})
    assert cut.verify(POLICY).opened == {"actor": "alice"}
    assert b64(other.key_id + other.signature) not in str(cut)
    assert cut == replace(RECEIPT, checkpoint=kept).hide({"action", "resource"})


def test_a_checkpoint_that_does_not_hold_does_not_hold_afterwards() -> None:
    """Of several lines of a key the first decides: one that is left out takes the later ones with it."""
    bad = f"{TEXT}\n{line(ORIGIN, 63, key_id=KEY.vkey.key_id)}{NOTE.removeprefix(TEXT)[1:]}"
    with pytest.raises(BadSignature):
        POLICY.verify(bad)
    with pytest.raises(BadSignature, match="no signature of its log"):
        passed_on(bad)
    with pytest.raises(BadSignature, match="no signature of its log"):
        passed_on(f"{TEXT}\n{WITNESSES[0]}")


def test_what_is_signed_and_could_say_anything_cannot_go_on() -> None:
    head = parse_checkpoint(TEXT)
    extended = str(sign_checkpoint(Checkpoint(head.origin, head.size, head.root, (SECRET.decode(),)), KEY))
    with pytest.raises(CannotHide, match="extension lines"):
        passed_on(extended)
    assert not is_passed_on(extended)
    with pytest.raises(CannotHide):
        replace(RECEIPT, checkpoint=extended).disclose(())
    with pytest.raises(FormatError):
        passed_on("no note")
    assert not is_passed_on("no note")


def test_an_anchor_goes_on_with_a_checkpoint_that_may() -> None:
    first, second = ANCHORED.anchors
    spoiled = replace(first, checkpoint=first.checkpoint + str(line(length=64)))
    assert replace(ANCHORED, anchors=(spoiled, second)).disclose({"actor"}).anchors == (second,)
