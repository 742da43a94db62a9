"""patroni: switchovers and kills of the primary of a real Patroni cluster under load, with and without sync standbys.

One seed is a database of its own and one fail-over: an even one a switchover, an odd one a kill, of Postgres alone or of
its whole node. Where commits wait, nothing acknowledged is lost. Where they do not, the server either goes on with
everything, or says that the database is behind and signs nothing until the former primary is back; half of these kills
are made to lose something.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Any

import yaml

from tests.rigs.control import ORIGINS, PREFIXES, Deployment
from tests.rigs.judge import NAMES, glance, judge
from tests.rigs.load import Load
from tests.rigs.patroni import FILES, Cluster, Node, cluster_in
from tests.rigs.rig import Context, FaultRig
from tests.rigs.suite.contests import in_memory
from tests.rigs.suite.standby import guards, refuses
from tests.rigs.wire import Lost, Wire

MODES = ("synchronous", "strict", "asynchronous")
READY_SECONDS = 5.0
"""Within this after the database takes commits, by the way the server has to it, the server takes entries again."""


@dataclass
class World:
    """What a fail-over is given: a server under load that reaches the primary through HAProxy."""

    context: Context
    cluster: Cluster
    mode: str
    instance: Deployment
    load: Load
    rng: random.Random
    lost: bool = False  # a log lacks entries for good

    def longest(self, what: str, seconds: float) -> None:
        """Keep the longest time of its kind."""
        name = f"longest {what}, ms"
        self.context.counts[name] = max(self.context.counts[name], int(seconds * 1000))

    async def behind(self, back: float, what: str) -> set[str]:
        """Wait until each log takes an entry, or says that the database is behind; return those that say so."""
        accepts = [back]  # when the database did, and again whenever it had been held up meanwhile
        watching = asyncio.create_task(self.cluster.watch(accepts.append))
        found = dict(zip(ORIGINS, await asyncio.gather(*(self._says(kind, back) for kind in ORIGINS)), strict=True))
        watching.cancel()
        took = max((at - max(t for t in accepts if t <= at) for at in found.values() if at >= back), default=0.0)
        self.longest("return", took)
        self.context.counts["returns within 1 s"] += took <= 1
        assert took <= READY_SECONDS, f"{what}: the server wrote {took:.1f} s after the database did"
        behind = {kind for kind, at in found.items() if at < back}
        assert self.mode == "asynchronous" or not behind, f"{what}: {behind} lost entries although commits wait"
        return behind

    async def _says(self, kind: str, back: float) -> float:
        """Return when a log took an entry; a time before `back` when it says that its database is behind."""
        wire = Wire()
        headers = {"Content-Type": "application/json" if kind == "event" else "application/octet-stream"}
        while time.monotonic() < back + 60:
            body = b'{"ping":%d}' % self.rng.getrandbits(50)
            try:
                answer = await wire.ask(
                    self.instance.url(), "POST", f"{PREFIXES[kind]}/entries", body, headers, seconds=10
                )
            except Lost:
                continue
            if answer.status == 201:
                return time.monotonic()
            if answer.json()["code"] == "database_behind":
                return 0.0
            await self.load.sleep(0.02)
        raise AssertionError(f"{kind}: no append in a minute\n{self.instance.servers[0].stderr()[-2000:]}")


async def switchover(world: World) -> None:
    """Another node becomes primary because an operator says so."""
    leader = await world.cluster.leader()
    candidate = await world.cluster.find("replica" if world.mode == "asynchronous" else "sync_standby")
    asked = asyncio.create_task(world.cluster.ask("POST", "/switchover", {"leader": leader, "candidate": candidate}))
    new, back = await world.cluster.accepts(leader)
    await asked
    assert new == candidate, f"{new} became primary, not {candidate}"
    assert not await world.behind(back, "switchover"), "a switchover lost entries"


async def postgres_killed(world: World) -> None:
    """The primary's Postgres is killed; its Patroni starts it again, or lets a standby take over."""
    world.cluster.nodes[await world.cluster.leader()].kill_postgres()
    _, back = await world.cluster.accepts("")
    assert not await world.behind(back, "Postgres killed"), "entries were lost although the primary could recover"


async def node_killed(world: World) -> None:
    """Everything on the primary's node is killed."""
    world.load.reading = world.mode != "asynchronous"  # what is lost cannot be read
    old, behind = await _kill(world)
    if behind:
        await _refused(world, behind)
        world.lost = True
    if world.mode == "asynchronous":  # as `patronictl reinit`: it may have commits that the new primary has not
        old.wipe()
    old.start("patroni")
    world.load.reading = True


async def node_killed_ahead(world: World) -> None:
    """The same, and the standbys lack what was acknowledged last, in both logs."""
    world.load.reading = False
    await world.cluster.pause_senders()
    paused = time.monotonic() + 0.5
    async with asyncio.timeout(60):
        while {kind for at, kind, _ in world.load.acks if at > paused} < {*ORIGINS}:
            await world.load.sleep(0.02)
    old, behind = await _kill(world)
    assert behind == {*ORIGINS}, f"entries that were acknowledged are gone, and only {behind} say so"
    await _refused(world, behind)
    await _way_back(world, old)
    world.load.reading = True


async def _kill(world: World) -> tuple[Node, set[str]]:
    """Kill the primary's node and wait for another primary; return the old one, and which logs lost something."""
    await world.load.sleep(0.5)
    old = world.cluster.nodes[await world.cluster.leader()]
    old.kill()
    _, back = await world.cluster.accepts(old.name)
    behind = await world.behind(back, "node killed")
    old.start("etcd")
    return old, behind


async def _refused(world: World, behind: set[str]) -> None:
    """What was lost is said, and nothing is signed, by the server that runs or by one that is started now."""
    await world.load.drop()
    world.context.counts["logs that lost entries"] += len(behind)
    signed = guards(world.instance)
    wire = Wire()
    problems = (await wire.ask(world.instance.url(), "GET", "/readyz")).json()["problems"]
    wire.close()
    assert {NAMES[kind]: "database_behind" for kind in behind}.items() <= problems.items(), problems
    # A trace of its own: that the old state is served, as what it is, would count against the log's.
    trace = str(world.instance.data / "old-trace")
    late = await asyncio.to_thread(world.instance.serve, MUNIMENT_SERVER_TRACE=trace)
    if "event" in behind:
        await refuses(world.load, late)
    world.instance.kill(late)
    moved = [kind for kind in behind if guards(world.instance)[kind] != signed[kind]]
    assert not moved, f"the guard of {moved} moved although the database is behind it"


async def _way_back(world: World, old: Node) -> None:
    """The former primary still has everything: it becomes the primary again, and the others are made from it."""
    others = [node for node in world.cluster.nodes.values() if node is not old]
    for node in others:
        await asyncio.to_thread(node.stop)
    await asyncio.to_thread(old.forget_cluster)
    old.start("patroni")
    _, back = await world.cluster.accepts("")
    world.load.start()
    assert not await world.behind(back, "way back"), "the former primary lacks entries"
    for node in others:
        node.wipe()
        node.start("patroni")


def fail_over(seed: int) -> Callable[[World], Awaitable[Any]]:
    """What happens to a seed's database."""
    if seed % 2 == 0:
        return switchover
    kills = [node_killed, postgres_killed]
    if MODES[seed % 3] == "asynchronous":
        kills += [node_killed_ahead, node_killed_ahead]
    return kills[seed // 6 % len(kills)]


async def _seed(context: Context, seed: int, cluster: Cluster) -> None:
    mode, happens = MODES[seed % 3], fail_over(seed)
    folder = Path(context.folder, str(seed))
    await cluster.accepts("")
    await cluster.ask("PATCH", "/config", yaml.safe_load((FILES / f"mode-{mode}.yml").read_text("utf-8")))
    await cluster.whole(synchronous=mode != "asynchronous")
    await cluster.sql(f"CREATE DATABASE seed_{seed}")
    instance = await asyncio.to_thread(Deployment, folder, cluster.url(f"seed_{seed}"))
    load = Load(instance.url, instance.policy, seed)
    try:
        await asyncio.to_thread(instance.serve)
        load.start()
        world = World(context, cluster, mode, instance, load, random.Random(seed))
        await load.sleep(world.rng.uniform(0.5, 2))
        await happens(world)
        if not world.lost:
            await load.sleep(0.5)
            await load.finish()
            await glance(instance, load)
            await asyncio.to_thread(instance.stop)
            context.counts.update(await judge(instance, load))
            acks = [at for at, _, _ in load.acks]
            world.longest(f"pause of acknowledgements, {happens.__name__}", max(map(sub, acks[1:], acks)))
        context.counts.update(load.counts)
    except BaseException as error:
        error.add_note(f"seed {seed}: {mode}, {happens.__name__}\n{cluster.said()}")
        raise
    finally:
        await load.drop()
        instance.close()
    await cluster.sql(f"DROP DATABASE seed_{seed} WITH (FORCE)")
    context.done(1, **{f"{mode} {happens.__name__}": 1})


def _run(context: Context) -> None:
    with in_memory() as memory, cluster_in(memory) as cluster:
        for seed in context.each():
            asyncio.run(_seed(context, seed, cluster))


_GOAL = "fail-overs of a Patroni cluster under load"
RIGS = [
    FaultRig(
        "patroni",
        _GOAL,
        "fail-overs",
        _run,
        quick=3,
        full=150,
        needs=("etcd", "patroni", "haproxy"),
        jobs=1,
        alone=True,
    )
]
