"""proofs: proofs of every kind, verified by the oracle, while the log grows as fast as it can.

A seed is a server on a fresh raw log; a writer posts batches without a pause, and readers on connections of their own ask for
inclusion and consistency proofs at random sizes, each verified against the checkpoint that came with it. Receipts of batches, each a
proof at the head of its commit, are counted apart.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

from muniment.policy import Policy
from muniment.tiles import encode_bundle
from tests.oracle import Consistency, Inclusion
from tests.rigs.control import ORIGINS, PREFIXES, Deployment
from tests.rigs.judge import bench_of, judge_heads
from tests.rigs.recorder import Recorder
from tests.rigs.rig import Context, FaultRig
from tests.rigs.wire import Wire
from tests.service.audit import audit

HTTP = 6_000
"""Proofs asked for one by one in a seed; each answer holds a second one, which ties it to the checkpoint."""
RECEIPTS = 4_000
_READERS = 4
_BATCH = 100
_RAW = PREFIXES["raw"]


class Growing:
    """A raw log that grows while it is asked."""

    def __init__(self, url: str, policy: Policy, seed: int) -> None:
        self.url = url
        self.recorder = Recorder(policy, ORIGINS["raw"])
        self.counts: Counter[str] = Counter()
        self.size = 1
        self.done = False
        self._seed = seed
        self._roots: dict[int, bytes] = {}

    async def grow(self) -> None:
        """Post batches until everything else is done; ask for every tenth one's receipts."""
        wire, number = Wire(), 0
        while not self.done or self.counts["receipts"] < RECEIPTS:
            leaves = [b"%d.%d.%d" % (self._seed, number, at) for at in range(_BATCH)]
            wanted = self.counts["receipts"] < RECEIPTS and number % 4 == 0
            number += 1
            value = await self._post(wire, leaves, receipts=wanted)
            ((low, high),) = value["indices"]
            self.recorder.acked(str(number), list(range(low, high)), leaves)
            self.size = max(self.size, self.recorder.checkpoint(value["checkpoint"]))
            for receipt, leaf in zip(value.get("receipts", ()), leaves, strict=False):
                self.recorder.proved(receipt, leaf)
                self.counts["receipts"] += 1
        wire.close()

    async def _post(self, wire: Wire, leaves: list[bytes], *, receipts: bool) -> dict[str, Any]:
        query = "?receipts=true" if receipts else ""
        headers = {"Content-Type": "application/octet-stream"}
        answer = await wire.ask(self.url, "POST", f"{_RAW}/entries/batch{query}", encode_bundle(leaves), headers)
        assert answer.status == 201, answer.body[:300]
        value: dict[str, Any] = answer.json()
        return value

    async def read(self, reader: int) -> None:
        """Ask for proofs at random sizes, half of them near the head."""
        wire, rng = Wire(), random.Random(self._seed * 100 + reader)
        while self.counts["proofs over HTTP"] < HTTP:
            first, second = sorted(self._draw(rng) for _ in range(2))
            if rng.random() < 0.5:
                await self._inclusion(wire, rng.randrange(second), second)
            else:
                await self._consistency(wire, first, second)
        wire.close()

    def _draw(self, rng: random.Random) -> int:
        size = self.size
        return max(1, size - rng.randrange(min(size, 600))) if rng.random() < 0.5 else rng.randint(1, size)

    async def _ask(self, wire: Wire, path: str, size: int) -> dict[str, Any]:
        answer = await wire.ask(self.url, "GET", f"{_RAW}/proof/{path}")
        assert answer.status == 200, f"{path}: {answer.status} {answer.body[:300]!r}"
        value: dict[str, Any] = answer.json()
        # The root of that size is tied to the checkpoint's, and both to all other answers.
        signed = self.recorder.checkpoint(value["checkpoint"])
        self.size = max(self.size, signed)
        root, tie = bytes.fromhex(value["root"]), value["consistency"]
        assert (tie["first"], tie["second"]) == (size, signed), f"{path}: tied from {tie['first']} to {tie['second']}"
        claim = Consistency(size, signed, root, self.recorder.roots[signed], _hashes(tie))
        assert claim.holds(), f"{path}: the tie to checkpoint {signed} proves nothing"
        known = self._roots.setdefault(size, root)
        assert known == root, f"{path}: two roots for size {size}"
        self.counts["proofs over HTTP"] += 1
        self.counts["ties to the checkpoint"] += 1
        return value

    async def _inclusion(self, wire: Wire, index: int, size: int) -> None:
        value = await self._ask(wire, f"inclusion?index={index}&tree_size={size}", size)
        leaf = bytes.fromhex(value["leaf_hash"])
        claim = Inclusion(index, size, leaf, _hashes(value), self._roots[size])
        assert claim.holds(), f"the proof of entry {index} at size {size} proves nothing"

    async def _consistency(self, wire: Wire, first: int, second: int) -> None:
        value = await self._ask(wire, f"consistency?first={first}&second={second}", second)
        # The old root is what the proof itself leads to: it must be the one that is known, or becomes so.
        known = self._roots.get(first) or self.recorder.roots.get(first)
        if known is None:
            await self._inclusion(wire, first - 1, first)
            known = self._roots[first]
        claim = Consistency(first, second, known, self._roots[second], _hashes(value))
        assert claim.holds(), f"the proof from {first} to {second} proves nothing"

    def heads(self) -> dict[int, bytes]:
        """Every root anybody was told."""
        return self._roots


def _hashes(value: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(text) for text in value["hashes"])


async def _work(growing: Growing) -> None:
    async with asyncio.TaskGroup() as writer:
        writer.create_task(growing.grow())
        async with asyncio.TaskGroup() as readers:
            for number in range(_READERS):
                readers.create_task(growing.read(number))
        growing.done = True


async def _seed(context: Context, seed: int, folder: Path) -> None:
    instance = await asyncio.to_thread(Deployment, folder)
    try:
        await asyncio.to_thread(instance.serve)
        growing = Growing(instance.url(), instance.policy, seed)
        await _work(growing)
        await asyncio.to_thread(instance.stop)
        await asyncio.to_thread(instance.fsck)
        leaves = await audit(await bench_of(instance, "raw"))
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        instance.close()
    for index, leaf in growing.recorder.leaves.items():
        assert leaves[index] == leaf, f"LOST: entry {index}, seed {seed}"
    for size, root in growing.heads().items():
        growing.recorder.roots.setdefault(size, root)
    judge_heads(growing.recorder, leaves)
    context.done(growing.counts.total(), entries=len(leaves), **growing.counts)


def _run(context: Context) -> None:
    for seed in context.each():
        asyncio.run(_seed(context, seed, context.folder / str(seed)))


RIGS = [FaultRig("proofs", "proofs verified while growing", "proofs", _run, quick=4, full=63)]
