"""Receipts in both forms: what they prove, what they only carry, and which texts are none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from muniment import strictjson
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.encoding import b64
from muniment.errors import BadDisclosure, BadProof, BadSignature, FormatError, PolicyNotMet
from muniment.event import Disclosure, EventLeaf, OwnLeaf
from muniment.hashing import RootHash
from muniment.note import SigningKey
from muniment.policy import LogKey, Policy
from muniment.receipt import RECEIPT_TYPE, Receipt
from muniment.tlogproof import MAX_LINE, TLOG_PROOF_HEADER, TlogProof
from tests.unit.anchors import sample_anchor, sample_chain
from tests.unit.samples import EVENTS, KEY, NOON, ORIGIN, POLICY, Logged, SampleLog, event_log, policy_of, raw_log

RECEIPT = event_log().receipt(1)
ANCHORED = replace(
    RECEIPT,
    anchors=(sample_anchor(event_log(), 1, 5), replace(sample_anchor(event_log(), 1, 9), header=None)),
)
RAW_POLICY = policy_of(raw_log())


# --- what a receipt proves ----------------------------------------------------------------------------------------------


def test_an_event_receipt_proves_the_event() -> None:
    log = event_log()
    for number in range(1, len(log.entries)):
        verified = log.receipt(number).verify(POLICY)
        entry = log.entries[number]
        assert verified.opened == entry.event
        assert verified.index == number
        assert verified.leaf == entry.leaf
        assert verified.entry == EventLeaf(entry.commitment.digest(), NOON + number)  # type: ignore[union-attr]
        assert verified.hidden == ()
        assert verified.complete
        assert verified.checkpoint == Checkpoint(ORIGIN, len(log.entries), RootHash(log.tree.root(len(log.entries))))


def test_a_receipt_at_every_size_verifies() -> None:
    log = event_log()
    for size in range(1, len(log.entries) + 1):
        for index in range(size):
            assert log.receipt(index, size).verify(POLICY).checkpoint.size == size


def test_a_raw_receipt_proves_its_bytes() -> None:
    for index, entry in enumerate(raw_log().entries):
        verified = raw_log().receipt(index).verify(RAW_POLICY)
        assert (verified.leaf, verified.entry, verified.opened, verified.hidden) == (entry.leaf, None, {}, ())
        assert verified.complete


def test_a_genesis_receipt_proves_an_entry_of_the_log_itself() -> None:
    verified = event_log().receipt(0).verify(POLICY)
    assert isinstance(verified.entry, OwnLeaf)
    assert verified.complete


def test_hidden_members_are_named() -> None:
    texts = RECEIPT.disclosures or ()
    for kept in range(len(texts)):
        part = replace(RECEIPT, disclosures=texts[:kept])
        verified = part.verify(POLICY)
        assert not verified.complete
        assert verified.hidden == tuple(sorted(Disclosure.parse(text).name for text in texts[kept:]))
        assert verified.opened == {name: EVENTS[0][name] for name in EVENTS[0] if name not in verified.hidden}
    closed = replace(RECEIPT, disclosures=None).verify(POLICY)
    assert closed.hidden == ("action", "actor", "resource")
    unknown = replace(RECEIPT, commitment=None, disclosures=None).verify(POLICY)
    assert unknown.hidden == ("*",)
    assert not unknown.complete


def test_the_policy_decides() -> None:
    with pytest.raises(PolicyNotMet):
        RECEIPT.verify(Policy(()))
    with pytest.raises(PolicyNotMet):
        RECEIPT.verify(RAW_POLICY)
    with pytest.raises(BadSignature):
        RECEIPT.verify(Policy((LogKey(SigningKey(ORIGIN, b"n" * 32).vkey),)))
    witness = "witness.example+b8a2cf20"
    with pytest.raises(FormatError):
        RECEIPT.verify(Policy.parse(f"witness w {witness}\nquorum w\n"))


def test_a_receipt_belongs_to_the_log_it_names() -> None:
    """The same leaves under another key: each receipt verifies with its own checkpoint only."""
    twin = SampleLog(event_log().entries, SigningKey("log.example/twin", b"t" * 32))
    both = policy_of(event_log(), twin)
    ours, theirs = RECEIPT, twin.receipt(1)
    assert ours.verify(both).checkpoint.origin != theirs.verify(both).checkpoint.origin
    for mixed in (
        replace(ours, origin=theirs.origin),
        replace(theirs, origin=ours.origin),
        replace(ours, checkpoint=theirs.checkpoint),
        replace(ours, origin="", checkpoint=theirs.checkpoint),
    ):
        with pytest.raises(BadProof, match="origin or tree size"):
            mixed.verify(both)


def test_the_tree_size_is_that_of_the_checkpoint() -> None:
    # For leaf 1 the proofs at sizes 3 and 4 have the same shape: only the signed size tells them apart.
    for claimed in range(20):
        receipt = replace(event_log().receipt(1, 3), tree_size=claimed)
        if claimed == 3:
            assert receipt.verify(POLICY).checkpoint.size == 3
        else:
            with pytest.raises(BadProof):
                receipt.verify(POLICY)


# --- disclosures --------------------------------------------------------------------------------------------------------


def test_disclosures_that_do_not_belong_are_refused() -> None:
    texts = RECEIPT.disclosures or ()
    other = event_log().entries[5].disclosures or ()  # the same event, logged a second time
    assert event_log().entries[5].event == event_log().entries[1].event
    for spoiled in ((*texts, texts[0]), (texts[0], texts[0]), other, (*texts, other[0]), (*texts[:-1], other[-1])):
        with pytest.raises(BadDisclosure):
            replace(RECEIPT, disclosures=spoiled).verify(POLICY)
    for spoiled in (("",), (texts[0] + "=",), ("é",), (texts[0][:-1],), ("W10",)):
        with pytest.raises((BadDisclosure, FormatError)):
            replace(RECEIPT, disclosures=spoiled).verify(POLICY)


def test_commitments_that_do_not_belong_are_refused() -> None:
    commitment = RECEIPT.commitment
    assert commitment is not None
    without = {name: digest for name, digest in commitment.members.items() if name != "actor"}
    others = [event_log().entries[5].commitment, event_log().entries[2].commitment]
    others += [replace(commitment, members=without), replace(commitment, members=commitment.members | {"x": "A" * 43})]
    for other in others:
        for disclosures in (RECEIPT.disclosures, (), None):
            with pytest.raises(BadDisclosure, match="not the one in the leaf"):
                replace(RECEIPT, commitment=other, disclosures=disclosures).verify(POLICY)


def test_disclosures_need_a_commitment_and_a_commitment_an_event() -> None:
    for disclosures in (RECEIPT.disclosures, ()):
        with pytest.raises(BadDisclosure, match="without a commitment"):
            replace(RECEIPT, commitment=None, disclosures=disclosures).verify(POLICY)
    for receipt, policy in ((event_log().receipt(0), POLICY), (raw_log().receipt(0), RAW_POLICY)):
        with pytest.raises(BadDisclosure, match="not the one in the leaf"):
            replace(receipt, commitment=RECEIPT.commitment).verify(policy)
        with pytest.raises(BadDisclosure):
            replace(receipt, disclosures=()).verify(policy)


def test_a_leaf_that_is_not_what_its_type_makes_is_refused() -> None:
    leaf = RECEIPT.leaf.replace(b",", b", ")
    log = SampleLog([Logged(leaf)])
    with pytest.raises(FormatError, match="not canonical"):
        log.receipt(0).verify(POLICY)


# --- JSON ---------------------------------------------------------------------------------------------------------------


def all_receipts() -> list[Receipt]:
    return [*event_log().receipts(), *raw_log().receipts(), ANCHORED]


def test_json_round_trips() -> None:
    for receipt in all_receipts():
        for form in (str(receipt), str(receipt).encode(), strictjson.canonical(receipt.to_json())):
            assert Receipt.parse(form) == receipt
        assert Receipt.from_json(receipt.to_json()) == receipt
        assert str(Receipt.parse(str(receipt))) == str(receipt)


def test_the_members_of_a_receipt() -> None:
    value = RECEIPT.to_json()
    assert list(value) == ["typ", "origin", "index", "leaf", "inclusion", "checkpoint", "commitment", "disclosures"]
    assert value["typ"] == RECEIPT_TYPE == "muniment/receipt@v1"
    assert value["inclusion"] == {"tree_size": 9, "hashes": [part.hex() for part in RECEIPT.proof]}
    assert value["leaf"] == b64(RECEIPT.leaf)
    assert "commitment" not in raw_log().receipt(0).to_json()
    assert "disclosures" not in raw_log().receipt(0).to_json()
    anchor = ANCHORED.anchors[0]
    assert ANCHORED.to_json()["anchors"][0] == {
        "checkpoint": event_log().checkpoint(5),
        "inclusion": {"tree_size": 5, "hashes": [part.hex() for part in anchor.proof]},
        "ots": b64(anchor.ots),
        "height": anchor.height,
        "header": sample_chain().blocks[anchor.height].raw.hex(),
    }
    assert "header" not in ANCHORED.to_json()["anchors"][1]


def test_unknown_members_order_and_white_space_do_not_matter() -> None:
    value = {"zzz": [1, {"a": None}], **dict(reversed(RECEIPT.to_json().items())), "": 0}
    value["inclusion"] = {"note": "x", **value["inclusion"]}
    for indent in (None, 1, "\t"):
        assert Receipt.parse(json.dumps(value, indent=indent)) == RECEIPT


def test_unknown_members_of_an_anchor_do_not_matter() -> None:
    value = ANCHORED.to_json()
    value["anchors"][0] |= {"note": [1], "inclusion": {**value["anchors"][0]["inclusion"], "x": None}}
    assert Receipt.parse(json.dumps(value)) == ANCHORED
    assert Receipt.parse(json.dumps(value | {"anchors": []})) == RECEIPT


def spoiled(**changes: Any) -> dict[str, Any]:
    value = RECEIPT.to_json()
    for name, change in changes.items():
        if change is ...:
            del value[name]
        else:
            value[name] = change
    return value


def hashes(*found: Any) -> dict[str, Any]:
    return {"tree_size": 9, "hashes": list(found)}


def anchored(**changes: Any) -> dict[str, Any]:
    """A receipt with one anchor that is spoiled."""
    value = ANCHORED.to_json()["anchors"][0]
    return spoiled(anchors=[{name: part for name, part in (value | changes).items() if part is not ...}])


HEX = "ab" * 32
NOT_RECEIPTS: list[Any] = [
    None, [], "x", 1, {}, spoiled(typ=...), spoiled(typ="muniment/receipt@v2"), spoiled(typ="Muniment/receipt@v1"), spoiled(typ=None),
    spoiled(typ=["muniment/receipt@v1"]), spoiled(origin=...), spoiled(origin=1), spoiled(origin=None), spoiled(index=...),
    *(spoiled(index=index) for index in (-1, 1.0, 1.5, "1", None, True, [1], 2**63)), spoiled(leaf=...), spoiled(leaf=None),
    *(spoiled(leaf=leaf) for leaf in ("Q", "QQ", "QR==", "QQ==\n", " QQ==", "-_-_", [])), spoiled(checkpoint=...), spoiled(checkpoint=1),
    spoiled(inclusion=...), *(spoiled(inclusion=inclusion) for inclusion in (
        None, [], "x", {}, {"tree_size": 9}, {"hashes": []}, {"tree_size": -1, "hashes": []}, {"tree_size": 9.0, "hashes": []},
        {"tree_size": "9", "hashes": []}, {"tree_size": False, "hashes": []}, {"tree_size": 9, "hashes": None}, {"tree_size": 9, "hashes": {}},
        {"tree_size": 9, "hashes": HEX}, hashes(1), hashes(None), hashes(HEX[:-2]), hashes(HEX + "ab"), hashes(HEX[:-1]), hashes(HEX.upper()),
        hashes(HEX[:-2] + " a"), hashes(HEX[:-2] + "0x"), hashes(HEX[:-1] + "\uff11"), hashes(b64(bytes(32))), hashes(*[HEX] * 65))),
    *(spoiled(disclosures=texts) for texts in (None, {}, "x", 1, [1], [None], [["x"]])),
    *(spoiled(commitment=commitment) for commitment in (None, {}, [], "x", {"alg": "sha-256", "members": {}})),
    *(spoiled(anchors=anchors) for anchors in (None, {}, "x", 1, [None], ["x"], [1], [[]], [{}], ANCHORED.to_json()["anchors"][:1] * 9)),
    *(anchored(**{name: part}) for name in ("checkpoint", "inclusion", "ots", "height") for part in (..., None, [], {}, True, 1.5)),
    *(anchored(ots=ots) for ots in ("AA", "AB==", "A-==", "AA==\n", b64(bytes(65_537)), 1)), *(anchored(height=at) for at in (-1, 2**28, "1")),
    *(anchored(header=header) for header in (None, "", "ab" * 79, "ab" * 81, "AB" * 80, 1)), anchored(inclusion=hashes(HEX.upper())),
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_RECEIPTS, ids=range(len(NOT_RECEIPTS)))
def test_what_is_not_a_receipt_is_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        Receipt.from_json(value)
    with pytest.raises(FormatError):
        Receipt.parse(json.dumps(value))


def test_receipt_json_is_strict_json() -> None:
    text = str(RECEIPT)
    for broken in (
        text.replace('"index": 1,', '"index": 1, "index": 1,'), text.replace('"index": 1,', '"index": 01,'), text + "x", text[:-3], "\ufeff" + text,
        text.replace('"index": 1,', '"index": 1e0,'), text.replace('"index": 1,', '"index": 9007199254740992,'), "", "\ud800", text + "\ud800",
        text.replace('"origin"', '"a": NaN, "origin"'), text.replace('"origin"', '"a": "\\ud800", "origin"'),
    ):  # fmt: skip
        assert broken != text
        with pytest.raises(FormatError):
            Receipt.parse(broken)
    with pytest.raises(FormatError):
        Receipt.parse(text.encode("utf-16"))


# --- tlog-proof ---------------------------------------------------------------------------------------------------------


def test_tlog_proof_byte_by_byte() -> None:
    receipt = raw_log().receipt(0, 2)
    expected = f"c2sp.org/tlog-proof@v1\nextra aGVsbG8=\nindex 0\n{b64(raw_log().tree.leaf_hash(1))}\n\n{raw_log().checkpoint(2)}"
    assert receipt.to_tlog_proof() == expected
    assert str(TlogProof(0, receipt.proof, receipt.checkpoint, b"hello")) == expected


def test_tlog_proofs_round_trip() -> None:
    for receipt in all_receipts():
        bare = replace(receipt, commitment=None, disclosures=None, anchors=())
        text = receipt.to_tlog_proof()
        assert Receipt.parse_tlog_proof(text.encode()) == bare
        assert Receipt.parse(text) == Receipt.parse(text.encode()) == bare
        assert Receipt.parse(text).to_tlog_proof() == text
        verified = Receipt.parse(text).verify(policy_of(event_log(), raw_log()))
        assert verified.leaf == receipt.leaf


def test_a_tlog_proof_without_its_extra_line_is_of_the_leaf_that_is_given() -> None:
    receipt = raw_log().receipt(0, 2)
    text = str(replace(TlogProof.parse(receipt.to_tlog_proof().encode()), extra=None))
    assert text == receipt.to_tlog_proof().replace("extra aGVsbG8=\n", "")
    with pytest.raises(FormatError, match="--leaf FILE"):
        Receipt.parse(text)
    assert Receipt.parse(text, b"hello").verify(RAW_POLICY).leaf == b"hello"
    with pytest.raises(BadProof):
        Receipt.parse(text, b"hallo").verify(RAW_POLICY)


def test_a_leaf_that_is_given_counts_and_not_what_the_text_says() -> None:
    """C2SP: nothing vouches for extra data, and logs of others put other things there."""
    receipt = raw_log().receipt(0, 2)
    other = str(replace(TlogProof.parse(receipt.to_tlog_proof().encode()), extra=b"of another kind"))
    assert Receipt.parse(other, b"hello").verify(RAW_POLICY).leaf == b"hello"
    for text in (other, receipt.to_tlog_proof(), str(receipt)):
        with pytest.raises(BadProof):
            Receipt.parse(text, b"hallo").verify(RAW_POLICY)
    assert Receipt.parse(str(receipt), b"hello") == receipt


def test_no_line_of_a_tlog_proof_is_too_long_for_stock_readers() -> None:
    receipt = raw_log().receipt(0, 2)
    longest = (MAX_LINE - len("extra \n")) // 4 * 3
    for size, there in ((0, True), (longest, True), (longest + 1, False), (65_535, False)):
        text = replace(receipt, leaf=bytes(size)).to_tlog_proof()
        assert ("\nextra " in text) is there, size
        assert max(len(line) + 1 for line in text.split("\n")) <= MAX_LINE
        assert Receipt.parse(text, None if there else bytes(size)).to_tlog_proof() == text


def test_a_tree_of_one_leaf_needs_no_hashes() -> None:
    receipt = raw_log().receipt(0, 1)
    assert receipt.proof == ()
    assert "index 0\n\n" in receipt.to_tlog_proof()
    assert Receipt.parse(receipt.to_tlog_proof()).verify(RAW_POLICY).leaf == b"hello"


def test_what_is_not_a_tlog_proof_is_refused() -> None:
    text = raw_log().receipt(2).to_tlog_proof()
    head, _, note = text.partition("\n\n")
    lines = head.split("\n")
    assert len(lines) == 6
    spoiled = [
        "", TLOG_PROOF_HEADER, head, note, head + "\n" + note, head + "\n\n\n" + note, "\n" + text, "\ufeff" + text, text + "\n", text[:-1],
        text.replace("@v1", "@v2", 1), text.replace("@v1\n", "@v1 \n"), text.replace("\n", "\r\n"), text.replace("extra ", "extra  "),
        text.replace("extra ", "Extra "), text.replace("index 2", "index 02"), text.replace("index 2", "index  2"), text.replace("index 2", "index -2"),
        text.replace("index 2", "index 2 "), text.replace("index 2", "index ٢"), text.replace("index 2", "index 9223372036854775808"),
        text.replace("index 2\n", ""), text.replace(lines[1] + "\n", ""), text.replace(lines[3], lines[3] + "\n"),
        text.replace(lines[3], lines[3][:-1]), text.replace(lines[3], b64(bytes(31))), text.replace(lines[3], b64(bytes(33))),
        text.replace(lines[3], " " + lines[3]), text.replace(lines[3] + "\n", (lines[3] + "\n") * 63), text.replace(lines[1], "extra Q"),
        text.replace(lines[1], "extra QR=="), text.replace(lines[1], "extra"), text.replace("\n2\n", "\n3\n"), "\n".join([lines[0], *lines[2:]]) + "\n\n" + note,
        "\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n\n" + note,
    ]  # fmt: skip
    for number, broken in enumerate(spoiled):
        try:
            Receipt.parse_tlog_proof(broken.encode())
        except FormatError:
            continue
        assert broken == text, f"case {number} parsed"
    for data in (b"\xff" + text.encode(), text.encode("utf-16"), text.encode().replace(b"extra", b"extr\xc3")):
        with pytest.raises(FormatError):
            Receipt.parse_tlog_proof(data)


def test_the_largest_index_and_size_are_carried() -> None:
    head = Checkpoint(ORIGIN, 2**63 - 1, RootHash(bytes(32)))
    note = str(sign_checkpoint(head, KEY))
    receipt = Receipt.parse(str(TlogProof(2**63 - 2, (), note, b"")))
    assert (receipt.index, receipt.tree_size, receipt.leaf) == (2**63 - 2, 2**63 - 1, b"")
    with pytest.raises(BadProof):
        receipt.verify(POLICY)
