"""Evidence of a fork: what it takes, every way to spoil it, and that two honest heads never make any."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from muniment.encoding import b64
from muniment.errors import BadProof, BadSignature, FormatError, PolicyNotMet
from muniment.evidence import MAX_EVIDENCE, Evidence, is_evidence, make, verify
from muniment.evidence_report import report_fork
from muniment.note import MAX_NOTE, key_id_of, parse_note
from muniment.plain import plain_failure, plain_fork
from muniment.policy import LogKey, Policy
from muniment.proofs import roots_from_consistency
from tests.evidence_vectors import (
    CASES,
    KEY,
    LARGEST,
    MINE,
    ORIGIN,
    POLICY,
    SECOND_KEY,
    THEIRS,
    UNKNOWN,
    Case,
    cosigned,
    fork,
    proof,
    signed,
)
from tests.oracle import flip

SIZES = [(first, second) for second in range(1, LARGEST + 1) for first in range(1, second)]


# --- what it takes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_every_pair_of_sizes_makes_evidence(size: int) -> None:
    """Powers of two too: the RFC leaves the first node out of their proofs, and evidence needs it."""
    for first in range(1, size + 1):
        evidence = fork(first, size)
        assert Evidence.parse(bytes(evidence)) == evidence
        found = verify(evidence, POLICY)
        assert (found.first.size, found.second.size) == (first, size)
        assert found.first.root != found.root
        assert found.root in (MINE.root(first), THEIRS.root(first))


def test_the_order_of_what_is_given_does_not_matter() -> None:
    assert make(signed(THEIRS, 9), signed(MINE, 5), proof(THEIRS, 5, 9), POLICY)[0] == fork()
    same = make(signed(MINE, 7), signed(THEIRS, 7), (), POLICY)[0]
    assert same == make(signed(THEIRS, 7), signed(MINE, 7), (), POLICY)[0]
    assert same.first.encode() < same.second.encode()


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_two_honest_heads_and_their_own_proof_are_no_evidence(size: int) -> None:
    for second in range(size, LARGEST + 1):
        hashes = proof(MINE, size, second) if size < second else ()
        with pytest.raises(BadProof, match="do not contradict each other"):
            make(signed(MINE, size), signed(MINE, second), hashes, POLICY)


@pytest.mark.parametrize(("first", "second"), SIZES[::7])
def test_two_honest_heads_and_garbage_are_no_evidence(first: int, second: int) -> None:
    honest = proof(MINE, first, second)
    garbage = [proof(THEIRS, first, second), (), honest[1:], honest[:-1], (bytes(32), *honest[1:]), honest[::-1]]
    garbage += [(flip(honest[0], bit), *honest[1:]) for bit in (0, 100, 255)]
    garbage += [(*honest, bytes(32)), (MINE.root(second),), (MINE.root(first), MINE.root(second))]
    for hashes in garbage:
        if hashes != honest:
            evidence = Evidence(ORIGIN, signed(MINE, first), signed(MINE, second), tuple(hashes))
            with pytest.raises(BadProof):
                verify(evidence, POLICY)


def test_every_bit_of_the_hashes_counts() -> None:
    for first, second in ((5, 9), (4, 9), (8, 31), (1, 2)):
        evidence = fork(first, second)
        for at, value in enumerate(evidence.hashes):
            for bit in range(0, 256, 5):
                spoiled = (*evidence.hashes[:at], flip(value, bit), *evidence.hashes[at + 1 :])
                with pytest.raises(BadProof, match="do not lead to the root"):
                    verify(replace(evidence, hashes=spoiled), POLICY)


def test_the_empty_tree_contradicts_nothing() -> None:
    empty, full = signed(MINE, 0), signed(MINE, 3)
    for one, other, hashes in ((empty, full, ()), (empty, full, (bytes(32),)), (empty, signed(MINE, 0), ())):
        with pytest.raises(BadProof, match="1 <= first"):
            verify(Evidence(ORIGIN, one, other, hashes), POLICY)


def test_extension_lines_alone_are_no_fork() -> None:
    with pytest.raises(BadProof, match="do not contradict each other"):
        make(signed(MINE, 5), signed(MINE, 5, extensions=("time 17",)), (), POLICY)


# --- keys and signature lines -------------------------------------------------------------------------------------------


def test_two_keys_of_one_origin() -> None:
    both = Policy((LogKey(KEY.vkey), LogKey(SECOND_KEY.vkey)))
    evidence, _ = make(signed(MINE, 5), signed(THEIRS, 5, SECOND_KEY), (), both)
    assert {len(names) for names in report_fork(evidence, both).signers} == {1}
    assert "; and by" in report_fork(evidence, both).proved_text()
    with pytest.raises(BadSignature):
        verify(evidence, POLICY)


def test_the_quorum_is_not_asked() -> None:
    key = UNKNOWN.vkey.public_key
    vkey = f"witness.example+{key_id_of('witness.example', 4, key).hex()}+{b64(bytes([4]) + key)}"
    policy = Policy.parse(f"log {KEY.vkey}\nwitness w {vkey}\nquorum w\n")
    with pytest.raises(PolicyNotMet):
        policy.verify(signed(MINE, 5))
    assert verify(fork(), policy).first.size == 5


def test_the_exact_notes_are_kept_with_lines_that_count_for_nothing() -> None:
    """Cosignatures and unknown lines are not needed, and not dropped: what was seen is what is kept."""
    plain = signed(MINE, 5)
    kept = cosigned(plain)
    evidence, _ = make(signed(THEIRS, 9), kept, proof(THEIRS, 5, 9), POLICY)
    assert evidence.first == kept
    verify(replace(evidence, first=plain), POLICY)
    alone = plain.partition("\n\n")[0] + "\n\n" + str(UNKNOWN.sign(parse_note(plain).text))
    with pytest.raises(BadSignature):
        verify(replace(evidence, first=alone), POLICY)


def test_the_longest_notes_have_room() -> None:
    """A log must not get away with two heads that are too long for their evidence."""
    long = "\U0001f600" * (MAX_NOTE - 1000)
    evidence, _ = make(signed(MINE, 5, extensions=(long,)), signed(THEIRS, 5, extensions=(long,)), (), POLICY)
    data = bytes(evidence)
    assert 7_900_000 < len(data) < MAX_EVIDENCE
    assert Evidence.parse(data) == evidence
    with pytest.raises(FormatError, match="at most"):
        Evidence.parse(b" " * MAX_EVIDENCE + data)


def test_a_note_that_json_cannot_hold() -> None:
    with pytest.raises(FormatError, match="no character"):
        make(signed(MINE, 5, extensions=("\ufffe",)), signed(THEIRS, 5), (), POLICY)


# --- spoiled ------------------------------------------------------------------------------------------------------------


KINDS = {1: FormatError, 2: (FormatError, BadSignature, PolicyNotMet, BadProof), 3: BadProof, 4: BadProof, 5: BadProof}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.step])
def test_spoiled(case: Case) -> None:
    with pytest.raises(KINDS[case.step]) as refused:
        verify(Evidence.parse(case.data), POLICY)
    assert "Do not rely on this file" in plain_failure(refused.value)
    if case.step > 1:
        assert bytes(Evidence.parse(case.data)) == case.data


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if not case.step])
def test_good(case: Case) -> None:
    assert verify(Evidence.parse(case.data), POLICY).first.origin == ORIGIN


def test_what_says_that_it_is_evidence() -> None:
    assert is_evidence(bytes(fork()))
    assert is_evidence(json.dumps(json.loads(bytes(fork())), indent=1).encode()), "however it is written"
    assert not is_evidence(b'{"typ":"muniment/receipt@v1","note":"muniment/evidence@v1"}')
    assert not is_evidence(b"muniment/evidence@v1")


# --- words --------------------------------------------------------------------------------------------------------------


def test_what_is_said() -> None:
    report = report_fork(fork(), POLICY)
    value = report.to_json()
    assert (value["verified"], value["origin"], value["first"]["tree_size"]) == (True, ORIGIN, 5)
    assert value["second"]["root_at_first"] == THEIRS.root(5).hex()
    assert [limit["code"] for limit in value["does_not_prove"]] == ["who", "which", "when"]
    assert MINE.root(5).hex() in report.proved_text()
    plain = " ".join(plain_fork(report).split())
    assert "one of 5 records, and one of 9 records of which the first 5 are others" in plain
    same = report_fork(fork(7, 7), POLICY)
    assert "both of size 7" in same.fork.statement
    assert "one of 7 records, and one of 7 records that are not the same" in " ".join(plain_fork(same).split())


# --- the mathematics ----------------------------------------------------------------------------------------------------


def test_a_proof_implies_both_roots() -> None:
    for first, second in SIZES:
        assert roots_from_consistency(first, second, proof(MINE, first, second)) == (
            MINE.root(first),
            MINE.root(second),
        )
    for first, second in ((0, 1), (1, 1), (2, 1), (1, 2**63)):
        with pytest.raises(BadProof, match="no consistency"):
            roots_from_consistency(first, second, [bytes(32)])
    with pytest.raises(BadProof, match="31 bytes"):
        roots_from_consistency(1, 2, [bytes(32), bytes(31)])
