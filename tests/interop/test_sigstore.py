"""The checkpoint and Merkle code inside PyPI sigstore, written for Rekor, checks our checkpoints and inclusion proofs.

These are its own functions on its own objects, a TransparencyLogEntry and a Keyring with our Ed25519 key. Three things are Rekor's way
and not C2SP's, so they are not asked of it here:

- A key is found by the first four bytes of its id, and Rekor v2 takes the C2SP key id; the name on a signature line is not compared.
- Base64 is read leniently, so the flips below are of the bytes it stands for.
- The tree size of a proof is not compared with its checkpoint's; and `index < size` is checked by the model, not by the Merkle code.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError
from sigstore._internal.merkle import verify_merkle_inclusion
from sigstore._internal.rekor.checkpoint import SignedCheckpoint, verify_checkpoint
from sigstore._internal.trust import Keyring, RekorKeyring
from sigstore._utils import KeyID
from sigstore.errors import VerificationError
from sigstore.models import TransparencyLogEntry
from sigstore_models.common import v1 as common
from sigstore_models.rekor import v1 as rekor

from muniment.note import VerifierKey
from tests.interop.flips import flipped
from tests.interop.sample import SIZE, Sample


def _keyring(vkey: VerifierKey) -> RekorKeyring:
    der = Ed25519PublicKey.from_public_bytes(vkey.public_key).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    key = common.PublicKey(raw_bytes=b64encode(der), key_details=common.PublicKeyDetails.PKIX_ED25519)
    return RekorKeyring(Keyring([key]))


def _log_id(vkey: VerifierKey) -> bytes:
    """Return the whole hash whose first four bytes are the C2SP key id: what Rekor v2 calls its log id."""
    return sha256(f"{vkey.name}\n\x01".encode() + vkey.public_key).digest()


def _entry(vkey: VerifierKey, leaf: bytes, **proof: Any) -> TransparencyLogEntry:
    """Return sigstore's object for a leaf and its proof: index, size, root, hashes, checkpoint."""
    inclusion = rekor.InclusionProof(
        log_index=str(proof["index"]),
        tree_size=str(proof["size"]),
        root_hash=b64encode(proof["root"]),
        hashes=[b64encode(value) for value in proof["hashes"]],
        checkpoint=rekor.Checkpoint(envelope=proof["checkpoint"]),
    )
    inner = rekor.TransparencyLogEntry(
        log_index=str(proof["index"]),
        log_id=common.LogId(key_id=b64encode(_log_id(vkey))),
        kind_version=rekor.KindVersion(kind="muniment", version="1"),
        inclusion_proof=inclusion,
        canonicalized_body=b64encode(leaf),
    )
    return TransparencyLogEntry(inner)


def _proof(sample: Sample, index: int) -> dict[str, Any]:
    found = sample.get(f"/proof/inclusion?index={index}&tree_size={SIZE}").json()
    hashes = [bytes.fromhex(value) for value in found["hashes"]]
    root = bytes.fromhex(found["root"])
    return {"index": index, "size": SIZE, "root": root, "hashes": hashes, "checkpoint": found["checkpoint"]}


def _check(sample: Sample, leaf: bytes, **proof: Any) -> None:
    entry = _entry(sample.vkey, leaf, **proof)
    verify_checkpoint(_keyring(sample.vkey), entry)
    verify_merkle_inclusion(entry)


def test_every_inclusion_proof_is_accepted(sample: Sample) -> None:
    for index, leaf in enumerate(sample.leaves):
        _check(sample, leaf, **_proof(sample, index))


def test_checkpoints_mean_the_same(sample: Sample) -> None:
    for note in sample.published():
        signed = SignedCheckpoint.from_text(note)
        signed.signed_note.verify(_keyring(sample.vkey), KeyID(sample.vkey.key_id))
        size = signed.checkpoint.log_size
        proof = sample.get(f"/proof/inclusion?index=0&tree_size={size}").json()
        assert (signed.checkpoint.origin, signed.checkpoint.log_hash) == (sample.origin, proof["root"])
        assert not signed.checkpoint.other_content


@pytest.mark.parametrize("index", [0, 255, 300, SIZE - 1])
def test_flips_in_a_proof_are_refused(sample: Sample, index: int) -> None:
    leaf, proof = sample.leaves[index], _proof(sample, index)
    spoiled: list[tuple[bytes, dict[str, Any]]] = [(flipped(leaf, at), proof) for at in (0, len(leaf) // 2, -1)]
    for at, value in enumerate(proof["hashes"]):
        hashes = list(proof["hashes"])
        hashes[at] = flipped(value, at)
        spoiled.append((leaf, proof | {"hashes": hashes}))
    spoiled += [(leaf, proof | {"hashes": hashes}) for hashes in (proof["hashes"][1:], [*proof["hashes"], bytes(32)])]
    spoiled.append((leaf, proof | {"root": flipped(proof["root"], 31)}))
    spoiled.append((leaf, proof | {"index": index ^ 1}))
    for spoiled_leaf, spoiled_proof in spoiled:
        with pytest.raises((VerificationError, ValidationError)):
            _check(sample, spoiled_leaf, **spoiled_proof)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_refused(sample: Sample) -> None:
    proof = _proof(sample, 300)
    note = proof["checkpoint"]
    text, _, line = note.rpartition("\n\n")
    name, encoded = line.rstrip("\n").rsplit(" ", 1)
    signature = b64decode(encoded)  # key id and signature
    notes = [f"{flipped(text.encode(), at).decode()}\n\n{line}" for at in range(len(text))]
    notes += [
        f"{text}\n\n{name} {b64encode(flipped(signature, at, at % 8)).decode()}\n" for at in range(len(signature))
    ]
    for spoiled in notes:
        assert spoiled != note
        with pytest.raises(VerificationError):
            _check(sample, sample.leaves[300], **proof | {"checkpoint": spoiled})
