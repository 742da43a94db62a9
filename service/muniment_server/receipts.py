"""The receipts of new entries, made from what the append itself left in memory. Pure: nothing here reads or waits.

All entries of a batch share head, checkpoint and the upper part of their proofs, so those are worked out once. Byte for byte what
``orjson.dumps(Receipt.to_json())`` gives: tests hold the two together.
"""

from __future__ import annotations

from binascii import b2a_base64

import orjson

from muniment.receipt import RECEIPT_TYPE
from muniment.tree import Growth, path
from muniment_server.admission import EventDraft
from muniment_server.cache import Rows

_SHARED = 3
"""Entries whose index differs in the lowest bits alone share the proof from this height on."""


class Maker:
    """Makes the proofs and receipts of the entries that one growth added, at the head it led to."""

    def __init__(self, origin: str, growth: Growth, note: str) -> None:
        self._growth = growth
        self._size = growth.edge.size
        self._tails = growth.edge.tails
        self._uppers: dict[int, bytes] = {}
        self._before = b'{"typ":"%b","origin":%b,"index":' % (RECEIPT_TYPE.encode(), orjson.dumps(origin))
        self._inclusion = b'","inclusion":{"tree_size":%d,"hashes":[' % self._size
        self._after = b']},"checkpoint":%b' % orjson.dumps(note)

    def proof(self, index: int) -> list[bytes]:
        """Return the inclusion proof of an entry. Raises KeyError when the growth did not touch its tile."""
        return path(index, self._size, self._tails, self._rows)

    def _rows(self, level: int, index: int) -> Rows:
        return self._growth.rows[level, index]

    def receipt(self, index: int, leaf: bytes, draft: object) -> bytes:
        """Return the JSON text of a receipt; that of an event opens its members. Raises KeyError as :meth:`proof`."""
        lower = path(index, self._size, self._tails, self._rows, 0, _SHARED)
        upper = self._uppers.get(index >> _SHARED)
        if upper is None:
            upper = self._upper(index >> _SHARED)
        hashes = [b'"%b"' % part.hex().encode() for part in lower]
        if upper:
            hashes.append(upper)
        parts = (
            self._before,
            b'%d,"leaf":"' % index,
            b2a_base64(leaf, newline=False),
            self._inclusion,
            b",".join(hashes),
            self._after,
            _opened(draft) if isinstance(draft, EventDraft) else b"}",
        )
        return b"".join(parts)

    def _upper(self, part: int) -> bytes:
        """Return the JSON text of the proof above height _SHARED, which neighbouring entries have in common."""
        hashes = path(part << _SHARED, self._size, self._tails, self._rows, _SHARED)
        found = self._uppers[part] = b",".join([b'"%b"' % value.hex().encode() for value in hashes])
        return found


def _opened(draft: EventDraft) -> bytes:
    return b',"commitment":%b,"disclosures":%b}' % (draft.opening, orjson.dumps(draft.disclosures))
