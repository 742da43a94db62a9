"""Postings of a term as bytes: lists of ascending indices, one behind the other.

A list is twice its first index, as a varint of seven bits with the low ones first. Where there are others, one is added
to it, and there follow how many there are and the differences. It needs nothing of the list before it: a writer appends
without reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from muniment_server.errors import Corrupt

_TERMS = 500
"""Encoded without a pause: a millisecond."""


async def encode_all(postings: Mapping[bytes, Sequence[int]]) -> list[tuple[bytes, bytes]]:
    """Return terms and their lists, in the order of the terms; others have their turns in between."""
    done = []
    for at, key in enumerate(sorted(postings)):
        if at % _TERMS == 0:
            await asyncio.sleep(0)
        indices = postings[key]
        done.append((key, _alone(indices[0]) if len(indices) == 1 else encode(indices)))
    return done


def encode(indices: Sequence[int]) -> bytes:
    """Return the list of some indices. Requires them to be ascending, and at least one."""
    if len(indices) == 1:
        return _alone(indices[0])
    gaps = [after - before for before, after in pairwise(indices)]
    small = bytes(gaps) if max(gaps) < 0x80 else b"".join(map(_varint, gaps))
    return _varint(indices[0] << 1 | 1) + _varint(len(gaps)) + small


def decode(data: bytes) -> list[int]:
    """Return the indices in some lists. Raises Corrupt."""
    indices: list[int] = []
    number = shift = at = 0
    while at < len(data):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte >= 0x80:
            continue
        if number & 1:
            gaps, at = _gaps(data, at)
            indices += accumulate(gaps, initial=number >> 1)
        else:
            indices.append(number >> 1)
        number = shift = 0
    if shift:
        raise _short()
    return indices


def _gaps(data: bytes, at: int) -> tuple[Sequence[int], int]:
    """Return the differences of the list whose count stands here, and where the next list does."""
    count, at = _read(data, at)
    gaps = data[at : at + count]
    if len(gaps) < count:
        raise _short()
    return (gaps, at + count) if gaps.isascii() else _read_all(data, at, count)


def joined(lists: bytes) -> bytes:
    """Return one list of what is in some that follow each other: it is shorter, and sooner read. Raises Corrupt."""
    indices = decode(lists)
    if any(after <= before for before, after in pairwise(indices)):
        raise Corrupt("postings of the search index do not ascend: run `muniment-server index rebuild`")
    return encode(indices)


@lru_cache(1024)  # an entry has many terms that no other entry of its step has
def _alone(index: int) -> bytes:
    return _varint(index << 1)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _read(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands at a place, and where the next one does."""
    number = shift = 0
    for stop in range(at, len(data)):
        byte = data[stop]
        if byte < 0x80:
            return number | byte << shift, stop + 1
        number |= (byte & 0x7F) << shift
        shift += 7
    raise _short()


def _read_all(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    numbers = []
    for _ in range(count):
        number, at = _read(data, at)
        numbers.append(number)
    return numbers, at


def chunk_is_there() -> Corrupt:
    """Return the error of an index that would have two chunks with one stop."""
    return Corrupt("the search index has a chunk beyond its size: run `muniment-server index rebuild`")


def _short() -> Corrupt:
    return Corrupt("a list of the search index ends too soon: run `muniment-server index rebuild`")
