"""`python -m tests.bench.profiling [WORKLOAD] [CONNECTIONS]`: where a server's main thread spends its time, by cProfile.

The profiler makes every call dearer, small functions most of all: read the order and the shares, not the times. Work in other threads
(SQLite, the guard's fdatasync) shows only as waiting.
"""

from __future__ import annotations

import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.machine import SERVER_CORE, pinned
from tests.bench.measure import OwnGenerator
from tests.bench.plan import EVENT_ORIGIN, RAW_ORIGIN, Load
from tests.live import LiveServer, environment, init, run

_SECONDS = 4.0
_LINES = 45


class ProfiledServer(LiveServer):
    """A live server under cProfile, which writes `profile` when the server stops."""

    def __init__(self, data: Path, profile: Path) -> None:
        self.data, self.lines, self.url = data, [], ""
        self._stderr = data.with_name("profiled.stderr")
        words = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "muniment_server.cli"]
        with self._stderr.open("wb") as stderr, pinned(SERVER_CORE):
            self.process = subprocess.Popen(
                [*words, "serve", "--data", str(data), "--port", "0"],
                env=environment(None) | {"MUNIMENT_SERVER_LOG_FORMAT": "json"},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )


def profile(workload: str, connections: int, folder: Path) -> tuple[dict[str, float], Path]:
    """Load a profiled server on SQLite. Returns what the generator says, and where the profile is."""
    data, out = folder / "data", folder / "profile"
    init(data, None, "event", EVENT_ORIGIN)
    run("log", "create", "raw", "--kind", "raw", "--origin", RAW_ORIGIN, "--data", data)
    server = ProfiledServer(data, out)
    try:
        where = urlsplit(server.wait().url)
        with closing(OwnGenerator()) as generator:
            seed = time.time_ns() % 2**63
            load = Load(workload, where.hostname or "", where.port or 0, connections, _SECONDS, seed, size=1)
            found = generator.run(load) | generator.verdict()
    finally:
        server.stop(signal.SIGTERM)
    return found, out


def main() -> None:
    """Profile and print the dearest functions, by their own time and with what they call."""
    workload = sys.argv[1] if len(sys.argv) > 1 else "raw"
    connections = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    with tempfile.TemporaryDirectory(prefix="muniment-profile-") as folder:
        found, out = profile(workload, connections, Path(folder))
        print(json.dumps({name: found[name] for name in ("requests", "rate", "p50_ms", "p99_ms", "statuses")}))
        os.environ["COLUMNS"] = "160"
        for order in ("tottime", "cumulative"):
            pstats.Stats(str(out)).strip_dirs().sort_stats(order).print_stats(_LINES)


if __name__ == "__main__":
    main()
