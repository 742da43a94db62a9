"""standby-*: heads that are written, and perhaps not durable. They are fenced before anything of them is signed.

Postgres with a synchronous standby: the standby stops, so commits wait; the wait is cancelled, which shows only as a warning. Then the
standby, which lacks that commit, becomes the primary. SQLite: the server is killed inside the fdatasync of its write-ahead log, so the
next start finds a commit that perhaps never reached the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import apsw

from muniment_server.write.guard import Guard, Guarded
from tests.live import LiveServer
from tests.rigs.control import ORIGINS, Deployment, Postgres
from tests.rigs.judge import NAMES, glance, judge
from tests.rigs.load import Load
from tests.rigs.rig import Context, FaultRig
from tests.rigs.wire import Wire

_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = 'log'"


def guards(instance: Deployment) -> dict[str, Guarded]:
    """Return what the guards of both logs say."""
    return {kind: Guard(instance.data / "guard" / f"{NAMES[kind]}.guard").read() for kind in ORIGINS}


# --- Postgres -----------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A primary, its synchronous standby, and a server under load on the primary."""

    primary: Postgres
    standby: Postgres
    instance: Deployment
    load: Load
    rng: random.Random

    async def synchronous(self, names: str) -> None:
        """Say which standbys a commit waits for."""
        await self.primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()")

    async def attached(self) -> None:
        """Wait until the standby takes part."""
        sql = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        async with asyncio.timeout(60):
            while not await self.primary.sql(sql):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.05)

    async def waiting(self) -> list[int]:
        """Return the backends of the server that wait for the standby, as soon as there are any."""
        async with asyncio.timeout(60):
            while not (rows := await self.primary.sql(_WAITING)):
                await self.load.sleep(0.02)
        return [row["pid"] for row in rows]


@contextlib.asynccontextmanager
async def pair_of(folder: Path, seed: int) -> AsyncIterator[Pair]:
    """A pair with a server under load; everything is gone afterwards."""
    primary, standby, instance, load = Postgres(), None, None, None
    try:
        await asyncio.to_thread(primary.start)
        instance = await asyncio.to_thread(Deployment, folder, await primary.new_database("log"))
        standby = await asyncio.to_thread(Postgres, primary)
        await asyncio.to_thread(standby.start)
        load = Load(instance.url, instance.policy, seed)
        pair = Pair(primary, standby, instance, load, random.Random(seed))
        await pair.synchronous("*")
        await pair.attached()
        await asyncio.to_thread(instance.serve)
        load.start()
        yield pair
    finally:
        if load:
            await load.drop()
        if instance:
            instance.close()
        for server in filter(None, (primary, standby)):
            await asyncio.to_thread(server.close)


async def _commits_wait(pair: Pair) -> None:
    """The standby stops: nothing is acknowledged. It comes back: what waited goes on."""
    await pair.load.sleep(1)
    await asyncio.to_thread(pair.standby.stop, "fast")
    await pair.waiting()
    await asyncio.sleep(0.2)  # answers that were under way
    before, signed = pair.load.counts["acknowledged"], guards(pair.instance)
    await pair.load.sleep(pair.rng.uniform(0.3, 1))
    assert pair.load.counts["acknowledged"] == before, "acknowledged without the standby"
    assert guards(pair.instance) == signed, "a head was about to be signed without the standby"
    await asyncio.to_thread(pair.standby.start)
    async with asyncio.timeout(60):
        while pair.load.counts["acknowledged"] == before:
            await pair.load.sleep(0.02)


async def _cancel_waits(pair: Pair, count: int) -> int:
    """Cancel waits: of appends, and of the fences that follow. No acknowledgement and no signature comes of it."""
    await asyncio.to_thread(pair.standby.stop, "immediate")
    await pair.waiting()
    await asyncio.sleep(0.2)
    before, signed = pair.load.counts["acknowledged"], guards(pair.instance)
    cancelled = 0
    while cancelled < count:
        for pid in await pair.waiting():
            await pair.primary.sql(f"SELECT pg_cancel_backend({pid})")
            cancelled += 1
        await pair.load.sleep(pair.rng.uniform(0.05, 0.3))
        assert pair.load.counts["acknowledged"] == before, "a cancelled wait was acknowledged"
        assert guards(pair.instance) == signed, "a head whose wait was cancelled was about to be signed"
    assert pair.load.counts["503 outcome_unknown"], "no client heard of an unknown outcome"
    rows = await pair.primary.sql("SELECT kind, size FROM heads JOIN logs USING (log_id)", database="log")
    ahead = [row["kind"] for row in rows if row["size"] > signed[row["kind"]].size]
    assert ahead, "the commits whose wait was cancelled are not there"
    return cancelled


async def _promote(pair: Pair) -> None:
    """The primary is gone, and the standby without the cancelled commits takes over: with the same guard the log goes on."""
    pair.instance.kill()
    await asyncio.to_thread(pair.primary.stop, "immediate")
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.standby.promote)
    pair.instance.database = pair.standby.url("log")
    await asyncio.to_thread(pair.instance.serve)
    await pair.load.sleep(0.5)


async def _promote_too_late(pair: Pair) -> None:
    """The primary went on alone, and acknowledged; then the standby takes over. The guard is ahead: no writes, until the primary is back."""
    await pair.synchronous("")
    before = pair.load.counts["acknowledged"]
    async with asyncio.timeout(60):
        while pair.load.counts["acknowledged"] < before + 500:
            await pair.load.sleep(0.02)
    pair.load.reading = False  # the standby lacks entries that were acknowledged
    pair.instance.kill()
    await asyncio.to_thread(pair.primary.stop, "immediate")
    await asyncio.to_thread(pair.standby.start)
    await asyncio.to_thread(pair.standby.promote)
    straight, pair.instance.database = pair.instance.database, pair.standby.url("log")
    signed = guards(pair.instance)
    # A trace of its own: that the old state is served, as what it is, would count against the log's.
    server = await asyncio.to_thread(pair.instance.serve, MUNIMENT_SERVER_TRACE=str(pair.instance.data / "old-trace"))
    await refuses(pair.load, server)
    assert guards(pair.instance) == signed, "the guard moved although the database is behind it"
    pair.instance.kill()
    pair.instance.database = straight
    await asyncio.to_thread(pair.primary.start)
    await asyncio.to_thread(pair.instance.serve)
    pair.load.reading = True


async def refuses(load: Load, server: LiveServer) -> None:
    """Check that a server on the old state takes no entry and says why, and that it still serves reads."""
    wire = Wire()
    answer = await wire.ask(server.url, "POST", "/entries", b'{"a":1}', {"Content-Type": "application/json"})
    assert answer.status == 503, f"{answer.status}: {answer.body[:300]!r}"
    assert answer.json()["code"] == "database_behind", answer.body
    answer = await wire.ask(server.url, "GET", "/checkpoint")
    assert answer.status == 200, answer.body[:300]
    size = load.recorders["event"].checkpoint(answer.body.decode())
    answer = await wire.ask(server.url, "GET", f"/proof/consistency?first=1&second={size}")
    assert answer.status == 200, answer.body[:300]
    wire.close()


async def _postgres_seed(context: Context, seed: int) -> None:
    async with pair_of(context.folder / str(seed), seed) as pair:
        late = bool(seed % 2)
        try:
            await _commits_wait(pair)
            cancelled = await _cancel_waits(pair, 6)
            await (_promote_too_late if late else _promote)(pair)
            await pair.load.finish()
            await glance(pair.instance, pair.load)
            await asyncio.to_thread(pair.instance.stop)
            found = await judge(pair.instance, pair.load)
        except BaseException as error:
            error.add_note(
                f"seed {seed}: {pair.instance.servers[-1].stderr()[-1500:] if pair.instance.servers else ''}"
            )
            raise
    counts = {"standbys promoted": 1, "refused with the guard ahead": int(late)}
    context.done(cancelled, **counts, **pair.load.counts, **found)


def _postgres(context: Context) -> None:
    for seed in context.each():
        asyncio.run(_postgres_seed(context, seed))


# --- SQLite -------------------------------------------------------------------------------------------------------------


def kill_in_sync(server: LiveServer, nth: int) -> subprocess.Popen[bytes]:
    """Let strace kill a server as it enters the nth fdatasync or fsync of one of its threads."""
    calls = "fdatasync,fsync"
    words = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:signal=KILL:when={nth}",
    ]
    return subprocess.Popen(
        [*words, "-p", str(server.process.pid)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


async def _killed_in_sync(instance: Deployment, server: LiveServer, nth: int, seconds: float) -> bool:
    """Tell whether strace killed the server within some time; detach otherwise."""
    tracer = await asyncio.to_thread(kill_in_sync, server, nth)
    try:
        deadline = time.monotonic() + seconds
        while server.process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
    finally:
        tracer.terminate()
        await asyncio.to_thread(tracer.wait, 20)
    if server.process.poll() is None:
        return False
    assert server.process.returncode == -signal.SIGKILL, f"ended by itself: {server.stderr()[-2000:]}"
    instance.servers.remove(server)
    return True


def heads(instance: Deployment) -> dict[str, tuple[int, int, int]]:
    """Return (size, epoch, published size) of both logs, from a copy: to open the database itself would make its log durable."""
    copy = instance.data.with_name("copy")
    copy.mkdir()
    try:
        for name in ("muniment.sqlite", "muniment.sqlite-wal"):
            if (instance.data / name).exists():
                shutil.copyfile(instance.data / name, copy / name)
        connection = apsw.Connection(str(copy / "muniment.sqlite"))
        sql = "SELECT kind, size, epoch, published_size FROM heads JOIN logs USING (log_id)"
        found = {kind: tuple(row) for kind, *row in connection.execute(sql)}
        connection.close()
        return found
    finally:
        shutil.rmtree(copy)


async def _sqlite_round(instance: Deployment, load: Load, rng: random.Random) -> dict[str, int]:
    """Kill the server inside a sync, the next one inside the syncs of its start, and check what the third one finds."""
    await load.sleep(rng.uniform(0.1, 0.4))
    killed = await _killed_in_sync(instance, instance.servers[-1], rng.randint(1, 25), 30)
    assert killed, "the server made no sync within 30 s of load"
    before, signed = heads(instance), guards(instance)
    undecided = sum(before[kind][0] > signed[kind].size for kind in ORIGINS)
    starts = 0
    for nth in (1, 2):
        server = instance.launch()
        if await _killed_in_sync(instance, server, nth, 4):
            starts += 1
            _check_nothing_signed(before, heads(instance), signed, guards(instance), nth)
        else:
            break
    if not instance.servers:
        await asyncio.to_thread(instance.serve)
    await asyncio.to_thread(instance.servers[-1].wait)
    await glance(instance, load)
    after = heads(instance)
    for kind in ORIGINS:
        assert after[kind][1] > before[kind][1], (
            f"{kind}: the head of epoch {before[kind][1]} was signed without a fence"
        )
    return {"kills inside a sync": 1, "kills inside a sync of the start": starts, "heads beyond the guard": undecided}


def _check_nothing_signed(
    before: dict[str, tuple[int, int, int]],
    now: dict[str, tuple[int, int, int]],
    signed: dict[str, Guarded],
    guarded: dict[str, Guarded],
    nth: int,
) -> None:
    for kind in ORIGINS:
        fenced = now[kind][1] > before[kind][1]
        assert fenced or guarded[kind] == signed[kind], f"{kind}: guarded before the fence was written, sync {nth}"
        assert now[kind][2] <= guarded[kind].size, f"{kind}: published beyond the guard"


async def _sqlite_seed(context: Context, seed: int) -> None:
    instance = await asyncio.to_thread(Deployment, context.folder / str(seed))
    load, rng = Load(instance.url, instance.policy, seed), random.Random(seed)
    try:
        await asyncio.to_thread(instance.serve)
        load.start()
        for _ in range(5):
            counts = await _sqlite_round(instance, load, rng)
            context.done(sum(counts.values()) - counts["heads beyond the guard"], **counts)
        await load.finish()
        await asyncio.to_thread(instance.stop)
        context.counts.update(load.counts)
        context.counts.update(await judge(instance, load))
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        await load.drop()
        instance.close()


def _sqlite(context: Context) -> None:
    for seed in context.each():
        asyncio.run(_sqlite_seed(context, seed))


_GOAL = "heads of unknown durability are fenced before they are signed"
RIGS = [
    FaultRig("standby-postgres", _GOAL, "cancelled waits", _postgres, quick=2, full=40),
    FaultRig("standby-sqlite", _GOAL, "kills", _sqlite, quick=1, full=40, needs=("strace",)),
]
