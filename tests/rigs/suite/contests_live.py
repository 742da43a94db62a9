"""contests-live-*: the contests of real servers over copied databases. One history, whoever is slow, stopped or led elsewhere.

As in ``contests``, a contest is one copy of the log's database after which servers on both sides try to sign. Here each writer is a
`muniment-server serve` that has been running and signing. On Postgres two to four of them reach their database through proxies; the copy
is a TEMPLATE, or a base backup that is promoted, of now or of some entries ago, and proxies are turned to it and back. On SQLite the
data folder is copied, and now and then the database file is replaced under its server. All are stopped and continued at random.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from muniment_server.storage import Store
from muniment_server.storage.postgres.open import open_postgres
from muniment_server.storage.sqlite.open import open_sqlite
from muniment_server.write.guard import Guard
from tests.rigs.control import Postgres, on_sqlite
from tests.rigs.copies import SqliteCopies, backup
from tests.rigs.rig import Context, FaultRig
from tests.rigs.site import Server, Site
from tests.rigs.turning import Turning
from tests.service.audit import Naive

CONTESTS = 2
"""In each seed."""
FILE = "muniment.sqlite"
Place = tuple[Path, str]
"""A database: the folder of its server's socket, and its name."""
Where = TypeVar("Where")


async def storm(site: Site, rng: random.Random, disturb: Callable[[], Coroutine[object, object, None]]) -> None:
    """Let every server have appends at the same time, while some are stopped for a moment, and more goes wrong."""

    async def client(server: Server, dice: random.Random) -> None:
        for _ in range(dice.randint(2, 5)):
            count = dice.choice((1, 1, 2, 3, 30))
            await server.append([site.event() for _ in range(count)], key=site.key())
            await asyncio.sleep(dice.uniform(0, 0.05))

    async def stops(dice: random.Random) -> None:
        for _ in range(dice.randint(0, 3)):
            server = dice.choice(site.servers)
            async with server.still:
                server.pause()
                await asyncio.sleep(dice.uniform(0.01, 0.2))
                server.resume()

    work = [client(server, random.Random(rng.random())) for server in site.servers for _ in range(2)]
    await asyncio.gather(*work, stops(random.Random(rng.random())), disturb())


async def verdicts(site: Site, rng: random.Random) -> dict[Server, str]:
    """Let every server say whether it signs, until that no longer changes anything."""
    found: dict[Server, str] = {}
    for _ in range(2):
        for server in rng.sample(site.servers, len(site.servers)):
            found[server] = await server.verdict()
    return found


async def holds_the_guard(site: Site, store: Store) -> bool:
    """Tell whether a database has the head that the guard says."""
    (log_id,) = [row.log_id for row in await store.catalog.logs()]
    guarded = Guard(site.guard).read()
    leaves = await store.reads.leaves(log_id, 0, 10**7)
    return len(leaves) >= guarded.size and Naive(leaves).root(guarded.size) == guarded.root


async def winner(site: Site, stores: Mapping[Where, Store]) -> Where:
    """Check both databases, and return where the one is that is the log."""
    await site.check(list(stores.values()))
    good = [where for where, store in stores.items() if await holds_the_guard(site, store)]
    if not good:
        raise AssertionError("no database has what the guard says")
    await site.check_kept(stores[good[0]])
    return good[0]


# --- Postgres -----------------------------------------------------------------------------------------------------------


class Served:
    """Servers behind proxies. `servers` are the Postgres servers, by folder."""

    def __init__(self, rng: random.Random, primary: Postgres) -> None:
        self.rng = rng
        self.servers = {primary.folder: primary}
        self.proxies: list[Turning] = []
        self.base = (primary.folder, "log")
        self._made = 0

    async def begin(self, folder: Path) -> None:
        """Make the log, and start its servers."""
        (primary,) = self.servers.values()
        await asyncio.to_thread(primary.start)
        self.site = await asyncio.to_thread(Site, folder, await primary.new_database("log"))
        for _ in range(self.rng.randint(2, 4)):
            self.proxies.append(await Turning(*self.base).start())
            self.site.launch(database=self.proxies[-1].url)
        await self.site.ready()
        await asyncio.gather(*(server.signs_again() for server in self.site.servers))

    async def close(self) -> None:
        """End everything."""
        if hasattr(self, "site"):
            self.site.close()
        for proxy in self.proxies:
            await proxy.close()
        for server in self.servers.values():
            await asyncio.to_thread(server.close)

    async def contest(self, *, promoted: bool) -> dict[Server, str]:
        """Copy the database, turn some proxies to the copy, and let all servers try to sign."""
        if self.rng.random() < 0.5:  # the copy will be behind
            copy = await self._copied(promoted=promoted)
            await self.site.servers[0].append([self.site.event()], key=self.site.key())
        else:
            copy = await self._copied(promoted=promoted)
        some = self.rng.sample(self.proxies, self.rng.randint(1, len(self.proxies) - 1))
        for proxy in some:
            await proxy.turn(*copy)
        await storm(self.site, self.rng, lambda: self._turn_again(copy))
        for proxy in self.proxies:  # both sides have somebody to try
            await proxy.turn(*(copy if proxy in some else self.base))
        found = await verdicts(self.site, self.rng)
        await self._go_on(copy)
        return found

    async def _copied(self, *, promoted: bool) -> Place:
        if promoted:
            standby = await asyncio.to_thread(Postgres, self.servers[self.base[0]])
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            self.servers[standby.folder] = standby
            return standby.folder, self.base[1]
        for proxy in self.proxies:
            await proxy.shut()
        self._made += 1
        name = f"copy_{self._made}"
        server = self.servers[self.base[0]]
        cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.base[1]}'"
        async with asyncio.timeout(20):
            while await server.sql(cut):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.01)
        await server.sql(f"CREATE DATABASE {name} TEMPLATE {self.base[1]}")
        for proxy in self.proxies:
            await proxy.turn(*self.base)
        return server.folder, name

    async def _turn_again(self, copy: Place) -> None:
        for _ in range(self.rng.randint(0, 2)):
            await asyncio.sleep(self.rng.uniform(0.02, 0.2))
            await self.rng.choice(self.proxies).turn(*self.rng.choice((copy, self.base)))

    async def _go_on(self, copy: Place) -> None:
        stores: dict[Place, Store] = {}
        async with AsyncExitStack() as stack:
            for place in (self.base, copy):
                stores[place] = await open_postgres(self.servers[place[0]].url(place[1]))
                stack.push_async_callback(stores[place].close)
            self.base = await winner(self.site, stores)
        for proxy in self.proxies:
            await proxy.turn(*self.base)
        await asyncio.gather(*(server.signs_again() for server in self.site.servers))
        await self.site.settle()


async def postgres_seed(context: Context, seed: int) -> None:
    """Some contests of servers on Postgres, the last one with a promoted base backup."""
    served = Served(random.Random(seed), await asyncio.to_thread(Postgres))
    try:
        await served.begin(context.folder / str(seed))
        for number in range(CONTESTS):
            _count(context, await served.contest(promoted=number == CONTESTS - 1))
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await served.close()


def on_postgres(context: Context) -> None:
    """Each seed on a Postgres of its own."""
    for seed in context.each():
        asyncio.run(postgres_seed(context, seed))


def _count(context: Context, found: dict[Server, str]) -> None:
    results = list(found.values())
    context.done(1, signed=results.count("signed"), refused=len(results) - results.count("signed"))


# --- SQLite -------------------------------------------------------------------------------------------------------------


class Copied:
    """Servers on copies of a data folder. `base` is the folder that is the log."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self.site = site
        self.rng = rng
        self.base = site.data
        self._made = 0

    async def contest(self) -> dict[Server, str]:
        """Copy the folder, start servers there, and let all try to sign."""
        copy = await asyncio.to_thread(self._copied)
        for folder in (copy, self.rng.choice((copy, self.base))):
            self.site.launch(folder)
        await self.site.ready()
        replaced = self.rng.random() < 0.4
        await storm(self.site, self.rng, self._replaced if replaced else _nothing)
        found = await verdicts(self.site, self.rng)
        await self._go_on(copy)
        return found

    def _copied(self) -> Path:
        self._made += 1
        copy = self.site.data.with_name(f"copy-{self._made}")
        leave = shutil.ignore_patterns(f"{FILE}*", "trace", "guard")
        shutil.copytree(self.base, copy, ignore=leave)
        backup(self.base / FILE, copy / FILE)
        return copy

    async def _replaced(self) -> None:
        """Put a copy of the database in its place, under the servers on it, and start another one there."""
        await asyncio.sleep(self.rng.uniform(0, 0.2))
        copies, here = SqliteCopies(self.base), [one for one in self.site.servers if one.live.data == self.base]
        async with AsyncExitStack() as stack:
            for server in here:  # otherwise the copy may lack what was acknowledged meanwhile, and nobody could go on
                await stack.enter_async_context(server.still)
                server.pause()
                stack.callback(server.resume)
            await copies.replace(FILE, await copies.copy(FILE))
        server = self.site.launch(self.base)
        await asyncio.to_thread(server.live.wait)

    async def _go_on(self, copy: Path) -> None:
        stores: dict[Path, Store] = {}
        async with AsyncExitStack() as stack:
            for folder in (self.base, copy):
                stores[folder] = await open_sqlite(folder / FILE)
                stack.push_async_callback(stores[folder].close)
            self.base = await winner(self.site, stores)
        for server in list(self.site.servers):
            if await server.verdict() != "signed":
                server.kill()
                self.site.servers.remove(server)
        if not self.site.servers:
            self.site.launch(self.base)
            await self.site.ready()
        await self.site.servers[0].signs_again()
        await self.site.settle()


async def _nothing() -> None:
    """Nothing more goes wrong."""


async def sqlite_seed(context: Context, seed: int, folder: Path, _: str | None) -> None:
    """Some contests of servers on SQLite."""
    rng = random.Random(seed)
    await asyncio.to_thread(folder.mkdir)
    site = await asyncio.to_thread(Site, folder / "data")
    try:
        site.launch()
        await site.ready()
        await site.servers[0].signs_again()
        copied = Copied(site, rng)
        for _ in range(CONTESTS):
            _count(context, await copied.contest())
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        site.close()


_GOAL = "contests of writers over copied databases"
RIGS = [
    FaultRig("contests-live-sqlite", _GOAL, "contests", on_sqlite(sqlite_seed), quick=1, full=100, jobs=1),
    FaultRig("contests-live-postgres", _GOAL, "contests", on_postgres, quick=1, full=100, jobs=1),
]
