"""Bundles of receipts, verified by several processes: what one process finds, and the error that one would raise."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any

from muniment.errors import FormatError, VerificationError
from muniment.policy import Policy
from muniment.receipts import ReceiptsReader
from muniment.receipts_report import MOST_NAMED, BundleReport, Shown, report_of, verify_receipts

LINES = 256
"""Lines of a part, at most."""
_BYTES = 2**20
WORTH = 8
"""Parts from which on other processes pay: to start them takes as long as to verify a thousand lines."""
_AHEAD = 3
"""Parts for each process that are read before the first of them is verified."""
_INDEX = re.compile(rb'"index":(0|[1-9][0-9]{0,18}),"leaf":"[A-Za-z0-9+/=]*"\}\n')


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines of a bundle. `count` entries come before them, the last one at the index before `after`.

    `after` is read off that line, nothing verified: it is right if that line holds, and else that one's error comes
    first. `is_last` says that no line follows.
    """

    lines: tuple[bytes, ...]
    count: int
    after: int
    is_last: bool = False


def verify_receipts_with(
    jobs: int, lines: Iterable[bytes], policy: Policy, pool_of: Callable[[int], Executor] | None = None
) -> BundleReport:
    """Return what :func:`muniment.receipts_report.verify_receipts` does, by up to `jobs` processes; raise what it does.

    At most a few parts are in memory. `pool_of` makes what runs the checks; by default it starts processes.
    """
    found = iter(lines)
    header = next(found, b"")
    parts = _parts(found, (ReceiptsReader([header], policy).header.range or (0, 0))[0])
    begun = list(islice(parts, WORTH if jobs > 1 else 0))
    if len(begun) < WORTH:
        return verify_receipts(chain([header], *(part.lines for part in begun), found), policy)
    with closing(_Shared(header, policy, (pool_of or _processes)(jobs))) as shared:
        for part in chain(begun, parts):
            shared.add(part, _AHEAD * jobs)
        return shared.report()


def _processes(jobs: int) -> Executor:
    return ProcessPoolExecutor(jobs, get_context("spawn"))  # a fork would copy the thread of the progress bar half


def _parts(lines: Iterator[bytes], after: int) -> Iterator[Part]:
    count, line = 0, next(lines, b"")
    while line:
        taken, size = [line], len(line)
        line = next(lines, b"")
        while line and len(taken) < LINES and size + len(line) <= _BYTES:
            taken.append(line)
            size += len(line)
            line = next(lines, b"")
        yield Part(tuple(taken), count, after, is_last=not line)
        count += len(taken)
        last = _INDEX.search(taken[-1])
        after = int(last[1]) + 1 if last else 0


# --- in the other processes -------------------------------------------------------------------------------------------


class _EndOfPart(Exception):
    """The lines of a part were read, and others follow."""


class _PartReader(ReceiptsReader):
    """Verifies a part, as if the lines before it had been verified. `ended` once the last line of the bundle holds."""

    def __init__(self, header: bytes, policy: Policy, part: Part) -> None:
        super().__init__(chain([header], _lines_of(part)), policy)
        self.count, self.line, self._after = part.count, part.count + 1, part.after
        self.ended = False

    def _check_end(self, value: dict[str, Any]) -> None:
        self.ended = True
        super()._check_end(value)


def _lines_of(part: Part) -> Iterator[bytes]:
    yield from part.lines
    if not part.is_last:
        raise _EndOfPart


@dataclass(slots=True)
class _Found:
    """What a part has. `ended` says that it has the last line of the bundle."""

    shown: Shown
    erasures: int = 0
    ended: bool = False


def check(header: bytes, policy: Policy, part: Part, shown: Shown | None = None) -> _Found:
    """Verify a part, and count it in `shown`. Raises as the reader."""
    reader = _PartReader(header, policy, part)
    found = _Found(Shown() if shown is None else shown)
    try:
        for receipt, verified in reader:
            found.shown.add(receipt, verified)
    except _EndOfPart:
        pass
    found.erasures, found.ended = reader.erasures, reader.ended
    return found


def _check_there(header: bytes, policy: Policy, part: Part) -> _Found | None:
    """Verify a part; None when it does not hold: errors stay in their process, and are found again."""
    try:
        return check(header, policy, part)
    except (FormatError, VerificationError):
        return None


# --- in this process --------------------------------------------------------------------------------------------------


class _Shared:
    """A bundle of which others verify the parts; what they find is taken in the order of the parts."""

    def __init__(self, header: bytes, policy: Policy, pool: Executor) -> None:
        self._header = header
        self._policy = policy
        self._pool = pool
        self._waiting: deque[tuple[Part, Future[_Found | None]]] = deque()
        self._total = _Found(Shown())
        self._count = 0

    def add(self, part: Part, most: int) -> None:
        """Have a part verified. Takes what was found of others until no more than `most` wait."""
        self._waiting.append((part, self._pool.submit(_check_there, self._header, self._policy, part)))
        while len(self._waiting) > most:
            self._take()

    def report(self) -> BundleReport:
        """Return what the bundle proves, once all parts were added."""
        while self._waiting:
            self._take()
        reader = ReceiptsReader([self._header], self._policy)
        return report_of(reader, self._policy, self._count, self._total.shown, self._total.erasures)

    def close(self) -> None:
        """End the others."""
        self._pool.shutdown(cancel_futures=True)

    def _take(self) -> None:
        part, future = self._waiting.popleft()
        found = future.result()
        if found is None or not _fits(self._total.shown, found.shown):
            found = check(self._header, self._policy, part, self._total.shown)
        else:
            self._total.shown.join(found.shown)
        self._total.erasures += found.erasures
        self._count = part.count + len(part.lines) - found.ended
        if found.ended and not part.is_last:  # the next line is one too many
            check(self._header, self._policy, replace(part, lines=(*part.lines, b"\n"), is_last=True))


def _fits(total: Shown, more: Shown) -> bool:
    """Tell whether counting names in parts comes to the same: that is so while there is room for all of them."""
    if more.unnamed or more.opened_unnamed:
        return False
    pairs = (total.hidden, more.hidden), (total.opened, more.opened)
    return all(len(one.keys() | other.keys()) <= MOST_NAMED for one, other in pairs)
