"""What the C library's allocator is told: to give memory back.

Without, each thread that reads from the database gets a heap of its own, which never shrinks below what it once needed, and the
bodies of large batches are carved out of the heap and leave holes behind: ten to twenty megabytes of nothing after some load.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_... in malloc.h of glibc
_OPTIONS = (
    (_ARENA_MAX, 1),  # the threads take turns anyway, and so they need no heaps of their own
    (_MMAP_THRESHOLD, 2**20),  # fixed, or glibc raises it to the largest buffer it has met. Lower costs page faults
    (
        _TRIM_THRESHOLD,
        4 * 2**20,
    ),  # fixed by the line above to 128 kB, so that the heap would shrink and grow all the time
)


def give_memory_back() -> None:
    """Tell glibc so, before there are threads. Where there is another C library nothing happens."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in _OPTIONS:
            mallopt(option, value)
