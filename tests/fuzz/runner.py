"""Run a target for a while. Each input has its own seed, so that a failure is replayed by its number alone."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.fuzz.target import Target


class Failure(Exception):
    """An input that broke an oracle, with what is needed to see it again."""

    def __init__(self, target: str, seed: int, number: int, data: object, cause: str) -> None:
        super().__init__(target, seed, number, data, cause)
        self.replay = f"--replay {target}:{seed}:{number}"
        self.text = f"FAIL {target}, input {number} of seed {seed}: {data!r}\n{cause}\nsee it again: python -m tests.fuzz {self.replay}"

    def __str__(self) -> str:
        """Return what to print."""
        return self.text


@dataclass(frozen=True)
class Result:
    """How many inputs ran, how many were accepted, and the slowest one in seconds."""

    target: str
    inputs: int
    accepted: int
    slowest: float
    seconds: float

    def __str__(self) -> str:
        """Return one line of the report."""
        rate = self.inputs / self.seconds if self.seconds else 0
        return (
            f"{self.target:12} {self.inputs:9,} inputs {self.accepted:8,} accepted {rate:8,.0f}/s"
            f"  slowest {self.slowest * 1000:6.1f} ms"
        )


def source(seed: int, number: int) -> Random:
    """The random source of one input."""
    return Random(seed << 40 | number)


def run_one(target: Target, seed: int, number: int) -> bool:
    """Make and run one input. Raises Failure when anything but a clean yes or no comes back."""
    data = target.make(source(seed, number))
    try:
        return target.run(data)
    except Exception as error:
        cause = "".join(traceback.format_exception(error, limit=-4))
        raise Failure(target.name, seed, number, data, cause) from error


def run_for(target: Target, seconds: float, seed: int, least: int = 1) -> Result:
    """Run inputs 0, 1, 2, ... of `seed` until the time is over, but at least so many, however busy the machine."""
    counts: Counter[bool] = Counter()
    slowest, number = 0.0, 0
    start = now = time.perf_counter()
    while number < least or now - start < seconds:
        accepted = run_one(target, seed, number)
        before, now = now, time.perf_counter()
        slowest = max(slowest, now - before)
        counts[accepted] += 1
        number += 1
    return Result(target.name, number, counts[True], slowest, now - start)
