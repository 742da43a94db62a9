"""How `serve` takes less memory than it would by itself."""

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
    """Have glibc give memory back. Call it before there are threads. Where there is another C library nothing happens.

    Otherwise each thread that reads from the database gets a heap of its own, which hardly ever shrinks, and the
    bodies of large batches are carved out of the heap and leave holes behind: after some load ten megabytes and more.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in _OPTIONS:
            mallopt(option, value)


def load_structlog() -> None:
    """Load structlog without rich, which takes 3 MB.

    Where structlog finds rich it loads it for tracebacks, which this server does not want.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed
    import structlog  # noqa: F401

    del sys.modules["rich"]
