"""What the log needs of a database, said as guarantees. ``sqlite`` and ``postgres`` each keep them natively.

All methods are coroutines. `log_id` is the database's number of a log; index ranges are half-open; times are milliseconds since
1970 UTC. Every method may raise StoreUnavailable, and then nothing was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, NamedTuple, Protocol

from muniment.hashing import RootHash
from muniment.tiles import Tile
from muniment.tree import TileGrowth


@dataclass(frozen=True, slots=True)
class LogRow:
    """A log as it was created. `kind` is "event" or "raw"; `public` allows reads, `open` reads of payloads, without a key."""

    log_id: int
    name: str
    origin: str
    kind: str
    public: bool
    open: bool
    created_at: int


@dataclass(frozen=True, slots=True)
class Head:
    """The compare-and-swap row: `size` leaves with `root`; `logged_at` of the last entry; fencing `epoch`; the guard's name.

    `session` is the connection it was read on, where what extends it must be written on the same one: see :meth:`Append.head_to_extend`.
    """

    size: int
    root: RootHash
    logged_at: int
    epoch: int
    guard_id: str
    session: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class IdempotencyRow:
    """What one Idempotency-Key of one caller stands for: the entries [first_index, first_index + count)."""

    caller: str
    key: str
    fingerprint: bytes
    first_index: int
    count: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An idempotency row as found, with the seed its fingerprint was made with (None once that payload is erased)."""

    row: IdempotencyRow
    seed: bytes | None


class StoredPayload(NamedTuple):
    """Canonical payload and seed of the event at `index`."""

    index: int  # type: ignore[assignment]  # the column's name; tuple.index is not used
    payload: bytes
    seed: bytes


@dataclass(frozen=True, slots=True)
class Grown:
    """Everything one commit holds. The leaves get the indices [expected.size, head.size), and each has its :func:`leaf_key`.

    `payloads` are those of the events among them, by ascending index.
    """

    log_id: int
    head: Head
    leaves: Sequence[bytes]
    leaf_keys: Sequence[int]
    payloads: Sequence[StoredPayload]
    tiles: Sequence[TileGrowth]
    idempotency: Sequence[IdempotencyRow] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint: its tree size, the note, and when it was published."""

    size: int
    note: str
    published_at: int


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """An API key without its secret: `digest` is SHA-256 of it; `log_name` None means every log."""

    key_id: str
    digest: bytes
    scopes: frozenset[str]
    log_name: str | None
    label: str
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """A checkpoint anchored in Bitcoin, or on its way there. What is above `state` never changes.

    `checkpoint` holds the note's exact bytes and `digest` their SHA-256. `ots` is the proof file so far. `height`, `block_hash` (in
    internal order), `header` and `block_time` (Unix seconds) are those of the earliest good block. `next_at` is when that block is
    looked at next. `revision` counts the changes.
    """

    tree_size: int
    root: bytes
    checkpoint: bytes
    digest: bytes
    nonce: bytes
    created_at: int
    state: str = "queued"
    revision: int = 0
    ots: bytes | None = None
    submitted_at: int | None = None
    confirmed_at: int | None = None
    height: int | None = None
    block_hash: bytes | None = None
    header: bytes | None = None
    block_time: int | None = None
    next_at: int | None = None
    last_error: str | None = None
    logged_from: int | None = None
    logged: int | None = None


@dataclass(frozen=True, slots=True)
class CalendarRow:
    """What one calendar has of one anchor. `next_at` is when it is asked next, None: not any more."""

    tree_size: int
    url: str
    state: str = "queued"
    attempts: int = 0
    next_at: int | None = None
    submitted_at: int | None = None
    pending_uri: str | None = None
    commitment: bytes | None = None
    last_reason: str | None = None
    height: int | None = None


HELD = ("pending", "complete", "bad_attestation", "unlisted")
"""States of a calendar that took the digest of an anchor."""


@dataclass(frozen=True, slots=True)
class AnchorSummary:
    """All anchors of a log at a glance: how many are in each state, and what an operator is told of.

    `oldest_open` is when the oldest one was made that is neither confirmed nor superseded; `last_confirmed` when the last one was
    confirmed. `degraded` counts open ones that fewer calendars hold than there should be, `bad` attestations that were not true.
    """

    states: dict[str, int]
    oldest_open: int | None
    last_confirmed: int | None
    degraded: int
    bad: int


SMALL_LEAF = 1024
"""Bytes of the largest leaf of a bundle that a database joins: several bundles of 16 MiB in one answer would be too much memory."""


_LEAF_KEY = Struct(">q24x")


def leaf_key(leaf_hash: bytes) -> int:
    """Return the first 8 bytes of a leaf hash as a signed big-endian integer: an index key, never an identity."""
    return int.from_bytes(leaf_hash[:8], "big", signed=True)


def leaf_keys_of(leaf_hashes: Iterable[bytes]) -> list[int]:
    """Return the :func:`leaf_key` of each of these hashes of 32 bytes."""
    return [key for (key,) in _LEAF_KEY.iter_unpack(b"".join(leaf_hashes))]


EdgeTile = tuple[int, int, bytes]
"""Level and index of a tile of a right edge, and its hashes: 32 to 8,160 bytes."""

Reread = tuple[list[bytes], dict[tuple[int, int], bytes]]
"""Leaves in order, and bytes of tiles by (level, index): what is to be checked before a signature."""


class Append(Protocol):
    """The write path. Each method may also raise SessionLost (`expected` was read in another session) and Replaced."""

    async def head_to_extend(self, log_id: int) -> Head:
        """Return the head row, bound to the session that it was read in.

        An append, fence or adoption that expects it takes place in that session or not at all: after a reconnect, to another server
        perhaps, all that is known of the log has to be read again.
        """

    async def reconnect(self, log_id: int) -> None:
        """Let nothing more be read or written on the connections there are: those to come may lead to another server."""

    def check_premises(self, head: Head | None = None) -> None:
        """Check that what this process reads and writes is still what others will find; given a `head`, in its session.

        Raises Replaced or SessionLost. Quick, and without I/O that can hang: may be called on the event loop.
        """

    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """Store all of `grown`, if the head is still `expected` and no entry has one of the leaf keys `absent`.

        Returns what reread() does of the new entries and `tiles`; when no tile is asked for, nothing is read. Durable when it returns: survives power loss. Raises HeadMoved or Known (nothing written), OutcomeUnknown (fatal to the
        sequencer) or StoreUnavailable (nothing written).
        """

    async def fence(self, log_id: int, expected: Head) -> Head:
        """Raise the epoch of the head by one, if it is still `expected`, and return it.

        When it returns, the head it returned is durable, and no append that expects an older epoch can succeed. Raises as append.
        """

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """As fence, and the head names another guard: no writer with the old one can append any more."""

    async def publish(self, log_id: int, checkpoint: Published, edge: Sequence[EdgeTile] = ()) -> bool:
        """Store a checkpoint if it is larger than every published one. Durable when it returns True.

        Among racing writers sizes never go back. `edge` is the right edge of its tree: raises OtherTree, in the same statement, when
        the stored tiles do not begin with it. Raises OutcomeUnknown; calling again is always safe.
        """

    async def publish_all(self, log_id: int, checkpoints: Sequence[Published]) -> bool:
        """As publish, for several checkpoints in the order of their sizes, in one commit: all of them, or none."""


class Read(Protocol):
    """Reads. What they return was committed, and no later call ever returns less of it."""

    async def head(self, log_id: int) -> Head:
        """Return the head row, from the primary."""

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """Return the stored bytes of these tiles by (level, index), as wide as they are by now; absent ones are left out."""

    async def leaves(self, log_id: int, start: int, stop: int) -> list[bytes]:
        """Return the leaves [start, stop), in order, as far as there are any."""

    async def bundles(self, log_id: int, indices: Sequence[int]) -> dict[int, bytes]:
        """Return entry bundles by index, joined by the database: quicker than leaves().

        Left out are those that are not full, and those that hold a leaf of more than SMALL_LEAF bytes.
        """

    async def reread(self, log_id: int, start: int, stop: int, tiles: Sequence[Tile]) -> Reread:
        """Return what leaves() and tiles() do, in one round trip."""

    async def payloads(self, log_id: int, start: int, stop: int) -> list[StoredPayload]:
        """Return the payloads of [start, stop), in order; raw and erased entries have none."""

    async def find_leaves(
        self, log_id: int, keys: Sequence[int], session: int | None = None
    ) -> list[tuple[int, bytes]]:
        """Return (index, leaf) of every entry with one of these leaf keys, lowest index first. Compare the whole leaf.

        Given the `session` of a head: of the database in which that is the head, or raises SessionLost.
        """

    async def find_keys(
        self, log_id: int, keys: Sequence[tuple[str, str]], now: int, session: int | None = None
    ) -> list[StoredKey]:
        """Return what is stored, and not expired at `now`, under these (caller, Idempotency-Key); `session` as in find_leaves()."""

    async def checkpoint(self, log_id: int, size: int | None = None) -> Published | None:
        """Return the published checkpoint of `size`, or the largest one."""

    async def checkpoints(self, log_id: int, start: int, limit: int) -> list[Published]:
        """Return up to `limit` published checkpoints with size >= start, smallest first."""

    async def clock(self) -> int:
        """Return the database's clock."""


class Inspect(Protocol):
    """Reads for whoever checks what is stored: rows as they are, wrong ones too."""

    async def entry_rows(self, log_id: int, start: int, stop: int) -> Sequence[Sequence[Any]]:
        """Return (index, leaf) of the entries that are stored in [start, stop), in order; and the leaf key behind, where it is a column."""

    async def tile_rows(self, log_id: int, after: tuple[int, int], limit: int) -> list[tuple[int, int, int]]:
        """Return (level, index, bytes) of up to `limit` tiles beyond `after`, a (level, index), in that order."""

    async def key_rows(self, log_id: int, after: tuple[str, str], limit: int) -> list[IdempotencyRow]:
        """Return up to `limit` idempotency rows beyond `after`, a (caller, key), in that order; expired ones too."""

    async def beyond(self, log_id: int, size: int) -> int | None:
        """Return the lowest index, `size` or larger, that an entry or a payload is stored under."""

    async def integrity(self) -> list[str]:
        """Return what the database itself finds wrong with its pages and indexes; empty also where it has no such check."""

    async def leaf_key_damage(self) -> list[str]:
        """Return how what finds entries by leaf key differs from the entries; empty where the database keeps that right by itself."""


class Catalog(Protocol):
    """Logs and API keys."""

    async def logs(self) -> list[LogRow]:
        """Return all logs, in the order of their creation."""

    async def create_log(self, row: LogRow, head: Head) -> LogRow:
        """Store a log (its log_id is ignored) with its empty head, and return it. Returns the stored one if it exists already.

        Raises HeadMoved when name or origin belong to a different log.
        """

    async def api_keys(self) -> list[ApiKeyRow]:
        """Return all API keys, oldest first."""

    async def create_key(self, row: ApiKeyRow) -> None:
        """Store an API key."""

    async def revoke_key(self, key_id: str, now: int) -> bool:
        """Mark an API key as revoked; False when there is no such key or it was revoked before."""

    async def find_key(self, digest: bytes) -> ApiKeyRow | None:
        """Return the key with this digest, revoked or not."""

    async def forget_expired(self, now: int) -> int:
        """Delete idempotency rows that expired before `now`; return how many."""


class Anchors(Protocol):
    """Anchors, and the leases of the followers that work on them. What a write returned True for is durable."""

    async def add_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow]) -> bool:
        """Store a new anchor with its calendars, unless there is one of this size or a larger one."""

    async def save_anchor(self, log_id: int, row: AnchorRow, calendars: Sequence[CalendarRow] = ()) -> bool:
        """Store what changed of an anchor and of some of its calendars, in one commit, if nobody changed it since `row` was read.

        `row.revision` is the one that was read. A calendar that is not stored yet is added.
        """

    async def anchor(self, log_id: int, tree_size: int | None = None) -> AnchorRow | None:
        """Return the anchor of this size, or the largest one."""

    async def anchors(self, log_id: int, start: int, limit: int, states: Sequence[str] = ()) -> list[AnchorRow]:
        """Return up to `limit` anchors with tree_size >= start, in these states (default: all), smallest first."""

    async def covering_anchor(self, log_id: int, index: int) -> AnchorRow | None:
        """Return the confirmed anchor with tree_size > index whose block is the lowest; of these, the smallest."""

    async def anchor_calendars(self, log_id: int, start: int, stop: int) -> list[CalendarRow]:
        """Return the calendars of the anchors with sizes in [start, stop), by size and URL."""

    async def due_anchors(self, log_id: int, now: int, limit: int) -> list[AnchorRow]:
        """Return up to `limit` anchors whose block is to be looked at, longest due first."""

    async def due_calendars(self, log_id: int, url: str, now: int, limit: int, *, queued: bool) -> list[CalendarRow]:
        """Return up to `limit` rows of a calendar that is to be asked about them, smallest size first.

        `queued` chooses: those that it is to be given, or those that it has. Many of the one never hide the other.
        """

    async def unlogged_anchors(self, log_id: int, limit: int) -> list[AnchorRow]:
        """Return up to `limit` confirmed anchors that have no known entry in the log, smallest first."""

    async def own_entries(self, log_id: int, start: int) -> int:
        """Return how many entries from index `start` on are known to be entries of anchors."""

    async def anchor_summary(self, log_id: int, held: int) -> AnchorSummary:
        """Return all anchors at a glance; open ones that fewer than `held` calendars hold count as degraded."""

    async def take_lease(self, log_id: int, name: str, holder: str, now: int, until: int) -> bool:
        """Take or keep, until `until`, the lease of the follower `name`; False while another holder has it at `now`."""


class Store(Append, Read, Inspect, Catalog, Anchors, Protocol):
    """A database. `has_clock` tells whether its clock is another one than this process's."""

    has_clock: bool

    async def close(self) -> None:
        """Release every connection. Appends in flight finish first."""
