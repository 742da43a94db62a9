"""What the server tells the C library's allocator takes effect."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A thread that allocates while the first heap is in use gets another one: glibc writes down which there are.
HEAPS = """
import ctypes, sys, threading
from muniment_server.cli.malloc import give_memory_back
if "told" in sys.argv:
    give_memory_back()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(2_000,)) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
report = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(report))
libc.fclose(ctypes.c_void_p(report))
"""


def heaps(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", HEAPS, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_all_threads_share_one_heap():
    assert heaps() > 1, "or there is nothing to tell"
    assert heaps("told") == 1
