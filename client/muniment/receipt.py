"""Receipts: what proves one entry by itself, offline. Specified in docs/spec/receipt.md.

Two forms: JSON ``muniment/receipt@v1`` with everything, and C2SP ``tlog-proof@v1`` text, which may come without the
leaf.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from muniment import members, strictjson
from muniment.anchored import MAX_ANCHORS, AnchoredCheckpoint
from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.encoding import b64, parse_b64
from muniment.errors import BadDisclosure, BadProof, FormatError, UnknownMember
from muniment.event import Commitment, Disclosure, EventLeaf, OwnLeaf, parse_leaf
from muniment.hashing import LeafHash, leaf_hash
from muniment.members import expect
from muniment.names import listed_names, name_set
from muniment.note import parse_note
from muniment.policy import Policy
from muniment.proofs import verify_inclusion
from muniment.signatures import is_passed_on, passed_on
from muniment.tlogproof import TLOG_PROOF_HEADER, TlogProof

RECEIPT_TYPE = "muniment/receipt@v1"
RECEIPT_MEMBERS = (
    "typ", "origin", "index", "leaf", "inclusion", "checkpoint", "commitment", "disclosures", "anchors",
)  # fmt: skip
"""All that this version knows. Others are ignored, and are not passed on."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a receipt proved: the leaf at `index` of `checkpoint`'s log, and what of an event was opened.

    `entry` is an EventLeaf, an OwnLeaf, or None for a raw leaf. `hidden` names the members that the receipt does not
    open; an event receipt is complete when there are none.
    """

    checkpoint: Checkpoint
    index: int
    leaf: bytes
    entry: EventLeaf | OwnLeaf | None
    opened: dict[str, Any]
    hidden: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Tell whether everything the leaf commits to is in the receipt."""
        return not self.hidden


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt as it stands, nothing verified. `proof` holds 32-byte hashes, leaf sibling first.

    What `anchors` prove, :mod:`muniment.anchor.check` says; :meth:`verify` does not look at them.
    """

    origin: str
    index: int
    leaf: bytes
    tree_size: int
    proof: tuple[bytes, ...]
    checkpoint: str
    commitment: Commitment | None = None
    disclosures: tuple[str, ...] | None = None
    anchors: tuple[AnchoredCheckpoint, ...] = ()

    @property
    def leaf_hash(self) -> LeafHash:
        """The hash of the leaf."""
        return leaf_hash(self.leaf)

    def verify(self, policy: Policy) -> Verified:
        """Check everything this receipt says, trusting `policy` alone.

        1. The policy vouches for the checkpoint (its log's key signed it, the quorum is reached).
        2. Origin and tree size of the receipt are those of the checkpoint.
        3. The inclusion proof leads from the leaf to the signed root.
        4. A commitment belongs to an event leaf and hashes to what the leaf says.
        5. Every disclosure matches its digest in the commitment, none twice.

        Raises FormatError, BadSignature, PolicyNotMet, BadProof or BadDisclosure.
        """
        signed = policy.verify(self.checkpoint).checkpoint  # 1
        if (signed.origin, signed.size) != (self.origin, self.tree_size):  # 2
            raise BadProof("origin or tree size of the receipt is not that of its checkpoint")
        verify_inclusion(self.index, signed.size, self.leaf_hash, self.proof, signed.root)  # 3
        entry = parse_leaf(self.leaf)
        opened, hidden = self.open(entry)  # 4, 5
        return Verified(signed, self.index, self.leaf, entry, opened, hidden)

    def open(self, entry: EventLeaf | OwnLeaf | None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the members that are opened of `entry`, which the leaf is, and the names of those that are not.

        Steps 4 and 5 of :meth:`verify`, which prove nothing without the others. Raises FormatError or BadDisclosure.
        """
        if self.commitment is None:
            if self.disclosures is not None:
                raise BadDisclosure("disclosures without a commitment prove nothing")
            return {}, ("*",) if isinstance(entry, EventLeaf) else ()
        if not isinstance(entry, EventLeaf) or self.commitment.digest() != entry.commitment:
            raise BadDisclosure("the commitment is not the one in the leaf")
        opened = self.commitment.open(list(self.disclosures or ()))
        return opened, tuple(sorted(set(self.commitment.members) - set(opened)))

    # --- showing a part -----------------------------------------------------------------------------------------------

    def disclose(self, names: Collection[str]) -> Receipt:
        """Return this receipt with the members `names` opened and no others; with none of them, nothing is opened.

        What would open the others is gone from every byte of it. Their names stay, and their salted digests: without
        these it would not verify. Of the checkpoint it keeps the signature lines that are of the form of a log's or a
        witness's, and of the anchors those whose checkpoints have no others; what these hold is not checked.

        Raises UnknownMember when the receipt does not open a member of these names or is of no event, FormatError or
        BadDisclosure when what it opens is not what the event holds, and as :func:`muniment.signatures.passed_on`.
        """
        wanted, opened = name_set(names), self._opening_of_event()
        if unknown := wanted - opened.keys():
            raise UnknownMember(f"the receipt opens no member {listed_names(unknown)}: it opens {listed_names(opened)}")
        kept = tuple(text for name, text in opened.items() if name in wanted)
        return replace(
            self,
            disclosures=None if self.commitment is None else kept,
            checkpoint=passed_on(self.checkpoint).note,
            anchors=tuple(anchor for anchor in self.anchors if is_passed_on(anchor.checkpoint)),
        )

    def hide(self, names: Collection[str]) -> Receipt:
        """Return this receipt without what opens the members `names`, as :meth:`disclose` of the others.

        A member that is hidden already stays so. Raises what :meth:`disclose` does; the names that can be hidden are
        those of the event's members.
        """
        wanted, opened = name_set(names), self._opening_of_event()
        there = self.commitment.members if self.commitment else opened
        if unknown := wanted - there.keys():
            raise UnknownMember(f"the event has no member {listed_names(unknown)}: it has {listed_names(there)}")
        return self.disclose(opened.keys() - wanted)

    def opening(self) -> dict[str, str]:
        """Return the disclosure of each member that this receipt opens, by name; none of what is no event.

        They belong to the leaf; nothing else is verified. Raises FormatError or BadDisclosure.
        """
        self.open(parse_leaf(self.leaf))
        return {Disclosure.parse(text).name: text for text in self.disclosures or ()}

    def _opening_of_event(self) -> dict[str, str]:
        if not isinstance(parse_leaf(self.leaf), EventLeaf):  # its leaf shows all
            raise UnknownMember(f"entry {self.index} is no event: it has no members, and nothing in it can be hidden")
        return self.opening()

    # --- JSON ---------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Return the ``muniment/receipt@v1`` value."""
        value: dict[str, Any] = {
            "typ": RECEIPT_TYPE,
            "origin": self.origin,
            "index": self.index,
            "leaf": b64(self.leaf),
            "inclusion": {"tree_size": self.tree_size, "hashes": [part.hex() for part in self.proof]},
            "checkpoint": self.checkpoint,
        }
        if self.commitment is not None:
            value["commitment"] = self.commitment.value()
        if self.disclosures is not None:
            value["disclosures"] = list(self.disclosures)
        if self.anchors:
            value["anchors"] = [anchor.to_json() for anchor in self.anchors]
        return value

    def __str__(self) -> str:
        """Return the JSON text, indented for people."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, data: bytes | str, leaf: bytes | None = None) -> Receipt:
        """Return the receipt in JSON or tlog-proof text. Raises FormatError.

        `leaf`, when it is given, is what must have been logged, whatever the text says: see :meth:`verify`, step 3.
        """
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        if raw.startswith(TLOG_PROOF_HEADER.encode()):
            return cls.parse_tlog_proof(raw, leaf)
        receipt = cls.from_json(strictjson.parse(raw))
        return receipt if leaf is None else replace(receipt, leaf=leaf)

    @classmethod
    def from_json(cls, value: Any) -> Receipt:
        """Return the receipt in a JSON value as :mod:`muniment.strictjson` reads it. Raises FormatError.

        Unknown members are ignored; an unknown `typ` is refused.
        """
        expect(isinstance(value, dict) and value.get("typ") == RECEIPT_TYPE, f"typ is not {RECEIPT_TYPE}")
        tree_size, proof = members.inclusion(value)
        disclosures = value.get("disclosures")
        expect("disclosures" not in value or members.is_texts(disclosures), "disclosures is not a list of texts")
        anchors = value.get("anchors", [])
        expect(
            isinstance(anchors, list) and len(anchors) <= MAX_ANCHORS,
            f"anchors is not a list of at most {MAX_ANCHORS}",
        )
        return cls(
            origin=members.text(value, "origin"),
            index=members.integer(value, "index"),
            leaf=parse_b64(members.text(value, "leaf"), "leaf"),
            tree_size=tree_size,
            proof=proof,
            checkpoint=members.text(value, "checkpoint"),
            commitment=Commitment.parse(value["commitment"]) if "commitment" in value else None,
            disclosures=tuple(disclosures) if disclosures is not None else None,
            anchors=tuple(map(AnchoredCheckpoint.from_json, anchors)),
        )

    # --- C2SP tlog-proof ----------------------------------------------------------------------------------------------

    def to_tlog_proof(self) -> str:
        """Return C2SP tlog-proof text; commitment and disclosures have no place in it, nor has a very long leaf."""
        return str(TlogProof.with_leaf(self.index, self.leaf, self.proof, self.checkpoint))

    @classmethod
    def parse_tlog_proof(cls, data: bytes, leaf: bytes | None = None) -> Receipt:
        """Return the receipt in tlog-proof text whose extra data is the leaf, unless the caller has the leaf.

        Raises FormatError, also when neither has it.
        """
        proof = TlogProof.parse(data)
        leaf = proof.extra if leaf is None else leaf
        if leaf is None:
            raise FormatError(
                "this tlog-proof has no extra line, so it does not hold what was logged: give that beside it"
                " (muniment verify --leaf FILE)"
            )
        signed = parse_checkpoint(parse_note(proof.checkpoint).text)
        return cls(signed.origin, proof.index, leaf, signed.size, proof.hashes, proof.checkpoint)
