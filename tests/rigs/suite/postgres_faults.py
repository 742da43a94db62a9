"""postgres-faults: everything that Postgres and the way to it can do to a server under load.

One seed is one server and one database, and every fault once, in an order of its own. After each fault the server must take an append
within READY_SECONDS of the database's return; at the end nothing acknowledged is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.rigs.control import Deployment, Postgres, private_postgres
from tests.rigs.judge import glance, judge
from tests.rigs.load import Load
from tests.rigs.rig import Context, FaultRig
from tests.rigs.wire import Lost, Wire
from tests.service.proxy import Proxy

READY_SECONDS = 5.0
"""Within this after its database is back a server takes entries again."""
_CONNECTIONS = 30


@dataclass
class FaultSite:
    """What a fault is given."""

    context: Context
    server: Postgres
    name: str
    instance: Deployment
    load: Load
    proxy: Proxy
    rng: random.Random
    slowest: dict[str, float] = field(default_factory=dict)

    async def sql(self, *statements: str) -> list[asyncpg.Record]:
        """Run statements in the database, past the proxy."""
        return await self.server.sql(*statements, database=self.name)

    async def ready_again(self, back: float, what: str) -> None:
        """Wait until the server takes an append, and check how long ago the database came `back`."""
        wire = Wire()
        while True:
            try:
                ready = await wire.ask(self.instance.url(), "GET", "/readyz", seconds=2)
                body = b'{"ping":%d}' % self.rng.getrandbits(50)
                headers = {"Content-Type": "application/json"}
                answer = await wire.ask(self.instance.url(), "POST", "/entries", body, headers, seconds=2)
                if (ready.status, answer.status) == (200, 201):
                    break
            except Lost:
                pass
            took = time.monotonic() - back
            assert took < 60, f"{what}: not ready a minute after the database is back"
            await asyncio.sleep(0.02)
        took = time.monotonic() - back
        wire.close()
        self.slowest[what] = max(self.slowest.get(what, 0.0), took)
        self.context.counts["returns"] += 1
        self.context.counts["returns within 1 s"] += took <= 1
        assert took <= READY_SECONDS, f"{what}: ready {took:.1f} s after the database was back, not {READY_SECONDS:.0f}"


async def crash(world: FaultSite) -> None:
    """Postgres is stopped in the middle and recovers."""
    await asyncio.to_thread(world.server.stop, "immediate")
    await asyncio.to_thread(world.server.start)
    await world.ready_again(time.monotonic(), "crash")


async def down(world: FaultSite) -> None:
    """Postgres is down for some seconds."""
    await asyncio.to_thread(world.server.stop, world.rng.choice(["immediate", "fast"]))
    await world.load.sleep(world.rng.uniform(2, 7))
    await asyncio.to_thread(world.server.start)
    await world.ready_again(time.monotonic(), "down")


async def down_at_start(world: FaultSite) -> None:
    """The server is killed and starts while Postgres is down."""
    world.instance.kill()
    await asyncio.to_thread(world.server.stop, "immediate")
    server = world.instance.launch()
    async with asyncio.timeout(30):
        while (
            "waiting for the database" not in server.stderr() and server.process.poll() is None
        ):  # it is up, and tries
            await world.load.sleep(0.05)
    await world.load.sleep(world.rng.uniform(1, 8))
    assert server.process.poll() is None, f"the server gave up: {server.stderr()[-2000:]}"
    await asyncio.to_thread(world.server.start)
    back = time.monotonic()
    await asyncio.to_thread(server.wait)
    await world.ready_again(back, "down at start")


async def backends_killed(world: FaultSite) -> None:
    """The connections of the server are terminated, five times."""
    for _ in range(5):
        await world.load.sleep(world.rng.uniform(0, 0.3))
        await world.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            f"AND (query LIKE '%UPDATE heads%' OR {world.rng.choice(['true', 'false'])})"
        )
        await world.ready_again(time.monotonic(), "backends killed")


async def replies_lost(world: FaultSite) -> None:
    """What the server asks arrives, what Postgres answers is lost, five times."""
    for _ in range(5):
        await world.load.sleep(world.rng.uniform(0, 0.3))
        world.proxy.deaf = True
        await world.load.sleep(world.rng.uniform(0.05, 0.3))
        world.proxy.deaf = False
        await world.ready_again(time.monotonic(), "replies lost")


async def waits_cancelled(world: FaultSite) -> None:
    """Statements of the server are cancelled at random moments, as an operator might, twenty times."""
    for _ in range(20):
        await world.load.sleep(world.rng.uniform(0, 0.05))
        await world.sql(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state = 'active'"
        )
    await world.ready_again(time.monotonic(), "waits cancelled")


async def no_connections(world: FaultSite) -> None:
    """Others take every connection there is, and the server has lost its own."""
    async with contextlib.AsyncExitStack() as stack:
        taken = 0
        await world.server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while taken < 2 * _CONNECTIONS:
                connection = await asyncpg.connect(world.server.url(), timeout=10)
                stack.push_async_callback(connection.close)
                taken += 1
        assert taken < 2 * _CONNECTIONS, "the connections were not exhausted"
        await world.load.sleep(world.rng.uniform(0.5, 2))
    await world.ready_again(time.monotonic(), "no connections")


async def statements_time_out(world: FaultSite) -> None:
    """Somebody holds a lock on the head while every statement may take 50 ms."""
    await world.sql(f"ALTER DATABASE {world.name} SET statement_timeout = '50ms'")
    await world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    connection = await asyncpg.connect(world.server.url(world.name), server_settings={"statement_timeout": "0"})
    try:
        for _ in range(3):
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM heads FOR UPDATE")
                await world.load.sleep(world.rng.uniform(0.1, 0.5))
            await world.load.sleep(world.rng.uniform(0.1, 0.5))
    finally:
        await connection.close()
    await world.sql(f"ALTER DATABASE {world.name} RESET statement_timeout")
    await world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await world.ready_again(time.monotonic(), "statements time out")


class Road(Proxy):
    """A proxy that keeps nothing of what it carries, and where Postgres is down closes the connection."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answered.clear()
        try:
            await super()._serve(reader, writer)
        except OSError:
            writer.close()


@contextlib.asynccontextmanager
async def road_to(url: str) -> AsyncIterator[Road]:
    """A road to a database, closed afterwards."""
    road = Road(url)
    await road.start()
    try:
        yield road
    finally:
        await road.stop()


FAULTS: list[Callable[[FaultSite], Awaitable[None]]] = [
    crash, down, down_at_start, backends_killed, replies_lost, waits_cancelled, no_connections, statements_time_out,
]  # fmt: skip


@contextlib.asynccontextmanager
async def world_of(context: Context, server: Postgres, seed: int) -> AsyncIterator[FaultSite]:
    """A server under load whose way to Postgres leads through a proxy."""
    name = f"seed_{seed}"
    straight = await server.new_database(name)
    async with road_to(straight) as proxy:
        folder = Path(context.folder, str(seed))
        instance = await asyncio.to_thread(Deployment, folder, straight)
        instance.database = proxy.url
        load = Load(instance.url, instance.policy, seed)
        try:
            await asyncio.to_thread(instance.serve)
            load.start()
            yield FaultSite(context, server, name, instance, load, proxy, random.Random(seed))
            await load.finish()
            await glance(instance, load)
            await asyncio.to_thread(instance.stop)
            instance.database = straight
            context.counts.update(load.counts)
            context.counts.update(await judge(instance, load))
        finally:
            await load.drop()
            instance.close()


async def _seed(context: Context, seed: int, server: Postgres) -> None:
    async with world_of(context, server, seed) as world:
        faults = world.rng.sample(FAULTS, len(FAULTS))
        for fault in faults:
            try:
                await world.load.sleep(0.3)
                await fault(world)
                world.load.check()
            except BaseException as error:
                error.add_note(f"seed {seed}, fault {fault.__name__}")
                raise
    say(
        f"  postgres-faults {seed}: slowest return, s: {', '.join(f'{k} {v:.2f}' for k, v in sorted(world.slowest.items()))}"
    )
    context.done(len(faults))


def say(text: str) -> None:
    """Print a line, now."""
    print(text, file=sys.stderr, flush=True)


def _run(context: Context) -> None:
    with private_postgres(f"max_connections={_CONNECTIONS}") as server:
        for seed in context.each():
            asyncio.run(_seed(context, seed, server))


_GOAL = "Postgres faults under load, ready within 5 s"
RIGS = [FaultRig("postgres-faults", _GOAL, "faults", _run, quick=2, full=16, alone=True)]
