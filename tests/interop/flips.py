"""One byte changed, at a place with a name."""

from __future__ import annotations

from collections.abc import Callable

Spoil = Callable[[bytes], bytes]


def other(byte: int) -> int:
    """Return another byte that is still a decimal, hex and base64 digit: so that only the value is wrong, not the spelling."""
    return ord("1") if byte != ord("1") else ord("2")


def replaced(data: bytes, at: int) -> bytes:
    """Return `data` with another digit at `at`."""
    return data[:at] + bytes([other(data[at])]) + data[at + 1 :]


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    """Return `data` with one bit of byte `at` flipped. `at` may count from the end."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def bit_at(at: int) -> Spoil:
    """Flip the lowest bit of byte `at`."""
    return lambda data: flipped(data, at)


def after(marker: bytes, offset: int = 0) -> Spoil:
    """Replace the digit `offset` bytes after the end of the first `marker`, which must be there."""
    return lambda data: replaced(data, data.index(marker) + len(marker) + offset)
