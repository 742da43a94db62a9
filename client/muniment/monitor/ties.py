"""Ties a receipt that is given later to what a monitor saw: its tree is a prefix of the one that was read, or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from muniment import evidence
from muniment.errors import MunimentError, StateError
from muniment.monitor.book import Book, urls_of
from muniment.monitor.diagnosis import ForkFound
from muniment.monitor.follower import contradicts
from muniment.monitor.reading import Absent, Mismatch
from muniment.monitor.source import Source
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt
from muniment.state import replace_file


@dataclass(frozen=True, slots=True)
class Tie:
    """What a receipt is to a monitor: ``tied``, ``not_yet`` or ``forked``. `seen` is the size that it has read."""

    outcome: str
    detail: str
    seen: int
    evidence: dict[str, str] = field(default_factory=dict)


async def tie(folder: Path, receipt: Receipt, policy: Policy, key_of: Callable[[str], str | None]) -> Tie:
    """Compare a verified receipt with every log of its origin that a monitor follows in a folder.

    Raises StateError, and Unreachable, Unavailable or Refused when entries that this takes cannot be had.
    """
    books = [book for book in (Book.open(folder / "logs", url) for url in urls_of(folder / "logs")) if book.known()]
    books = [book for book in books if book.memory.origin == receipt.origin]
    if not books:
        raise StateError(f"the monitor in {folder} has not read the log {receipt.origin!r}")
    signed = policy.verify(receipt.checkpoint)
    seen = max(book.size() for book in books)
    size = signed.checkpoint.size
    if seen < size:
        detail = f"Not yet: the receipt is of size {size}, and the monitor has read {seen} entries of {receipt.origin}."
        return Tie("not_yet", detail, seen)
    for book in books:
        if book.size() >= size and (fork := await _compare(book, signed, key_of)):
            return _forked(folder, fork, policy, seen)
    detail = (
        f"Tied: entry {receipt.index} of {receipt.origin} is in the tree of size {size}, which is a prefix of the one"
        f" of size {seen} that this monitor read and computed."
    )
    return Tie("tied", detail, seen)


async def _compare(book: Book, signed: VerifiedCheckpoint, key_of: Callable[[str], str | None]) -> ForkFound | None:
    url = book.memory.url
    async with Source(url, key_of(url)) as source:
        try:
            return await contradicts(source, book, signed)
        except (Absent, Mismatch) as error:
            raise StateError(f"{url} does not serve the entries that were read before: {error}") from error


def _forked(folder: Path, fork: ForkFound, policy: Policy, seen: int) -> Tie:
    try:
        made, shown = evidence.make(fork.first, fork.second, fork.hashes, policy)
    except MunimentError as error:
        return Tie("forked", f"The receipt contradicts what was seen; no evidence could be made: {error}", seen)
    path = folder / "evidence" / f"{shown.first.size}-{shown.second.size}-{shown.first.root.hex()[:8]}.json"
    path.parent.mkdir(exist_ok=True, mode=0o700)
    replace_file(path, bytes(made))
    return Tie("forked", f"NOT the log that was seen: {shown.statement}.", seen, {"evidence": str(path)})
