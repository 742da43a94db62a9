"""Requests, each with a body nobody sent before, or for a random part of the log."""

from __future__ import annotations

import random
from collections.abc import Callable

from muniment.tiles import TILE_WIDTH, Bundle, Tile, format_bundle, format_tile
from tests.bench.plan import BATCH, ENTRY_SIZE, SMALL_SIZE, WORKLOADS, Workload

_DIGITS = 12
_BEFORE = (
    '{"action":"invoice.approve","actor":"user-0042@example.com","at":"2026-11-20T12:00:00.123Z",'
    '"details":{"amount":129900,"currency":"EUR","note":"%s"},"id":"'
)
_AFTER = '","ip":"192.0.2.17","resource":"invoice/2026/11/0042"}'

Parts = tuple[bytes, bytes]
MIXED = "mixed"
PARTS = ("raw", "proof", "raw", "tile")
"""The workloads that the requests of a mixed load belong to, in turn."""


def part_of(workload: str, number: int) -> str:
    """Return which workload a request belongs to."""
    return PARTS[number % len(PARTS)] if workload == MIXED else workload


def entry_parts(seed: int) -> Parts:
    """Return what stands before and after the twelve digits that make an entry unique among those of `seed`.

    An entry is an event of 7 members in canonical form, as the SDK sends it, ENTRY_SIZE bytes long.
    """
    identity = f"{seed:016x}-"
    note = "x" * (ENTRY_SIZE - len(_BEFORE) + 2 - len(identity) - _DIGITS - len(_AFTER))
    return f"{_BEFORE % note}{identity}".encode(), _AFTER.encode()


def small_parts(seed: int) -> Parts:
    """Return the same for an entry of SMALL_SIZE bytes, which is no event."""
    return f"{seed:0{SMALL_SIZE - _DIGITS}x}".encode(), b""


def entry(parts: Parts, number: int) -> bytes:
    """Return entry `number`."""
    return b"%b%012d%b" % (parts[0], number, parts[1])


def batch_parts(workload: Workload, parts: Parts) -> Parts:
    """Return the parts of an entry within a batch: C2SP bundle encoding for raw logs, NDJSON for event logs."""
    before, after = parts
    size = len(before) + _DIGITS + len(after)
    return (before, after + b"\n") if workload.log == "event" else (size.to_bytes(2, "big") + before, after)


def body_maker(workload: Workload, seed: int) -> Callable[[int], bytes]:
    """Return the function that makes the body of request `number`."""
    parts = small_parts(seed) if workload.log == "small" else entry_parts(seed)
    if workload.entries <= 1:
        return lambda number: entry(parts, number)
    before, after = batch_parts(workload, parts)

    def batch(number: int) -> bytes:
        first = number * BATCH
        return b"".join([b"%b%012d%b" % (before, at, after) for at in range(first, first + BATCH)])

    return batch


def path_maker(workload: Workload, seed: int, size: int) -> Callable[[int], str]:
    """Return the function that makes the path of request `number`, on a log of `size`."""
    pick = random.Random(seed).randrange
    full = max(1, size // TILE_WIDTH)
    base = workload.prefix + workload.path
    tiles = workload.prefix + "/tile/"
    if workload.name == "proof":
        return lambda _: f"{base}{pick(size)}"
    if workload.name == "tile":
        return lambda _: tiles + format_tile(Tile(0, pick(full)))
    if workload.name.endswith("bundle"):
        return lambda _: tiles + format_bundle(Bundle(pick(full)))
    return lambda _: base


def request_maker(name: str, seed: int, size: int) -> Callable[[int], bytes]:
    """Return the function that makes the whole HTTP request `number` of a workload."""
    if name == MIXED:
        makers = {part: request_maker(part, seed, size) for part in set(PARTS)}
        return lambda number: makers[PARTS[number % len(PARTS)]](number)
    workload = WORKLOADS[name]
    path = path_maker(workload, seed, size)
    if not workload.post:
        return lambda number: f"GET {path(number)} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    make = body_maker(workload, seed)
    length = len(make(0))
    head = f"POST {path(0)} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {workload.content_type}\r\ncontent-length: {length}\r\n\r\n"
    encoded = head.encode()
    return lambda number: encoded + make(number)
