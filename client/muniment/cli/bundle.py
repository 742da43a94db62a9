"""Bundles of receipts among the files that commands are given: known by their first line, read line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

import click

from muniment.cli.files import check_text
from muniment.cli.progress import progress
from muniment.policy import Policy
from muniment.receipts import is_bundle, lines_of
from muniment.receipts_report import BundleReport

_STEP = 256 * 1024
"""Bytes after which the progress bar moves: a bar that moves at each line takes longer than the line."""


def check_bundle(
    name: str, first: bytes, file: IO[bytes], policy: Policy, *, jobs: int, quiet: bool
) -> BundleReport | None:
    """Return what the bundle proves that begins with the line `first`, or None when that begins no bundle.

    Raises FormatError or VerificationError, which name the line.
    """
    if not is_bundle(first):
        return None
    from muniment.receipts_jobs import verify_receipts_with  # other processes, which a receipt needs none of

    with bundle_lines(f"Verifying {name}", name, first, file, quiet=quiet) as lines:
        return verify_receipts_with(jobs, lines, policy)


@contextmanager
def bundle_lines(what: str, name: str, first: bytes, file: IO[bytes], *, quiet: bool) -> Iterator[Iterator[bytes]]:
    """Yield the lines of a bundle of which the `first` was read already. A bar says how far `what` is done.

    Raises CliError when it is a file that an editor wrote anew.
    """
    check_text(name, first, lines=True)
    with progress(what, _size(name), quiet=quiet) as advance:
        yield _counted(chain([first], lines_of(file)), advance)


def receipts_only(name: str, what: str, option: str) -> click.UsageError:
    """Return what says that an option is for receipts alone, and not for `what` a file is."""
    return click.UsageError(f"{option} is for receipts, and {name} is {what}")


def _size(name: str) -> int:
    """Return the bytes that are to be read, 0 where nothing says so: of a pipe too."""
    return 0 if name == "-" else Path(name).stat().st_size


def _counted(lines: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    for line in lines:
        done += len(line)
        if done >= _STEP:
            advance(done)
            done = 0
        yield line
    advance(done)
