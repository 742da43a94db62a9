"""How much memory this process may use: the machine's, or that of the control group it runs in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Return bytes: the memory of the machine, or the lowest limit of this process's control groups (version 2)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(groups, own)])


def _limits(groups: Path, own: Path) -> Iterator[int]:
    folder = _folder(groups, own)
    while folder.is_relative_to(groups):  # a limit holds for every group below
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            yield int((folder / "memory.max").read_text())
        folder = folder.parent


def _folder(groups: Path, own: Path) -> Path:
    """Return the folder of the group this process is in; in a container that is the topmost one it sees."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                return groups / line.removeprefix("0::/")
    return groups
