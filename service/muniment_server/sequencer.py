"""The sequencer of one log: gives entries their index, commits, and signs. The only module that signs.

One batch at a time goes through :meth:`Sequencer.run`: look up what is known, stamp, grow, commit by compare-and-swap, read back
and recompute, record in the guard, sign. Nothing signed leaves before commit and guard are durable.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from muniment import strictjson
from muniment.checkpoint import Checkpoint, sign_checkpoint
from muniment.errors import BadProof
from muniment.event import RESERVED_PREFIX, format_time
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, LeafHash, RootHash, leaf_hash, node_hash
from muniment.note import SigningKey
from muniment.tiles import Tile
from muniment.tree import Edge, Growth, expand, grow, hash_in, partial_tiles, place, plan_root
from muniment_server.admission import EventDraft, RawDraft, Refused
from muniment_server.guard import Guard, Guarded, GuardRefused
from muniment_server.storage import (
    Grown,
    Head,
    HeadMoved,
    IdempotencyRow,
    LogRow,
    NewEntry,
    OutcomeUnknown,
    Store,
    StoredKey,
    StoreError,
    leaf_key,
)

MAX_SKEW = 5_000
"""Milliseconds this clock and the database's may differ."""
MAX_BEHIND = 60_000
"""Milliseconds this clock may be behind the last entry's time; beyond, time would stand still for too long."""
_TRIES = 100


class ReadOnly(Exception):
    """This process must not write the log. `code` is stable; the message says why and what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ClockRefused(Exception):
    """This clock is not to be trusted with time stamps."""


@dataclass(frozen=True, slots=True)
class OwnDraft:
    """An entry the log makes itself: `typ` after ``muniment/``, and its members but typ and logged_at."""

    typ: str
    members: dict[str, object]

    def leaf(self, logged_at: str) -> bytes:
        """Return the leaf as of `logged_at` (24 characters)."""
        return strictjson.canonical({**self.members, "logged_at": logged_at, "typ": RESERVED_PREFIX + self.typ})


Draft = RawDraft | EventDraft | OwnDraft


@dataclass(frozen=True, slots=True)
class Submission:
    """What one request wants appended, all or nothing. `key` is its Idempotency-Key, unique for `caller`."""

    drafts: Sequence[Draft]
    caller: str = ""
    key: str | None = None

    @property
    def size(self) -> int:
        """Bytes this submission holds in memory, roughly."""
        return sum(
            len(d.leaf) if isinstance(d, RawDraft) else 4 * len(d.payload)
            for d in self.drafts
            if not isinstance(d, OwnDraft)
        )

    def fingerprint(self, seed: bytes) -> bytes:
        """Return what tells this body from another one, keyed so that it says nothing without the seed."""
        return hmac.digest(seed, b"\n".join(d.payload for d in self.drafts if isinstance(d, EventDraft)), "sha256")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed head."""

    size: int
    root: RootHash
    note: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the entries of one submission are, at a signed head that holds them all.

    `indices` and `leaves` have one element for each draft; `new` counts the entries this submission added. `growth` has the hashes
    for proofs of new entries; `replayed` says that an Idempotency-Key led to entries of an earlier submission.
    """

    indices: Sequence[int]
    leaves: Sequence[bytes]
    new: int
    signed: Signed
    growth: Growth | None = None
    replayed: bool = False


@dataclass(slots=True)
class _State:
    """What this process knows of the log. `signed` is None for a head that no clean reply of ours made durable."""

    head: Head
    edge: Edge
    signed: Signed | None


@dataclass(slots=True)
class _Round:
    """One try to append a batch."""

    first: int
    stamp: str
    entries: list[NewEntry] = field(default_factory=list)
    hashes: list[LeafHash] = field(default_factory=list)
    keys: list[IdempotencyRow] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)  # raw leaves by their bytes: where they are

    def add(self, leaf: bytes, value: LeafHash, draft: Draft) -> int:
        payload, seed = (draft.payload, draft.seed) if isinstance(draft, EventDraft) else (None, None)
        self.entries.append(NewEntry(leaf, leaf_key(value), payload, seed))
        self.hashes.append(value)
        return self.first + len(self.entries) - 1


class Sequencer:
    """Owns the head of one log in this process. Only the task that calls :meth:`run` touches its state."""

    def __init__(
        self,
        store: Store,
        log: LogRow,
        key: SigningKey,
        guard: Guard,
        idempotency_ttl: int = 86_400,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._log = log
        self._key = key
        self._guard = guard
        self._ttl = idempotency_ttl * 1000
        self._clock = clock
        self._state: _State | None = None
        self._signed_edge: Edge | None = None  # for readers, also while the next batch is being stored
        self.skew = 0  # milliseconds the database's clock is ahead of ours; set by the log's housekeeping
        self.signed: Signed | None = None  # the last head this process signed; never goes back
        self.on_signed: Callable[[], None] = lambda: None  # a new head to publish; set by the log
        self.on_refusal: Callable[[ReadOnly], None] = lambda _: None  # tells the operator; set by the log
        self.refusal: ReadOnly | None = None  # once set, nothing is signed until a restart

    # --- recovery -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Check the stored log against the guard, make its head durable, and sign it. Sets `refusal` instead of raising it.

        Raises StoreError when the database cannot be read: try again.
        """
        try:
            await self._signed_state()
        except ReadOnly:
            return

    async def _signed_state(self) -> tuple[_State, Signed]:
        """Return a state whose head is signed: fenced first, when no clean reply of ours made it durable."""
        state = await self._current()
        while state.signed is None:
            try:
                state.head = await self._store.fence(self._log.log_id, state.head)
            except HeadMoved:
                state = await self._load()
                continue
            except OutcomeUnknown:
                self._state = None
                raise
            state.signed = await self._sign(state.head)
            self._signed_edge = state.edge
        return state, state.signed

    async def _current(self) -> _State:
        if self.refusal:
            raise self.refusal
        return self._state or await self._load()

    async def _load(self) -> _State:
        """Read guard, head and edge, and prove that the stored tree extends the guarded one. Raises ReadOnly, StoreError."""
        self._state = None
        try:
            guarded = await asyncio.to_thread(
                self._guard.read
            )  # before the head: it may only fall behind, never run ahead
            head = await self._store.head(self._log.log_id)
            self._check_guard(guarded, head)
            edge = await self._checked_edge(head, guarded.size, guarded.root)
        except GuardRefused as error:
            raise self._refuse(error.code, str(error)) from error
        self._state = _State(head, edge, None)
        return self._state

    def _check_guard(self, guarded: Guarded, head: Head) -> None:
        path = self._guard.path
        if (guarded.origin, guarded.key_id) != (self._log.origin, self._key.vkey.key_id):
            raise GuardRefused(
                "guard_foreign",
                f"{path} guards {guarded.origin!r} with key {guarded.key_id.hex()}, not this log and key: put the right files back",
            )
        if guarded.guard_id != head.guard_id:
            raise GuardRefused(
                "guard_foreign", f"the database names another guard than {path}: put the right guard or database back"
            )
        if guarded.size > head.size:
            raise GuardRefused(
                "database_behind",
                f"the database has {head.size} entries, but a head of {guarded.size} may have been signed: "
                "it is an old copy. Restore a newer one; signing now would fork the log",
            )

    async def _checked_edge(self, head: Head, guarded_size: int, guarded_root: RootHash) -> Edge:
        wanted = set(partial_tiles(head.size))
        if guarded_size:
            wanted.update(plan_root(guarded_size).tiles(guarded_size))
        stored = await self._store.tiles(self._log.log_id, sorted(wanted))
        try:
            edge = Edge.of(head.size, stored)
            old_root = _root_at(guarded_size, stored)
        except (BadProof, AssertionError, KeyError, IndexError) as error:
            raise GuardRefused(
                "database_damaged", f"tiles are missing or too short ({error}): run `muniment-server fsck`"
            ) from error
        if edge.root() != head.root:
            raise GuardRefused(
                "database_damaged",
                "the stored tiles do not hash to the stored root: run `muniment-server fsck`",
            )
        if old_root != guarded_root:
            raise GuardRefused(
                "guard_root",
                f"the stored tree of size {guarded_size} is not the one that was signed: another history. "
                "Restore the right database; signing now would fork the log",
            )
        return edge

    def _refuse(self, code: str, detail: str) -> ReadOnly:
        self._state = None
        self.refusal = ReadOnly(code, detail)
        self.on_refusal(self.refusal)
        return self.refusal

    # --- sequencing -----------------------------------------------------------------------------------------------------

    async def run(self, batch: Sequence[Submission]) -> list[Outcome | Refused]:
        """Append a batch; the answers are in its order.

        Raises ReadOnly, ClockRefused, StoreUnavailable (nothing written) or OutcomeUnknown (perhaps written: retries are safe).
        """
        for _ in range(_TRIES):
            state = await self._current()
            found = await self._look_up(batch, state.head)
            if found is None:
                await self._load()  # an entry beyond our head: another writer was here
                continue
            stamp = self._stamp(state.head)
            round_ = _Round(state.head.size, format_time(stamp), known=found[0])
            answers = [self._assign(round_, submission, found[1], stamp) for submission in batch]
            if not round_.entries:
                _, signed = await self._signed_state()
                return [self._outcome(answer, signed, None) for answer in answers]
            try:
                signed, growth = await self._commit(state, round_, stamp)
            except HeadMoved:
                await self._load()
                continue
            return [self._outcome(answer, signed, growth) for answer in answers]
        raise StoreError(f"other writers won {_TRIES} times in a row")

    async def _look_up(
        self, batch: Sequence[Submission], head: Head
    ) -> tuple[dict[bytes, int], dict[tuple[str, str], StoredKey]] | None:
        """Return known raw leaves and used Idempotency-Keys as of `head`; None when the database is ahead of it."""
        raw = {draft.leaf: leaf_key(draft.hash) for s in batch for draft in s.drafts if isinstance(draft, RawDraft)}
        used = [(s.caller, s.key) for s in batch if s.key is not None]
        leaves: dict[bytes, int] = {}
        if raw:
            for index, leaf in await self._store.find_leaves(self._log.log_id, sorted(set(raw.values()))):
                if leaf in raw:  # the key is only 8 bytes of the hash; the whole leaf decides
                    leaves.setdefault(leaf, index)
        now = int(self._clock() * 1000)
        keys = (
            {(k.row.caller, k.row.key): k for k in await self._store.find_keys(self._log.log_id, used, now)}
            if used
            else {}
        )
        ahead = any(index >= head.size for index in leaves.values()) or any(
            k.row.first_index >= head.size for k in keys.values()
        )
        return None if ahead else (leaves, keys)

    def _stamp(self, head: Head) -> int:
        now = int(self._clock() * 1000)
        if abs(self.skew) > MAX_SKEW:
            raise ClockRefused(f"this clock and the database's differ by {abs(self.skew) / 1000:.1f} s")
        if head.logged_at - now > MAX_BEHIND:
            raise ClockRefused(f"this clock is {(head.logged_at - now) / 1000:.0f} s behind the last entry")
        return max(now, head.logged_at)

    def _assign(
        self, round_: _Round, submission: Submission, used: dict[tuple[str, str], StoredKey], stamp: int
    ) -> Outcome | Refused:
        """Give each draft its index. The Outcome still lacks its signed head."""
        stored = used.get((submission.caller, submission.key)) if submission.key is not None else None
        if stored is not None:
            return _replay(submission, stored)
        before = len(round_.entries)
        placed = [self._place(round_, draft) for draft in submission.drafts]
        new = len(round_.entries) - before
        first = submission.drafts[0]
        if submission.key is not None and isinstance(first, EventDraft):
            mark = submission.fingerprint(first.seed)
            row = IdempotencyRow(submission.caller, submission.key, mark, placed[0][0], new, stamp + self._ttl)
            round_.keys.append(row)
        return Outcome([index for index, _ in placed], [leaf for _, leaf in placed], new, _UNSIGNED)

    @staticmethod
    def _place(round_: _Round, draft: Draft) -> tuple[int, bytes]:
        if isinstance(draft, RawDraft):
            index = round_.known.get(draft.leaf)
            if index is None:
                index = round_.known[draft.leaf] = round_.add(draft.leaf, draft.hash, draft)
            return index, draft.leaf
        leaf = draft.leaf(round_.stamp)
        return round_.add(leaf, leaf_hash(leaf), draft), leaf

    async def _commit(self, state: _State, round_: _Round, stamp: int) -> tuple[Signed, Growth]:
        """Store the round and sign its head. From the commit on, any error drops the state: nothing is known until a reload."""
        growth = grow(state.edge, round_.hashes)
        old = state.head
        head = Head(growth.edge.size, growth.edge.root(), stamp, old.epoch, old.guard_id)
        grown = Grown(self._log.log_id, head, round_.entries, growth.tiles, round_.keys)
        self._state = None
        await self._store.append(grown, old)
        try:
            await self._read_back(head)
            signed = await self._sign(head)
        except StoreError as error:
            raise OutcomeUnknown(f"stored, but not read back: {error}") from error
        self._state = _State(head, growth.edge, signed)
        self._signed_edge = growth.edge
        return signed, growth

    async def _read_back(self, head: Head) -> None:
        """Recompute the root from the stored right edge, by another path than the one that made it. Raises ReadOnly."""
        stored = await self._store.tiles(self._log.log_id, [tile for tile in partial_tiles(head.size) if tile.width])
        if _root_by_pairs(head.size, stored) != head.root:
            raise self._refuse(
                "database_damaged",
                "what was stored does not hash to the root that was to be signed: nothing was signed",
            )

    async def _sign(self, head: Head) -> Signed:
        """Sign a durable head, once the guard has it. Raises ReadOnly."""
        try:
            await asyncio.to_thread(self._guard.record, head.guard_id, head.size, head.root)
        except GuardRefused as error:
            raise self._refuse(error.code, str(error)) from error
        note = str(sign_checkpoint(Checkpoint(self._log.origin, head.size, head.root), self._key))
        self.signed = Signed(head.size, head.root, note)
        self.on_signed()
        return self.signed

    @staticmethod
    def _outcome(answer: Outcome | Refused, signed: Signed, growth: Growth | None) -> Outcome | Refused:
        if isinstance(answer, Refused):
            return answer
        return Outcome(answer.indices, answer.leaves, answer.new, signed, growth, answer.replayed)

    def edge(self) -> Edge | None:
        """Return the right edge as of the last head signed here, or None while there is none."""
        return self._signed_edge


_UNSIGNED = Signed(0, EMPTY_ROOT, "")


def _replay(submission: Submission, stored: StoredKey) -> Outcome | Refused:
    row = stored.row
    if stored.seed is None or not hmac.compare_digest(submission.fingerprint(stored.seed), row.fingerprint):
        return Refused(
            422,
            "idempotency_mismatch",
            "this Idempotency-Key was used for another body",
            "Use a new key for a new event; repeat a request with exactly the same body.",
        )
    return Outcome(range(row.first_index, row.first_index + row.count), (), 0, _UNSIGNED, replayed=True)


def _root_at(size: int, stored: dict[tuple[int, int], bytes]) -> RootHash:
    """Return the root of `size` from stored tiles, which may be wider by now."""
    if not size:
        return EMPTY_ROOT
    rows = {where: expand(data) for where, data in stored.items()}

    def lookup_in(node: tuple[int, int]) -> bytes:
        level, index, row, position = place(node)  # type: ignore[arg-type]
        return hash_in(rows[level, index], row, position)

    return RootHash(plan_root(size).fold(lookup_in)[0])


def _root_by_pairs(size: int, stored: dict[tuple[int, int], bytes]) -> bytes:
    """Return the root of `size` by pairing hashes level by level: another path than that of grow and Edge.root.

    Takes the partial tiles; at each tile level what the levels below amount to stands behind the tile's own hashes.
    """
    below: list[bytes] = []
    for tile in partial_tiles(size):
        data = _cut(stored.get((tile.level, tile.index), b""), tile)
        hashes = [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)] + below
        while len(hashes) > 1:
            odd = hashes[-1:] if len(hashes) % 2 else []
            hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=False)] + odd
        below = hashes
    return below[0] if below else b""


def _cut(data: bytes, tile: Tile) -> bytes:
    return data[: tile.width * HASH_SIZE]
