"""OpenTimestamps proofs: read, and grown by what calendars answer.

This is the one module that needs the ``opentimestamps`` library. Bytes in, bytes out: what is stored is what was
checked. Every input passes :mod:`muniment.anchor.scan` first, so that the library meets nothing large, deep or
ambiguous; afterwards its result is written again and compared. Whatever the library raises becomes BadTimestamp.
Specified in docs/spec/anchor.md section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from opentimestamps.core.notary import BitcoinBlockHeaderAttestation, PendingAttestation, TimeAttestation
from opentimestamps.core.op import OpAppend, OpSHA256
from opentimestamps.core.serialize import BytesDeserializationContext, BytesSerializationContext
from opentimestamps.core.timestamp import DetachedTimestampFile, Timestamp

from muniment.anchor.scan import (
    ALL_OPS,
    MAX_ATTESTATIONS,
    MAX_DEPTH,
    MAX_FILE,
    MAX_NODES,
    MAX_REPLY,
    OWN_OPS,
    REVERSE,
    Scan,
    scan_file,
    scan_reply,
)
from muniment.errors import BadTimestamp

__all__ = [
    "MAX_ATTESTATIONS",
    "MAX_DEPTH",
    "MAX_FILE",
    "MAX_NODES",
    "MAX_REPLY",
    "NONCE_SIZE",
    "BitcoinAttestation",
    "Pending",
    "Proof",
    "Reply",
    "merge_submission",
    "merge_upgrade",
    "parse_ots",
    "reply_attestations",
    "submission",
]

NONCE_SIZE = 16
_WEAK = frozenset({"sha1", "ripemd160", "keccak256"})
"""Hash operations other than sha256: broken, short, or just not what we vouch for."""


@dataclass(frozen=True, slots=True, order=True)
class Pending:
    """A calendar's promise. It proves nothing; it says where (`uri`) to ask for which message (`commitment`)."""

    uri: str
    commitment: bytes


@dataclass(frozen=True, slots=True, order=True)
class BitcoinAttestation:
    """A claim that `message` is the Merkle root, in internal byte order, of the block at `height`.

    Nothing is checked yet. `height` is in [0, 2**28); `message` has any size, and only one of 32 bytes can be a Merkle
    root. `weak` names the hash operations other than sha256 on its path, that of the file first.
    """

    height: int
    message: bytes
    weak: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """The attestations in a calendar's reply. `unknown` counts those of other kinds."""

    pending: tuple[Pending, ...]
    bitcoin: tuple[BitcoinAttestation, ...]
    unknown: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof file: what it is about, and its attestations in order of URI and of height.

    `file_hash` is "sha256", "sha1" or "ripemd160", and `digest` the file's. `unknown` counts attestations of other
    kinds: they are kept, and prove nothing here.
    """

    file_hash: str
    digest: bytes
    pending: tuple[Pending, ...]
    bitcoin: tuple[BitcoinAttestation, ...]
    unknown: int


def parse_ots(data: bytes, *, own: bool = False) -> Proof:
    """Return what a detached proof file says.

    With `own`, a file such as we make: of a sha256 digest, with append, prepend and sha256 alone, and the same
    bytes when written again. Without, a file of any client: items may stand in any order, but none may be lost in
    writing. Raises BadTimestamp.
    """
    file = _parse_file(data, own=own)
    name = str(file.file_hash_op)
    found = _attestations(file.timestamp, (name,) if name in _WEAK else ())
    return Proof(name, file.file_digest, found.pending, found.bitcoin, found.unknown)


def submission(digest: bytes, nonce: bytes) -> bytes:
    """Return the 32-byte message to post for `digest` (32 bytes): SHA-256(digest || nonce).

    So calendars learn nothing of the digest. `nonce` is 16 random bytes. Raises BadTimestamp on other sizes.
    """
    if (len(digest), len(nonce)) != (32, NONCE_SIZE):
        raise BadTimestamp(f"a digest has 32 bytes and a nonce {NONCE_SIZE}")
    return sha256(digest + nonce).digest()


def reply_attestations(start: bytes, reply: bytes) -> Reply:
    """Return what a calendar's reply about the message `start` attests, for a look at it before it is merged.

    What is merged stays: see first that the Bitcoin attestations are true. Raises BadTimestamp.
    """
    return _attestations(_parse_reply(start, reply), ())


def merge_submission(ots: bytes | None, digest: bytes, nonce: bytes, reply: bytes) -> bytes:
    """Return the proof of `digest` with the reply to a posted :func:`submission`.

    `ots` is the proof so far, None at first. Nothing that `ots` holds is lost. Raises BadTimestamp, also when
    `ots` is of another digest.
    """
    message = submission(digest, nonce)
    tree = _parse_reply(message, reply)
    file = _parse_file(ots, own=True) if ots is not None else DetachedTimestampFile(OpSHA256(), Timestamp(digest))
    if file.file_digest != digest:
        raise BadTimestamp("the proof so far is of another digest")
    return _merged(file, file.timestamp.ops.add(OpAppend(nonce)).ops.add(OpSHA256()), tree)


def merge_upgrade(ots: bytes, commitment: bytes, reply: bytes) -> bytes:
    """Return the proof `ots` with the reply about `commitment`, a message for which it holds a pending attestation.

    Nothing that `ots` holds is lost, the pending attestation included: a reorganisation may make it wanted again.
    Raises BadTimestamp, also when `ots` has no such pending attestation.
    """
    file = _parse_file(ots, own=True)
    places = (
        node
        for node, _ in _walk(file.timestamp, ())
        if node.msg == commitment and any(map(_is_pending, node.attestations))
    )
    node = next(places, None)
    if node is None:
        raise BadTimestamp("the proof has no pending attestation of this commitment")
    return _merged(file, node, _parse_reply(commitment, reply))


# --- behind the bounds ------------------------------------------------------------------------------------------------


@contextmanager
def _edge() -> Iterator[None]:
    """Turn whatever the library raises into BadTimestamp.

    It has errors of many types, and hashlib may lack ripemd160.
    """
    try:
        yield
    except BadTimestamp:
        raise
    except Exception as error:
        raise BadTimestamp(f"not a timestamp: {type(error).__name__}: {error}"[:300]) from error


def _parse_file(data: bytes, *, own: bool) -> DetachedTimestampFile:
    scan = scan_file(data, OWN_OPS if own else ALL_OPS)
    with _edge(), _reversing(scan):
        file = DetachedTimestampFile.deserialize(BytesDeserializationContext(data))
        again = _serialised(file)
    if own and str(file.file_hash_op) != "sha256":
        raise BadTimestamp("a proof of ours is of a sha256 digest")
    if again != data and (own or scan_file(again).items != scan.items):
        raise BadTimestamp("the proof does not come back when it is written again")
    return file


def _parse_reply(start: bytes, reply: bytes) -> Timestamp:
    scan_reply(reply, len(start))
    with _edge():
        tree = Timestamp.deserialize(BytesDeserializationContext(reply), start)
        again = _serialised(tree)
    if again != reply:
        raise BadTimestamp("the reply does not come back when it is written again")
    return tree


def _serialised(what: DetachedTimestampFile | Timestamp) -> bytes:
    context = BytesSerializationContext()
    what.serialize(context)
    return bytes(context.getbytes())


@contextmanager
def _reversing(scan: Scan) -> Iterator[None]:
    """Keep the library from warning of its `reverse` operation, which is in old files.

    Only then: filters are global to threads.
    """
    if REVERSE not in scan.ops:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        yield


def _merged(file: DetachedTimestampFile, node: Timestamp, tree: Timestamp) -> bytes:
    """Return `file` with `tree` below `node`, as bytes that passed every check of a file of ours."""
    before = {(place.msg, found) for place, _ in _walk(file.timestamp, ()) for found in place.attestations}
    with _edge():
        node.merge(tree)
        data = _serialised(file)
    again = _parse_file(data, own=True)  # two proofs within the bounds may be beyond them together
    after = {(place.msg, found) for place, _ in _walk(again.timestamp, ()) for found in place.attestations}
    if not before <= after:
        raise BadTimestamp("merging the reply would lose an attestation")
    return data


def _walk(root: Timestamp, weak: tuple[str, ...]) -> Iterator[tuple[Timestamp, tuple[str, ...]]]:
    """Yield every node, with the names of the weak hashes on the way to it."""
    todo = [(root, weak)]
    while todo:
        node, weak = todo.pop()
        yield node, weak
        for op, child in node.ops.items():
            name = str(op.TAG_NAME)
            todo.append((child, (*weak, name) if name in _WEAK and name not in weak else weak))


def _is_pending(attestation: TimeAttestation) -> bool:
    return isinstance(attestation, PendingAttestation)


def _attestations(root: Timestamp, weak: tuple[str, ...]) -> Reply:
    pending, bitcoin, unknown = [], [], 0
    for node, path in _walk(root, weak):
        for found in node.attestations:
            if _is_pending(found):
                pending.append(Pending(found.uri, node.msg))
            elif isinstance(found, BitcoinBlockHeaderAttestation):
                bitcoin.append(BitcoinAttestation(found.height, node.msg, path))
            else:
                unknown += 1
    return Reply(tuple(sorted(pending)), tuple(sorted(bitcoin)), unknown)
