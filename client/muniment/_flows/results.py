"""What the clients return: plain values, every one of them verified before it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from muniment._flows import fields
from muniment.errors import BadDisclosure, FormatError
from muniment.event import Commitment, EventLeaf, OwnLeaf, parse_leaf
from muniment.hashing import LeafHash, RootHash, leaf_hash
from muniment.policy import VerifiedCheckpoint
from muniment.receipt import Receipt, Verified
from muniment.rowtext import entry_row


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that the signed tree holds at `index`.

    `content` is an EventLeaf, an OwnLeaf, or None for a raw leaf. `event` holds the members that the log opened to this
    caller and that match the leaf's commitment; None when the entry is not an event. `hidden` names the members that
    stayed closed, or is ("*",) when the log did not even give their names. `commitment` and `disclosures` are what
    opened it.
    """

    index: int
    leaf: bytes
    content: EventLeaf | OwnLeaf | None
    event: dict[str, Any] | None
    hidden: tuple[str, ...] = ()
    commitment: Commitment | None = field(default=None, repr=False)
    disclosures: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def leaf_hash(self) -> LeafHash:
        """The hash of the leaf."""
        return leaf_hash(self.leaf)

    @classmethod
    def of(cls, receipt: Receipt, verified: Verified) -> Entry:
        """Return the entry that a verified receipt is of."""
        event = verified.opened if isinstance(verified.entry, EventLeaf) else None
        opening = receipt.commitment, receipt.disclosures
        return cls(verified.index, verified.leaf, verified.entry, event, verified.hidden, *opening)

    @classmethod
    def open(cls, index: int, leaf: bytes, row: dict[str, Any]) -> Entry:
        """Return the entry with this authenticated leaf, opened by the `commitment` and `disclosures` of `row`.

        Raises FormatError or BadDisclosure.
        """
        content = parse_leaf(leaf)
        if not isinstance(content, EventLeaf):
            return cls(index, leaf, content, None)
        if row.get("commitment") is None:
            return cls(index, leaf, content, {}, ("*",))
        commitment = Commitment.parse(row["commitment"])
        if commitment.digest() != content.commitment:
            raise BadDisclosure(f"the commitment is not the one in the leaf at index {index}")
        disclosures = fields.texts(row, "disclosures") if row.get("disclosures") is not None else []
        opened = commitment.open(disclosures)
        hidden = tuple(sorted(set(commitment.members) - set(opened)))
        return cls(index, leaf, content, opened, hidden, commitment, tuple(disclosures))

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a JSON value: `event`, `own` or `leaf` (base64) says what it is."""
        return entry_row(self.index, self.leaf, self.content, self.event, self.hidden)


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """The proof that the leaf with `leaf_hash` is at `index` of the tree of `tree_size` with `root`.

    `hashes` has the leaf's sibling first. The tree is a prefix of that of `checkpoint`.
    """

    index: int
    leaf_hash: LeafHash
    tree_size: int
    root: RootHash
    hashes: tuple[bytes, ...]
    checkpoint: VerifiedCheckpoint


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """The proof that the tree of `newer` extends that of `older`.

    It has no hashes when their sizes are equal or `older` is empty.
    """

    older: VerifiedCheckpoint
    newer: VerifiedCheckpoint
    hashes: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the proof as a JSON value."""
        return {
            "origin": self.newer.checkpoint.origin,
            "first": self.older.checkpoint.size,
            "second": self.newer.checkpoint.size,
            "hashes": [value.hex() for value in self.hashes],
            "older": self.older.note,
            "newer": self.newer.note,
        }


@dataclass(frozen=True, slots=True)
class LogInfo:
    """What a server says about itself.

    Only `origin` and `vkeys` are checked, against the policy; the rest is information. `kind` is "event" or "raw";
    `limits` are in entries and bytes; the two times are in seconds.
    """

    origin: str
    name: str
    kind: str
    vkeys: tuple[str, ...]
    tree_size: int
    public: bool
    open: bool
    max_entry_bytes: int
    max_batch_entries: int
    max_batch_bytes: int
    publish_interval_seconds: float
    idempotency_ttl_seconds: float

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LogInfo:
        """Return the answer of ``GET /log``. Raises FormatError."""
        limits = fields.json_object(value, "limits")
        kind = fields.text(value, "kind")
        if kind not in ("event", "raw"):
            raise FormatError(f"answer: this version does not know logs of kind {kind[:40]!r}")
        return cls(
            origin=fields.text(value, "origin"),
            name=fields.text(value, "name"),
            kind=kind,
            vkeys=tuple(fields.texts(value, "vkeys")),
            tree_size=fields.integer(value, "tree_size"),
            public=fields.boolean(value, "public"),
            open=fields.boolean(value, "open"),
            max_entry_bytes=fields.integer(limits, "max_entry_bytes"),
            max_batch_entries=fields.integer(limits, "max_batch_entries"),
            max_batch_bytes=fields.integer(limits, "max_batch_bytes"),
            publish_interval_seconds=fields.number(value, "publish_interval_seconds"),
            idempotency_ttl_seconds=fields.number(value, "idempotency_ttl_seconds"),
        )
