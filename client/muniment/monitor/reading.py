"""Reads the entries of a log into a tree of one's own, several bundles ahead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from hashlib import sha256

from muniment._flows.steps import Flow, Request, send
from muniment.errors import FormatError, Refused
from muniment.hashing import HASH_SIZE
from muniment.monitor.source import RETRIES, Source
from muniment.tiles import MAX_ENTRY, TILE_WIDTH, Bundle, decode_bundle, format_bundle, width_at

AHEAD = 6
"""Bundles that are asked for at a time."""
_LIMIT = TILE_WIDTH * (MAX_ENTRY + 2)


class Mismatch(Exception):
    """What is served does not fit what was read before, or is no bundle. `index` is the first entry concerned."""

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(detail)
        self.index = index


class Absent(Exception):
    """A bundle of the signed tree is not there. `index` is its first entry."""

    def __init__(self, detail: str, index: int) -> None:
        super().__init__(detail)
        self.index = index


def fetch_bundle(index: int, size: int) -> Flow[list[bytes]]:
    """Return the leaves of a bundle as it is in the tree of `size`, as they are served: nothing of them is checked.

    A server may have dropped a partial bundle once the full one exists. Raises Absent, Mismatch, or what sending does.
    """
    width = width_at(0, index, size)
    bundle, full = Bundle(index, width), Bundle(index)
    try:
        try:
            answer = yield from send(_request(bundle), RETRIES)
        except Refused as refused:
            if refused.status != 404 or bundle == full:
                raise
            answer = yield from send(_request(full), RETRIES)
    except Refused as refused:
        if refused.status not in (404, 410):
            raise
        start = index * TILE_WIDTH
        raise Absent(f"the bundle of entries {start} to {start + width - 1} is not there", start) from refused
    try:
        leaves = decode_bundle(answer.body)
    except FormatError as error:
        raise Mismatch(f"bundle {index} is damaged: {error}", index * TILE_WIDTH) from error
    # A bundle asked for as partial is that or the full one: either begins with what is wanted.
    if len(leaves) < width or (width == TILE_WIDTH and len(leaves) > width):
        raise Mismatch(f"bundle {index} has {len(leaves)} entries, not {width}", index * TILE_WIDTH)
    return leaves[:width]


def _request(bundle: Bundle) -> Request:
    return Request("GET", f"/tile/{format_bundle(bundle)}", limit=_LIMIT)


async def bundles(source: Source, start: int, size: int) -> AsyncGenerator[tuple[int, list[bytes]], None]:
    """Yield each bundle that holds entries [start, size), in order, with its index. Raises as :func:`fetch_bundle`."""
    wanted = iter(range(start // TILE_WIDTH, (size + TILE_WIDTH - 1) // TILE_WIDTH))
    under_way: deque[tuple[int, asyncio.Task[list[bytes]]]] = deque()
    try:
        while True:
            while len(under_way) < AHEAD and (index := next(wanted, None)) is not None:
                under_way.append((index, asyncio.create_task(source.run(fetch_bundle(index, size)))))
            if not under_way:
                return
            index, task = under_way[0]
            leaves = await task
            under_way.popleft()
            yield index, leaves
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)


def leaf_hashes(leaves: list[bytes]) -> bytes:
    """Return the hashes of leaves, joined."""
    return b"".join([sha256(b"\x00" + leaf).digest() for leaf in leaves])


def new_part(tail: bytes, leaves: list[bytes], index: int) -> tuple[list[bytes], bytes]:
    """Return those leaves of bundle `index` that come after the known leaf hashes `tail`, with their hashes.

    Raises Mismatch when the bundle does not begin with what was read before.
    """
    hashes = leaf_hashes(leaves)
    if not hashes.startswith(tail):
        known = len(tail) // HASH_SIZE
        wrong = next(at for at in range(known) if not _same(hashes, tail, at))
        where = index * TILE_WIDTH + wrong
        raise Mismatch(f"entry {where} is not the one that was served before", where)
    return leaves[len(tail) // HASH_SIZE :], hashes[len(tail) :]


def _same(one: bytes, other: bytes, at: int) -> bool:
    return one[at * HASH_SIZE : (at + 1) * HASH_SIZE] == other[at * HASH_SIZE : (at + 1) * HASH_SIZE]


async def whole_bundle(source: Source, index: int) -> bytes:
    """Return the leaf hashes of a full bundle, as it is served: the caller compares them. Raises as fetch_bundle."""
    return leaf_hashes(await source.run(fetch_bundle(index, (index + 1) * TILE_WIDTH)))
