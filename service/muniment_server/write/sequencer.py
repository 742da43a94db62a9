"""The sequencer of one log: gives entries their index, commits, and signs. The only module that signs.

One batch at a time goes through :meth:`Sequencer.run`: look up what is known, stamp, grow, commit by compare-and-swap,
read back and recompute, raise the guard, sign. Nothing signed leaves before commit and guard are durable.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from muniment.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from muniment.errors import FormatError, VerificationError
from muniment.event import format_time
from muniment.note import SigningKey, parse_note, verify_note
from muniment.tree import Edge, Growth
from muniment_server.errors import (
    DuplicateLeaf,
    GuardRefused,
    HeadMoved,
    Mismatch,
    OutcomeUnknown,
    ReadOnly,
    Refused,
    Replaced,
    SessionLost,
    StoreError,
)
from muniment_server.failpoints import step
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Grown, Head, Reread, leaf_keys_of
from muniment_server.trace import Trace
from muniment_server.write import lookup, parts, recheck, startup
from muniment_server.write.clock import Clock
from muniment_server.write.guard import Guard, TreeHead
from muniment_server.write.observer import Observer, Unobserved
from muniment_server.write.raising import raise_guard
from muniment_server.write.receipts import ReceiptBuilder
from muniment_server.write.recovery import Recovery, State
from muniment_server.write.refusal import RefusalState
from muniment_server.write.submission import Outcome, Round, Signed, Submission, sign_off

_TRIES = 100
_CAREFUL = 32
"""Batches that are looked up before they are appended, once one held a leaf that is known."""


class Sequencer:
    """Owns the head of one log in this process.

    Only the task that calls :meth:`run` and :meth:`start` touches its state.
    """

    def __init__(
        self,
        store: Store,
        log: LogRow,
        key: SigningKey,
        guard: Guard,
        idempotency_ttl: int = 86_400,
        clock: Clock | None = None,
        trace: Trace | None = None,
        observer: Observer | None = None,
        witnessed: startup.Witnessed = startup.no_witnesses,
    ) -> None:
        """Make it. `clock` stamps entries; the default one sees no jumps."""
        self._reads = store.reads
        self._writes = store.log
        self._log = log
        self._key = key
        self._guard = guard
        self._ttl = idempotency_ttl * 1000
        self.clock = clock or Clock()
        self._trace = trace
        self._observer = observer or Unobserved()
        self._refusals = RefusalState(self._observer, self._note)
        self._recovery = Recovery(store, log, key.vkey, guard, witnessed, self._refusals, self._observer, self._note)
        self._state: State | None = None
        self._doubted = False  # set by others: what is known of the log may not be what is stored
        self._careful = 0  # batches to look up first; otherwise the append itself finds leaves that are known
        self._signed_edge: Edge | None = None  # for readers, also while the next batch is being stored
        self.races_lost = 0  # how often another writer was quicker
        self.signed: Signed | None = None  # the last head this process signed; never goes back

    # --- refusal and recovery -----------------------------------------------------------------------------------------

    @property
    def refusal(self) -> ReadOnly | None:
        """Why nothing is signed, or None."""
        return self._refusals.current

    @property
    def lost(self) -> bool:
        """Tell whether the state was dropped after an error, and :meth:`start` has to read it again."""
        if self._refusals.current:
            return self._refusals.is_due
        return self._state is None or self._doubted

    @property
    def clock_doubt(self) -> str | None:
        """Why the next entries would get no time, as far as is known, or None."""
        return self.clock.doubt(self._state.head.logged_at) if self._state else None

    @property
    def next_look(self) -> float | None:
        """Seconds until a refusal is looked at again; None when there is no need to."""
        return self._refusals.next_look

    def doubt(self) -> None:
        """Have everything read and proved again before anything else is sequenced.

        For other tasks, which must not touch the state.
        """
        self._doubted = True

    def withdraw(self, refusal: ReadOnly) -> None:
        """Sign nothing any more. For other tasks."""
        self._refuse(refusal)

    async def start(self) -> None:
        """Check the stored log against the guard, make its head durable, and sign it.

        Sets `refusal` instead of raising it. Raises StoreError when the database cannot be read: try again.
        """
        try:
            await self._signed_state()
        except Replaced as error:
            self._refuse(ReadOnly("database_replaced", str(error)))
        except ReadOnly:
            return

    async def _signed_state(self) -> tuple[State, Signed]:
        """Return a state whose head is signed: fenced first, when no clean reply of ours made it durable."""
        state = await self._current()
        while state.signed is None:
            try:
                self._state = None  # until the fence is known to be up
                state.head = await self._writes.fence(self._log.log_id, state.head)
            except (HeadMoved, SessionLost):
                state = await self._load()
                continue
            self._note("fence", size=state.head.size, root=state.head.root, epoch=state.head.epoch)
            state.signed, state.token = await self._sign(state.head, state.edge, state.token, {state.token})
            self._state = state
        return state, state.signed

    async def _current(self) -> State:
        if self._refusals.current and not self.lost:
            raise self._refusals.current
        return await self._load() if self._state is None or self._doubted else self._state

    @step("sequencer.load")
    async def _load(self) -> State:
        """See :meth:`Recovery.load`."""
        doubted, self._state, self._doubted = self._doubted, None, False
        self._state = await self._recovery.load(doubted=doubted)
        return self._state

    def _refuse(self, refusal: ReadOnly) -> ReadOnly:
        self._state = None
        return self._refusals.refuse(refusal)

    def _note(self, event: str, **values: Any) -> None:
        if self._trace:
            self._trace(self._log.name, event, **values)

    # --- sequencing ---------------------------------------------------------------------------------------------------

    async def run(self, batch: Sequence[Submission]) -> list[Outcome | Refused]:
        """Append a batch; the answers are in its order.

        Raises ReadOnly, ClockRefused, StoreUnavailable (nothing written) or OutcomeUnknown (perhaps written: retries
        are safe).
        """
        try:
            return await self._run(batch)
        except Replaced as error:
            raise self._refuse(ReadOnly("database_replaced", str(error))) from error

    async def _run(self, batch: Sequence[Submission]) -> list[Outcome | Refused]:
        for _ in range(_TRIES):
            state = await self._current()
            try:
                found = await self._look_up(batch, state.head)
            except SessionLost:
                found = None
            if found is None:
                await self._load()  # an entry beyond our head: another writer was here; or perhaps another database
                continue
            leaves, keys = found
            stamp = self.clock.stamp(state.head.logged_at)
            round_ = Round(state.head.size, stamp, format_time(stamp), leaves)
            answers = await parts.assign(batch, round_, keys, self._ttl)
            await parts.yield_to_loop(len(round_.leaves))
            try:
                if not round_.leaves:
                    return sign_off(answers, await self._signed_at(state), None)
                signed, growth = await self._commit(state, round_)
            except DuplicateLeaf:
                self._state, self._careful = state, _CAREFUL  # nothing was written
                continue
            except HeadMoved:
                self.races_lost += 1
                self._note("moved", size=state.head.size)
                await self._load()
                continue
            except SessionLost:
                self._note("moved", size=state.head.size)
                await self._load()
                continue
            self._careful = max(self._careful - 1, 0)
            return sign_off(answers, signed, ReceiptBuilder(self._log.origin, growth, signed.note))
        raise StoreError(f"other writers won {_TRIES} times in a row")

    async def _signed_at(self, state: State) -> Signed:
        """Return the signed head of the state that known entries were looked up at.

        Raises SessionLost: then look again. Without that, the note of one database could be answered with entries and
        tiles of another.
        """
        self._writes.check_premises(state.head)
        now, signed = await self._signed_state()
        if now is not state:
            raise SessionLost("the log was read again since its entries were looked up")
        return signed

    def _look_up(self, batch: Sequence[Submission], head: Head) -> Awaitable[lookup.Known | None]:
        """See :func:`lookup.look_up`.

        Raw leaves are looked up only after one was known lately. Mostly all are new, and the append says so when they
        are not.
        """
        now, careful = self.clock.now(), self._careful > 0
        return lookup.look_up(self._reads, self._log.log_id, batch, head, now, leaves_too=careful)

    async def _commit(self, state: State, round_: Round) -> tuple[Signed, Growth]:
        """Store the round and sign its head.

        From the commit on, any error drops the state: nothing is known until a reload.
        """
        growth = await parts.grow_edge(state.edge, round_.hashes)
        old = state.head
        # commit:  new = grow(edge); append by compare-and-swap; recheck; raise_guard(new, {token, head}); sign(new)
        head = Head(growth.edge.size, growth.edge.root(), round_.stamp, old.epoch, old.guard_id, old.session)
        self._state = None
        keys = leaf_keys_of(round_.hashes)
        grown = Grown(self._log.log_id, head, round_.leaves, keys, round_.payloads, growth.tiles, round_.keys)
        below = {state.token, TreeHead(old.size, old.root)}  # both were proved to be prefixes of what was extended
        try:
            leaves, tiles = await self._append(grown, old, round_)
            stored = await self._recheck(state, head, leaves, tiles)
            signed, token = await self._sign(head, growth.edge, state.token, below)
        except (ReadOnly, Replaced) as error:
            raise self._stored_unsigned(error) from error
        self._state = State(head, growth.edge, stored, signed, token)
        return signed, growth

    def _stored_unsigned(self, error: ReadOnly | Replaced) -> OutcomeUnknown:
        """Return what the waiters of a commit are told that must not be signed.

        Once all is well again, it may be in the log: with the refusal itself a client would log it a second time.
        """
        refusal = self._refuse(ReadOnly("database_replaced", str(error))) if isinstance(error, Replaced) else error
        return OutcomeUnknown(f"stored, but not signed: {refusal.code}: {refusal}")

    async def _append(self, grown: Grown, old: Head, round_: Round) -> Reread:
        """Store it, and return what is stored now: new leaves, tiles that got a new hash, and the right edge."""
        new = {"size": grown.head.size, "root": grown.head.root, "epoch": grown.head.epoch}
        self._note("append", old_size=old.size, old_root=old.root, leaf_hashes=round_.hashes, **new)
        # Looked up before, under a head that is still the expected one: then nothing can be known now.
        absent = grown.leaf_keys if self._log.kind == "raw" and not self._careful else ()
        began = time.perf_counter()
        try:
            reread = await self._writes.append(grown, old, absent, recheck.tiles_between(old.size, grown.head.size))
        except DuplicateLeaf:
            self._note("known", size=old.size)
            raise
        except OutcomeUnknown:
            self._note("unknown", size=grown.head.size)
            raise
        self._observer.stored(time.perf_counter() - began)
        self._note("commit", **new)
        return reread

    @step("sequencer.recheck")
    async def _recheck(
        self, state: State, head: Head, leaves: Sequence[bytes], stored: recheck.StoredTiles
    ) -> recheck.StoredTiles:
        """Recompute every new hash and the root from what was just stored, by another path; return the right edge.

        Raises ReadOnly. The leaves come from the database, too: a bit that flipped in a leaf hash is in the tiles and
        in the root as well.
        """
        old = state.head.size
        try:
            recheck.check_kept(state.stored, stored)
            recheck.check_count(old, head.size, leaves)
            for first in range(old, head.size, parts.PART):
                part = leaves[first - old : first - old + parts.PART]
                recheck.check_new(first, first + len(part), part, stored)
                await parts.yield_to_loop(len(leaves))
            recheck.check_root(head.size, head.root, stored)
            return recheck.edge_bytes(head.size, stored)
        except Mismatch as error:
            detail = (
                f"what was stored is not what was to be signed: {error} (from entry {error.index}); nothing was signed"
            )
            raise self._refuse(ReadOnly("database_damaged", detail)) from error

    async def _sign(
        self, head: Head, edge: Edge, token: TreeHead, below: Iterable[TreeHead]
    ) -> tuple[Signed, TreeHead]:
        """Sign a durable head, once the guard has it or a head that extends it; return what the guard is known to hold.

        `below` are prefixes of the head, as in :func:`raise_guard`. Raises ReadOnly or OutcomeUnknown.
        """
        new = TreeHead(head.size, head.root)
        try:
            raised = await raise_guard(self._guard, self._reads, self._log.log_id, head.guard_id, new, below)
        except GuardRefused as error:
            raise self._refuse(ReadOnly(error.code, str(error), look_again=not error.final)) from error
        # True: head = token = new.  False: head = new, token as it was.  Either way sign(new).
        self._refusals.check_final()  # withdrawn meanwhile
        note = self._signed_note(head)
        self._note("sign", size=head.size, root=head.root)
        self.signed, self._signed_edge = Signed(head.size, head.root, note), edge
        self._observer.signed()
        return self.signed, new if raised else token  # not `new`: another writer is ahead of it

    @step("sequencer.sign")
    def _signed_note(self, head: Head) -> str:
        """Return the checkpoint of a head, checked as a stranger's: a fault while signing can give away the key."""
        note = str(sign_checkpoint(Checkpoint(self._log.origin, head.size, head.root), self._key))
        try:
            parsed = parse_note(note)
            verify_note(parsed, [self._key.vkey])
            found = parse_checkpoint(parsed.text)
        except (FormatError, VerificationError) as error:
            raise self._refuse(ReadOnly("signature", f"the signed note does not verify: {error}")) from error
        if (found.origin, found.size, found.root) != (self._log.origin, head.size, head.root):
            raise self._refuse(ReadOnly("signature", "the signed note is not of the head that was to be signed"))
        return note

    def edge(self) -> Edge | None:
        """Return the right edge as of the last head signed here, or None while there is none."""
        return self._signed_edge
