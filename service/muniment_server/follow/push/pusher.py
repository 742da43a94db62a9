"""Pushes the entries of one log to one sink: cuts a batch, stores its borders, has it taken, and moves the cursor."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from muniment_server.errors import NotTaken, Refused, StoreError
from muniment_server.follow.follower import Follower, Retry
from muniment_server.follow.lease import Lease, now
from muniment_server.follow.push.batch import Target
from muniment_server.follow.push.cutting import MOST_LOOKED, Cutting, Pushable
from muniment_server.sinks import Sink
from muniment_server.storage import Store
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.sinks import SinkState
from muniment_server.telemetry import Metrics, get_logger

_REST_SECONDS = 0.3
_LOOK_SECONDS = 1.0
"""How often a sink that waits is looked at: `push retry` has it wait no longer."""
_RETRY_SECONDS = 2.0
_BUG_SECONDS = 60.0
_LONGEST = 300.0
_LONGEST_ASKED = 3600.0
_LEASE = 5_000
"""Milliseconds. Without it two servers would send each batch twice; under one id, and in order, all the same."""
_RENEW_SECONDS = 1.0


def delay(failures: int, asked: float = 0.0) -> float:
    """Return the seconds until the next try after so many that failed, of which the receiver may ask for more."""
    own = min(2.0 ** min(failures - 1, 20), _LONGEST) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
    return max(own, min(asked, _LONGEST_ASKED))


def trouble(sink: Sink, state: SinkState, size: int) -> str:
    """Return why a sink cannot go on before an operator acts; empty when nothing stands in its way."""
    if state.mark != sink.mark():
        return "kind, query, payloads or receipts are others than when this sink was begun: give it another name"
    if state.start > size or state.tree_size > size:
        return f"it took {state.start} entries, and the log has {size} published: an older database was put back"
    return ""


class Pusher:
    """The follower of one sink. One process works for it, by a lease; each shows how far it is.

    Of two that work all the same, one stores where a batch ends, and both send that one: the cursor is moved by
    compare-and-swap.
    """

    def __init__(
        self,
        store: Store,
        log: Pushable,
        name: str,
        sink: Sink,
        target: Target,
        metrics: Metrics,
        clock: Callable[[], int] = now,
    ) -> None:
        self._sinks = store.sinks
        self._log = log
        self._name = name
        self._sink = sink
        self._target = target
        self._clock = clock
        self._cutting = Cutting(log, name, sink)
        self._log_id = log.row.log_id
        self._looked = 0  # as the cursor's, but not stored each time
        self._told = ""
        labels = (log.row.name, name)
        self._lag = metrics.push_lag.labels(*labels)
        self._oldest = metrics.push_oldest.labels(*labels)
        self._failures = metrics.push_failures.labels(*labels)
        self._size = metrics.push_size.labels(*labels)
        self.lease = Lease(store, self._log_id, f"push/{name}", lasts=_LEASE)
        retry = Retry(f"pushing to sink {name} failed", _RETRY_SECONDS, (StoreError, Refused), _BUG_SECONDS)
        self._follower = Follower(f"sink {name}", log.row.name, self.run_once, retry, first=0.5)

    def start(self) -> None:
        """Begin."""
        self._follower.start()

    async def close(self) -> None:
        """Stop, in the middle of a batch if need be, and let another process go on."""
        await self._follower.close()
        with contextlib.suppress(StoreError):
            await self.lease.release()

    async def run_once(self) -> float:
        """Cut or send one batch, if this process is the one that does; return how many seconds to rest.

        Raises StoreError or Refused.
        """
        published = await self._log.heads.published()
        state = await self._sinks.sink(self._log_id, self._name)
        if state is None and published.size < self._sink.start:
            return _REST_SECONDS  # there is nothing for it yet
        state = state or await self._begin(published.size)
        await self._show(state, published.size)
        return await self._go_on(state, published)

    async def _go_on(self, state: SinkState, published: Published) -> float:
        if self._log.refusal or not self._may(state, published.size):  # the first: it may not be what was signed
            return _RETRY_SECONDS
        wait = (state.next_at - self._clock()) / 1000
        if 0 < wait <= _LONGEST_ASKED:  # beyond that, the clock was ahead when the last try failed
            return min(wait, _LOOK_SECONDS)
        if not state.under_way and max(state.looked, self._looked) >= published.size:
            return _REST_SECONDS
        if not await self.lease.take():
            return _RETRY_SECONDS
        if not state.under_way:
            return await self._cut(state, published)
        return await self._send(state)

    async def _begin(self, size: int) -> SinkState:
        start = self._sink.start
        state = SinkState(self._name, self._sink.mark(), start, start, start, size, 0, 0, self._clock())
        await self._sinks.begin_sink(self._log_id, state)
        found = await self._sinks.sink(self._log_id, self._name)
        if found is None:
            raise AssertionError("a cursor that was stored is gone")
        return found

    def _may(self, state: SinkState, size: int) -> bool:
        """Tell whether the sink can go on, and tell the operator once if not."""
        was, self._told = self._told, trouble(self._sink, state, size)
        if self._told and self._told != was:
            get_logger().error("a sink cannot go on", log=self._log.row.name, sink=self._name, detail=self._told)
        return not self._told

    async def _show(self, state: SinkState, size: int) -> None:
        """Say how far the sink is, and since when an entry waits for it."""
        at = max(state.looked, self._looked) if not state.under_way else state.start
        self._size.set(state.start)
        self._lag.set(max(size - at, 0))
        covering = await self._log.heads.checkpoints(at + 1, 1) if at < size else []
        self._oldest.set(covering[0].published_at / 1000 if covering else 0)

    # --- a batch ------------------------------------------------------------------------------------------------------

    async def _cut(self, state: SinkState, published: Published) -> float:
        """Store where the next batch ends: from then on it is the same one, whatever happens."""
        looked = max(state.looked, self._looked)
        found = await self._cutting.cut(looked, published.size)
        if found.lines:
            cut = replace(state, looked=looked, stop=found.stop, tree_size=published.size)
            return 0.0 if await self._sinks.move_sink(self._log_id, state, cut) else _REST_SECONDS
        self._looked = found.stop
        if found.stop - state.looked >= MOST_LOOKED:  # otherwise each publication would be a write
            seen = replace(state, looked=found.stop, stop=state.start)
            await self._sinks.move_sink(self._log_id, state, seen)
        return 0.0 if found.stop < published.size else _REST_SECONDS

    async def _send(self, state: SinkState) -> float:
        """Have the batch under way taken, and move the cursor behind it."""
        try:
            batch = await self._cutting.batch(state.start, state.looked, state.stop, state.tree_size)
            await self._leased(self._target.take(batch))
        except NotTaken as error:
            await self._failed(state, error)
            return 0.0
        moved = replace(state, start=state.stop, looked=state.stop, moved_at=self._clock())
        moved = replace(moved, failures=0, next_at=0, last_error="")
        if not await self._sinks.move_sink(self._log_id, state, moved):
            return _REST_SECONDS
        if state.failures:
            get_logger().info("a sink takes entries again", log=self._log.row.name, sink=self._name)
        return 0.0

    async def _leased(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, and keep the lease meanwhile."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=_RENEW_SECONDS))[0]:
                with contextlib.suppress(StoreError):
                    await self.lease.take()
            task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _failed(self, state: SinkState, error: NotTaken) -> None:
        self._failures.inc()
        failures = state.failures + 1
        seconds = delay(failures, error.after)
        if failures == 1:
            get_logger().warning("a sink takes nothing", log=self._log.row.name, sink=self._name, error=str(error))
        later = replace(
            state, failures=failures, next_at=self._clock() + int(1000 * seconds), last_error=str(error)[:300]
        )
        await self._sinks.move_sink(self._log_id, state, later)
