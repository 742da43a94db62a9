"""A fuzz target makes an input, runs it, and says whether it was accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from muniment.errors import FormatError, VerificationError
from tests.fuzz.mutate import mutate


class Broken(AssertionError):
    """An oracle was violated."""


def expect(condition: bool, problem: str) -> None:
    """Raise Broken unless `condition`."""
    if not condition:
        raise Broken(problem)


@dataclass(frozen=True)
class Target:
    """A fuzz target: `make` an input from a random source, `run` it and return whether it was accepted."""

    name: str
    make: Callable[[Random], Any]
    run: Callable[[Any], bool]


TARGETS: dict[str, Target] = {}


def fuzzed(
    name: str,
    seeds: Sequence[str | bytes],
    words: Sequence[bytes] = (),
    refusals: tuple[type[Exception], ...] = (FormatError, VerificationError),
) -> Callable[..., None]:
    """Register a target whose inputs are mutated bytes; its function raises one of `refusals` for a refused input."""
    raw = [seed.encode() if isinstance(seed, str) else seed for seed in seeds]

    def register(function: Callable[[bytes], None]) -> None:
        def run(data: bytes) -> bool:
            try:
                function(data)
            except refusals:
                return False
            return True

        TARGETS[name] = Target(name, lambda rng: mutate(rng, raw, words), run)

    return register
