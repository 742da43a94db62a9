"""Publishes what was signed: the latest signed checkpoint becomes the published one, at most once in an interval.

docs/decisions/0006 says why these are two things. Every writer publishes, without a lease: a head that another writer
signed is published by that one, and a smaller one replaces nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from muniment.tree import Edge, partial_tiles
from muniment_server.errors import OtherTree
from muniment_server.failpoints import step
from muniment_server.follow.follower import Follower, Retry
from muniment_server.read.heads import Heads
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import EdgeTile, Published
from muniment_server.telemetry import Metrics
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Signed

_RETRY_SECONDS = 0.25
_PUBLISH_EARLY = 0.8


class Publisher:
    """Publishes for one log. Its follower is woken with each signature; `note` writes a line of the trace."""

    def __init__(
        self,
        store: Store,
        row: LogRow,
        sequencer: Sequencer,
        heads: Heads,
        metrics: Metrics,
        interval: float,
        note: Callable[..., None],
    ) -> None:
        """Make it. `interval` is the seconds within which a signed head is to be published."""
        self._checkpoints = store.checkpoints
        self._row = row
        self._sequencer = sequencer
        self._heads = heads
        self._metrics = metrics
        self._interval = interval
        self._note = note
        self.last: Signed | None = None  # what this process published last
        retry = Retry("publishing failed", _RETRY_SECONDS)
        self.follower = Follower("publisher", row.name, self.run_once, retry, on_wake=True)

    async def run_once(self) -> float:
        """Publish, if there is something new, and return how many seconds to rest. Raises StoreError."""
        started = time.monotonic()
        if not await self.publish():
            return 0.0
        return rest(self._interval, time.monotonic() - started)

    @step("log.publish")
    async def publish(self) -> bool:
        """Publish the last signed head, unless there is nothing new; tell whether there was. Raises StoreError.

        Raises OtherTree, with nothing published, when the database does not hold the tree of that head.
        """
        # publish: in its statement the stored tiles begin with the signed right edge, else drop state through the
        # sequencer's task
        if not (signed := self._sequencer.signed) or signed is self.last:
            return False
        one, edge = Published(signed.size, signed.note, time.time_ns() // 1_000_000), self._sequencer.edge()
        try:
            larger = await self._checkpoints.publish(self._row.log_id, one, edge_tiles(edge) if edge else ())
        except OtherTree:
            self._heads.fell_behind()  # what was proved of the database no longer holds; nothing was published
            raise
        self._note("publish", size=signed.size, root=signed.root, larger=larger)
        self.last = signed  # also when another writer published a larger one
        if larger:
            self._heads.saw(signed.size)
        self._metrics.published_size.labels(self._row.name).set(signed.size)
        return True


def rest(interval: float, took: float) -> float:
    """Return how many seconds to rest after a publication that `took` so long.

    What was signed just after it is still to be out within the interval: leave time for its publication, and for a loop
    that is late because it is busy.
    """
    return max(_PUBLISH_EARLY * interval - 2 * took, 0.0)


def edge_tiles(edge: Edge) -> list[EdgeTile]:
    """Return the tiles of a right edge that hold something."""
    return [
        (tile.level, tile.index, bytes(edge.levels[tile.level][0])) for tile in partial_tiles(edge.size) if tile.width
    ]
