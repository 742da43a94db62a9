"""Reads what a sink wants of a published tree: where its next batch ends, and what is in it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Protocol

import orjson

from muniment.checkpoint import parse_checkpoint
from muniment.note import parse_note
from muniment.receipts import Header
from muniment_server.errors import ReadOnly
from muniment_server.follow.push.batch import Batch
from muniment_server.read import export as forms
from muniment_server.read.entries import Entries
from muniment_server.read.heads import Heads
from muniment_server.read.proofs import Proofs
from muniment_server.sinks import Sink
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.checkpoints import Published
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Signed

MOST_ROWS = 256
MOST_BYTES = 256 * 1024
"""Of the rows of a batch; the last one may go beyond it. All that is held for a sink is one batch, while it is sent."""
MOST_LOOKED = 4096
"""Entries that are looked at for one batch."""
_FIRST = 8
_PIECE = 262_144
_BREATH = 8
"""Rows that are made without letting requests have a turn."""


class Pushable(Protocol):
    """What a log has to have for its entries to be pushed."""

    row: LogRow
    heads: Heads
    entries: Entries
    proofs: Proofs
    sequencer: Sequencer | None

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""


class Found(NamedTuple):
    """The entries of [start, stop) that a sink wants, each with its row."""

    stop: int
    entries: list[forms.Found]
    lines: list[bytes]


class Cutting:
    """Reads one log for the sink `name`."""

    def __init__(self, log: Pushable, name: str, sink: Sink) -> None:
        self._log = log
        self._name = name
        self._sink = sink
        self._query = sink.parsed
        self._form = forms.Jsonl(leaves_only=not sink.payloads)

    async def cut(self, start: int, stop: int) -> Found:
        """Return what a batch holds that begins at `start` and goes no further than `stop`."""
        return await self._read(start, stop, MOST_ROWS, MOST_BYTES)

    async def batch(self, start: int, looked: int, stop: int, tree_size: int) -> Batch:
        """Return the batch of [start, stop), in which [start, looked) has no row: the same each time."""
        found = await self._read(looked, stop, None, None)
        row, receipts = self._log.row, None
        if self._sink.receipts:
            receipts = await self._receipts(await self._log.heads.published(tree_size), start, stop, found)
        return Batch(
            row.name, row.origin, self._name, start, stop, tree_size, found.lines, self._query is None, receipts
        )

    async def _read(self, start: int, stop: int, rows: int | None, size: int | None) -> Found:
        found, at, step, held = Found(start, [], []), start, _FIRST, 0
        while at < stop:
            some = await forms.entries(self._log.entries, at, min(at + step, stop), with_payload=self._sink.payloads)
            for number, one in enumerate(some):
                if number % _BREATH == 0:
                    await asyncio.sleep(0)
                if self._wants(one):
                    found.entries.append(one)
                    found.lines.append(await self._form.entry(one))
                    held += len(found.lines[-1])
                at += 1
                if rows is not None and size is not None and (len(found.lines) == rows or held >= size):
                    return found._replace(stop=at)
            if rows is not None and at - start >= MOST_LOOKED:
                return found._replace(stop=at)
            step = min(4 * step, MOST_ROWS, max(1, _PIECE * len(some) // forms.size_of(some)))
        return found._replace(stop=stop)

    def _wants(self, found: forms.Found) -> bool:
        if self._query is None:
            return True
        return found.payload is not None and self._query.matches(orjson.loads(found.payload))

    async def _receipts(self, published: Published, start: int, stop: int, found: Found) -> bytes:
        """Return a bundle of receipts; with a query it claims no range, as it says nothing of what is not in it."""
        root = parse_checkpoint(parse_note(published.note).text).root
        tree = await self._log.proofs.tree(Signed(published.size, root, published.note))
        whole = (start, stop) if self._query is None else None
        form = forms.Receipts(Header(self._log.row.origin, published.note, whole), tree)
        lines = [await form.entry(one) for one in found.entries]
        return b"".join([form.begin(), *lines, form.end(len(lines))])
