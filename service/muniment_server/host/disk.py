"""How much room is left on the volumes that the log writes to.

With it, the log stops taking entries while there is still some.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

ENOUGH = 4 << 30
"""Bytes that are always enough: a tenth of a very large volume is no emergency."""


class Disk:
    """The volumes under some folders. `least` is the percentage below which :attr:`low` is set; 0 turns that off."""

    def __init__(self, folders: Iterable[Path], least: float) -> None:
        self._folders = tuple(folders)
        self._least = least
        self.low = False
        self.free_ratio = 1.0

    def measure(self) -> None:
        """Look. Folders that cannot be asked are left out."""
        found = [_free(folder) for folder in self._folders]
        self.free_ratio = min((free / size for free, size in found if size), default=1.0)
        self.low = any(100 * free < self._least * size and free < ENOUGH for free, size in found)


def _free(folder: Path) -> tuple[int, int]:
    """Return the bytes that are free for us, and in all, on the volume of a folder; zeros when it cannot be asked."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0, 0
    return found.f_bavail * found.f_frsize, (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize
