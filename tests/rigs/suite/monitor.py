"""monitor: follows a log through kills, restarts and a replica that lags, with no false alarm; then a real fork is found.

A seed is ten seconds; a shard is one unbroken run. The monitor asks a front, as a balancer before replicas is: now and then its answer is a
checkpoint that is some seconds old. Server and monitor are killed (-9) and started again at random moments, under appends. At the end the
monitor's tree is that of the log, and nothing was found. Then a copy of the whole instance, guard and key included, signs another history:
that must be found, and its evidence must hold offline.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from muniment.evidence import Evidence, verify
from muniment.policy import Policy
from tests.live import PATIENCE, LiveServer, init, until
from tests.monitor.command import Started, monitor
from tests.rigs.rig import Context, FaultRig

SECONDS = 10.0
GRACE = 20.0
LAG = 5.0


@dataclass
class Front:
    """What is asked: it passes requests on to the server at `target`, and lags now and then."""

    rng: random.Random
    target: str = ""
    lagging: bool = True
    old: deque[tuple[float, bytes]] = field(default_factory=deque)
    lags: int = 0

    def answer(self, path: str, http: httpx.Client) -> tuple[int, bytes, str]:
        """Return status, body and type of an answer."""
        try:
            found = http.get(self.target + path)
        except httpx.HTTPError:
            return 502, b"", "text/plain"
        body = found.content
        if path == "/checkpoint" and found.status_code == 200:
            body = self._perhaps_old(body)
        return found.status_code, body, found.headers.get("content-type", "text/plain")

    def _perhaps_old(self, body: bytes) -> bytes:
        now = time.monotonic()
        self.old.append((now, body))
        while self.old[0][0] < now - LAG:
            self.old.popleft()
        if self.lagging and self.rng.random() < 0.3:
            self.lags += self.old[0][1] != body
            return self.old[0][1]
        return body


@contextmanager
def fronted(front: Front) -> Iterator[str]:
    """Yield the URL of a front at work."""
    local = threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not hasattr(local, "http"):
                local.http = httpx.Client(timeout=10)
            status, body, kind = front.answer(self.path, local.http)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Work:
    """The run: an instance, its server, and a monitor of it."""

    folder: Path
    policy: Policy
    front: Front
    url: str
    rng: random.Random
    server: LiveServer
    watcher: Started
    appended: int = 0

    def given(self) -> tuple[object, ...]:
        times = ("--interval", "0.1", "--grace", GRACE)
        return (self.url, "--policy", self.folder / "data" / "policy", "--state", self.folder / "state", *times)

    def append(self, what: str, count: int) -> None:
        """Append some events; a server that is down takes none."""
        body = b"".join(b'{"%s":%d}\n' % (what.encode(), self.appended + at) for at in range(count))
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{what}-{self.appended}"}
        with suppress(httpx.HTTPError):
            if httpx.post(f"{self.server.url}/entries/batch", content=body, headers=headers).status_code == 201:
                self.appended += count

    def kill_server(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        time.sleep(self.rng.uniform(0, 1))
        self.server = LiveServer(self.folder / "data", traced=False).wait()
        self.front.target = self.server.url

    def kill_monitor(self) -> None:
        self.watcher.process.kill()
        self.watcher.process.wait()
        self.watcher = Started(self.given(), self.folder / "lines")

    def ten_seconds(self) -> tuple[int, int]:
        """One seed. Return how often server and monitor were killed."""
        stop, kills = time.monotonic() + SECONDS, [0, 0]
        while time.monotonic() < stop:
            self.append("act", self.rng.choice([1, 5, 200]))
            time.sleep(self.rng.uniform(0, 0.3))
            what = self.rng.random()
            if what < 0.05:
                self.kill_server()
                kills[0] += 1
            elif what < 0.15:
                self.kill_monitor()
                kills[1] += 1
            assert self.watcher.process.poll() is None, "the monitor ended by itself"
        if not kills[0]:
            self.kill_server()
        if not kills[1]:
            self.kill_monitor()
        return max(1, kills[0]), max(1, kills[1])

    def findings(self) -> str:
        path = self.folder / "state" / "findings.jsonl"
        return path.read_text() if path.exists() else ""

    def catches_up(self) -> None:
        """Wait until the monitor has read all that is published, by the root that the server signed."""
        self.front.lagging = False

        def done() -> bool:
            size = httpx.get(f"{self.server.url}/checkpoint").text.split("\n")[1]
            heads = self.watcher.events("head")
            return bool(heads) and str(heads[-1]["tree_size"]) == size and int(size) > self.appended

        until(done, "the monitor does not catch up")


def fork(work: Work) -> None:
    """A copy of the instance, with its guard and its key, signs another history, and the front leads to it."""
    work.server.stop()
    shutil.copytree(work.folder / "data", work.folder / "copy")
    work.server = LiveServer(work.folder / "data", traced=False).wait()
    work.front.target = work.server.url
    work.append("ours", 30)
    work.catches_up()
    work.server.stop()
    work.server = LiveServer(work.folder / "copy", traced=False).wait()
    work.append("theirs", 70)
    work.front.target = work.server.url
    until(lambda: '"code":"fork"' in work.findings(), "the fork is not found")
    (path,) = (work.folder / "state" / "evidence").iterdir()
    verify(Evidence.parse(path.read_bytes()), work.policy)
    assert work.watcher.stop() == 0
    assert monitor(*work.given(), "--once").code == 1


def _run(context: Context) -> None:
    rng = random.Random(context.seeds.start)
    policy = init(context.folder / "data")
    front = Front(rng)
    with fronted(front) as url:
        server = LiveServer(context.folder / "data", traced=False).wait()
        front.target = server.url
        work = Work(context.folder, policy, front, url, rng, server, None)  # type: ignore[arg-type]
        work.watcher = Started(work.given(), context.folder / "lines")
        try:
            for _ in context.each():
                servers, monitors = work.ten_seconds()
                assert not work.findings(), f"FALSE ALARM: {work.findings()}"
                context.done(**{"server killed": servers, "monitor killed": monitors})
            work.catches_up()
            assert not work.findings(), f"FALSE ALARM: {work.findings()}"
            fork(work)
            assert work.findings().count("\n") == 1, work.findings()
        finally:
            for process in (work.watcher.process, work.server.process):
                process.kill()
                process.wait(PATIENCE)
    context.done(0, **{"entries": work.appended, "answers that lagged": front.lags, "forks found": 1})


RIGS = [FaultRig("monitor", "monitor without a false alarm", "times ten seconds", _run, quick=1, full=180, jobs=1)]
