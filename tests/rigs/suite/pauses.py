"""pauses-*: a server stops (SIGSTOP) at a step between its commit and its answer, and the database fails over meanwhile. One history.

The server stops itself at the very step (``tests.rigs.stopping``). Then its proxy is turned to a copy of the database that lacks what it
just committed (an earlier TEMPLATE, or an asynchronous standby that is promoted), or only the other server's proxy is; the other server
signs there what it can; and the first one goes on. Everything that either ever signed, published or answered must be one history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

from muniment_server.storage import Store
from muniment_server.storage.postgres.open import open_postgres
from tests.rigs.control import Postgres
from tests.rigs.rig import Context, FaultRig
from tests.rigs.site import Server, Site
from tests.rigs.suite.contests import in_memory
from tests.rigs.suite.contests_live import Place, verdicts, winner
from tests.rigs.turning import Turning

ROUNDS = 5
"""In each seed."""
STEPS = [
    *("store.append-after", "sequencer.recheck-before", "sequencer.recheck-after", "guard.raise-before", "guard.swap-before"),
    *("guard.write-before", "guard.sync-before", "guard.sync-after", "guard.write-after", "guard.swap-after", "guard.raise-after"),
    *("sequencer.sign-before", "sequencer.sign-after", "log.publish-before", "store.publish-before", "store.publish-after"),
]  # fmt: skip
HOLDS = {"guard.write-before", "guard.sync-before", "guard.sync-after", "guard.write-after"}
"""Steps at which the process has the guard's lock: the other server waits for it."""
_STOP_SECONDS = 20.0
_APPENDS = 5


class Round:
    """Two servers behind a proxy each, on one log. `servers` are the Postgres servers, by folder; `base` is the database."""

    def __init__(self, rng: random.Random, primary: Postgres) -> None:
        self.rng = rng
        self.servers = {primary.folder: primary}
        self.base: Place = (primary.folder, "log")
        self.proxies: list[Turning] = []
        self.site: Site
        self.reached: str = ""

    async def begin(self, folder: Path) -> None:
        """Make the log, and start both servers."""
        primary = self.servers[self.base[0]]
        await asyncio.to_thread(primary.start)
        self.site = await asyncio.to_thread(Site, folder, await primary.new_database("log"))
        for _ in range(2):
            self.proxies.append(await Turning(*self.base).start())
            self.site.launch(database=self.proxies[-1].url)
        await self.site.ready()
        await self.all_sign()

    async def all_sign(self) -> None:
        """Wait until both sign, and compare what was shown before."""
        await asyncio.gather(*(server.signs_again() for server in self.site.servers))
        await self.site.settle()

    async def stopped(self, fail_over: Callable[[], Coroutine[object, object, Place]], *, split: bool) -> Place:
        """Stop a server at a step, fail over meanwhile, let the other one sign, and let it go on; return the other database."""
        one, two = self.rng.sample(self.site.servers, 2)
        step = self.rng.choice(STEPS)
        one.board.write(step)
        count = self.rng.choice((1, 1, 2, 20))
        tasks: list[asyncio.Task[str]] = []
        try:
            for _ in range(_APPENDS):  # the first may end before: its connection was cut when the copy was made
                tasks[:] = [asyncio.create_task(one.append(self._events(count), key=self.site.key()))]
                if await self._stops(one, tasks[0], publishes="publish" in step):
                    break
            else:
                raise AssertionError(f"the server did not reach {step}: {tasks[0].result()}")
            copy = await fail_over()
            for proxy, server in zip(self.proxies, self.site.servers, strict=True):
                if server is two or not split:
                    await proxy.turn(*copy)
            tasks.append(asyncio.create_task(self._others(two)))
            await asyncio.wait(tasks[1:], timeout=self.rng.uniform(0.05, 0.3) if step in HOLDS else 10)
        finally:
            one.board.write("")
            one.resume()
            await asyncio.gather(*tasks)
        self.reached = step
        return copy

    def _events(self, count: int) -> list[dict[str, int]]:
        return [self.site.event() for _ in range(count)]

    async def _stops(self, server: Server, asked: asyncio.Task[str], *, publishes: bool) -> bool:
        """Wait until it stands still; an answer may be out before it publishes."""
        async with asyncio.timeout(_STOP_SECONDS):
            while not server.is_stopped():
                if asked.done() and not publishes:
                    return server.is_stopped()
                await asyncio.sleep(0.005)
        return True

    async def _others(self, server: Server) -> None:
        for _ in range(self.rng.randint(1, 3)):
            await server.append([self.site.event() for _ in range(self.rng.choice((1, 2, 5)))], key=self.site.key())

    async def judged(self, copy: Place) -> bool:
        """Let both say what they do, check everything, and go on with the database that has what the guard says; is it the copy?"""
        await verdicts(self.site, self.rng)
        stores: dict[Place, Store] = {}
        async with AsyncExitStack() as stack:
            for place in (self.base, copy):
                stores[place] = await open_postgres(self.servers[place[0]].url(place[1]))
                stack.push_async_callback(stores[place].close)
            self.base = await winner(self.site, stores)
        for proxy in self.proxies:
            await proxy.turn(*self.base)
        return self.base == copy

    async def close(self) -> None:
        """End everything."""
        if hasattr(self, "site"):
            self.site.close()
        for proxy in self.proxies:
            await proxy.close()
        for server in self.servers.values():
            await asyncio.to_thread(server.close)


# --- a proxy that is turned to an earlier copy --------------------------------------------------------------------------


async def _copied(round_: Round, name: str) -> Place:
    """Copy the database as it is now: later it is the earlier one."""
    for proxy in round_.proxies:
        await proxy.shut()
    folder, base = round_.base
    server = round_.servers[folder]
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{base}'"
    async with asyncio.timeout(20):
        while await server.sql(cut):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.01)
    await server.sql(f"CREATE DATABASE {name} TEMPLATE {base}")
    for proxy in round_.proxies:
        await proxy.turn(*round_.base)
    return folder, name


async def _turned_seed(context: Context, seed: int, memory: Path) -> None:
    round_ = Round(random.Random(seed), await asyncio.to_thread(Postgres, under=memory))
    try:
        await round_.begin(context.folder / str(seed))
        for number in range(ROUNDS):
            before = await _copied(round_, f"copy_{number}")
            if round_.rng.random() < 0.2:  # then it lacks what was signed, and nobody may sign there
                await round_.site.servers[0].append([round_.site.event()], key=round_.site.key())

            async def earlier(before: Place = before) -> Place:
                return before

            copies = {round_.base, await round_.stopped(earlier, split=round_.rng.random() < 0.3)}
            won = await round_.judged(before)
            await round_.all_sign()
            for folder, name in copies - {round_.base}:
                await round_.servers[folder].sql(f"DROP DATABASE {name} WITH (FORCE)")
            context.done(1, **{round_.reached: 1, "copies that won": int(won)})
        context.counts["taken for damaged"] += round_.site.damaged
    except BaseException as error:
        error.add_note(f"seed {seed}, last reached {round_.reached}")
        raise
    finally:
        await round_.close()


def _turned(context: Context) -> None:
    for seed in context.each():
        with in_memory() as memory:
            memory.chmod(0o755)
            asyncio.run(_turned_seed(context, seed, memory))


# --- an asynchronous standby that is promoted ---------------------------------------------------------------------------


async def _standby_seed(context: Context, seed: int, memory: Path) -> None:
    rng = random.Random(seed)
    primary = await asyncio.to_thread(Postgres, under=memory)
    round_ = Round(rng, primary)
    try:
        await round_.begin(context.folder / str(seed))
        standby = await asyncio.to_thread(Postgres, primary, under=memory)
        round_.servers[standby.folder] = standby
        await asyncio.to_thread(standby.start)
        await round_.all_sign()
        await _caught_up(primary)
        await asyncio.to_thread(standby.stop, "fast")
        split = rng.random() < 0.5

        async def promoted() -> Place:
            if not split:
                await asyncio.to_thread(primary.stop, "immediate")
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            return standby.folder, "log"

        copy = await round_.stopped(promoted, split=split)
        if not split:
            await asyncio.to_thread(primary.start)
        won = await round_.judged(copy)
        await round_.all_sign()
        damaged = round_.site.damaged
    except BaseException as error:
        error.add_note(f"seed {seed}, last reached {round_.reached}")
        raise
    finally:
        await round_.close()
    context.done(
        1, **{round_.reached: 1, "copies that won": int(won), "both went on": int(split), "taken for damaged": damaged}
    )


async def _caught_up(primary: Postgres) -> None:
    sql = "SELECT 1 FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
    async with asyncio.timeout(30):
        while not await primary.sql(sql):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.02)


def _standby(context: Context) -> None:
    for seed in context.each():
        with in_memory() as memory:
            memory.chmod(0o755)
            asyncio.run(_standby_seed(context, seed, memory))


_GOAL = "a server stopped between commit and answer, and a fail-over meanwhile"
RIGS = [
    FaultRig("pauses-turned", _GOAL, "pauses", _turned, quick=1, full=400),
    FaultRig("pauses-standby", _GOAL, "pauses", _standby, quick=1, full=60),
]
