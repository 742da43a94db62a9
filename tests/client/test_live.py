"""The clients against the real server, on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from muniment import AsyncClient, Client, Policy
from muniment.errors import Refused
from tests.live import LiveServer

Serve = Callable[..., LiveServer]


async def test_the_first_page_of_the_manual_works_as_written(serve: Serve) -> None:
    server = serve()
    policy = Policy.read(server.data / "policy")
    events = [{"actor": "bob", "n": n} for n in range(1200)]
    async with AsyncClient(server.url, policy=policy) as log:
        saved_checkpoint = await log.checkpoint()
        receipt = await log.append({"actor": "alice", "action": "invoice.approve", "resource": "inv-17"})
        assert receipt.index == 1
        assert receipt.verify(policy).complete
        indices = [receipt.index async for receipt in log.append_many(events)]
        assert indices == list(range(2, 1202))
        proof = await log.consistency(since=saved_checkpoint)
        assert proof.older.checkpoint.size == 1


def test_everything_that_can_be_read(serve: Serve) -> None:
    server = serve()
    with Client(server.url, policy=Policy.read(server.data / "policy")) as log:
        events: list[dict[str, Any]] = [{"n": n, "text": "ü" * (n % 50)} for n in range(600)]
        receipts = list(log.append_many(events, batch_entries=100))
        assert [entry.event for entry in log.entries(1)] == events
        assert log.receipt(600).leaf == receipts[-1].leaf
        assert log.entry(17).event == events[16]
        for size in (1, 2, 255, 256, 257, 512, 601):
            assert log.inclusion(0, tree_size=size).tree_size == size
        assert log.inclusion(leaf_hash=receipts[5].leaf_hash).index == receipts[5].index
        assert [len(log.tile(0, index)) for index in range(3)] == [256, 256, 601 - 512]
        assert log.bundle(2)[-1] == receipts[-1].leaf
        sizes = [signed.checkpoint.size for signed in log.checkpoints()]
        assert sizes[0] == 1
        assert sizes[-1] == 601
        assert log.log_info().kind == "event"
        with pytest.raises(Refused, match="no_entry"):
            log.receipt(601)


async def test_many_at_once_and_a_raw_log(serve: Serve) -> None:
    server = serve(kind="raw")
    policy = Policy.read(server.data / "policy")

    async def source() -> AsyncIterator[bytes]:
        for n in range(300):
            yield b"%d" % (n % 100)

    async with AsyncClient(server.url, policy=policy) as log, AsyncClient(server.url, policy=policy) as other:
        found = await asyncio.gather(*((log, other)[n % 2].append(b"%d" % (n // 2)) for n in range(200)))
        assert len({receipt.index for receipt in found}) == 100
        by_leaf = {receipt.leaf: receipt.index for receipt in found}
        async for receipt in log.append_many(source(), batch_entries=70):
            assert receipt.index == by_leaf[receipt.leaf]
        assert [entry.leaf async for entry in log.entries(1)] == sorted(by_leaf, key=lambda leaf: by_leaf[leaf])


def test_a_server_that_restarts_in_between(serve: Serve) -> None:
    server = serve()
    policy = Policy.read(server.data / "policy")
    with Client(server.url, policy=policy) as log:
        receipt = log.append({"n": 1}, idempotency_key="again")
        server.stop()
        second = serve("--port", server.url.rpartition(":")[2], data=server.data)
        assert second.url == server.url
        assert log.append({"n": 1}, idempotency_key="again").index == receipt.index
        assert log.append({"n": 2}).index == 2
        log.consistency(since=receipt)
