"""The entries of a log, and its head: what is appended in one commit, and what can be read of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple, Protocol

from muniment.hashing import RootHash
from muniment.tiles import Tile
from muniment.tree import TileGrowth


@dataclass(frozen=True, slots=True)
class Head:
    """The compare-and-swap row.

    `size` leaves with `root`; `logged_at` of the last entry; fencing `epoch`; the guard's name.
    `session` is the connection it was read on, where what extends it must be written on the same one: see
    :meth:`Append.head_to_extend`.
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
    """Everything one commit holds.

    The leaves get the indices [expected.size, head.size), and each has its :func:`leaf_key`. `payloads` are those of
    the events among them, by ascending index.
    """

    log_id: int
    head: Head
    leaves: Sequence[bytes]
    leaf_keys: Sequence[int]
    payloads: Sequence[StoredPayload]
    tiles: Sequence[TileGrowth]
    idempotency: Sequence[IdempotencyRow] = ()


SMALL_LEAF = 1024
"""Bytes of the largest leaf of a bundle that a database joins.

Several bundles of 16 MiB in one answer would be too much memory.
"""
_LEAF_KEY = Struct(">q24x")


def leaf_key(leaf_hash: bytes) -> int:
    """Return the first 8 bytes of a leaf hash as a signed big-endian integer: an index key, never an identity."""
    return int.from_bytes(leaf_hash[:8], "big", signed=True)


def leaf_keys_of(leaf_hashes: Iterable[bytes]) -> list[int]:
    """Return the :func:`leaf_key` of each of these hashes of 32 bytes."""
    return [key for (key,) in _LEAF_KEY.iter_unpack(b"".join(leaf_hashes))]


Reread = tuple[list[bytes], dict[tuple[int, int], bytes]]
"""Leaves in order, and bytes of tiles by (level, index): what is to be checked before a signature."""


class Append(Protocol):
    """The write path. Each method may also raise SessionLost (`expected` was read in another session) and Replaced."""

    async def head_to_extend(self, log_id: int) -> Head:
        """Return the head row, bound to the session that it was read in.

        An append, fence or adoption that expects it takes place in that session or not at all: after a reconnect, to
        another server perhaps, all that is known of the log has to be read again.
        """

    async def reconnect(self, log_id: int) -> None:
        """Let nothing more be read or written on the connections there are.

        Those to come may lead to another server.
        """

    def check_premises(self, head: Head | None = None) -> None:
        """Check that what this process reads and writes is still what others will find; given a `head`, in its session.

        Raises Replaced or SessionLost. Quick, and without I/O that can hang: may be called on the event loop.
        """

    async def append(
        self, grown: Grown, expected: Head, absent: Sequence[int] = (), tiles: Sequence[Tile] = ()
    ) -> Reread:
        """Store all of `grown`, if the head is still `expected` and no entry has one of the leaf keys `absent`.

        Returns what :meth:`Reads.reread` does of the new entries and `tiles`; when no tile is asked for, nothing is
        read. Durable when it returns: survives power loss. Raises HeadMoved or DuplicateLeaf (nothing written),
        OutcomeUnknown (fatal to the sequencer) or StoreUnavailable (nothing written).
        """

    async def fence(self, log_id: int, expected: Head) -> Head:
        """Raise the epoch of the head by one, if it is still `expected`, and return it.

        When it returns, the head it returned is durable, and no append that expects an older epoch can succeed. Raises
        as append.
        """

    async def adopt(self, log_id: int, expected: Head, guard_id: str) -> Head:
        """As fence, and the head names another guard: no writer with the old one can append any more."""


class Reads(Protocol):
    """Reads. What they return was committed, and no later call ever returns less of it."""

    async def head(self, log_id: int) -> Head:
        """Return the head row, from the primary."""

    async def tiles(self, log_id: int, tiles: Sequence[Tile]) -> dict[tuple[int, int], bytes]:
        """Return the stored bytes of these tiles by (level, index), as wide as they are by now.

        Absent ones are left out.
        """

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
        """Return what is stored, and not expired at `now`, under these (caller, Idempotency-Key).

        `session` as in find_leaves().
        """

    async def clock(self) -> int:
        """Return the database's clock."""
