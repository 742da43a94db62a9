"""soak: an hour of load at about 70 % of what the server does, with a fault every 10 s. One seed is a minute; a shard is one unbroken run.

Publish delay, as it is judged here: from the moment a client holds an acknowledgement until a client first reads, from GET /checkpoint
of a running server, a published checkpoint that covers it; a watcher asks about every 10 ms, which counts into the delay. Every
acknowledgement counts, and faults are included: an entry that was acknowledged just before a kill waits through the restart. Promised
are at most 1 s for 99 of 100 acknowledgements that no downtime falls into, and at most 10 s for every one. Downtime is from a fault to
the first append after it that succeeded; the delay of an acknowledgement whose wait overlaps one counts for the maximum alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.rigs.control import PREFIXES, Deployment, Postgres, private_postgres
from tests.rigs.judge import glance, judge
from tests.rigs.load import Load
from tests.rigs.rig import Context, FaultRig
from tests.rigs.suite.postgres_faults import Road, road_to, say
from tests.rigs.wire import Lost, Wire

MINUTE = 60.0
FAULT_EVERY = 10.0
P99_SECONDS = 1.0
MAX_SECONDS = 10.0
READS = 0.999
"""At least this part of the reads outside downtime succeeds."""
_LOOK_SECONDS = 0.005
_CALIBRATE_SECONDS = 5.0
_PART = 0.7
_LARGEST = 20


@dataclass
class Soak:
    """One unbroken run."""

    server: Postgres
    instance: Deployment
    load: Load
    road: Road
    rng: random.Random
    downtimes: list[tuple[float, float]] = field(default_factory=list)

    async def work_again(self, since: float) -> None:
        """Wait until an append that was made after a fault succeeds; what was before it was downtime."""
        after = time.monotonic()
        while not any(at > after for at, _, _ in self.load.acks[-1:]):
            await self.load.sleep(0.005)
            assert time.monotonic() - after < MAX_SECONDS, f"no append for {MAX_SECONDS:.0f} s after a fault"
        self.downtimes.append((since, time.monotonic()))


async def kill(soak: Soak) -> None:
    """kill -9 and restart."""
    soak.instance.kill()
    await asyncio.to_thread(soak.instance.serve)


async def freeze(soak: Soak) -> None:
    """SIGSTOP for 2 s."""
    process = soak.instance.servers[-1].process
    process.send_signal(signal.SIGSTOP)
    try:
        await soak.load.sleep(2)
    finally:
        process.send_signal(signal.SIGCONT)


async def crash_postgres(soak: Soak) -> None:
    """Postgres crashes and recovers."""
    await asyncio.to_thread(soak.server.stop, "immediate")
    await asyncio.to_thread(soak.server.start)


async def kill_backends(soak: Soak) -> None:
    """The connections of the server are terminated."""
    await soak.server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'soak' AND pid <> pg_backend_pid()"
    )


async def cut(soak: Soak) -> None:
    """Answers of Postgres are lost for some 200 ms."""
    soak.road.deaf = True
    await soak.load.sleep(soak.rng.uniform(0.05, 0.2))
    soak.road.deaf = False


FAULTS: list[Callable[[Soak], Awaitable[None]]] = [kill, freeze, crash_postgres, kill_backends, cut]


async def _calibrate(load: Load) -> float:
    """Return how many appends a second the server does when it is asked for all it can, and let the load ask for a part of it."""
    load.start()
    await load.sleep(1)
    before, started = load.counts["appends"], time.monotonic()
    await load.sleep(_CALIBRATE_SECONDS)
    able = (load.counts["appends"] - before) / (time.monotonic() - started)
    await load.finish()
    load.pace = _PART * able
    for kept in (load.acks, load.shown, load.failed_reads):
        kept.clear()
    load.counts.clear()
    return able


async def _minute(soak: Soak, seed: int) -> None:
    """One seed: six faults, each at a random moment of its ten seconds."""
    soak.rng = random.Random(seed)
    started = time.monotonic()
    for number in range(int(MINUTE / FAULT_EVERY)):
        at = started + number * FAULT_EVERY + soak.rng.uniform(0, FAULT_EVERY / 3)
        await soak.load.sleep(max(at - time.monotonic(), 0))
        fault = soak.rng.choice(FAULTS)
        soak.load.counts[f"fault {fault.__name__}"] += 1
        since = time.monotonic()
        await fault(soak)
        await soak.work_again(since)
    await soak.load.sleep(max(started + MINUTE - time.monotonic(), 0))
    await glance(soak.instance, soak.load)


async def _watch(soak: Soak) -> None:
    """Ask for both checkpoints again and again, on a connection that does nothing else."""
    wire = Wire()
    for kind, prefix in itertools.cycle(PREFIXES.items()):
        with contextlib.suppress(Lost):
            answer = await wire.ask(soak.instance.url(), "GET", f"{prefix}/checkpoint", seconds=5)
            if answer.status == 200:
                size = soak.load.recorders[kind].checkpoint(answer.body.decode())
                soak.load.shown.append((time.monotonic(), kind, size))
        await asyncio.sleep(_LOOK_SECONDS)


async def _covered(soak: Soak) -> None:
    """Wait until everything that was acknowledged is published."""
    wanted = {kind: max(size for _, which, size in soak.load.acks if which == kind) for kind in PREFIXES}
    deadline = time.monotonic() + MAX_SECONDS
    for kind, size in wanted.items():
        while not any(which == kind and shown >= size for _, which, shown in soak.load.shown[-50:]):
            assert time.monotonic() < deadline, f"{kind}: entry {size - 1} was acknowledged and never published"
            await asyncio.sleep(0.05)


def delays(load: Load) -> list[tuple[float, float]]:
    """Return (when acknowledged, seconds until a published checkpoint covered it) of every acknowledgement."""
    found = []
    for kind in load.recorders:
        shown = iter(sorted((at, size) for at, which, size in load.shown if which == kind))
        seen_at, seen = next(shown)
        for at, _, size in sorted((ack for ack in load.acks if ack[1] == kind), key=lambda ack: ack[2]):
            while seen < size:
                seen_at, seen = next(shown)
            found.append((at, max(seen_at - at, 0.0)))
    return found


def downtime_within(soak: Soak, start: float, stop: float) -> bool:
    """Tell whether some downtime lies, with a part of it at least, between two moments."""
    at = bisect_left(soak.downtimes, start, key=lambda downtime: downtime[1])
    return at < len(soak.downtimes) and soak.downtimes[at][0] <= stop


def judge_delays(soak: Soak) -> tuple[float, float, int]:
    """Return p99 outside downtime, maximum of all, and how many were outside. Raises AssertionError beyond what is promised."""
    waits = delays(soak.load)
    outside = sorted(wait for at, wait in waits if not downtime_within(soak, at, at + wait))
    p99, longest = outside[int(len(outside) * 0.99)], max(wait for _, wait in waits)
    say(
        f"  soak: publish delay median {outside[len(outside) // 2]:.3f} s, p99 {p99:.3f} s; longest, with faults, {longest:.2f} s"
    )
    assert p99 <= P99_SECONDS, f"publish delay p99 is {p99:.3f} s outside downtime"
    assert longest <= MAX_SECONDS, f"an acknowledged entry was published after {longest:.2f} s"
    return p99, longest, len(outside)


def judge_reads(soak: Soak) -> int:
    """Return how many reads failed outside downtime. Raises AssertionError when they are too many."""
    failed = sum(not downtime_within(soak, at, at) for at in soak.load.failed_reads)
    share = 1 - failed / max(soak.load.counts["reads"], 1)
    assert share >= READS, f"{failed} reads failed outside downtime: {share:.2%} succeeded"
    return failed


async def _soak(context: Context, soak: Soak, able: float) -> None:
    """Run every seed of the shard without a break, and judge."""
    load, started = soak.load, time.monotonic()
    load.start()
    watcher = asyncio.create_task(_watch(soak))
    try:
        for seed in context.each():
            try:
                await _minute(soak, seed)
                context.done()
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
        await load.finish()
        await _covered(soak)
    finally:
        watcher.cancel()
    seconds = time.monotonic() - started
    p99, longest, outside = judge_delays(soak)
    down = sum(high - low for low, high in soak.downtimes)
    failed = judge_reads(soak)
    say(
        f"  soak: {able:.0f} appends/s at full load, paced to {_PART * able:.0f}; publish delay p99 {p99 * 1000:.0f} ms "
        f"over {outside} acknowledgements outside downtime, max {longest:.2f} s with faults; {len(soak.downtimes)} downtimes, "
        f"{down:.1f} s of {seconds:.0f} s, longest {max(high - low for low, high in soak.downtimes):.2f} s; "
        f"{load.counts['reads']} reads, {failed} failed outside downtime"
    )
    figures = {
        "publish delay p99 outside downtime, ms": int(p99 * 1000),
        "longest publish delay, ms": int(longest * 1000),
        "downtime, ms": int(down * 1000),
        "reads that failed outside downtime": failed,
        "seconds in one go": int(seconds),
    }
    context.counts.update(figures)


async def _run_all(context: Context, server: Postgres) -> None:
    straight = await server.new_database("soak")
    first = context.seeds.start
    async with road_to(straight) as road:
        instance = await asyncio.to_thread(Deployment, context.folder / "soak", straight)
        instance.database = road.url
        load = Load(instance.url, instance.policy, first, largest=_LARGEST)
        try:
            await asyncio.to_thread(instance.serve)
            able = await _calibrate(load)
            await _soak(context, Soak(server, instance, load, road, random.Random(first)), able)
            await asyncio.to_thread(instance.stop)
            instance.database = straight
            found = await judge(instance, load)
        finally:
            await load.drop()
            instance.close()
    context.done(0, **load.counts, **found)


def _run(context: Context) -> None:
    with private_postgres() as server:
        asyncio.run(_run_all(context, server))


RIGS = [FaultRig("soak", "soak with a fault every 10 s", "minutes", _run, quick=0, full=60, jobs=1, alone=True)]
