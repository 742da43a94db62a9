"""``python -m tests.rigs.stopping serve ...``: the server, which stops itself (SIGSTOP) at a step of the write path when it is asked to.

Needs ``MUNIMENT_FAILPOINTS`` in the environment, and in ``MUNIMENT_STOP_AT`` a file in which a rig writes the step, as ``guard.swap-after``.
A refusal that may end is looked at again several times a second, so that a rig need not wait.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path

SIZE = 64
_LOOK_SECONDS = 0.2


class Board:
    """A file that says at which step to stop next; nothing, when it is blank."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), SIZE)

    def write(self, step: str) -> None:
        """Ask for a stop at a step, or for none."""
        self._shared[:] = step.encode().ljust(SIZE, b"\0")

    def read(self) -> str:
        """Return the step, or nothing."""
        return bytes(self._shared).rstrip(b"\0").decode()


def stop_at(board: Board) -> None:
    """Let every step look at the board."""
    from muniment_server import failpoints  # noqa: PLC0415 - a rig that only writes the board has no need of it

    happens = failpoints._happens

    def looked(name: str, moment: str) -> bool:
        if board.read() == f"{name}-{moment}":
            board.write("")
            os.kill(os.getpid(), signal.SIGSTOP)
        return happens(name, moment)

    failpoints._happens = looked


if __name__ == "__main__":
    from muniment_server.cli import main
    from muniment_server.write import refusal

    stop_at(Board(Path(os.environ["MUNIMENT_STOP_AT"])))
    refusal.LOOK_SECONDS = _LOOK_SECONDS
    sys.exit(main())
