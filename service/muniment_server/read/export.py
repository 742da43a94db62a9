"""Export of a log: entries of one published tree, in order, in the three forms that leave it."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import orjson

from muniment.csvtext import COLUMNS, csv_line, fixed_line
from muniment.event import EventLeaf, parse_leaf
from muniment.receipts import Header, end_line
from muniment.rowtext import closed_row, entry_row, json_line
from muniment_server.errors import Corrupt
from muniment_server.read.entries import Entries
from muniment_server.read.search import Asked, Search
from muniment_server.read.tree import TreeAt
from muniment_server.write.admission import commit
from muniment_server.write.receipts import hex_list


class Found(NamedTuple):
    """An entry; of an event, payload and seed where there are any and the caller may see them."""

    index: int  # type: ignore[assignment]  # the column's name; tuple.index is not used
    leaf: bytes
    payload: bytes | None
    seed: bytes | None


class Form(Protocol):
    """What entries look like outside. `begin` and `end` stand before the first entry and behind the last."""

    media_type: str

    def begin(self) -> bytes:
        """Return what stands before all entries."""

    async def entry(self, found: Found) -> bytes:
        """Return one entry. Raises Corrupt."""

    def end(self, count: int) -> bytes:
        """Return what stands behind all entries, which are `count`."""


# --- rows -------------------------------------------------------------------------------------------------------------


class Jsonl:
    """One JSON object a line, as `muniment export` writes them."""

    media_type = "application/x-ndjson"

    def __init__(self, *, leaves_only: bool) -> None:
        self._leaves_only = leaves_only

    def begin(self) -> bytes:
        """See Form."""
        return b""

    async def entry(self, found: Found) -> bytes:
        """See Form."""
        return self.line(self._row(found)).encode()

    def line(self, row: dict[str, Any]) -> str:
        """Return a row as a line."""
        return json_line(row)

    def end(self, count: int) -> bytes:  # noqa: ARG002 - nothing says how many rows there are
        """See Form."""
        return b""

    def _row(self, found: Found) -> dict[str, Any]:
        content = parse_leaf(found.leaf)
        event = orjson.loads(found.payload) if found.payload is not None else {}
        hidden = ("*",) if isinstance(content, EventLeaf) and found.payload is None else ()
        row = entry_row(found.index, found.leaf, content, event, hidden)
        return closed_row(row, found.leaf) if self._leaves_only else row


class Csv(Jsonl):
    """A table (RFC 4180) whose cells are the columns of :data:`muniment.csvtext.COLUMNS`; a row has no line break."""

    media_type = "text/csv; charset=utf-8"

    def begin(self) -> bytes:
        """See Form."""
        return csv_line(COLUMNS).encode()

    def line(self, row: dict[str, Any]) -> str:
        """Return a row as a line."""
        return fixed_line(row)


# --- receipts ---------------------------------------------------------------------------------------------------------


class Receipts:
    """A bundle of receipts. Byte for byte what :class:`muniment.receipts.ReceiptsWriter` writes."""

    media_type = "application/x-ndjson"

    def __init__(self, header: Header, tree: TreeAt) -> None:
        self._header = header
        self._tree = tree

    def begin(self) -> bytes:
        """See Form."""
        return self._header.line()

    async def entry(self, found: Found) -> bytes:
        """See Form."""
        hashes = await self._tree.proof(found.index, found.leaf)
        return b'{%b"hashes":[%b],"index":%d,"leaf":"%b"}\n' % (
            _opened(found),
            hex_list(hashes),
            found.index,
            b2a_base64(found.leaf, newline=False),
        )

    def end(self, count: int) -> bytes:
        """See Form."""
        return end_line(count)


def _opened(found: Found) -> bytes:
    if found.payload is None or found.seed is None:
        return b""
    draft = commit(orjson.loads(found.payload), found.payload, found.seed)
    content = parse_leaf(found.leaf)
    if not isinstance(content, EventLeaf) or content.commitment != draft.commitment:
        raise Corrupt(f"the payload of entry {found.index} is not what its leaf commits to")
    return b'"commitment":%b,"disclosures":%b,' % (draft.opening, draft.disclosed)


# --- entries ----------------------------------------------------------------------------------------------------------


async def hits(search: Search, asked: Asked, start: int, stop: int) -> AsyncGenerator[list[Found]]:
    """Yield the events of [start, stop) that a search finds, oldest first."""
    async with aclosing(search.hits(asked, start, stop)) as batches:
        async for found in batches:
            yield [Found(*stored) for stored in found]


async def entries(log: Entries, start: int, stop: int, *, with_payload: bool) -> list[Found]:
    """Return the entries [start, stop), which a signed head covers. Raises Corrupt."""
    leaves = await log.leaves(start, stop)
    payloads = await log.payloads(start, stop) if with_payload else {}
    return [
        Found(index, leaf, *((stored.payload, stored.seed) if (stored := payloads.get(index)) else (None, None)))
        for index, leaf in enumerate(leaves, start)
    ]


def size_of(found: Iterable[Found]) -> int:
    """Return about how many bytes some entries take outside."""
    return sum(1000 + 3 * len(one.payload or b"") + 2 * len(one.leaf) for one in found)
