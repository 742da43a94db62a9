"""Clients that never give up: they append in every way there is, retry what failed with the same key, and read all the while."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muniment.policy import Policy
from muniment.tiles import encode_bundle
from tests.oracle import Consistency
from tests.rigs.control import ORIGINS, PREFIXES
from tests.rigs.recorder import Recorder
from tests.rigs.wire import Answer, Lost, Wire

_AGAIN = (408, 409, 429, 503)
_PAUSE = 0.02
GIVE_UP = 120.0
"""Seconds after which an append that nobody acknowledges is a failure of the rig."""


@dataclass(frozen=True, slots=True)
class Op:
    """One append: a request, and what its answer must be about."""

    mark: str
    kind: str  # event, raw
    path: str
    body: bytes
    headers: dict[str, str]
    sent: list[dict[str, Any] | bytes]


class Load:
    """Writers and readers. `where(worker)` says which server a worker is to ask; `pace` is appends per second (None: all it can).

    `behind` says that the server that is read may not yet know what another one acknowledged.
    """

    def __init__(
        self,
        where: Callable[[int], str],
        policy: Policy,
        seed: int,
        *,
        writers: int = 6,
        readers: int = 1,
        largest: int = 200,
        pace: float | None = None,
        behind: bool = False,
    ) -> None:
        self.where = where
        self.recorders = {kind: Recorder(policy, origin) for kind, origin in ORIGINS.items()}
        self.counts: Counter[str] = Counter()
        self.acks: list[tuple[float, str, int]] = []  # when, which log, and the size that covers it
        self.shown: list[tuple[float, str, int]] = []  # when, which log, and the published size that somebody saw
        self.failed_reads: list[float] = []  # when
        self._seed = seed
        self._rng = random.Random(seed)
        self.dice = random.Random(-1 - seed)
        self._writers, self._readers, self._largest = writers, readers, largest
        self.pace = pace
        self.reading = True
        self._behind = behind
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._number = 0

    # --- life -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._stopping = False
        work = [self._write(worker) for worker in range(self._writers)]
        work += [self._read(worker) for worker in range(self._readers)]
        self._tasks = [asyncio.create_task(one) for one in work]

    async def finish(self) -> None:
        """Let every append that was begun be acknowledged, and stop."""
        self._stopping = True
        for task in self._tasks:
            await task
        self._tasks = []

    async def drop(self) -> None:
        """Stop at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def check(self) -> None:
        """Raise what a worker found."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error

    async def sleep(self, seconds: float) -> None:
        """Let the load run for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))
            self.check()

    # --- appends --------------------------------------------------------------------------------------------------------

    def next_op(self) -> Op:
        """Draw the next append."""
        self._number += 1
        mark, rng = f"s{self._seed}-{self._number}", self._rng
        draw = rng.random()
        if draw < 0.5:
            event = {"mark": mark, "n": self._number, "text": "x" * rng.choice([0, 10, 300])}
            headers = {"Content-Type": "application/json", "Idempotency-Key": mark}
            return Op(mark, "event", "/entries", json.dumps(event).encode(), headers, [event])
        count = rng.randint(2, self._largest)
        if draw < 0.65:
            events = [{"mark": f"{mark}.{at}", "n": at} for at in range(count)]
            headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": mark}
            body = b"\n".join(json.dumps(event).encode() for event in events)
            with_receipts = rng.random() < 0.3
            return Op(mark, "event", f"/entries/batch?receipts={str(with_receipts).lower()}", body, headers, [*events])
        headers = {"Content-Type": "application/octet-stream"}
        if draw < 0.85:
            leaf = mark.encode() + rng.randbytes(rng.choice([0, 20, 1000]))
            return Op(mark, "raw", rng.choice(["/entries", "/add"]), leaf, headers, [leaf])
        leaves = [f"{mark}.{at}".encode() for at in range(count)]
        return Op(mark, "raw", "/entries/batch", encode_bundle(leaves), headers, [*leaves])

    async def _write(self, worker: int) -> None:
        wire = Wire()
        due = time.monotonic()
        last: Op | None = None
        while not self._stopping:
            # Now and then an append that was acknowledged long ago is sent once more: it must be where it was.
            repeat = last if last and self._rng.random() < 0.03 else None
            op = repeat or self.next_op()
            await self.append(wire, worker, op)
            self.counts["repeats"] += repeat is not None
            last = op if last is None or self._rng.random() < 0.05 else last
            if self.pace:
                due = max(due + self._writers / self.pace, time.monotonic() - 1)
                await asyncio.sleep(max(due - time.monotonic(), 0))
        wire.close()

    async def append(self, wire: Wire, worker: int, op: Op) -> None:
        """Send an append until it is acknowledged."""
        unsure, give_up = False, time.monotonic() + GIVE_UP
        while True:
            assert time.monotonic() < give_up, f"{op.mark} was not acknowledged within {GIVE_UP:.0f} s"
            try:
                answer = await wire.ask(self.where(worker), "POST", PREFIXES[op.kind] + op.path, op.body, op.headers)
            except Lost as lost:
                unsure |= lost.sent
                self.counts["requests lost"] += lost.sent
                await asyncio.sleep(_PAUSE)
                continue
            if answer.status in (200, 201):
                break
            assert answer.status in _AGAIN, f"{op.mark}: {answer.status} {answer.body[:300]!r}"
            code = self._code(answer)
            self.counts[f"{answer.status} {code}"] += 1
            unsure |= code == "outcome_unknown"
            await asyncio.sleep(_PAUSE)
        self.counts["unknown outcomes retried"] += unsure
        self.counts["unknown outcomes that had happened"] += unsure and answer.status == 200
        self._acknowledged(op, answer)

    @staticmethod
    def _code(answer: Answer) -> str:
        try:
            return str(answer.json()["code"])
        except ValueError:
            return "plain"

    def _acknowledged(self, op: Op, answer: Answer) -> None:
        recorder = self.recorders[op.kind]
        if op.path == "/add":
            indices = [int(answer.body)]
        elif op.path == "/entries":
            indices = [recorder.proved(answer.json(), op.sent[0]).index]
        else:
            indices = self._batch(recorder, op, answer.json())
        assert len(indices) == len(op.sent), f"{op.mark}: {len(indices)} indices for {len(op.sent)} entries"
        recorder.acked(op.mark, indices, op.sent)
        self.counts["acknowledged"] += len(indices)
        self.counts["appends"] += 1
        self.acks.append((time.monotonic(), op.kind, max(indices) + 1))

    @staticmethod
    def _batch(recorder: Recorder, op: Op, value: dict[str, Any]) -> list[int]:
        indices = [index for low, high in value["indices"] for index in range(low, high)]
        size = recorder.checkpoint(value["checkpoint"])
        assert size > max(indices), f"{op.mark}: the checkpoint of {size} does not cover {max(indices)}"
        for index, receipt, sent in zip(indices, value.get("receipts", ()), op.sent, strict=False):
            assert recorder.proved(receipt, sent).index == index
        return indices

    # --- reads ----------------------------------------------------------------------------------------------------------

    async def _read(self, worker: int) -> None:
        """Read as monitors do. On one connection to one server a checkpoint never goes back."""
        wire, url = Wire(), ""
        newest = dict.fromkeys(ORIGINS, 0)
        rng = random.Random(self._seed * 1000 + worker)
        while not self._stopping:
            if url != self.where(worker):
                url, newest = self.where(worker), dict.fromkeys(ORIGINS, 0)
            for kind in ORIGINS if self.reading else ():
                try:
                    newest[kind] = await self._look(wire, url, kind, newest[kind], rng)
                    self.counts["reads"] += 3
                except (Lost, _Unavailable):
                    self.counts["reads that failed"] += 1
                    self.failed_reads.append(time.monotonic())
            await asyncio.sleep(_PAUSE)
        wire.close()

    async def _look(self, wire: Wire, url: str, kind: str, newest: int, rng: random.Random) -> int:
        recorder, prefix = self.recorders[kind], PREFIXES[kind]
        answer = _good(await wire.ask(url, "GET", f"{prefix}/checkpoint"))
        size = recorder.checkpoint(answer.body.decode())
        assert size >= newest, f"{kind}: /checkpoint went back from {newest} to {size} on one connection"
        self.shown.append((time.monotonic(), kind, size))
        for acked in recorder.sample(rng, 1)[-1:]:
            await check_entry(wire, url, kind, acked.index, acked.content, behind=self._behind)
        first, second = sorted(rng.choices([*recorder.roots], k=2))
        await check_consistency(wire, url, recorder, kind, first, second, behind=self._behind)
        return size


class _Unavailable(Exception):
    """The server says that it cannot answer now."""


def _good(answer: Answer) -> Answer:
    if answer.status == 503:
        raise _Unavailable
    assert answer.status == 200, f"{answer.status}: {answer.body[:300]!r}"
    return answer


async def check_entry(wire: Wire, url: str, kind: str, index: int, content: Any, *, behind: bool = False) -> None:
    """Fetch an acknowledged entry and compare it, byte for byte where the client knows its bytes."""
    answer = await wire.ask(url, "GET", f"{PREFIXES[kind]}/entries/{index}")
    if behind and answer.status == 404 and answer.json()["code"] == "no_entry":
        return
    value = _good(answer).json()
    assert value["index"] == index
    found = base64.b64decode(value["leaf"]) if kind == "raw" else value["event"]
    assert found == content, f"{kind} entry {index} is {found!r}, was acknowledged as {content!r}"


async def check_consistency(
    wire: Wire, url: str, recorder: Recorder, kind: str, first: int, second: int, *, behind: bool = False
) -> None:
    """Prove two signed heads consistent, by the server's proof and the oracle's verdict."""
    if not first:
        return
    answer = await wire.ask(url, "GET", f"{PREFIXES[kind]}/proof/consistency?first={first}&second={second}")
    if behind and answer.status == 404 and answer.json()["code"] == "no_such_size":
        return
    value = _good(answer).json()
    recorder.checkpoint(value["checkpoint"])
    proof = tuple(bytes.fromhex(text) for text in value["hashes"])
    claim = Consistency(first, second, recorder.roots[first], recorder.roots[second], proof)
    assert claim.holds(), f"{kind}: the proof from {first} to {second} proves nothing"
