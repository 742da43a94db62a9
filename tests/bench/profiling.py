"""`python -m tests.bench.profiling [WORKLOAD] [CONNECTIONS]`: where a server's main thread spends its time under load, by cProfile.

The profiler makes every call dearer, small functions most of all: read the order and the shares, not the times. It sees neither the event
loop itself, with its system calls, nor work in other threads (SQLite, the guard's fdatasync).
"""

from __future__ import annotations

import cProfile
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.machine import SERVER_CORE, pinned
from tests.bench.measure import OwnGenerator
from tests.bench.plan import EVENT_ORIGIN, RAW_ORIGIN, WORKLOADS, Load
from tests.live import LiveServer, environment, init, run

_SECONDS = 4.0
_LINES = 40
_LAYERS = (  # part of a file's path -> what it is
    ("/uvicorn/", "uvicorn"),
    ("/fastapi/", "fastapi"),
    ("/starlette/", "starlette"),
    ("/prometheus_client/", "metrics"),
    ("/muniment_server/web/", "muniment_server.web"),
    ("/muniment_server/", "muniment_server."),
    ("/muniment/", "muniment."),
    ("~", "built-in functions"),
)


class ProfiledServer(LiveServer):
    """A live server that profiles from SIGUSR1 to SIGUSR2, and then writes `profile`."""

    def __init__(self, data: Path, profile: Path) -> None:
        self.data, self.lines, self.url = data, [], ""
        self._stderr = data.with_name("profiled.stderr")
        words = [sys.executable, "-m", "tests.bench.profiling", "--serve", str(profile)]
        with self._stderr.open("wb") as stderr, pinned(SERVER_CORE):
            self.process = subprocess.Popen(
                [*words, "serve", "--data", str(data), "--port", "0"],
                env=environment(None) | {"MUNIMENT_SERVER_LOG_FORMAT": "json"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )


def serve(profile: str, words: list[str]) -> None:
    """Be the server: run its command with a profiler that two signals turn on and off."""
    from muniment_server.cli import main as command  # noqa: PLC0415 - only in the process that serves

    profiler = cProfile.Profile()

    def finish(*_: Any) -> None:
        profiler.disable()
        profiler.dump_stats(f"{profile}.part")
        Path(f"{profile}.part").rename(profile)

    signal.signal(signal.SIGUSR1, lambda *_: profiler.enable())
    signal.signal(signal.SIGUSR2, finish)
    command(words)


def profile(workload: str, connections: int, folder: Path) -> tuple[dict[str, Any], Path]:
    """Load a profiled server on SQLite. Returns what the generator says, and where the profile is."""
    data, out = folder / "data", folder / "profile"
    init(data, None, "event", EVENT_ORIGIN)
    run("log", "create", "raw", "--kind", "raw", "--origin", RAW_ORIGIN, "--data", data)
    with ProfiledServer(data, out) as server, closing(OwnGenerator()) as generator:
        where = urlsplit(server.url)

        def load(seconds: float) -> dict[str, Any]:
            seed = time.time_ns() % 2**63
            wanted = Load(workload, where.hostname or "", where.port or 0, connections, seconds, seed, size=1)
            return generator.run(wanted) | generator.verdict()

        load(1.0)
        server.process.send_signal(signal.SIGUSR1)
        found = load(_SECONDS)
        server.process.send_signal(signal.SIGUSR2)
        while not out.exists():
            time.sleep(0.05)
    return found, out


def layers(stats: pstats.Stats) -> Counter[str]:
    """Return the own time of all functions, by layer."""
    found: Counter[str] = Counter()
    for (path, _, _), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        layer = next((name for part, name in _LAYERS if part in path), "other Python")
        found[layer + Path(path).stem if layer.endswith(".") else layer] += own
    return found


def main() -> None:
    """Profile and print the layers, and the dearest functions by their own time and with what they call."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3:])
    workload = sys.argv[1] if len(sys.argv) > 1 else "raw"
    connections = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    os.environ["COLUMNS"] = "160"
    with tempfile.TemporaryDirectory(prefix="muniment-profile-") as folder:
        found, out = profile(workload, connections, Path(folder))
        stats = pstats.Stats(str(out))
        print(f"{WORKLOADS[workload].title}, {connections} connections: {found['rate']:,.0f}/s with the profiler on")
        for layer, own in layers(stats).most_common():
            print(f"{own / found['requests'] * 1e6:8.1f} us/request  {layer}")
        for order in ("tottime", "cumulative"):
            stats.strip_dirs().sort_stats(order).print_stats(_LINES)


if __name__ == "__main__":
    main()
