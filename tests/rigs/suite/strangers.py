"""Strangers who want memory and time: each attack for a minute, and other clients beside it who must not notice.

The server has its default settings. All come from this machine, so that no limit of connections for each address helps.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.live import LiveServer, free_of_tracebacks, free_port
from tests.rigs.rig import Context, FaultRig
from tests.rigs.strangers import ATTACKS, raise_limit
from tests.service.http_audit import fsck
from tests.service.http_check import JSON, assert_nothing_is_held, bundle
from tests.service.http_raw import Connection
from tests.service.http_world import DEFAULT, RAW, Instance, KeySpec, make_instance

QUIET_SECONDS = 10.0
ATTACK_SECONDS = 60.0
SHORT_SECONDS = 1.5
"""In the quick lane. Too short to judge times by, on a machine that does something else as well."""
GROWTH = 128 << 20
"""Bytes of memory that the server may take more than when it is idle."""
LARGEST = {"pages asked ahead and not read": 224 << 20}
"""The same of attacks that more connections make than are for one purpose: see docs/reference.md, Memory."""
FLOODS = {"pages asked ahead and not read", "pages asked by clients who leave"}
"""Attacks by requests that are good: how many of these a client may send is the proxy's to say, so nothing is said of others' time."""
SLOWER = 10.0
"""How many times as long as when it is idle 99 of 100 answers may take, at the most."""
LANES = 2
LEAVES = 512
STRANGER, OTHER = (KeySpec(name, frozenset({"append", "read"})) for name in ("stranger", "other"))


@dataclass
class Beside:
    """What other clients met: seconds until an answer was there."""

    key: str
    times: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.times, n=100)[98]

    async def stay(self, url: str, stop: asyncio.Event) -> None:
        """Append and read on one connection."""
        async with await Connection.open(url) as connection:
            while not stop.is_set():
                await self._ask(connection, "POST", "/entries", b'{"at":%d}' % time.monotonic_ns())
                await self._ask(connection, "GET", "/checkpoint")
                await asyncio.sleep(0.01)

    async def come(self, url: str, stop: asyncio.Event) -> None:
        """Read on a new connection each time: its opening counts."""
        while not stop.is_set():
            started = time.perf_counter()
            async with await Connection.open(url) as connection:
                await self._ask(connection, "GET", "/logs/raw/entries/5", started=started)
            await asyncio.sleep(0.02)

    async def _ask(
        self, connection: Connection, method: str, path: str, body: bytes = b"", started: float | None = None
    ) -> None:
        started = started or time.perf_counter()
        headers = JSON | {"Authorization": f"Bearer {self.key}"} if body else None
        answer = await connection.request(method, path, body, headers)
        self.times.append(time.perf_counter() - started)
        assert answer.status in (200, 201), f"another client was answered {answer.status}: {answer.body[:300]!r}"


async def _peak(pid: int, stop: asyncio.Event) -> int:
    most = 0
    while not stop.is_set():
        most = max(most, resident(pid))
        await asyncio.sleep(0.05)
    return most


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


async def beside(server: LiveServer, key: str, work: asyncio.Task[None]) -> tuple[Beside, int]:
    """Be other clients while something happens. Returns what they met, and the most memory that the server had."""
    seen, stop = Beside(key), asyncio.Event()
    lanes = [asyncio.create_task(seen.stay(server.url, stop)) for _ in range(LANES)]
    lanes += [asyncio.create_task(seen.come(server.url, stop)) for _ in range(LANES)]
    peak = asyncio.create_task(_peak(server.process.pid, stop))
    try:
        await work
    finally:
        stop.set()
        await asyncio.gather(*lanes)
    return seen, await peak


async def attack(url: str, key: str, name: str, seconds: float) -> None:
    """Have strangers attack from a process of their own."""
    words = [sys.executable, "-m", "tests.rigs.strangers", url, key, name, str(seconds)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, f"the strangers of {name!r} ended with {process.returncode}"
    assert int(said.split()[0]) > 0


@dataclass
class Found:
    """What an attack did."""

    growth: int  # bytes
    slower: float  # p99 with it, by p99 without


async def measure(server: LiveServer, keys: Mapping[str, str], name: str, seconds: float) -> Found:
    """Look at a server that is idle, and then at the same one attacked."""
    quiet = min(QUIET_SECONDS, seconds / 3)
    other, stranger = keys[OTHER.label], keys[STRANGER.label]
    before, idle = await beside(server, other, asyncio.create_task(asyncio.sleep(quiet)))
    during, most = await beside(server, other, asyncio.create_task(attack(server.url, stranger, name, seconds)))
    return Found(most - idle, during.p99 / before.p99)


def judge(context: Context, instance: Instance, name: str, seconds: float) -> None:
    """Run one attack on a server that was just started."""
    port = free_port()
    with instance.server(env={"MUNIMENT_SERVER_METRICS_PORT": str(port)}) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
            http.get("/logs/raw/entries?limit=1000").raise_for_status()
        found = asyncio.run(measure(server, instance.keys, name, seconds))
        assert_nothing_is_held(port)
        server.stop()
    assert free_of_tracebacks(server.stderr()), server.stderr()[-3000:]
    told = f"{name}: {found.growth / 2**20:.0f} MiB more, p99 {found.slower:.1f} times that of an idle server"
    print(told, file=sys.stderr, flush=True)
    assert found.growth <= LARGEST.get(name, GROWTH), told
    if seconds >= ATTACK_SECONDS and name not in FLOODS:
        assert found.slower <= SLOWER, told
        _most(context, f"{name}, p99 in hundredths of idle", int(100 * found.slower))
    _most(context, f"{name}, MiB", found.growth >> 20)
    context.done(1)


def _most(context: Context, name: str, value: int) -> None:
    context.counts[name] = max(context.counts[name], value)


def fill(instance: Instance) -> None:
    """Put in leaves that make pages and bundles large."""
    key = {"Authorization": f"Bearer {instance.keys[OTHER.label]}"}
    leaves = [bytes([number % 256]) * 59_996 + number.to_bytes(4, "big") for number in range(LEAVES)]
    with instance.server() as server, httpx.Client(base_url=server.url, headers=key, trust_env=False) as http:
        for start in range(0, LEAVES, 128):
            body = bundle(*leaves[start : start + 128])
            http.post("/logs/raw/entries/batch", content=body, timeout=60).raise_for_status()


def run(context: Context) -> None:
    """Seed 0 is every attack for SHORT_SECONDS: the quick lane. Each seed after it is one of them for ATTACK_SECONDS."""
    raise_limit()
    instance = make_instance(context.folder / "data", None, (DEFAULT, RAW), (STRANGER, OTHER))
    fill(instance)
    names = list(ATTACKS)
    for seed in context.each():
        for name in [names[(seed - 1) % len(names)]] if seed else names:
            judge(context, instance, name, ATTACK_SECONDS if seed else SHORT_SECONDS)
    fsck(instance)


RIGS = [
    FaultRig(
        "strangers",
        "attacks on memory and time withstood",
        "attacks",
        run,
        quick=1,
        full=1 + len(ATTACKS),
        jobs=1,
        alone=True,
    )
]
