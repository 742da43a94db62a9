"""What `serve` does to take little memory takes effect."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# A thread that allocates while the first heap is in use gets another one: glibc writes down which there are.
HEAPS = """
import ctypes, sys, threading
from muniment_server.cli.memory import give_memory_back
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


# In the order of `serve`, which first loads its own module.
LOADED = """
import sys, muniment_server.cli.serve
from muniment_server.cli.memory import load_structlog
load_structlog()
import muniment_server.app, muniment_server.web.http.protocol
assert "structlog" in sys.modules
print(*{name.partition(".")[0] for name in sys.modules})
import rich.console
"""


def test_what_only_a_command_line_shows_is_not_loaded_to_serve():
    done = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True)
    assert not {"rich", "pygments"} & set(done.stdout.split())
