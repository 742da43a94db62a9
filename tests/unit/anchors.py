"""Anchors for the tests: checkpoints stamped into a chain that is mined here, and a source that reads that chain."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

from muniment.anchor.header import parse_header
from muniment.anchor.proof import merge_submission
from muniment.anchor.sources import Found
from muniment.anchored import AnchoredCheckpoint
from muniment.errors import NoHeader, SourceUnavailable
from tests.bitcoin.calendar import SHA256, append, block_ops, pending, prepend
from tests.bitcoin.chain import Block, Chain
from tests.unit.samples import SampleLog

NONCE = bytes(range(16))
CALENDAR = "https://calendar.example"
BEFORE, AFTER = b"transaction" + bytes(60), bytes(4)
NOON = 1_795_176_000


class ChainSource:
    """A header source over a chain; `down` makes it unreachable."""

    name = "the test chain"

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.down = False
        self.asked: list[int] = []

    def at(self, height: int) -> Found:
        self.asked.append(height)
        if self.down:
            raise SourceUnavailable("the test chain is down")
        block = self.chain.at(height)
        if block is None:
            raise NoHeader(f"no block {height} yet: the chain ends at {self.chain.height}")
        return Found(parse_header(block.raw), height, self.chain.height - height + 1, self.name, "chain")


def to_block(chain: Chain, message: bytes) -> tuple[bytes, Block]:
    """Mine a block that commits to `message`. Return the operations from there to the attestation, and the block."""
    transaction = BEFORE + message + AFTER
    chain.submit(transaction)
    block = chain.mine()
    return prepend(BEFORE) + append(AFTER) + SHA256 + SHA256 + block_ops(block, transaction), block


def stamp(chain: Chain, data: bytes) -> tuple[bytes, Block]:
    """Return the proof of `data` in a new block of `chain`, with a calendar's promise beside it."""
    digest = sha256(data).digest()
    ops, block = to_block(chain, sha256(digest + NONCE).digest())
    ots = merge_submission(None, digest, NONCE, ops)
    return merge_submission(ots, digest, NONCE, append(b"calendar") + SHA256 + pending(CALENDAR)), block


def anchor_of(chain: Chain, log: SampleLog, index: int, size: int, *, header: bool = True) -> AnchoredCheckpoint:
    """Return the anchor of entry `index` in the checkpoint of `size`, stamped in a new block."""
    note = log.checkpoint(size)
    ots, block = stamp(chain, note.encode())
    return AnchoredCheckpoint(
        note, size, tuple(log.tree.path(index, size)), ots, block.height, block.raw if header else None
    )


@cache
def sample_chain() -> Chain:
    """A short chain with a fixed clock. Shared: tests that add blocks make their own."""
    return Chain(3, clock=lambda: NOON)


@cache
def sample_anchor(log: SampleLog, index: int, size: int) -> AnchoredCheckpoint:
    """Return an anchor in the shared chain, the same for every caller."""
    return anchor_of(sample_chain(), log, index, size)
