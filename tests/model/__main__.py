"""``python -m tests.model``: runs the guard model through random interleavings, and prints what was found.

    python -m tests.model --interleavings 1000000
    python -m tests.model --interleavings 1000 --variants         how often each weaker rule breaks, and where first
    python -m tests.model --show OldRecord                          the shortest interleaving that breaks a rule

Exit codes: 0 the rule held (and each weaker rule broke), 1 it did not, 2 usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model.guard_model import Writer
from tests.model.outside import ANY, HEALTHY, Broken, interleave
from tests.model.variants import VARIANTS


@dataclass
class Found:
    """What interleavings of one rule came to."""

    interleavings: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    first: tuple[int, str] | None = None
    counts: Counter[str] = field(default_factory=Counter)


def explore(rule: type[Writer], seeds: range, events: tuple[str, ...] = ANY, *, stop: bool = False) -> Found:
    """Run the interleavings of these seeds; with `stop`, up to the first one in which the rule breaks."""
    found, said = Found(), time.monotonic()
    for seed in seeds:
        found.interleavings += 1
        try:
            found.counts.update(interleave(rule, seed, events).counts)
        except Broken as error:
            found.broken[error.kind] += 1
            found.first = found.first or (seed, str(error))
            if stop:
                break
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"  {rule.__name__}: {found.interleavings}, {found.broken.total()} broken", file=sys.stderr)
    return found


def shortest(rule: type[Writer], seeds: range) -> list[str]:
    """Return the steps of the shortest of these interleavings in which the rule breaks."""
    best: list[str] = []
    for steps in _broken(rule, seeds):
        best = min(best or steps, steps, key=len)
    return best


def _broken(rule: type[Writer], seeds: range) -> Iterator[list[str]]:
    for seed in seeds:
        log: list[str] = []
        try:
            interleave(rule, seed, log=log)
        except Broken as error:
            yield [*log, f"seed {seed}: {error}"]


def _report(rule: type[Writer], found: Found) -> None:
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.broken.items()))
    share = 100 * found.broken.total() / found.interleavings
    where = f"; first: seed {found.first[0]}, {found.first[1]}" if found.first else ""
    print(f"{rule.__name__:18} {found.broken.total():7} of {found.interleavings} broke ({share:.4f} %) {kinds}{where}")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.model", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--interleavings", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--variants", action="store_true", help="weaker rules, too")
    parser.add_argument("--show", choices=[rule.__name__ for rule in (Writer, *VARIANTS)])
    given = parser.parse_args()
    seeds = range(given.seed, given.seed + given.interleavings)
    if given.show:
        print("\n".join(shortest(next(rule for rule in (Writer, *VARIANTS) if rule.__name__ == given.show), seeds)))
        return 0
    found = explore(Writer, seeds)
    _report(Writer, found)
    print(f"  met: {dict(sorted(found.counts.items()))}")
    healthy = (
        explore(Writer, seeds[: len(seeds) // 5], ()).counts + explore(Writer, seeds[: len(seeds) // 5], HEALTHY).counts
    )
    print(f"  healthy: {dict(sorted(healthy.items()))}")
    good = not found.broken and not healthy["refused"]
    for rule in VARIANTS if given.variants else ():
        found = explore(rule, seeds)
        _report(rule, found)
        good = good and bool(found.broken)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
