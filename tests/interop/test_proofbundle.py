"""PyPI proofbundle, a strict verifier of C2SP tlog-proof texts that others wrote, reads ours."""

from __future__ import annotations

import pytest
from proofbundle.errors import ProofBundleError
from proofbundle.tlogproof import parse_tlog_proof, verify_tlog_proof

from muniment.event import EventLeaf, parse_leaf
from tests.interop.flips import after, flipped, replaced
from tests.interop.sample import SIZE, Sample


def _verdict(text: str, sample: Sample) -> dict[str, object]:
    """Verify as a stranger would who has this text and the vkey: the leaf is the text's `extra`."""
    leaf = parse_tlog_proof(text)["extra"]
    return verify_tlog_proof(text, leaf, str(sample.vkey), expected_origin=sample.origin)


def _refused(data: bytes, sample: Sample) -> bool:
    try:
        return not _verdict(data.decode(), sample)["ok"]
    except (ProofBundleError, UnicodeDecodeError, TypeError):
        return True  # not a tlog-proof at all, or one without the leaf


def test_every_receipt_is_accepted(sample: Sample) -> None:
    for index, leaf in enumerate(sample.leaves):
        text = sample.text_receipt(index)
        verdict = _verdict(text, sample)
        assert verdict["ok"], (index, verdict)
        assert (verdict["index"], verdict["tree_size"], verdict["origin"]) == (index, SIZE, sample.origin)
        assert parse_tlog_proof(text)["extra"] == leaf


def test_receipts_at_every_published_checkpoint_are_accepted(sample: Sample) -> None:
    for note in sample.published():
        size = int(note.split("\n")[1])
        verdict = _verdict(sample.text_receipt(size - 1, size), sample)
        assert verdict["ok"], verdict
        assert verdict["tree_size"] == size


def test_the_answer_of_an_append_is_accepted(sample: Sample) -> None:
    assert len(sample.answers) >= 6
    for index, text in sample.answers.items():
        verdict = _verdict(text, sample)
        assert verdict["ok"], (index, verdict)
        assert verdict["index"] == index
        leaf = parse_tlog_proof(text)["extra"]
        assert leaf == sample.leaves[index]
        if sample.kind == "raw":
            assert leaf == sample.posted[index]
        else:
            assert isinstance(parse_leaf(leaf), EventLeaf)


# Entry 300 has a proof with inner and border hashes, and 300 spelled with other digits is still an entry.
FIELDS = {
    "header": (b"c2sp.org/tlog-proof@v", 0),
    "leaf": (b"extra ", 2),
    "index": (b"index ", 2),
    "first hash": (b"\nindex 300\n", 10),
    "origin": (b"\n\nexample.com/", 0),
    "tree size": (b"\n\nexample.com/", None),
    "signer": ("— ".encode(), 1),
    "key id and signature": ("— ".encode(), None),
}


@pytest.mark.parametrize("field", FIELDS)
def test_another_digit_in_a_field_is_refused(sample: Sample, field: str) -> None:
    data = sample.text_receipt(300).encode()
    marker, offset = FIELDS[field]
    if offset is not None:
        spoiled = after(marker, offset)(data)
    else:  # what follows the name that follows the marker
        begin = data.index(b"\n" if field == "tree size" else b" ", data.index(marker) + len(marker)) + 1
        spoiled = replaced(data, begin + 1)
    assert spoiled != data
    assert len(spoiled) == len(data)
    assert _refused(spoiled, sample)


def test_a_flipped_bit_in_any_byte_is_refused(sample: Sample) -> None:
    data = sample.text_receipt(300).encode()
    assert not _refused(data, sample)
    for at in range(len(data)):
        assert _refused(flipped(data, at, bit=at % 8), sample), (at, data[max(0, at - 20) : at + 20])


def test_the_receipt_of_another_entry_is_refused(sample: Sample) -> None:
    text = sample.text_receipt(300)
    verdict = verify_tlog_proof(text, sample.leaves[301], str(sample.vkey), expected_origin=sample.origin)
    assert (verdict["log_ok"], verdict["inclusion_ok"], verdict["ok"]) == (True, False, False)
