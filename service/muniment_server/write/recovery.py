"""Reads a stored log, and proves that it may be extended: at the start, and when what was known of it was dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from muniment.note import VerifierKey
from muniment.tree import Edge
from muniment_server.errors import GuardRefused, GuardUnavailable, Mismatch, ReadOnly
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Head
from muniment_server.write import recheck, startup
from muniment_server.write.guard import Guard, TreeHead
from muniment_server.write.observer import Observer
from muniment_server.write.refusal import RefusalState
from muniment_server.write.submission import Signed


@dataclass(slots=True)
class State:
    """What this process knows of the log. `signed` is None for a head that no clean reply of ours made durable.

    `stored` is the right edge as it was read back and found to hash to the head's root. `token` is the head that the
    guard held when it was last proved to be a prefix of `head`.
    """

    head: Head
    edge: Edge
    stored: recheck.StoredTiles
    signed: Signed | None
    token: TreeHead


class Recovery:
    """Loads the state of one log. The sequencer's task calls it; `note` writes a line of the trace."""

    def __init__(
        self,
        store: Store,
        log: LogRow,
        vkey: VerifierKey,
        guard: Guard,
        witnessed: startup.Witnessed,
        refusals: RefusalState,
        observer: Observer,
        note: Callable[..., None],
    ) -> None:
        self._reads = store.reads
        self._writes = store.log
        self._log = log
        self._vkey = vkey
        self._guard = guard
        self._witnessed = witnessed
        self._refusals = refusals
        self._observer = observer
        self._note = note
        self._asked = False  # the witnesses, since this process started
        self._session: int | None = None  # the one that the log was read in last

    async def load(self, *, doubted: bool) -> State:
        """Read guard, head and edge, and prove that the stored tree extends the guarded one.

        Raises ReadOnly, StoreError. `doubted`: what was known before may have come from another database.
        """
        state = await self._proved()
        self._refusals.check_final()  # withdrawn meanwhile
        if doubted or self._refusals.current or self._session not in (None, state.head.session):
            self._observer.moved()
        self._session = state.head.session
        self._refusals.end()
        self._note("load", size=state.head.size, root=state.head.root, epoch=state.head.epoch)
        return state

    async def _proved(self) -> State:
        """Return a state that is proved, or refuse.

        During a fail-over guard, head and tiles may have come from servers of different times, and a bit may flip on
        the way: that is no reason to refuse for good. So what does not fit is read once more, over a new connection.
        """
        try:
            with contextlib.suppress(GuardRefused, Mismatch):
                return await self._read()
            await self._writes.reconnect(self._log.log_id)
            return await self._read()
        except GuardUnavailable as error:
            raise self._refusals.refuse(ReadOnly("guard_locked", str(error), look_again=True)) from error
        except GuardRefused as error:
            raise self._refusals.refuse(ReadOnly(error.code, str(error), look_again=True)) from error
        except Mismatch as error:
            detail = f"{error} (from entry {error.index}): run `muniment-server fsck`"
            raise self._refusals.refuse(ReadOnly("database_damaged", detail, look_again=True)) from error

    async def _read(self) -> State:
        # load:    g = guard.read(); h = store.head(); tiles = ONE read: right edge of h and the proof from g to h;
        #          require root(edge) == h and g <= h; token = g
        # The guard before the head: so the head may only seem to run ahead, never to fall behind.
        guarded = await asyncio.to_thread(self._guard.read)
        head = await self._writes.head_to_extend(self._log.log_id)
        startup.check_guard(self._guard.path, guarded, self._log.origin, self._vkey.key_id, head)
        edge = await startup.prove(self._reads, self._log.log_id, head, guarded)
        if not self._asked:
            await startup.check_seen(self._reads, self._log.log_id, head, await self._witnessed())
        self._asked = True
        return State(head, Edge.of(head.size, edge), edge, None, guarded.head)
