"""A log with its anchorer, calendars and a chain, under a clock that the test moves: hours pass in milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx

from muniment.anchor.check import AnchorCheck, check_anchor
from muniment.anchor.header import parse_header
from muniment.anchor.sources import Found
from muniment.errors import NoHeader, SourceUnavailable
from muniment_server.follow.anchors import calendar, schedule
from muniment_server.follow.anchors.anchorer import Anchorer, Options
from muniment_server.follow.anchors.entries import Entries
from muniment_server.follow.lease import Lease
from muniment_server.log import Log
from muniment_server.read.cache import Cache
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow, AnchorSummary, CalendarRow
from muniment_server.telemetry import Metrics
from tests.bitcoin.calendar import Calendar, confirm
from tests.bitcoin.chain import Chain
from tests.service.rig import NOW, Bench, Rig, genesis, raw

DEADLINE = 1.0


class ChainSource:
    """A chain of the test as a source of headers. `away` makes it unreachable; `asked` counts."""

    name = "the chain of this test"

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.away = False
        self.asked = 0

    def at(self, height: int) -> Found:
        self.asked += 1
        if self.away:
            raise SourceUnavailable("the node is away")
        block = self.chain.at(height)
        if block is None:
            raise NoHeader(f"there is no block {height}")
        return Found(parse_header(block.raw), height, self.chain.height - height + 1, self.name, "node")


@dataclass
class Seen:
    """What an anchorer told its watcher."""

    outcomes: list[tuple[str, str]] = field(default_factory=list)
    last: AnchorSummary | None = None
    code: str | None = None

    def asked(self, url: str, outcome: str) -> None:
        self.outcomes.append((url, outcome))

    def summary(self, found: AnchorSummary) -> None:
        self.last = found

    def refused(self, code: str | None) -> None:
        self.code = code

    def of(self, url: str) -> list[str]:
        return [outcome for where, outcome in self.outcomes if where == url]


class Anchored:
    """A log, its anchorer, and everything around it. Make it with :func:`anchored`."""

    def __init__(
        self, bench: Bench, log: Log, chain: Chain, calendars: list[Calendar], stack: contextlib.AsyncExitStack
    ):
        self.bench, self.log, self.chain, self.calendars = bench, log, chain, calendars
        self.source: ChainSource | None = ChainSource(chain)
        self.now = NOW
        self.seen = Seen()
        self.entries: Entries | None = Entries(bench.rig.store, log)
        self._stack = stack
        self._threads = stack.enter_context(ThreadPoolExecutor(2))
        self.client: httpx.AsyncClient = calendar.new_client()
        stack.push_async_callback(self.client.aclose)
        self.options = Options(schedule.Triggers(1000, schedule.HOUR), 2)
        self.anchorer, self.lease = self.new_anchorer(), self.new_lease()

    @property
    def store(self) -> Store:
        return self.bench.rig.store

    def new_anchorer(self, store: Store | None = None) -> Anchorer:
        """An anchorer as another process, or this one after a restart, would have it."""
        asked = [calendar.Calendar(one.url, self.client, DEADLINE) for one in self.calendars]
        return Anchorer(
            store or self.store,
            self.bench.row,
            asked,
            self.source,
            self.options,
            self.seen,
            lambda: self.now,
            Random(7),
            self._threads,
        )

    def new_lease(self, store: Store | None = None) -> Lease:
        """The lease as another process, or this one after a restart, would have it."""
        return Lease(store or self.store, self.bench.log_id, "anchorer", lambda: self.now)

    def restart(self) -> None:
        """Begin again as after a crash: with nothing but what is stored."""
        self.anchorer, self.lease = self.new_anchorer(), self.new_lease()
        if self.entries:
            self.entries = Entries(self.store, self.log)
        self.now += 2 * schedule.MINUTE  # the lease of the process that died

    async def step(self, milliseconds: int = 0) -> None:
        """Let time pass, then do everything that is due once."""
        self.now += milliseconds
        assert await self.lease.take()
        if not self.log.refusal:
            await self.anchorer.freezer.freeze_due()
        await self.anchorer.freezer.supersede()
        await self.anchorer.ask_all()
        await self.anchorer.blocks.settle_due()
        await self.anchorer.watch()
        if self.entries:
            await self.entries.log_confirmed()

    async def pass_time(self, milliseconds: int, every: int = schedule.MINUTE) -> None:
        """Let time pass in steps."""
        for _ in range(0, milliseconds, every):
            await self.step(every)

    async def append(self, *leaves: bytes) -> int:
        """Append leaves, publish, and return the size."""
        await self.log.append(raw(*leaves))
        await self.log.publisher.publish()
        return (await self.store.checkpoints.checkpoint(self.bench.log_id)).size

    async def freeze(self) -> AnchorRow:
        """Append something new, and freeze the checkpoint."""
        await self.append(b"%d at %d" % ((await self.store.reads.head(self.bench.log_id)).size, self.now))
        row = await self.anchorer.freezer.freeze()
        assert row
        return row

    async def submit(self) -> AnchorRow:
        """Freeze, and give it to the calendars."""
        row = await self.freeze()
        self.now += schedule.START_JITTER
        await self.anchorer.ask_all()
        return await self.row(row.tree_size)

    async def row(self, size: int | None = None) -> AnchorRow:
        found = await self.store.anchors.anchor(self.bench.log_id, size)
        assert found
        return found

    async def calendar_rows(self, size: int) -> dict[str, CalendarRow]:
        return {row.url: row for row in await self.store.anchors.anchor_calendars(self.bench.log_id, size, size + 1)}

    async def of(self, size: int, which: int) -> CalendarRow:
        return (await self.calendar_rows(size))[self.calendars[which].url]

    def mine(self, depth: int = 6) -> None:
        """Put what the calendars have into a block that deep."""
        confirm(self.chain, self.calendars, depth)

    async def own_leaves(self) -> list[bytes]:
        """The entries of anchors in the log."""
        return [
            leaf
            for leaf in await self.store.reads.leaves(self.bench.log_id, 0, 10_000)
            if leaf.startswith(b'{"anchor"')
        ]


def checked(row: AnchorRow, world: Anchored) -> AnchorCheck:
    """Check a stored proof against the chain as a stranger would."""
    return check_anchor(row.checkpoint, row.ots or b"", ChainSource(world.chain))


@contextlib.asynccontextmanager
async def anchored(rig: Rig, folder: Path, calendars: int = 2, **changes: object) -> AsyncIterator[Anchored]:
    """A raw log with a genesis, and this many calendars that anchor into one chain."""
    async with contextlib.AsyncExitStack() as stack:
        bench = await rig.log("raw")
        settings = Settings(data=folder, scrub_rate=0)
        log = Log(rig.store, bench.row, settings, Metrics(), Cache(2**20), bench.new_sequencer())
        stack.push_async_callback(log.close)
        await log.start()
        await log.append(genesis(bench))
        chain = Chain(100)
        made = [stack.enter_context(Calendar(chain, **changes)) for _ in range(calendars)]
        yield Anchored(bench, log, chain, made, stack)
