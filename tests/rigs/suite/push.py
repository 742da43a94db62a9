"""push-*: entries pushed to a webhook and to a file while the server and the receiver are killed.

A seed starts both and kills one of them KILLS times while entries come in; now and then the receiver takes a batch and does not say
so. At the end nothing is missing, a batch that came again came under its id with its bytes, the first deliveries are in order, and
the file holds each row once.

push-memory: how much a receiver that is down costs while 100,000 entries wait for it. Promised are MEBIBYTES.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from muniment.tiles import encode_bundle
from tests.live import PATIENCE, LiveServer, free_port, init, run, until
from tests.rigs.control import on_postgres, on_sqlite
from tests.rigs.rig import Context, FaultRig

KILLS = 3
MEBIBYTES = 10
ENTRIES = 100_000
_SECRET = b"0123456789abcdef0123456789abcdef"
_EAGER = {"MUNIMENT_SERVER_PUBLISH_INTERVAL": "0.05", "MUNIMENT_SERVER_MAX_QUEUE_SECONDS": "60"}


class _World:
    """An instance with two sinks, its server and its receiver."""

    def __init__(self, folder: Path, database: str | None, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.database, self.port, self.seed = folder / "data", database, free_port(), seed
        self.secret, self.taken, self.file = folder / "secret", folder / "taken", folder / "rows.jsonl"
        self.secret.write_bytes(_SECRET)
        self.appended = 1
        init(self.data, database)
        (self.data / "muniment.toml").write_text(
            f"[push.hook]\nurl = 'http://127.0.0.1:{self.port}/'\nsecrets = ['{self.secret}']\npayloads = true\n"
            f"[push.file]\nfile = '{self.file}'\nrotate_bytes = 65536\n"
        )
        self.server = self.serve()
        self.receiver = self.receive()

    def serve(self) -> LiveServer:
        return LiveServer(self.data, database=self.database, env=_EAGER).wait()

    def receive(self) -> subprocess.Popen[bytes]:
        words = [
            "-m",
            "tests.rigs.push_receiver",
            str(self.port),
            self.secret,
            self.taken,
            f"{self.seed}.{self.appended}",
        ]
        return subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def add(self, count: int) -> None:
        body = b"\n".join(b'{"n":%d}' % n for n in range(self.appended, self.appended + count))
        headers = {"Content-Type": "application/x-ndjson"}
        answer = httpx.post(f"{self.server.url}/entries/batch", content=body, headers=headers, timeout=PATIENCE)
        assert answer.is_success, answer.text
        self.appended += count

    def deliveries(self) -> list[dict[str, Any]]:
        lines = self.taken.read_bytes().split(b"\n")[:-1] if self.taken.exists() else []
        return [json.loads(line) for line in lines]

    def rows(self) -> list[int]:
        files = sorted(self.file.parent.glob("rows.0*.jsonl"))
        text = b"".join(path.read_bytes() for path in [*files, self.file] if path.exists())
        return [json.loads(line)["index"] for line in text.splitlines()]

    def status(self) -> dict[str, Any]:
        done = run("push", "status", "--json", "--data", self.data, database=self.database)
        return {row["sink"]: row for row in json.loads(done.stdout)}

    def retry(self) -> None:
        run("push", "retry", "--data", self.data, database=self.database)

    def close(self) -> None:
        self.receiver.kill()
        self.receiver.wait()
        self.server.stop(signal.SIGKILL)


def _kill(world: _World, rng: random.Random) -> None:
    """Kill one of the two at some moment of a delivery, and start it again."""
    seen = len(world.deliveries())
    world.add(rng.randrange(1, 600))
    if rng.random() < 0.7:
        until(lambda: len(world.deliveries()) > seen or world.retry())
    if rng.random() < 0.5:
        world.server.stop(signal.SIGKILL)
        world.server = world.serve()
    else:
        world.receiver.kill()
        world.receiver.wait()
        world.receiver = world.receive()


def _judge(world: _World, seed: int) -> dict[str, int]:
    """Check what came. Returns what is worth a figure."""
    found, first = world.deliveries(), dict[str, dict[str, Any]]()
    for one in found:
        same = first.setdefault(one["id"], one)
        assert same == one, f"seed {seed}: {one['id']} came again with other bytes"
    order = [index for one in first.values() for index in one["indices"]]
    assert order == [*range(world.appended)], f"seed {seed}: entries are missing, or out of order"
    assert world.rows() == [*range(world.appended)], f"seed {seed}: the file lacks rows, or has one twice"
    return {"entries": world.appended, "deliveries": len(found), "came again": len(found) - len(first)}


async def _seed(context: Context, seed: int, folder: Path, database: str | None) -> None:
    await asyncio.to_thread(_kills, context, seed, folder, database)


def _kills(context: Context, seed: int, folder: Path, database: str | None) -> None:
    rng, world = random.Random(seed), _World(folder, database, seed)
    try:
        for _ in range(KILLS):
            _kill(world, rng)
        until(lambda: {row["state"] for row in world.status().values()} == {"good"} or world.retry())
        counts = _judge(world, seed)
    finally:
        world.close()
    context.done(KILLS, **counts)


# --- memory ---------------------------------------------------------------------------------------------------------------


def _resident(server: LiveServer) -> int:
    """Return the KiB of memory that a server has."""
    text = Path(f"/proc/{server.process.pid}/status").read_text("utf-8")
    return int(text.partition("VmRSS:")[2].split()[0])


def _fill(folder: Path, sinks: str, entries: int) -> int:
    """Append entries to a log, have a sink fail some times, and return the memory of its server."""
    data = folder / "data"
    init(data, kind="raw")
    (data / "muniment.toml").write_text(sinks)
    with LiveServer(data, env=_EAGER, traced=False) as server:
        for low in range(0, entries, 10_000):
            body = encode_bundle([b"entry %d" % n for n in range(low, low + 10_000)])
            headers = {"Content-Type": "application/octet-stream"}
            assert httpx.post(f"{server.url}/entries/batch", content=body, headers=headers, timeout=PATIENCE).is_success
        if sinks:
            until(lambda: _failures(data) >= 3)
        return _resident(server)


def _failures(data: Path) -> int:
    return int(json.loads(run("push", "status", "--json", "--data", data).stdout)[0].get("failures", 0))


def _memory(context: Context) -> None:
    for seed in context.each():
        folder = context.folder / str(seed)
        folder.mkdir()
        (folder / "secret").write_bytes(_SECRET)
        url, secret = f"http://127.0.0.1:{free_port()}/", folder / "secret"
        sink = f"[push.down]\nurl = '{url}'\nsecrets = ['{secret}']\n"
        without, beside = (_fill(folder / name, sinks, ENTRIES) for name, sinks in (("a", ""), ("b", sink)))
        print(f"  push-memory: {without} KiB without a sink, {beside} KiB with one", file=sys.stderr, flush=True)
        assert beside - without <= MEBIBYTES * 1024, f"a receiver that is down costs {beside - without} KiB"
        context.done(1, **{"KiB more": max(beside - without, 0)})


_GOAL = "pushed entries: none missing, order kept"
RIGS = [
    FaultRig("push-sqlite", _GOAL, "kills", on_sqlite(_seed), quick=1, full=40),
    FaultRig("push-postgres", _GOAL, "kills", on_postgres(_seed), quick=0, full=27),
    FaultRig("push-memory", "memory of a sink that is down", "servers", _memory, quick=0, full=1, jobs=1, alone=True),
]
