"""The header file: all headers of a chain from genesis, 80 bytes each, and nothing else.

Its form is in docs/spec/headers.md.

A file is replaced as a whole, so a crash leaves the old chain or the new one. Who reads it checks it from genesis once,
and later only what was added.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from muniment.anchor.chain import HeaderChain, Network
from muniment.anchor.header import HEADER_SIZE, Header, block_hash
from muniment.errors import BadHeaderChain, NoHeader, SourceUnavailable

CHUNK = 4096 * HEADER_SIZE
Signature = tuple[int, int, int]


class HeaderFile:
    """A header file, checked from genesis. A file that does not exist yet is a chain without headers.

    Safe to share between threads. Making one and every method raise BadHeaderChain when the file breaks a rule of its
    network, and SourceUnavailable when it cannot be read. `advance` is called with the number of headers after each
    stretch that was checked.
    """

    def __init__(self, path: str | Path, network: Network, advance: Callable[[int], object] | None = None) -> None:
        self.path = Path(path)
        self.network = network
        self._guard = threading.Lock()
        self._chain = HeaderChain(network)
        self._seen: Signature | None = None
        self._refresh(advance)

    @property
    def chain(self) -> HeaderChain:
        """What was last checked. Not to be changed."""
        return self._chain

    def refresh(self) -> HeaderChain:
        """Check what the file has now, if it was changed, and return the chain."""
        with self._guard:
            self._refresh(None)
            return self._chain

    def header(self, height: int) -> Header:
        """Return the header at `height`, rechecked up to a hash that we remember. Raises NoHeader above the tip."""
        with self._guard:
            chain = self._chain
            if not 0 <= height < chain.count:
                raise NoHeader(f"{self.path.name} has no block {height}: its last one is {chain.count - 1}")
            return chain.proven(height, self.read(height, chain.stop_of(height)))

    def read(self, start: int, stop: int) -> bytes:
        """Return the raw headers [start, stop), as they are on disk."""
        try:
            with self.path.open("rb") as file:
                file.seek(start * HEADER_SIZE)
                return file.read((stop - start) * HEADER_SIZE)
        except OSError as error:
            raise SourceUnavailable(f"cannot read {self.path}: {error.strerror}") from error

    def replace(self, keep: int, tail: bytes) -> HeaderChain:
        """Make the chain the first `keep` headers, 0 <= keep <= count, and then those in `tail`.

        Durable when it returns. Raises BadHeaderChain, and leaves the file as it is, when `tail` breaks a rule, or
        takes headers away without having more work than they had.
        """
        with self._guard, self._locked():
            self._refresh(None)
            old = self._chain
            if not 0 <= keep <= old.count:
                raise BadHeaderChain(f"a chain of {old.count} headers has no first {keep}")
            new = old.copy() if keep == old.count else self._prefix(keep)
            new.extend(tail)
            if keep < old.count and new.work <= old.work:
                raise BadHeaderChain(
                    f"the other chain from header {keep} on has no more work than the one it would replace"
                )
            self._write(keep, tail)
            self._chain, self._seen = new, _signature(self.path.stat())
            return new

    def _refresh(self, advance: Callable[[int], object] | None) -> None:
        try:
            with self.path.open("rb") as file:
                seen = _signature(os.fstat(file.fileno()))
                if seen != self._seen:
                    # One that was checked may have grown. Links lead from its tip to all that was checked before.
                    chain = self._chain.copy() if _goes_on(file, self._chain) else HeaderChain(self.network)
                    self._chain = _checked(file, chain, advance)
                    self._seen = seen
        except FileNotFoundError:
            self._chain, self._seen = HeaderChain(self.network), None
        except OSError as error:
            raise SourceUnavailable(f"cannot read {self.path}: {error.strerror}") from error

    def _prefix(self, keep: int) -> HeaderChain:
        with self.path.open("rb") as file:
            return _checked(file, HeaderChain(self.network), None, keep)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock file of its own: a lock on a file that is replaced holds no other process back.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(f"{self.path}.lock", "w") as lock:  # noqa: PTH123 - a name derived by suffix
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise SourceUnavailable(f"cannot write {self.path}: {error.strerror}") from error

    def _write(self, keep: int, tail: bytes) -> None:
        """Write the new file beside the old one, and give it its name when it is on disk. Called under the lock."""
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.unlink(missing_ok=True)  # of a writer that was killed
        try:
            with beside.open("xb") as file:
                if keep:
                    with self.path.open("rb") as old:
                        for chunk in _chunks(old, keep):
                            file.write(chunk)
                file.write(tail)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # without it a power cut may bring the old chain back
        finally:
            os.close(folder)


def _signature(stat: os.stat_result) -> Signature:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _goes_on(file: BinaryIO, chain: HeaderChain) -> bool:
    """Tell whether a file has the tip of a chain where the chain has it."""
    if not chain.count:
        return False
    file.seek((chain.count - 1) * HEADER_SIZE)
    return block_hash(file.read(HEADER_SIZE)) == chain.tip


def _checked(
    file: BinaryIO, chain: HeaderChain, advance: Callable[[int], object] | None, stop: int | None = None
) -> HeaderChain:
    """Extend a chain by the headers of a file from `chain.count` on, up to `stop` or its end."""
    file.seek(chain.count * HEADER_SIZE)
    for chunk in _chunks(file, None if stop is None else stop - chain.count):
        chain.extend(chunk)
        if advance:
            advance(len(chunk) // HEADER_SIZE)
    return chain


def _chunks(file: BinaryIO, headers: int | None) -> Iterator[bytes]:
    """Yield what a file holds, or its next so many headers."""
    left = None if headers is None else headers * HEADER_SIZE
    while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)
