"""Published vectors of others: transparency-dev/merkle, JCS and the Ed25519 edge cases of C2SP/CCTV."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from muniment import strictjson
from muniment.errors import BadProof, BadSignature, EventRefused, FormatError
from muniment.note import VerifierKey
from muniment.proofs import verify_consistency, verify_inclusion
from tests.oracle import Consistency, Inclusion
from tests.vectors import vectors


def _cases(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(str(path.relative_to(folder)), json.loads(path.read_bytes())) for path in sorted(folder.rglob("*.json"))]


def _bytes(text: str | None) -> bytes:
    return b64decode(text or "", validate=True)


def _hashes(texts: list[str] | None) -> tuple[bytes, ...]:
    return tuple(_bytes(text) for text in texts or [])


def test_inclusion_vectors() -> None:
    cases = _cases(vectors("merkle/inclusion"))
    assert len(cases) == 98
    for name, case in cases:
        claim = Inclusion(
            case["leafIdx"], case["treeSize"], _bytes(case["leafHash"]), _hashes(case["proof"]), _bytes(case["root"])
        )
        assert claim.holds() is not case["wantErr"], f"the oracle itself is wrong about {name}"
        assert _inclusion_verifies(claim) is not case["wantErr"], name


def _inclusion_verifies(claim: Inclusion) -> bool:
    try:
        verify_inclusion(claim.index, claim.size, claim.leaf, claim.proof, claim.root)
    except BadProof:
        return False
    return True


def test_consistency_vectors() -> None:
    cases = _cases(vectors("merkle/consistency"))
    assert len(cases) == 98
    for name, case in cases:
        claim = Consistency(
            case["size1"], case["size2"], _bytes(case["root1"]), _bytes(case["root2"]), _hashes(case["proof"])
        )
        assert claim.holds() is not case["wantErr"], f"the oracle itself is wrong about {name}"
        assert _consistency_verifies(claim) is not case["wantErr"], name


def _consistency_verifies(claim: Consistency) -> bool:
    try:
        verify_consistency(claim.first, claim.second, claim.root1, claim.root2, claim.proof)
    except BadProof:
        return False
    return True


def test_jcs_vectors() -> None:
    folder = vectors("jcs")
    inputs = sorted((folder / "input").glob("*.json"))
    assert len(inputs) == 6
    through_the_gate = 0
    for path in inputs:
        expected = (folder / "output" / path.name).read_bytes()
        hexes = (folder / "outhex" / path.with_suffix(".txt").name).read_text()
        assert expected == bytes.fromhex("".join(hexes.split())), path.name
        assert strictjson.canonical(json.loads(path.read_bytes())) == expected, path.name
        if path.name != "values.json":
            assert strictjson.canonical(strictjson.parse(path.read_bytes())) == expected, path.name
            through_the_gate += 1
    assert through_the_gate == 5


def test_the_one_jcs_vector_the_gate_refuses_holds_a_number_beyond_its_limit() -> None:
    data = (vectors("jcs") / "input" / "values.json").read_bytes()
    with pytest.raises(EventRefused) as refusal:
        strictjson.parse(data)
    assert (refusal.value.code, refusal.value.pointer) == ("number_range", "/numbers/1")
    assert data.count(b" 1E30,") == 1
    rest = json.loads(data)
    assert rest["numbers"].pop(1) == 1e30
    assert strictjson.parse(data.replace(b" 1E30,", b"")) == rest


# Decided once, and every implementation of a Muniment verifier must decide alike: cofactorless equation (so nothing with a
# low-order residue), canonical R and S, no small-order or non-canonical key. A key with a low-order component is accepted: telling
# it apart costs a scalar multiplication, and it gains its owner nothing that signing twice would not.
ED25519_ACCEPTED = {
    "": 1,
    "low_order_R": 1,
    "low_order_R low_order_component_A": 7,
    "low_order_R low_order_component_R low_order_component_A": 35,
    "low_order_component_A": 7,
    "low_order_component_R low_order_component_A": 35,
}
ED25519_REFUSED_KEYS = 526
ED25519_REFUSED_SIGNATURES = 302
# SHA-256 of the accepted vector numbers, ascending, in decimal, joined by commas.
ED25519_ACCEPTED_NUMBERS = "a6ab10812254c9079f568c287ad37b0d4a8f7219ce7351575b2b4b8d02808aa6"


def test_ed25519_edge_cases_are_decided_once() -> None:
    cases = json.loads(vectors("ed25519/ed25519vectors.json").read_bytes())
    assert len(cases) == 914
    verdicts = {case["number"]: _ed25519_verdict(case) for case in cases}
    flags = {case["number"]: frozenset(case["flags"] or ()) for case in cases}
    accepted = [number for number, verdict in verdicts.items() if verdict == "accepted"]
    combinations = Counter(" ".join(case["flags"] or ()) for case in cases if case["number"] in accepted)
    assert combinations == ED25519_ACCEPTED
    assert Counter(verdicts.values()) == {
        "accepted": sum(ED25519_ACCEPTED.values()),
        "bad key": ED25519_REFUSED_KEYS,
        "bad signature": ED25519_REFUSED_SIGNATURES,
    }
    numbers = ",".join(map(str, sorted(accepted)))
    assert sha256(numbers.encode()).hexdigest() == ED25519_ACCEPTED_NUMBERS
    for number in accepted:
        assert not flags[number] & {
            "low_order_A",
            "non_canonical_A",
            "non_canonical_R",
            "low_order_residue",
            "reencoded_k",
        }, number
    weak = {number for number, found in flags.items() if found & {"low_order_A", "non_canonical_A"}}
    assert weak == {number for number, verdict in verdicts.items() if verdict == "bad key"}


def _ed25519_verdict(case: dict[str, Any]) -> str:
    try:
        key = VerifierKey("key.example", bytes.fromhex(case["key"]))
    except FormatError:
        return "bad key"
    try:
        key.verify(case["msg"], bytes.fromhex(case["sig"]))
    except BadSignature:
        return "bad signature"
    return "accepted"
