"""What a header file of a million headers takes, and that it lets nothing through: `python -m tests.bitcoin.headers_rig`.

Prints the figures and exits with 1 when one is missed: validation in at most 5 seconds and 150 MB (in a process of its own), every
flipped bit refused, every fork without more work refused and the file unchanged.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from muniment.anchor.chain import HeaderChain, Network
from muniment.anchor.headerfile import CHUNK, HeaderFile
from muniment.errors import BadHeaderChain
from tests.bitcoin.headers import grow, synthetic

SECONDS, MEGABYTES = 5.0, 150.0
MEASURE = """
import json, re, sys, time
from muniment.anchor.chain import Network
from muniment.anchor.headerfile import HeaderFile
path, limit, interval, spacing, genesis = sys.argv[1:]
network = Network("synthetic", int(limit), {0: bytes.fromhex(genesis)}, int(interval), int(spacing))
started = time.perf_counter()
chain = HeaderFile(path, network).chain
seconds = time.perf_counter() - started
# Not ru_maxrss: that one starts with what the process held that started this one.
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1])
print(json.dumps([chain.count, seconds, peak / 1024]))
"""


@dataclass(frozen=True)
class Figures:
    headers: int
    seconds: float
    megabytes: float
    flips: int
    flips_refused: int
    forks: int
    forks_refused: int
    better_forks: int
    better_forks_taken: int

    @property
    def good(self) -> bool:
        wanted = (self.flips, self.forks, self.better_forks)
        scaled = SECONDS * max(1.0, self.headers / 1_000_000)
        return self.seconds <= scaled and self.megabytes <= MEGABYTES and wanted == (self.flips_refused, self.forks_refused, self.better_forks_taken)  # fmt: skip


def measure(path: Path, network: Network) -> tuple[int, float, float]:
    """Validate a file in a process of its own: headers, seconds, peak MB."""
    numbers = [str(value) for value in (network.limit, network.interval, network.spacing, network.pins[0].hex())]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), *numbers], capture_output=True, text=True, check=True, timeout=300
    )
    count, seconds, megabytes = json.loads(done.stdout)
    return count, seconds, megabytes


def flips(data: bytearray, network: Network, count: int, chance: random.Random) -> int:
    """Flip `count` bits, one at a time, anywhere but in the last header; return how many were refused.

    The headers before the chunk of the flip are good, as the whole file was before: they are not checked again each time.
    """
    bits = sorted(chance.randrange((len(data) - 80) * 8) for _ in range(count))
    chain, refused = HeaderChain(network), 0
    for at in range(0, len(data), CHUNK):
        before = chain.copy()
        chain.extend(bytes(data[at : at + CHUNK]))
        for bit in (bit for bit in bits if at <= bit // 8 < at + CHUNK):
            changed = bytearray(data[at : at + CHUNK + 80])  # a flip in the last header shows at the next one
            changed[bit // 8 - at] ^= 1 << bit % 8
            try:
                before.copy().extend(bytes(changed))
            except BadHeaderChain:
                refused += 1
    return refused


def forks(path: Path, data: bytearray, network: Network, chance: random.Random, depths: list[int]) -> tuple[int, int]:
    """Try forks that have no more work, then one that has; return how many of the first were refused, and whether the other won."""
    file, refused, total = HeaderFile(path, network), 0, len(data) // 80
    before = path.stat()
    for depth in depths:
        stem = data[: 80 * (total - depth)]
        try:
            file.replace(total - depth, _branch(network, stem, depth - depth // 10, chance, pace=1.0))
        except BadHeaderChain:
            refused += path.stat() == before
    won = file.replace(total - depths[0], _branch(network, data[: 80 * (total - depths[0])], depths[0] * 2, chance, pace=0.5))  # fmt: skip
    return refused, int(won.count == total + depths[0])


def _branch(network: Network, stem: bytearray, count: int, chance: random.Random, pace: float) -> bytes:
    headers = grow(network, stem, chance, pace)
    return b"".join(next(headers) for _ in range(count))


def run(headers: int, folder: Path, flipped: int = 500, interval: int = 0) -> Figures:
    """Make a synthetic chain and take all figures."""
    chance = random.Random(headers)
    network, data = synthetic(headers, interval=interval, pace=0.5, seed=headers)
    path = folder / "headers.bin"
    path.write_bytes(data)
    count, seconds, megabytes = measure(path, network)
    depths = [100, headers // 10]
    refused, won = forks(path, data, network, chance, depths)
    return Figures(
        count, seconds, megabytes, flipped, flips(data, network, flipped, chance), len(depths), refused, 1, won
    )


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--headers", type=int, default=1_000_000)
    parser.add_argument("--interval", type=int, default=0, help="headers between changes of difficulty; 0: none")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given.headers, Path(folder), interval=given.interval)
    print(json.dumps(asdict(found) | {"good": found.good, "rig_seconds": round(time.monotonic() - started)}, indent=1))
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
