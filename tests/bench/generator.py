"""Our own load generator, a process of its own: asyncio on uvloop, raw HTTP/1.1 over keep-alive connections, closed or open loop.

In an open loop requests become due at a fixed rate, and a latency counts from that moment: a server that stands still for a second makes
all requests of that second late, not just one for each connection (no coordinated omission).

Reads one JSON load a line and answers with two lines: the result, and then, with all clocks stopped, the verdict on a sample of answers.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from array import array
from collections import Counter
from typing import Any

import uvloop

from muniment.errors import MunimentError
from muniment.policy import Policy
from tests.bench.bodies import MIXED, part_of, request_maker
from tests.bench.check import check_answer
from tests.bench.plan import WORKLOADS, Load

_GRACE = 60.0
_SAMPLE_BYTES = 4 << 20
_TICK = 0.0005


class Run:
    """One load in progress: what its connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.make = request_maker(load.workload, load.seed, load.size)
        self.number = 0
        self.active = 0
        self.started = 0.0
        self.deadline = 0.0
        self.last = 0.0  # when the last answer came
        self.received = 0
        self.latencies = array("d")
        self.parts: dict[str, array[float]] = {}  # of a mixed load
        self.idle: list[Connection] = []
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: list[tuple[str, bytes, bytes]] = []  # workload, what was sent, body of the answer
        self.next_sample = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def next(self, now: float) -> tuple[int, float, bytes]:
        """Return the next request: its number, when it was due, and its bytes."""
        number = self.number
        self.number += 1
        return number, self.due(number) if self.load.rate else now, self.make(number)

    def due(self, number: int) -> float:
        """Return when a request of an open loop is due."""
        return self.started + number / self.load.rate

    def ready(self, now: float) -> bool:
        """Tell whether the next request is due."""
        return not self.load.rate or self.due(self.number) <= now

    def more(self, now: float) -> bool:
        """Tell whether to send another request, now or later.

        In an open loop all that are due by the deadline are sent, late or not. A closed loop sends one for each
        connection however late it is: on a busy machine the deadline can pass before the first connection is made, and
        a run without an answer measures nothing.
        """
        if self.load.requests and self.number >= self.load.requests:
            return False
        if self.load.rate:
            return self.due(self.number) < self.deadline
        return now < self.deadline or self.number < self.load.connections

    async def feed(self) -> None:
        """Hand requests that become due to connections that wait for one, until there are no more."""
        while self.load.rate and self.more(now := time.perf_counter()):
            while self.idle and self.ready(now) and self.more(now):
                self.idle.pop().send(now)
            await asyncio.sleep(_TICK)
        while self.idle:
            self.idle.pop().end()

    def answered(
        self, number: int, sent: float, now: float, request: bytes, answer: bytes | bytearray, body_at: int
    ) -> None:
        """Count an answer."""
        self.last = now
        self.latencies.append(now - sent)
        if self.load.workload == MIXED:
            self.parts.setdefault(part_of(MIXED, number), array("d")).append(now - sent)
        self.statuses[int(answer[9:12])] += 1
        self.received += len(answer)
        if len(self.latencies) >= self.next_sample:
            self._keep(part_of(self.load.workload, number), request, bytes(answer[body_at:]))

    def _keep(self, workload: str, request: bytes, body: bytes) -> None:
        """Keep every answer at first, then ever fewer: a sample of the whole run that is cheap to take."""
        if sum(len(kept) for _, _, kept in self.samples) < _SAMPLE_BYTES:
            self.samples.append((workload, request[request.index(b"\r\n\r\n") + 4 :] or request, body))
        self.next_sample = len(self.latencies) * 1.3 + 1

    def closed(self) -> None:
        """Count a connection that is finished."""
        self.active -= 1
        if not self.active and not self.done.done():
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """A connection with one request in flight."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.WriteTransport
        self.buffer = bytearray()
        self.total = 0  # bytes of the answer, 0 while its head is not complete
        self.body_at = 0
        self.sent = 0.0
        self.number = 0
        self.request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self.transport = transport  # type: ignore[assignment]
        self.go_on(time.perf_counter())

    def go_on(self, now: float) -> None:
        """Send the next request, wait until one is due, or end."""
        if not self.run.more(now):
            self.end()
        elif self.run.ready(now):
            self.send(now)
        else:
            self.run.idle.append(self)

    def send(self, now: float) -> None:
        """Send the next request."""
        self.number, self.sent, self.request = self.run.next(now)
        self.transport.write(self.request)

    def end(self) -> None:
        """Close the connection: there is nothing more to send."""
        self.request = b""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer; when it is complete, go on."""
        whole: bytes | bytearray = data
        if self.buffer:
            self.buffer += data
            whole = self.buffer
        if not self.total:
            end = whole.find(b"\r\n\r\n")
            if end >= 0:
                self.body_at = end + 4
                self.total = self.body_at + _length(whole, end)
        if not self.total or len(whole) < self.total:
            if whole is data:
                self.buffer += data
            return
        now = time.perf_counter()
        self.run.answered(self.number, self.sent, now, self.request, whole, self.body_at)
        self.buffer, self.total = bytearray(), 0
        self.request = b""
        self.go_on(now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the end of the connection, which is an error while a request waits for its answer."""
        if self.request:
            self.run.errors[type(exc).__name__ if exc else "closed by the server"] += 1
        self.run.closed()


def _length(head: bytes | bytearray, end: int) -> int:
    at = head.lower().find(b"content-length: ", 0, end)
    if at < 0:
        raise ValueError(f"an answer without Content-Length: {bytes(head[:end])!r}")
    return int(head[at + 16 : head.find(b"\r", at + 16)])


async def generate(load: Load) -> tuple[Run, dict[str, Any]]:
    """Run a load and return what came of it."""
    run = Run(load)
    run.active = load.connections
    loop = asyncio.get_running_loop()
    cpu = time.process_time()
    run.started = time.perf_counter()
    run.deadline = run.started + load.seconds
    connect = (loop.create_connection(lambda: Connection(run), load.host, load.port) for _ in range(load.connections))
    await asyncio.gather(*connect, run.feed())
    await asyncio.wait_for(run.done, load.seconds + _GRACE)
    return run, _result(run, time.process_time() - cpu)


def _result(run: Run, cpu: float) -> dict[str, Any]:
    latencies = sorted(run.latencies)
    elapsed = max(run.last - run.started, 1e-9)
    return {
        "requests": len(latencies),
        "rate": len(latencies) / elapsed,
        "seconds": elapsed,
        "p50_ms": percentile(latencies, 0.50) * 1000,
        "p90_ms": percentile(latencies, 0.9) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "p999_ms": percentile(latencies, 0.999) * 1000,
        "max_ms": latencies[-1] * 1000 if latencies else 0.0,
        "bytes": run.received,
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "errors": dict(run.errors),
        "generator_cpu": cpu,
        "parts": {name: _latency(sorted(found)) for name, found in sorted(run.parts.items())},
    }


def _latency(ordered: list[float]) -> dict[str, float]:
    quantiles = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
    return {"requests": len(ordered)} | {name: percentile(ordered, part) * 1000 for name, part in quantiles.items()}


def percentile(ordered: list[float], part: float) -> float:
    """Return a percentile of ordered values, 0 when there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def verify(run: Run) -> dict[str, Any]:
    """Verify the sample of answers."""
    if not run.load.policy:
        return {"verified": 0, "wrong": []}
    policy = Policy.read(run.load.policy)
    wrong = []
    for workload, request, answer in run.samples:
        try:
            check_answer(WORKLOADS[workload], request, answer, policy)
        except (MunimentError, AssertionError, KeyError, ValueError) as error:
            wrong.append(f"{type(error).__name__}: {error}")
    return {"verified": len(run.samples) - len(wrong), "wrong": wrong[:3]}


def main() -> None:
    """Serve loads from standard input until it ends."""
    gc.set_threshold(50_000, 50, 1_000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            run, result = runner.run(generate(Load(**json.loads(line))))
            print(json.dumps(result), flush=True)
            print(json.dumps(verify(run)), flush=True)


if __name__ == "__main__":
    main()
