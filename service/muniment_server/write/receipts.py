"""The receipts of new entries, made from what the append itself left in memory. Pure: nothing here reads or waits.

All entries of a batch share head, checkpoint and the upper part of their proofs, so those are worked out once. Byte for
byte what ``orjson.dumps(Receipt.to_json())`` gives: tests hold the two together.
"""

from __future__ import annotations

from binascii import b2a_base64, hexlify
from collections.abc import Sequence

import orjson

from muniment.hashing import HASH_SIZE
from muniment.receipt import RECEIPT_TYPE
from muniment.tree import Growth, TileRows
from muniment_server.tile_rows import path
from muniment_server.write.admission import EventDraft

_SHARED = 3
"""Entries whose index differs in the lowest bits alone share the proof from this height on."""
_HEX = 64
"""Characters of a hash."""


class ReceiptBuilder:
    """Makes the proofs and receipts of the entries that one growth added, at the head it led to."""

    def __init__(self, origin: str, growth: Growth, note: str) -> None:
        self._growth = growth
        self._size = growth.edge.size
        self._tails = growth.edge.tails
        self._uppers: dict[int, bytes] = {}
        self._tops: dict[int, bytes] = {}  # by tile: the proof above it
        self._lowers: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._before = b'{"typ":"%b","origin":%b,"index":' % (RECEIPT_TYPE.encode(), orjson.dumps(origin))
        self._inclusion = b'","inclusion":{"tree_size":%d,"hashes":[' % self._size
        self._after = b']},"checkpoint":%b' % orjson.dumps(note)

    def proof(self, index: int) -> list[bytes]:
        """Return the inclusion proof of an entry. Raises KeyError when the growth did not touch its tile."""
        return path(index, self._size, self._tails, self._rows)

    def _rows(self, level: int, index: int) -> TileRows:
        return self._growth.rows[level, index]

    def receipt(self, index: int, leaf: bytes, draft: object) -> bytes:
        """Return the JSON text of a receipt; that of an event opens its members. Raises KeyError as :meth:`proof`."""
        upper = self._uppers.get(index >> _SHARED)
        return b"".join(
            (
                self._before,
                b'%d,"leaf":"' % index,
                b2a_base64(leaf, newline=False),
                self._inclusion,
                self._lower(index),
                self._upper(index >> _SHARED) if upper is None else upper,
                self._after,
                _opened(draft) if isinstance(draft, EventDraft) else b"}",
            )
        )

    def _lower(self, index: int) -> bytes:
        """Return the JSON text of the proof below height _SHARED."""
        if index | 7 >= self._size:  # at the right end some of it is missing
            return hex_list(path(index, self._size, self._tails, self._rows, 0, _SHARED))
        rows = self._lowers.get(index >> 8)
        if rows is None:
            found = self._rows(0, index >> 8)
            rows = self._lowers[index >> 8] = (hexlify(found[0]), hexlify(found[1]), hexlify(found[2]))
        first, second, third = rows
        position = index & 255
        a, b, c = (position ^ 1) * _HEX, (position >> 1 ^ 1) * _HEX, (position >> 2 ^ 1) * _HEX
        return b'"%b","%b","%b"' % (first[a : a + _HEX], second[b : b + _HEX], third[c : c + _HEX])

    def _upper(self, part: int) -> bytes:
        """Return the JSON text of the proof from height _SHARED on, and the comma before.

        Neighbouring entries have it in common.
        """
        first = part << _SHARED
        top = self._tops.get(first >> 8)
        if top is None:
            top = self._tops[first >> 8] = hex_list(path(first, self._size, self._tails, self._rows, 8))
        middle = hex_list(path(first, self._size, self._tails, self._rows, _SHARED, 8))
        text = b",".join(filter(None, (middle, top)))
        # The right-most part has nothing below _SHARED when it is a single entry.
        alone = first == self._size - 1
        found = self._uppers[part] = b"," + text if text and not alone else text
        return found


def hex_list(hashes: Sequence[bytes]) -> bytes:
    """Return hashes as the inside of a JSON array: in hex, between quotes, with commas."""
    return b'"%b"' % hexlify(b"".join(hashes), '"', HASH_SIZE).replace(b'"', b'","') if hashes else b""


def _opened(draft: EventDraft) -> bytes:
    return b',"commitment":%b,"disclosures":%b}' % (draft.opening, draft.disclosed)
