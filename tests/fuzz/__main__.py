"""``python -m tests.fuzz [--seconds N] [--seed S] [PARSER ...]``: fuzz every parser, then turn every bit of every small proof."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from tests.fuzz.everything import TARGETS
from tests.fuzz.flips import LARGEST, flips_expected, flips_of
from tests.fuzz.runner import Failure, Result, run_for, run_one

FLIPS = "flips"


def main() -> int:
    """Run what the command line asks for. Return 1 when an oracle was broken."""
    names = [*TARGETS, FLIPS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "parsers", nargs="*", metavar="PARSER", help=f"one or more of: {', '.join(names)} (all by default)"
    )
    parser.add_argument(
        "--seconds", type=float, default=15, help="time for each parser (default 15); flips takes what it takes"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed makes the same inputs")
    parser.add_argument("--replay", metavar="PARSER:SEED:NUMBER", help="run one input of an earlier run again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    if unknown := set(options.parsers) - set(names):
        parser.error(f"no such parser: {', '.join(sorted(unknown))}")
    try:
        if options.replay:
            return _replay(options.replay)
        _run(options.parsers or names, options.seconds, options.seed, options.jobs)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def _replay(which: str) -> int:
    name, seed, number = which.split(":")
    accepted = run_one(TARGETS[name], int(seed), int(number))
    print(f"{which}: {'accepted' if accepted else 'refused'}, as it should be")
    return 0


def _fuzz(name: str, seconds: float, seed: int) -> Result:
    return run_for(TARGETS[name], seconds, seed)


def _run(names: list[str], seconds: float, seed: int, jobs: int) -> None:
    print(f"seed {seed}, {seconds:g} s for each parser, {jobs} processes", flush=True)
    start, total = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs) as pool:
        try:
            running: list[Future[Result]] = [pool.submit(_fuzz, name, seconds, seed) for name in names if name != FLIPS]
            # Largest first: the last ones are short, and no process waits long for another.
            turning = [pool.submit(flips_of, size) for size in range(LARGEST, 0, -1)] if FLIPS in names else []
            for done in as_completed(running):
                print(done.result(), flush=True)
                total += done.result().inputs
            turned = sum(done.result() for done in turning)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if FLIPS in names:
        if turned != sum(map(flips_expected, range(1, LARGEST + 1))):
            raise AssertionError("some bits were not turned")
        print(f"{FLIPS:12} {turned:,} bits turned in the proofs of all trees of up to {LARGEST} leaves: all refused")
    print(f"{total:,} inputs in {time.perf_counter() - start:.0f} s, no oracle broken")


if __name__ == "__main__":
    sys.exit(main())
