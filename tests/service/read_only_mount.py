"""The command `muniment-server` where the folder after `--data` is mounted read-only, for this process alone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

from muniment_server.cli import main

_NEW_MOUNTS = 0x00020000


def _mount(folder: str) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for words in (["--make-rprivate", "/"], ["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        subprocess.run(["mount", *words], check=True)
    assert not os.access(folder, os.W_OK)


if __name__ == "__main__":
    _mount(sys.argv[sys.argv.index("--data") + 1])
    main()
