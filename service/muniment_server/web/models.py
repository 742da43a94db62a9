"""The shapes of our JSON, for the OpenAPI document.

Handlers build the same values by hand; tests hold the two together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Hex = Field(pattern="^[0-9a-f]{64}$")
Size = Field(ge=0, le=2**63 - 1)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error, RFC 9457. `code` is stable, `hint` says what to do; some errors have further members."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str


class Inclusion(_Model):
    """An inclusion proof: lowercase hex hashes, leaf sibling first."""

    tree_size: int = Size
    hashes: list[str]


class CommitmentModel(_Model):
    """The commitment object of an event: each member's name and the digest of its disclosure."""

    alg: Literal["sha-256"]
    members: dict[str, str]


class AnchorBlock(_Model):
    """A Bitcoin block, as its header says: hash as shown to people, time in seconds since 1970, good to a couple of \
hours."""  # noqa: D205, D209

    height: int
    hash: str = Hex
    time: int


class AnchorCalendar(_Model):
    """What one calendar has of an anchor. `attempts` counts its requests in this state."""

    url: str
    state: Literal["queued", "pending", "complete", "bad_attestation", "unlisted", "given_up", "superseded"]
    attempts: int
    last_reason: str | None


class AnchorModel(_Model):
    """A checkpoint anchored in Bitcoin, or on its way there. `explanation` says in words what its state is worth."""

    tree_size: int = Size
    root: str = Hex
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the checkpoint's bytes")
    state: Literal["queued", "pending", "complete", "confirmed", "superseded"]
    explanation: str
    degraded: bool = Field(description="Fewer calendars hold it than should.")
    created_at: str
    submitted_at: str | None
    confirmed_at: str | None = Field(
        description="When this server checked it; what is proved is the time of the block."
    )
    block: AnchorBlock | None
    calendars: list[AnchorCalendar]


class Anchors(_Model):
    """A page of anchors, by size. `next` is the start of the next page, or null."""

    anchors: list[AnchorModel]
    next: int | None


class ReceiptAnchor(_Model):
    """An anchor of a receipt: the inclusion of its entry in the anchored tree, and the proof that the checkpoint \
is that old."""  # noqa: D205, D209

    checkpoint: str = Field(description="C2SP signed note: the anchored bytes")
    inclusion: Inclusion
    ots: str = Field(description="base64 of the OpenTimestamps proof")
    height: int = Field(description="Height of the block")
    header: str | None = Field(None, pattern="^[0-9a-f]{160}$", description="The block's header")


class ReceiptModel(_Model):
    """What proves one entry by itself. Specified in docs/spec/receipt.md."""

    typ: Literal["muniment/receipt@v1"]
    origin: str
    index: int = Size
    leaf: str = Field(description="base64")
    inclusion: Inclusion
    checkpoint: str = Field(description="C2SP signed note")
    commitment: CommitmentModel | None = None
    disclosures: list[str] | None = None
    anchors: list[ReceiptAnchor] | None = None


class Batch(_Model):
    """Where the entries of a batch are. `indices` are half-open ranges; one after the other they give every \
entry's index."""  # noqa: D205, D209

    indices: list[list[int]]
    count: int
    checkpoint: str
    receipts: list[ReceiptModel] | None = None


class Entry(_Model):
    """An entry. `event`, and what ties it to the leaf, is there when the caller may see it; `typ` for the log's \
own entries."""  # noqa: D205, D209

    index: int = Size
    leaf: str = Field(description="base64")
    leaf_hash: str = Hex
    typ: str | None = None
    logged_at: str | None = None
    event: dict[str, Any] | None = None
    commitment: CommitmentModel | None = None
    disclosures: list[str] | None = None


class Entries(_Model):
    """A page of entries. `next` is the start of the next page, or null."""

    entries: list[Entry]
    next: int | None
    tree_size: int = Size


class Hit(_Model):
    """An event that a search found."""

    index: int = Size
    leaf_hash: str = Hex
    logged_at: str
    event: dict[str, Any]


class Hits(_Model):
    """A page of hits; it may be short, or empty, while `next` is a cursor. When that is null, all hits below \
`complete_to` were answered: entries from there on are not in the index yet."""  # noqa: D205, D209

    hits: list[Hit]
    next: str | None
    complete_to: int = Size
    tree_size: int = Size


class Tie(_Model):
    """The consistency proof from the size that was asked for to the size of the checkpoint."""

    first: int = Size
    second: int = Size
    hashes: list[str]


class InclusionProof(_Model):
    """That the leaf is at `index` of the tree of `tree_size` with `root`, and what ties that root to the checkpoint."""

    origin: str
    index: int = Size
    leaf_hash: str = Hex
    tree_size: int = Size
    root: str = Hex
    hashes: list[str]
    checkpoint: str
    consistency: Tie


class ConsistencyProof(_Model):
    """That the tree of `second` with `root` extends that of `first`, and what ties that root to the checkpoint."""

    origin: str
    first: int = Size
    second: int = Size
    root: str = Hex
    hashes: list[str]
    checkpoint: str
    consistency: Tie


class PublishedCheckpoint(_Model):
    """A published checkpoint."""

    size: int = Size
    checkpoint: str
    published_at: str


class Checkpoints(_Model):
    """A page of published checkpoints, by size. `next` is the start of the next page, or null."""

    checkpoints: list[PublishedCheckpoint]
    next: int | None


class Limits(_Model):
    """What the log takes."""

    max_entry_bytes: int
    max_batch_entries: int
    max_batch_bytes: int
    max_members: int


class LogInfo(_Model):
    """A log. The keys here are information: trust comes from a policy file, never from the server it judges."""

    origin: str
    name: str
    kind: Literal["event", "raw"]
    vkeys: list[str]
    tree_size: int = Size
    public: bool
    open: bool
    limits: Limits
    publish_interval_seconds: float
    idempotency_ttl_seconds: int


class Covered(_Model):
    """What evidence covers: the first `tree_size` entries. `since` is when the oldest other one was logged, or null.

    Where it is not `exact`, as in raw logs, that entry was logged then or later, and `age_seconds` is at the most.
    """

    tree_size: int = Size
    uncovered: int = Size
    since: str | None
    age_seconds: float
    exact: bool


class Coverage(_Model):
    """What of a log's entries the published checkpoints cover, and what the confirmed anchors do."""

    tree_size: int = Size
    checkpoint: Covered
    anchor: Covered


class Health(_Model):
    """The process runs."""

    status: Literal["ok"]


class Version(_Model):
    """Which release of the server this is."""

    name: Literal["muniment-server"]
    version: str


class LogLine(_Model):
    """A log, in short. `GET /log` under its prefix says more. Trust comes from a policy file, not from these keys."""

    name: str
    origin: str
    kind: Literal["event", "raw"]
    public: bool
    vkeys: list[str]
    tree_size: int = Size


class Logs(_Model):
    """The logs that the caller may see, by name."""

    logs: list[LogLine]


class Readiness(_Model):
    """Whether reads work, and for each log whether it takes entries; `problems` says why not."""

    reads: bool
    writes: dict[str, bool]
    problems: dict[str, str]


class Verdict(BaseModel):
    """What a receipt proves and what it does not. A convenience, not evidence: you are asking the operator."""

    model_config = ConfigDict(extra="allow")

    verified: bool
