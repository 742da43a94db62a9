"""What an anchor proves: that bytes existed before a block of Bitcoin, as far as a source of headers can be believed.

An attestation in a proof is a claim, of a calendar or of a forger. It counts when its message is the Merkle root of a
header whose proof of work was checked, at the height it names, according to a source that holds more than that one
header. Specified in docs/spec/anchor.md sections 4 and 5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any, Literal

from muniment.anchor.header import Header, parse_header
from muniment.anchor.proof import BitcoinAttestation, Proof, parse_ots
from muniment.anchored import AnchoredCheckpoint
from muniment.errors import AnchorMismatch, BadProof, BadTimestamp, Inconsistent, NoHeader, SourceUnavailable
from muniment.evidence import Evidence
from muniment.policy import Policy
from muniment.proofs import verify_inclusion
from muniment.receipt import Receipt

if TYPE_CHECKING:
    from muniment.anchor.sources import Found, HeaderSource

MIN_DEPTH = 6
MAX_LOOKUPS = 16
"""Attestations looked up in one proof. Real ones have fewer; each may cost a request."""
EMBEDDED = "header embedded, not checked against a chain"

State = Literal["confirmed", "complete", "pending", "mismatch", "no_source", "unknown"]


@dataclass(frozen=True, slots=True)
class AnchorCheck:
    """What a proof showed. Made by this module alone.

    - confirmed: an attestation holds, at `min_depth` confirmations or more.
    - complete: an attestation holds, at fewer.
    - no_source: there are attestations, and no source could say whether one holds.
    - mismatch: there are attestations, and none holds.
    - pending: there are promises of calendars, and no attestations of blocks.
    - unknown: there are attestations of other kinds alone, of which nothing is known here.

    `found` is the earliest block whose attestation holds, in the first two states. `mismatches` say in words which
    earlier ones do not; `reasons` why others could not be looked up; `calendars` are the URIs of promises; `weak` names
    the hash operations besides sha256 that lead to `found`; `unknown` counts attestations of other kinds.
    """

    state: State
    found: Found | None = None
    mismatches: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    calendars: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()
    unknown: int = 0

    @property
    def claim(self) -> str:
        """What is shown, in words; exact, and no more."""
        if self.found is not None:
            return _claim(self.found) + self._doubts()
        if self.state == "mismatch":
            return f"does not hold: {'; '.join(self.mismatches)}"
        if self.state == "no_source":
            return f"proof complete, not checked here: {'; '.join(self.reasons)}"
        if self.state == "unknown":
            return "only attestations of a kind that is not known here; proves nothing here, and waiting does not help"
        return "a calendar's promise; proves nothing yet"

    def _doubts(self) -> str:
        young = "; not deep enough yet, a reorganisation may undo it" if self.state == "complete" else ""
        return young + (f"; by way of {', '.join(self.weak)}, which is weak" if self.weak else "")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        value: dict[str, Any] = {"state": self.state, "claim": self.claim}
        if self.found is not None:
            found = self.found
            value["block"] = {
                "height": found.height,
                "hash": found.header.block_hash,
                "time": found.header.time,
            }
            value |= {"depth": found.depth, "source": found.source, "source_kind": found.kind}
        if self.weak:
            value["weak"] = list(self.weak)
        return value | {
            "mismatches": list(self.mismatches),
            "reasons": list(self.reasons),
            "calendars": list(self.calendars),
            "unknown": self.unknown,
        }


def _claim(found: Found) -> str:
    return (
        f"existed before block {found.height}, mined about {about(found.header)}, depth {found.depth},"
        f" according to {found.source} (Bitcoin block times are good to a couple of hours)"
    )


def about(header: Header) -> str:
    """Return the time of a header as it may be shown: never as exact."""
    return f"~{datetime.fromtimestamp(header.time, UTC):%Y-%m-%d %H:%M} UTC"


def look_up(attestation: BitcoinAttestation, source: HeaderSource) -> Found:
    """Return the block that `attestation` names, when it holds.

    Raises AnchorMismatch when the block has another Merkle root, NoHeader and SourceUnavailable as the source does.
    """
    if len(attestation.message) != 32:
        raise AnchorMismatch(
            f"what is attested of block {attestation.height} has {len(attestation.message)} bytes, not 32"
        )
    found = source.at(attestation.height)
    if found.height != attestation.height:
        raise SourceUnavailable(f"{source.name} answers about block {found.height}, not {attestation.height}")
    if found.header.merkle_root != attestation.message:
        raise AnchorMismatch(
            f"block {attestation.height} does not have the Merkle root that the proof leads to"
            f" ({attestation.message[::-1].hex()})"
        )
    return found


def check_anchor(
    note: bytes,
    ots: bytes,
    source: HeaderSource | None,
    min_depth: int = MIN_DEPTH,
    *,
    no_source: str = "no source of block headers",
) -> AnchorCheck:
    """Return what the proof `ots` shows about the stamped bytes of a checkpoint `note`.

    The operator of the log is the suspect: only sha256 counts, of the file and on the way to a block. With a
    collision in another hash one checkpoint could be stamped and another shown. The signature of the note is not
    looked at. `no_source` says in words why there is none. Raises BadTimestamp, and AnchorMismatch when the
    proof is of other bytes.
    """
    proof = parse_ots(ots)
    if proof.file_hash != "sha256" or proof.digest != hashlib.sha256(note).digest():
        raise AnchorMismatch("the proof is of other bytes than this checkpoint")
    return _check(proof, source, min_depth, no_source, weak_counts=False)


def check_file(
    file: BufferedReader | BytesIO, ots: bytes, source: HeaderSource | None, min_depth: int = MIN_DEPTH
) -> AnchorCheck:
    """Return what the proof `ots` shows about any file, with any hash operations.

    Weak ones are named, not refused. Raises BadTimestamp, and AnchorMismatch when the proof is of other bytes.
    """
    proof = parse_ots(ots)
    try:
        digest = hashlib.file_digest(file, proof.file_hash).digest()
    except ValueError as error:  # some builds of OpenSSL lack ripemd160
        raise BadTimestamp(f"{proof.file_hash} cannot be computed here") from error
    if digest != proof.digest:
        raise AnchorMismatch("the proof is of another file")
    return _check(proof, source, min_depth, "no source of block headers", weak_counts=True)


def check_receipt_anchor(
    receipt: Receipt,
    anchor: AnchoredCheckpoint,
    policy: Policy,
    source: HeaderSource | None,
    min_depth: int = MIN_DEPTH,
) -> AnchorCheck:
    """Return what one of the receipt's anchors shows about its entry.

    1. A log key of the policy signed the anchored checkpoint.
    2. Origin and tree size are those of the receipt and of the anchor.
    3. The inclusion proof leads from the receipt's leaf to the root of the anchored checkpoint.
    4. The proof is of the anchored checkpoint's bytes, and attests the block that the anchor names.
    5. An embedded header has its proof of work, and the Merkle root that is attested of that block.
    6. The attestations, as :func:`check_anchor` does.

    The receipt itself is for :meth:`Receipt.verify`. Raises FormatError (BadTimestamp, BadHeader) and VerificationError
    (BadSignature, PolicyNotMet, BadProof, AnchorMismatch; Inconsistent when the log signed two roots for one size).
    """
    # Without the quorum: witnesses sign after the bytes are frozen, and the receipt's own checkpoint is held to it.
    signed = Policy(policy.logs).verify(anchor.checkpoint).checkpoint  # 1
    if (signed.origin, signed.size) != (receipt.origin, anchor.tree_size):  # 2
        raise BadProof("origin or tree size of the anchor is not that of its checkpoint, or of the receipt")
    _check_fork(receipt, anchor, policy)
    verify_inclusion(receipt.index, signed.size, receipt.leaf_hash, anchor.proof, signed.root)  # 3
    proof = parse_ots(anchor.ots)
    attested = {found.message for found in proof.bitcoin if found.height == anchor.height}
    if not attested:  # 4
        raise AnchorMismatch(f"the proof attests nothing of block {anchor.height}, which the anchor names")
    reason = "no source of block headers"
    if anchor.header is not None:  # 5
        header = parse_header(anchor.header)
        if header.merkle_root not in attested:
            raise AnchorMismatch(f"the embedded header does not have the Merkle root attested of block {anchor.height}")
        reason = f"{EMBEDDED} (block {anchor.height}, {about(header)} by its own word)"
    return check_anchor(anchor.checkpoint.encode(), anchor.ots, source, min_depth, no_source=reason)  # 4, 6


def _check_fork(receipt: Receipt, anchor: AnchoredCheckpoint, policy: Policy) -> None:
    first, second = policy.signed(receipt.checkpoint), policy.signed(anchor.checkpoint)
    size = first.checkpoint.size
    if size == second.checkpoint.size and first.checkpoint.root != second.checkpoint.root:
        evidence = Evidence.of(first, second)
        raise Inconsistent(f"the log signed two roots for size {size}", (first.note, second.note), evidence)


def _check(
    proof: Proof, source: HeaderSource | None, min_depth: int, no_source: str, *, weak_counts: bool
) -> AnchorCheck:
    """Return what the attestations show: the earliest that holds decides, whatever the others are."""
    if len(proof.bitcoin) > MAX_LOOKUPS:
        raise BadTimestamp(f"the proof names {len(proof.bitcoin)} blocks; {MAX_LOOKUPS} are looked up at most")
    mismatches: list[str] = []
    reasons: list[str] = []
    calendars = tuple(found.uri for found in proof.pending)
    for attestation in proof.bitcoin:
        if attestation.weak and not weak_counts:
            mismatches.append(
                f"the way to block {attestation.height} uses {', '.join(attestation.weak)}, which binds nothing"
            )
            continue
        if source is None:
            reasons.append(no_source)
            continue
        try:
            found = look_up(attestation, source)
        except AnchorMismatch as error:
            mismatches.append(str(error))
        except (NoHeader, SourceUnavailable) as error:
            reasons.append(str(error))
        else:
            state: State = "confirmed" if found.depth >= min_depth else "complete"
            weak = attestation.weak
            return AnchorCheck(state, found, tuple(mismatches), tuple(reasons), calendars, weak, proof.unknown)
    without: State = "pending" if calendars else "unknown"
    undecided: State = "no_source" if reasons else "mismatch" if mismatches else without
    why = tuple(dict.fromkeys(reasons))
    return AnchorCheck(undecided, None, tuple(mismatches), why, calendars, unknown=proof.unknown)
