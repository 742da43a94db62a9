"""Evidence of a fork: two heads that one log signed and that cannot both be true. Specified in docs/spec/evidence.md.

It is judged offline, by a policy alone. What does not hold shows nothing about the log: anyone can write such a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muniment import strictjson
from muniment.checkpoint import Checkpoint
from muniment.encoding import parse_hex
from muniment.errors import BadProof, FormatError
from muniment.hashing import HASH_SIZE, RootHash
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.proofs import MAX_PROOF, roots_from_consistency

EVIDENCE_TYPE = "muniment/evidence@v1"
MAX_EVIDENCE = 16 * 1024 * 1024
"""More bytes than any two notes take: with less, a log could sign two that are too long for their evidence."""

_NAMES = {"typ", "origin", "first", "second"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as it stands, nothing verified.

    `first` and `second` are notes. `hashes` are of 32 bytes each: the consistency proof in the tree of `second`, its
    first node explicit; empty where both are of one size.
    """

    origin: str
    first: str
    second: str
    hashes: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Evidence:
        """Return the evidence in a file. Raises FormatError unless ``bytes()`` of the result is `data` again."""
        if len(data) > MAX_EVIDENCE or not data.endswith(b"\n"):
            raise FormatError(f"evidence is one line of at most {MAX_EVIDENCE} bytes, with its newline")
        value = strictjson.parse_canonical(data[:-1])
        if not isinstance(value, dict) or value.keys() - {"hashes"} != _NAMES or value["typ"] != EVIDENCE_TYPE:
            raise FormatError(f"evidence is an object with typ {EVIDENCE_TYPE}, origin, first, second and hashes alone")
        texts = value["origin"], value["first"], value["second"]
        if not all(isinstance(text, str) for text in texts):
            raise FormatError("evidence: origin, first and second are texts")
        return cls(*texts, _hashes(value["hashes"]) if "hashes" in value else ())

    def __bytes__(self) -> bytes:
        """Return the evidence as a file.

        Raises FormatError when a note holds a noncharacter of Unicode, for which I-JSON has no place.
        """
        value: dict[str, Any] = {
            "typ": EVIDENCE_TYPE,
            "origin": self.origin,
            "first": self.first,
            "second": self.second,
        }
        if self.hashes:
            value["hashes"] = [part.hex() for part in self.hashes]
        data = strictjson.canonical(value)
        strictjson.parse(data)
        return data + b"\n"

    @classmethod
    def of(cls, one: VerifiedCheckpoint, other: VerifiedCheckpoint, hashes: Sequence[bytes] = ()) -> Evidence:
        """Return two signed heads as evidence, in their order. Nothing is verified."""
        first, second = sorted((one, other), key=lambda signed: (signed.checkpoint.size, signed.note.encode()))
        return cls(first.checkpoint.origin, first.note, second.note, tuple(hashes))


@dataclass(frozen=True, slots=True)
class Fork:
    """What evidence proved. Made by :func:`verify` alone, so holding one means that the checks passed.

    `root` is that of the first `first.size` entries in the tree of `second`: `first` was signed with another.
    """

    first: Checkpoint
    second: Checkpoint
    root: RootHash

    @property
    def statement(self) -> str:
        """What is proved, in one sentence."""
        first, second = self.first, self.second
        signed = f"the log {first.origin} signed two trees that contradict each other"
        if first.size == second.size:
            return f"{signed}, both of size {first.size}: one has root {first.root.hex()}, the other {self.root.hex()}"
        return (
            f"{signed}, of size {first.size} with root {first.root.hex()} and of size {second.size} with root"
            f" {second.root.hex()}: the first {first.size} entries of the latter have root {self.root.hex()}"
        )


def verify(evidence: Evidence, policy: Policy) -> Fork:
    """Return the fork that `evidence` proves when `policy` alone is trusted.

    2. Both notes are heads of `origin`, each signed by a log key of the policy. The quorum is not asked.
    3. 1 <= m <= n, of the sizes that are signed.
    4. m = n: the roots differ, `first` is the smaller note, and there are no hashes.
    5. m < n: the hashes lead to the root of `second`, and to a root of the first m leaves that `first` has not.

    Step 1 is the form, which :meth:`Evidence.parse` checks. Raises FormatError, BadSignature, PolicyNotMet or BadProof:
    then nothing is shown, of the log or of another party.
    """
    first, second = (_head(evidence.origin, note, policy) for note in (evidence.first, evidence.second))  # 2
    if not 1 <= first.size <= second.size:  # 3
        raise BadProof(f"the heads are of sizes {first.size} and {second.size}, not 1 <= first <= second")
    root = (_same_size if first.size == second.size else _smaller)(evidence, first, second)  # 4, 5
    if root == first.root:
        raise BadProof("the two heads do not contradict each other: both have one root at the smaller size")
    return Fork(first, second, root)


def make(one: str, other: str, hashes: Sequence[bytes], policy: Policy) -> tuple[Evidence, Fork]:
    """Return evidence of two notes in any order, with what it proves.

    `hashes` are the consistency proof from the smaller size in the larger tree, its first node explicit
    (:func:`muniment.proofs.whole_proof`); none for one size. Raises as :func:`verify`.
    """
    evidence = Evidence.of(policy.signed(one), policy.signed(other), hashes)
    fork = verify(evidence, policy)
    bytes(evidence)  # raises where no file can hold it
    return evidence, fork


def is_evidence(data: bytes) -> bool:
    """Tell whether a file says that it is evidence, however damaged it is."""
    if EVIDENCE_TYPE.encode() not in data:
        return False
    try:
        return ("typ", EVIDENCE_TYPE) in strictjson.lenient_members(data)
    except FormatError:
        return False


def _hashes(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PROOF or not all(isinstance(x, str) for x in value):
        raise FormatError(f"evidence: hashes is a list of 1 to {MAX_PROOF} texts")
    return tuple(parse_hex(text, HASH_SIZE, "proof hash") for text in value)


def _head(origin: str, note: str, policy: Policy) -> Checkpoint:
    head = policy.signed(note).checkpoint
    if head.origin != origin:
        raise BadProof(f"evidence about the log {origin!r} holds a head of {head.origin!r}")
    return head


def _same_size(evidence: Evidence, first: Checkpoint, second: Checkpoint) -> RootHash:
    if evidence.hashes:
        raise BadProof("heads of one size need no hashes")
    if first.root != second.root and evidence.first.encode() > evidence.second.encode():
        raise BadProof("of two heads of one size the smaller note comes first")
    return second.root


def _smaller(evidence: Evidence, first: Checkpoint, second: Checkpoint) -> RootHash:
    root, implied = roots_from_consistency(first.size, second.size, evidence.hashes)
    if implied != second.root:
        raise BadProof("the hashes do not lead to the root of the second head: this shows nothing about the log")
    return root
