"""A log of 70,000 entries, and every size around 256 and 65,536: each tile is there, as wide as C2SP says, and no other."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import pytest

from muniment.hashing import LeafHash, RootHash
from muniment.policy import LogKey, Policy
from muniment.proofs import verify_consistency, verify_inclusion
from muniment.tiles import Bundle, Tile, decode_bundle, tiles_at
from muniment_server.log import Log
from muniment_server.read import heads
from muniment_server.read.cache import Cache
from muniment_server.read.flow import run
from muniment_server.settings import Settings
from muniment_server.telemetry import Metrics
from tests.service.audit import Naive, audit
from tests.service.faulty import Fault, Faulty
from tests.service.rig import Bench, Rig, raw

SIZE = 70_000
LEAVES = [b"leaf %d" % n for n in range(SIZE)]
# One entry at a time from 2 below to 2 above the sizes at which a tile level begins.
STEPS = [range(256**k - 2, 256**k + 3) for k in (1, 2)]


async def check_tiles(bench: Bench, tree: Naive, size: int) -> None:
    """Check that the tile table holds exactly the tiles of the tree of this size."""
    rows = await bench.rig.sql(f'SELECT level, "index", data FROM tiles WHERE log_id = {bench.log_id}')
    found = {(level, index): data for level, index, data in rows}
    assert len(found) == len(rows)
    expected = tree.tiles(size)
    widths = {}
    for level in range(3):  # C2SP: the tile at level L has one hash for each 256**L entries
        hashes = size // 256**level
        for index in range(-(-hashes // 256)):
            widths[level, index] = min(256, hashes - 256 * index)
    assert {where: len(data) for where, data in found.items()} == {
        where: 32 * width for where, width in widths.items()
    }, size
    assert found == expected, size
    ((stored, root),) = await bench.rig.sql(f"SELECT size, root FROM heads WHERE log_id = {bench.log_id}")
    assert (stored, root) == (size, tree.root(size))


async def test_seventy_thousand_entries(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heads, "_LOOK_SECONDS", 1e9)  # or proofs are not made from memory a second after the last look
    bench = await rig.log("raw")
    settings = Settings(data=tmp_path, publish_interval=60)
    log = Log(rig.store, bench.row, settings, Metrics(), Cache(2**24), bench.new_sequencer())
    await log.start()
    tree = Naive(LEAVES)
    size = 0
    steps = [size for around in STEPS for size in around]
    rng = random.Random(70_000)
    while size < SIZE:
        if size + 1 in steps:
            to = size + 1
        else:
            to = min([size + rng.randint(1, 5_000), SIZE, *(around[0] - 1 for around in STEPS if size < around[0] - 1)])
        outcome = await log.append(raw(*LEAVES[size:to]))
        assert (list(outcome.indices), outcome.signed.size) == (list(range(size, to)), to)
        assert outcome.signed.root == tree.root(to)
        size = to
        if size in steps or size + 3 in steps:
            await check_tiles(bench, tree, size)
    await check_tiles(bench, tree, SIZE)
    await check_reads(bench, log, tree)
    await log.close()

    watched, read = Faulty(rig.store), []
    watched.always = {
        name: Fault(change=lambda found: read.append(len(found)) or found) for name in ("tiles", "leaves")
    }
    again = Log(watched, bench.row, settings, Metrics(), Cache(2**20), bench.new_sequencer(watched))
    await again.start()
    assert set(dict(watched.calls)) <= {"clock", "head_to_extend", "tiles", "leaves", "fence", "publish"}
    assert sum(read) < 600, "a start reads the edge, not the log"
    watched.always.clear()
    outcome = await again.append(raw(LEAVES[0], LEAVES[-1], LEAVES[65_536], b"one more"))
    assert list(outcome.indices) == [0, SIZE - 1, 65_536, SIZE]
    policy = Policy((LogKey(bench.key.vkey),))
    for receipt in await again.receipts.all_of_append(raw(LEAVES[0], LEAVES[-1], LEAVES[65_536], b"one more"), outcome):
        receipt.verify(policy)
    await again.close()
    assert await audit(bench) == [*LEAVES, b"one more"]


async def check_reads(bench: Bench, log: Log, tree: Naive) -> None:
    """Check what is served: every tile and bundle of the tree, no wider one, and proofs across the levels."""
    expected = tree.tiles(SIZE)
    assert {(tile.level, tile.index): tile.width for tile in tiles_at(SIZE)} == {
        w: len(d) // 32 for w, d in expected.items()
    }
    for (level, index), data in expected.items():
        width = len(data) // 32
        assert await run(log.files.file(Tile(level, index, width))) == data
        assert width == 256 or await run(log.files.file(Tile(level, index, width + 1))) is None
        assert width < 256 or len(data) == 8192
    for level, index in ((0, 274), (1, 2), (2, 1), (3, 0)):
        assert await run(log.files.file(Tile(level, index, 1))) is None
    for index in (0, 1, 255, 256, 272):
        assert decode_bundle(await run(log.files.file(Bundle(index)))) == LEAVES[256 * index : 256 * index + 256]
    assert decode_bundle(await run(log.files.file(Bundle(273, 112)))) == LEAVES[69_888:]
    assert await run(log.files.file(Bundle(273, 113))) is None

    rng = random.Random(1)
    around = [1, 255, 256, 257, 65_280, 65_535, 65_536, 65_537, SIZE - 1, SIZE]
    for size in [*around, *rng.sample(range(1, SIZE), 150)]:
        index, first = rng.randrange(size), rng.randint(1, size)
        proof = await run(log.proofs.inclusion(index, size))
        leaf = LeafHash(sha256(b"\x00" + LEAVES[index]).digest())
        verify_inclusion(index, size, leaf, proof.hashes, RootHash(tree.root(size)))
        verify_consistency(size, SIZE, RootHash(tree.root(size)), RootHash(tree.root(SIZE)), proof.tie)
        proof = await run(log.proofs.consistency(first, size))
        verify_consistency(first, size, RootHash(tree.root(first)), RootHash(tree.root(size)), proof.hashes)
    for index in [*(index for index in around if index < SIZE), *rng.sample(range(SIZE), 100)]:
        proof = await run(log.proofs.inclusion(index, SIZE))
        assert log.proofs.inclusion_now(index) == proof, "the shorter way as the definition"
        assert await run(log.proofs.inclusion(index)) == proof
