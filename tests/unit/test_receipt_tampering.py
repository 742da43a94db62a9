"""Receipts changed byte by byte, field by field and against each other: refused, or nothing more is claimed than is true."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations

import pytest

from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipt import Receipt, Verified
from tests.unit.samples import POLICY, SampleLog, event_log, policy_of, raw_log

BOTH = policy_of(event_log(), raw_log())
RECEIPT = event_log().receipt(2)
GOOD = RECEIPT.verify(POLICY)


def outcome(data: bytes, policy: Policy = POLICY) -> Verified | None:
    """What a receipt proves, or None when it is refused. Any other error escapes and fails the test."""
    try:
        return Receipt.parse(data).verify(policy)
    except (FormatError, VerificationError):
        return None


def claims_no_more(found: Verified, good: Verified) -> bool:
    """Whether `found` says the same, or opens fewer members and says so."""
    same = replace(found, opened=good.opened, hidden=good.hidden) == good
    opened = found.opened.items() <= good.opened.items() if found.opened != good.opened else True
    honest = found.opened == good.opened or bool(found.hidden)
    return same and opened and honest


def assert_harmless(data: bytes, good: Verified, policy: Policy = POLICY) -> bool:
    """Check one changed text; tell whether it was refused."""
    found = outcome(data, policy)
    assert found is None or claims_no_more(found, good), data
    return found is None


def test_every_bit_of_a_json_receipt() -> None:
    good = str(RECEIPT).encode()
    refused = 0
    for at in range(len(good)):
        for bit in range(8):
            changed = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            refused += assert_harmless(changed, GOOD)
    assert refused > 0.9 * 8 * len(good), "what remains are spaces, and the names of optional members"


@pytest.mark.parametrize("more", [b'"', b"\\", b"{", b"}", b",", b"\x00", b" ", b"0", b"=", b"\xff"])
def test_every_byte_of_a_json_receipt_replaced_inserted_and_removed(more: bytes) -> None:
    good = str(RECEIPT).encode()
    for at in range(len(good)):
        assert_harmless(good[:at] + more + good[at + 1 :], GOOD)
        assert_harmless(good[:at] + more + good[at:], GOOD)
        if more == b'"':
            assert_harmless(good[:at] + good[at + 1 :], GOOD)


def test_every_prefix_of_a_receipt_is_refused() -> None:
    for text in (str(RECEIPT).rstrip().encode(), RECEIPT.to_tlog_proof().encode()):
        assert outcome(text) is not None
        for end in range(len(text)):
            assert outcome(text[:end]) is None


def test_every_byte_of_a_tlog_proof() -> None:
    """There is no slack in this form: any change at all is refused."""
    receipt = raw_log().receipt(3, 5)
    good = receipt.to_tlog_proof().encode()
    assert outcome(good, BOTH) == receipt.verify(BOTH)
    for at in range(len(good)):
        for value in {good[at] ^ 1 << bit for bit in range(8)} | set(b"\n =A\x00\xff") - {good[at]}:
            assert outcome(good[:at] + bytes([value]) + good[at + 1 :], BOTH) is None, (at, value)
        assert outcome(good[:at] + good[at + 1 :], BOTH) is None
        for more in (b"\n", b" ", b"A", b"\x00"):
            assert outcome(good[:at] + more + good[at:], BOTH) is None, (at, more)


def swaps(log: SampleLog) -> list[Receipt]:
    return log.receipts()


@pytest.mark.parametrize("log", [event_log(), raw_log()], ids=["event", "raw"])
def test_no_part_of_a_receipt_fits_another(log: SampleLog) -> None:
    """Each single field of each receipt put into each other one."""
    accepted = 0
    for one, other in permutations(swaps(log), 2):
        good = one.verify(BOTH)
        for field in fields(Receipt):
            mixed = replace(one, **{field.name: getattr(other, field.name)})
            if mixed == one:
                continue
            try:
                found = mixed.verify(BOTH)
            except VerificationError:
                continue
            accepted += 1
            assert claims_no_more(found, good), (field.name, one.index, other.index)
    assert accepted < 100


def test_no_pair_of_parts_fits_another() -> None:
    """Leaf and index, proof and checkpoint, commitment and disclosures: each pair moved together."""
    pairs = [
        ("leaf", "index"),
        ("proof", "checkpoint"),
        ("commitment", "disclosures"),
        ("tree_size", "checkpoint"),
        ("leaf", "commitment"),
    ]
    logs = (event_log(), raw_log())
    receipts = [log.receipt(index) for log in logs for index in range(len(log.entries))] + event_log().receipts()[-5:]
    for one, other in permutations(receipts, 2):
        good = one.verify(BOTH)
        for pair in pairs:
            mixed = replace(one, **{name: getattr(other, name) for name in pair})
            try:
                found = mixed.verify(BOTH)
            except VerificationError:
                continue
            assert claims_no_more(found, good), (pair, one.index, other.index)


def test_the_number_of_hashes_is_fixed() -> None:
    for receipt in event_log().receipts():
        for proof in (
            (*receipt.proof, bytes(32)),
            (bytes(32), *receipt.proof),
            receipt.proof[1:],
            receipt.proof[:-1],
            receipt.proof[::-1],
        ):
            if proof != receipt.proof:
                with pytest.raises(VerificationError):
                    replace(receipt, proof=proof).verify(POLICY)
        for length in (0, 31, 33):
            with pytest.raises(VerificationError):
                replace(receipt, proof=(bytes(length), *receipt.proof[1:])).verify(POLICY)
