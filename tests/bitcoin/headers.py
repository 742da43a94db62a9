"""Synthetic header chains of any length and difficulty rules, for the validator: real proof of work at about two hashes a header."""

from __future__ import annotations

import random
from collections.abc import Iterator

from muniment.anchor.chain import Network, next_bits
from tests.bitcoin.chain import BITS, sha256d, solve, target_of

START = 1_600_000_000


def synthetic(
    count: int, *, interval: int = 0, spacing: int = 600, seed: int = 0, bits: int = BITS, pace: float = 1.0
) -> tuple[Network, bytearray]:
    """Return a network and a chain of it with `count` headers. At the easiest difficulty a block takes `pace` times the spacing.

    Genesis is the first header; the network pins nothing else. Times go back now and then, as far as the median allows.
    """
    chance = random.Random(seed)
    network = Network("synthetic", bits, {}, interval=interval, spacing=spacing)
    headers = bytearray()
    for raw in grow(network, headers, chance, pace):
        headers += raw
        if len(headers) == 80 * count:
            break
    return Network("synthetic", bits, {0: sha256d(bytes(headers[:80]))}, interval=interval, spacing=spacing), headers


def grow(network: Network, headers: bytes | bytearray, chance: random.Random, pace: float = 1.0) -> Iterator[bytes]:
    """Yield headers that go on after `headers`, for ever."""
    held = [bytes(headers[at : at + 80]) for at in range(0, len(headers), 80)]
    times = [int.from_bytes(raw[68:72], "little") for raw in held]
    bits = int.from_bytes(held[-1][72:76], "little") if held else network.limit
    previous = sha256d(held[-1]) if held else bytes(32)
    clock = float(times[-1] if times else START)
    while True:
        if network.interval and times and len(times) % network.interval == 0:
            bits = next_bits(network, bits, times[-1] - times[-network.interval])
        harder = target_of(network.limit) / target_of(bits)  # the same machines take longer
        clock += chance.expovariate(1 / (network.spacing * pace * harder))
        seconds = int(clock) - chance.choice((0, 0, 0, 3 * network.spacing))
        if times:
            seconds = max(seconds, sorted(times[-11:])[len(times[-11:]) // 2] + 1)
        raw = solve(previous, chance.randbytes(32), seconds, bits)
        times.append(seconds)
        previous = sha256d(raw)
        yield raw


def work(headers: bytes | bytearray) -> int:
    """Sum of the work of headers, counted apart from the product."""
    found = (int.from_bytes(headers[at + 72 : at + 76], "little") for at in range(0, len(headers), 80))
    return sum((1 << 256) // (target_of(bits) + 1) for bits in found)
