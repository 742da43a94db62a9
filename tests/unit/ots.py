"""OpenTimestamps proofs for the tests: built with the library's own objects, or byte by byte when the library would not write them."""

from __future__ import annotations

from random import Random

from opentimestamps.core.notary import (
    BitcoinBlockHeaderAttestation,
    LitecoinBlockHeaderAttestation,
    PendingAttestation,
    UnknownAttestation,
)
from opentimestamps.core.op import (
    CryptOp,
    Op,
    OpAppend,
    OpHexlify,
    OpKECCAK256,
    OpPrepend,
    OpReverse,
    OpRIPEMD160,
    OpSHA1,
    OpSHA256,
)
from opentimestamps.core.serialize import BytesSerializationContext
from opentimestamps.core.timestamp import DetachedTimestampFile, Timestamp

from tests.bitcoin.calendar import FORK

MAGIC = bytes.fromhex("004f70656e54696d657374616d7073000050726f6f6600bf89e2e884e8929401")
SHA256_FILE = b"\x08"


def file_of(digest: bytes, tree: bytes, hash_tag: bytes = SHA256_FILE) -> bytes:
    """A proof file, from the bytes of its tree."""
    return MAGIC + hash_tag + digest + tree


def fork(*items: bytes) -> bytes:
    """A node with these items, in this order."""
    return b"".join(FORK + item for item in items[:-1]) + items[-1]


def written(what: Timestamp | DetachedTimestampFile) -> bytes:
    """What the library writes."""
    context = BytesSerializationContext()
    what.serialize(context)
    return context.getbytes()


def detached(digest: bytes, op: CryptOp | None = None) -> DetachedTimestampFile:
    """The library's file for a digest, without a tree yet."""
    return DetachedTimestampFile(OpSHA256() if op is None else op, Timestamp(digest))


def grow(node: Timestamp, rng: Random, *, own: bool, nodes: int = 12, depth: int = 8) -> None:
    """Grow a random tree below `node`, with every kind of operation and attestation; with `own`, with those of calendars alone."""
    at = [(node, 0)]
    for _ in range(rng.randrange(nodes)):
        parent, deep = rng.choice(at)
        op = _op(rng, own=own)
        if deep < depth and len(parent.msg) < 500 and op not in parent.ops:
            at.append((parent.ops.add(op), deep + 1))
    for place, _ in at:
        if not place.ops or rng.random() < 0.2:
            for _ in range(rng.choice([1, 1, 2, 3])):
                place.attestations.add(_attestation(rng, own=own))


def _op(rng: Random, *, own: bool) -> Op:
    argument = rng.randbytes(rng.choice([1, 4, 16, 32, 130]))
    ours = [OpSHA256(), OpSHA256(), OpAppend(argument), OpPrepend(argument)]
    return rng.choice(ours if own else [*ours, OpSHA1(), OpRIPEMD160(), OpKECCAK256(), OpReverse(), OpHexlify()])


def _attestation(rng: Random, *, own: bool) -> object:
    kind = rng.randrange(4 if own else 5)
    if kind == 0:
        return PendingAttestation(rng.choice(["https://a.example", "https://b.example/x/", "", "file:///etc/passwd"]))
    if kind == 3:
        return UnknownAttestation(rng.randbytes(8), rng.randbytes(rng.choice([0, 1, 40, 300])))
    height = rng.choice([0, 1, 127, 128, 358_391, 2**28 - 1])
    return LitecoinBlockHeaderAttestation(height) if kind == 4 else BitcoinBlockHeaderAttestation(height)
