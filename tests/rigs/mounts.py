"""File systems in files: made, mounted, copied at an instant as a power cut would leave them, and always taken down again."""

from __future__ import annotations

import fcntl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FICLONE = 0x40049409
_TRIES = 100


def tool(*words: str | Path) -> None:
    """Run a system program. Raises AssertionError with what it said."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise AssertionError(f"{words[0]} exited {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


def make_file(path: Path, mebibytes: int) -> Path:
    """Make a sparse file."""
    with path.open("xb") as file:
        file.truncate(mebibytes << 20)
    return path


def make_ext4(path: Path, mebibytes: int) -> Path:
    """Make a file that holds an empty ext4, nothing reserved for root."""
    tool(
        "mkfs.ext4",
        "-q",
        "-m",
        "0",
        "-E",
        "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
        make_file(path, mebibytes),
    )
    return path


@contextmanager
def mounted(image: Path, point: Path, options: str = "noatime") -> Iterator[Path]:
    """Mount a file system image; its loop device goes away with the mount."""
    point.mkdir(parents=True, exist_ok=True)
    tool("mount", "-o", f"loop,{options}", image, point)
    try:
        yield point
    finally:
        unmount(point)


def unmount(point: Path) -> None:
    """Unmount, waiting for a process that is just going away. Raises AssertionError when one stays; then unmounts lazily."""
    for _ in range(_TRIES):
        done = subprocess.run(["umount", point], capture_output=True, text=True, timeout=120, check=False)
        if not done.returncode:
            return
        time.sleep(0.05)
    tool("umount", "-l", point)
    raise AssertionError(f"{point} was still in use: {done.stderr.strip()}")


def clone(source: Path, target: Path) -> None:
    """Copy a file of a file system with reflinks at one instant, in about a millisecond however large it is."""
    with source.open("rb") as old, target.open("xb") as new:
        fcntl.ioctl(new, _FICLONE, old.fileno())


@contextmanager
def in_memory(point: Path, mebibytes: int) -> Iterator[Path]:
    """Mount an empty file system that lives in memory."""
    point.mkdir(parents=True, exist_ok=True)
    tool("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0711", "tmpfs", point)
    try:
        yield point
    finally:
        unmount(point)


@contextmanager
def reflinks(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount an empty XFS with reflinks, made in `folder`: where images live that are to be cloned.

    It lies in memory: what a copy holds is decided above it, and a sync that goes down to a real disk through two loop devices
    only takes longer.
    """
    with in_memory(folder / "memory", mebibytes) as memory:
        image = make_file(memory / "xfs.image", mebibytes)
        tool("mkfs.xfs", "-q", "-m", "reflink=1", image)
        with mounted(image, folder / "xfs") as point:
            yield point
