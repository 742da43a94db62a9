"""Clocks that jump: real servers under libfaketime, whose wall clock is stepped live, and two of them on one database.

What must come of each append follows from the last entry's time and the server's clock alone: more than a minute behind the last
entry, or more than five seconds off the database's clock, is refused with 503 `clock` and writes nothing; everything else is stamped
max(clock, last). Time never goes back, published sizes never go back, and a writer whose clock is right again is a writer again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from muniment_server.storage.postgres.connect import migrate
from tests.live import LiveServer, free_of_tracebacks
from tests.rigs.children import call
from tests.rigs.http_load import connection, post, told
from tests.rigs.rig import Context, FaultRig, Missing
from tests.rigs.workload import Account, DataPaths, in_loop, init, judge

HOUR, YEAR = 3600, 365 * 86400
_STEPS = 12
_TOLERANCE = 3.0  # seconds between our look at the clock and the server's
_BEHIND, _SKEW = 60, 5
_LOOK_SECONDS = 60.0  # a server compares its clock with the database's every ten seconds


def library() -> Path:
    """Return libfaketime for programs with threads. Raises Missing."""
    for pattern in ("lib/*/faketime", "lib/faketime", "lib64/faketime", "local/lib/faketime"):
        for found in sorted(Path("/usr").glob(f"{pattern}/libfaketimeMT.so.1")):
            return found
    raise Missing("libfaketimeMT.so.1 is needed: run `make rig-tools`")


class Stepped:
    """A real server whose wall clock is ahead of the true one by `offset` seconds."""

    def __init__(self, folder: Path, instance: DataPaths, offset: int) -> None:
        self._file = Path(tempfile.mkdtemp(dir=folder)) / "offset"
        self.step(offset)
        faked = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.server = LiveServer(instance.data, env=instance.environment() | faked)
        self.believed = offset  # what the server takes for right: a clock set forward by more than this is not

    def step(self, offset: int) -> None:
        """Step the clock, at one instant."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+d}\n")
        new.replace(self._file)
        self.offset = offset

    def now(self) -> float:
        """Seconds since 1970 as this server sees them."""
        return time.time() + self.offset


class Scene:
    """Servers on one log, and what must hold of every answer."""

    def __init__(self, context: Context, instance: DataPaths) -> None:
        self.context = context
        self.instance = instance
        self.output = context.folder / "output"
        self.last = time.time()  # of the last entry, soon: genesis
        call(lambda _: init(instance), self.output)
        self.account = Account()
        self.size = 0  # largest published size seen
        self._made = 0

    @contextlib.contextmanager
    def serving(self, *offsets: int) -> Iterator[list[Stepped]]:
        """Run servers with these clocks; in the end judge what they stored."""
        stepped: list[Stepped] = []
        try:
            for offset in offsets:
                stepped.append(Stepped(self.context.folder, self.instance, offset))
                stepped[-1].server.wait()
            yield stepped
        finally:
            for one in stepped:
                one.server.stop()
        for one in stepped:
            assert free_of_tracebacks(one.server.stderr()), one.server.stderr()[-4000:]
        call(in_loop(lambda _: self._judge()), self.output)
        self.context.done(0, acknowledged=self.account.entries)

    async def _judge(self) -> None:
        await judge(self.instance, self.account)

    def append(self, one: Stepped) -> bool:
        """Append one event; tell whether it was taken. Its time must be max(clock, last), and never before the last one's."""
        self._made += 1
        status, answer = post(connection(one.server.url), json.dumps({"n": self._made}).encode(), f"key-{self._made}")
        if status != 201:
            assert (status, answer["code"]) == (503, "clock"), f"refused with {status} {answer}"
            return False
        self.account.add([told(answer)])
        stamp = _stamp(answer)
        assert stamp >= self.last, f"TIME WENT BACK: {stamp} after {self.last}"
        assert abs(stamp - max(one.now(), self.last)) < _TOLERANCE, (
            f"stamped {stamp}, clock {one.now()}, last {self.last}"
        )
        self.last = stamp
        return True

    def look(self, one: Stepped) -> None:
        """Check that /checkpoint does not go back."""
        http_ = connection(one.server.url)
        http_.request("GET", "/checkpoint")
        size = int(http_.getresponse().read().split(b"\n")[1])
        assert size >= self.size, f"the published size went back from {self.size} to {size}"
        self.size = size

    def eventually(self, one: Stepped, taken: bool) -> None:
        """Append until the server takes entries, or refuses them, as it should by now."""
        deadline = time.monotonic() + _LOOK_SECONDS
        while self.append(one) is not taken:
            assert time.monotonic() < deadline, f"clock {one.offset:+d} s: entries are still {'not' * taken} taken"
            time.sleep(0.2)


def _stamp(receipt: dict[str, Any]) -> float:
    leaf = json.loads(base64.b64decode(receipt["leaf"]))
    return datetime.fromisoformat(leaf["logged_at"]).timestamp()


# --- seeds --------------------------------------------------------------------------------------------------------------


def steps(scene: Scene, seed: int, servers: int) -> None:
    """Step the clocks of servers on one SQLite at random; each append must do what clock and last entry say."""
    random_ = random.Random(seed)
    offsets = [0, 0, -30, 20, -HOUR, HOUR, -HOUR * 24, 10 * YEAR]
    with scene.serving(*(random_.choice((0, 0, HOUR, -HOUR)) for _ in range(servers))) as running:
        for at in range(_STEPS):
            one = random_.choice(running)
            if at:
                one.step(
                    random_.choice(offsets[: 3 + at // 2])
                )  # ten years ahead comes last: nothing but that fits afterwards
            behind = scene.last - one.now()
            if abs(behind - _BEHIND) < _TOLERANCE:
                continue  # too close to say
            if abs(-behind - _BEHIND) < _TOLERANCE:
                continue  # likewise
            forward = one.offset - one.believed > _SKEW and -behind > _BEHIND
            if not forward:
                one.believed = max(one.believed, one.offset)
            for _ in range(3):
                expected = behind < _BEHIND and not forward
                assert scene.append(one) is expected, (
                    f"step {at}: {behind:.0f} s behind the last entry, forward {forward}"
                )
            scene.look(one)
            scene.context.done(1, steps=1)
        one.step(round(scene.last - time.time()))
        assert scene.append(one), "the clock is right again, and entries are not taken"
        scene.context.done(1, repaired=1)


def against_database(scene: Scene, seed: int) -> None:
    """Two servers on one Postgres, one with a wrong clock: it refuses, the other goes on; then the clock is repaired, and stepped."""
    random_ = random.Random(seed)
    wrong = random_.choice((HOUR, -HOUR, 10 * YEAR, 9, -9))
    with scene.serving(0, wrong) as (good, bad):
        for _ in range(3):
            assert scene.append(good), "a right clock, and entries are not taken"
            assert not scene.append(bad), f"a clock {wrong:+d} s off the database's, and entries are taken"
            scene.look(random_.choice((good, bad)))
        scene.context.done(1, skewed=1)
        bad.step(random_.choice((0, 2, -2)))
        scene.eventually(bad, taken=True)
        scene.context.done(1, repaired=1)
        bad.step(-HOUR)
        assert not scene.append(bad), "an hour behind the last entry, and entries are taken"
        bad.step(30)  # ahead by less than a minute: what is stamped until the server notices does not stop the others
        scene.eventually(bad, taken=False)
        assert scene.append(good), "the other server's clock was wrong, and entries are not taken"
        scene.context.done(2, steps=2)


async def _make_database(server: str, name: str, url: str) -> None:
    connection_ = await asyncpg.connect(server)
    try:
        await connection_.execute(f"CREATE DATABASE {name}")
    finally:
        await connection_.close()
    await migrate(url)


def run(context: Context) -> None:
    """Run the seeds: of four, three step clocks on SQLite (one or two servers), one compares clocks with Postgres."""
    library()
    for seed in context.each():
        instance = DataPaths(Path(tempfile.mkdtemp(dir=context.folder)) / "data")
        if seed % 4 != 3:
            steps(Scene(context, instance), seed, servers=1 + seed % 2)
            continue
        server, name = context.postgres(), f"clock_{seed}"
        base, _, query = server.partition("?")
        url = f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
        call(
            lambda _, server=server, name=name, url=url: asyncio.run(_make_database(server, name, url)),
            context.folder / "output",
        )
        against_database(Scene(context, replace(instance, database=url)), seed)


RIGS = [FaultRig("clock", "clock jumps", "steps", run, 4, 80, needs=("faketime",))]
