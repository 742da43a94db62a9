"""Entries of a log as JSON values, their leaves, and where a leaf is."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import orjson

from muniment.encoding import b64
from muniment.event import Commitment, EventLeaf, OwnLeaf, format_time, parse_leaf, parse_time
from muniment.hashing import LeafHash, leaf_hash
from muniment_server.errors import Corrupt, NotFound, StoreUnavailable
from muniment_server.read.heads import Heads
from muniment_server.storage import Store
from muniment_server.storage.log import StoredPayload, leaf_key
from muniment_server.write.admission import EventDraft, commit

_PARTS = 16
"""Leaves that are looked at at once for a moment: a read of one takes nearly as long."""


class Entries:
    """Reads the entries of one log."""

    def __init__(self, store: Store, log_id: int, heads: Heads) -> None:
        self._reads = store.reads
        self._search = store.search
        self._log_id = log_id
        self._heads = heads

    async def page(self, start: int, limit: int, *, with_payload: bool) -> tuple[list[dict[str, Any]], int]:
        """Return up to `limit` entries from `start`, as JSON values, and the size of the signed head they are under.

        `with_payload` says whether the caller may see payloads: only then are the members of an event open.
        """
        size = (await self._heads.latest(start + 1)).size
        stop = min(start + limit, size)
        if start >= stop:
            return [], size
        leaves = await self.leaves(start, stop)
        payloads = await self.payloads(start, stop) if with_payload else {}
        return [_entry(start + at, leaf, payloads.get(start + at)) for at, leaf in enumerate(leaves)], size

    async def one(self, index: int, *, with_payload: bool) -> dict[str, Any]:
        """Return one entry as a JSON value. Raises NotFound."""
        found, size = await self.page(index, 1, with_payload=with_payload)
        if not found:
            raise NotFound("no_entry", f"the log has {size} entries: there is no entry {index}", "Indices start at 0.")
        return found[0]

    async def leaves(self, start: int, stop: int) -> list[bytes]:
        """Return the leaves [start, stop), which a signed head covers. Raises Corrupt."""
        leaves = await self._reads.leaves(self._log_id, start, stop)
        if len(leaves) != stop - start:
            raise Corrupt(f"entries {start + len(leaves)} to {stop} are missing")
        return leaves

    async def leaf(self, index: int) -> bytes:
        """Return one leaf, which a signed head covers. Raises Corrupt."""
        leaves = await self._reads.leaves(self._log_id, index, index + 1)
        if not leaves:
            raise Corrupt(f"entry {index} is missing")
        return leaves[0]

    async def payloads(self, start: int, stop: int) -> dict[int, StoredPayload]:
        """Return the payloads of [start, stop) by index; raw and erased entries have none."""
        return {stored.index: stored for stored in await self._reads.payloads(self._log_id, start, stop)}

    async def border(self, moment: int, size: int) -> int:
        """Return the first index whose entry is not before a moment, up to `size`: times never go back.

        Requires an event log.
        """
        low, high = 0, size  # what is before `low` is before it too, and what is at `high` or behind it is not
        while low < high:
            asked = sorted({low + (high - low) * part // _PARTS for part in range(_PARTS)})
            leaves = await self._search.leaves_at(self._log_id, asked)
            if len(leaves) < len(asked):
                raise Corrupt(f"of the entries {asked[0]} to {asked[-1]} some are missing")
            place = bisect_left(leaves, moment, key=logged_at)
            low, high = asked[place - 1] + 1 if place else low, asked[place] if place < len(asked) else high
        return low

    async def opened(self, index: int) -> EventDraft | None:
        """Return the payload of an event with what its leaf commits to; None of an entry that has none."""
        stored = await self._reads.payloads(self._log_id, index, index + 1)
        return _open(stored[0]) if stored else None

    async def find(self, wanted: bytes) -> int:
        """Return the lowest index of an entry with this leaf hash. Raises NotFound."""
        for index, leaf in await self._reads.find_leaves(self._log_id, [leaf_key(wanted)]):
            if leaf_hash(leaf) == wanted:
                return index
        raise NotFound(
            "no_entry", "no entry has this leaf hash", "The leaf hash is SHA-256(0x00 || leaf), in lowercase hex."
        )


def logged_at(leaf: bytes) -> int:
    """Return when an entry of an event log was logged. Raises StoreUnavailable of any other leaf."""
    content = parse_leaf(leaf)
    if isinstance(content, EventLeaf):
        return content.logged_at
    if isinstance(content, OwnLeaf):
        return parse_time(str(content.value["logged_at"]))
    raise StoreUnavailable("an entry of an event log has no time")


def _open(stored: StoredPayload) -> EventDraft:
    return commit(orjson.loads(stored.payload), stored.payload, stored.seed)


def _entry(index: int, leaf: bytes, stored: StoredPayload | None) -> dict[str, Any]:
    value: dict[str, Any] = {"index": index, "leaf": b64(leaf), "leaf_hash": LeafHash(leaf_hash(leaf)).hex()}
    content = parse_leaf(leaf)
    if isinstance(content, EventLeaf):
        value["logged_at"] = format_time(content.logged_at)
    elif isinstance(content, OwnLeaf):
        value["typ"] = content.typ
        value["logged_at"] = content.value["logged_at"]
    if stored:
        opened = _open(stored)
        value["event"] = orjson.Fragment(stored.payload)
        value["commitment"] = Commitment(opened.members).value()
        value["disclosures"] = opened.disclosures
    return value
