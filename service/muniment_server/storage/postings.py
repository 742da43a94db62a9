"""Postings of a term as bytes: lists of ascending indices, one behind the other.

A list is how many there are, the first, and then the differences, as varints of seven bits with the low ones first.
It needs nothing of the list before it: a writer appends without reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from muniment_server.errors import Corrupt


def encode(indices: Sequence[int]) -> bytes:
    """Return the list of some indices. Requires them to be ascending, and at least one."""
    numbers = [len(indices), indices[0], *(after - before for before, after in pairwise(indices))]
    return b"".join(map(_varint, numbers))


def decode(data: bytes) -> list[int]:
    """Return the indices in some lists. Raises Corrupt."""
    numbers = _varints(data)
    indices: list[int] = []
    at = 0
    while at < len(numbers):
        stop = at + 1 + numbers[at]
        if numbers[at] < 1 or stop > len(numbers):
            raise Corrupt("a list of the search index ends too soon: run `muniment-server index rebuild`")
        indices += accumulate(numbers[at + 1 : stop])
        at = stop
    return indices


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def _varints(data: Iterable[int]) -> list[int]:
    numbers = []
    number = shift = 0
    for byte in data:
        if byte < 0x80:
            numbers.append(number | byte << shift)
            number = shift = 0
        else:
            number |= (byte & 0x7F) << shift
            shift += 7
    if shift:
        raise Corrupt("a list of the search index ends too soon: run `muniment-server index rebuild`")
    return numbers
