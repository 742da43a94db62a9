"""The guard: the last head this log may have signed, kept outside the database.

A database that is restored from a backup, cloned or emptied takes everything in it back in time. The guard does not go
with it, and so stops the next signature. One file for each log, shared by all writers of that log on this host::

    block 0 (4,096 bytes)                    block 1 (4,096 bytes)
    slot 0, slot 1 (1,024 bytes each), 0...  the same slots once more

A slot is text, padded with NUL: seven lines (format, guard id, sequence number, origin, key id, size, root) and the
SHA-256 of them. Slots are written in turn, each into both blocks, and the one with the larger number counts. A write
that a crash cuts short leaves one whole copy of its slot. So a slot of which both copies are damaged was damaged
afterwards: the guard is refused then, because the other slot, which is older, would let a head be signed a second time.

The values of a guard form one chain, each a prefix of the next: :mod:`muniment_server.write.raising` has the proofs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from muniment.encoding import parse_decimal, parse_hex
from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash
from muniment_server.errors import GuardRefused, GuardUnavailable
from muniment_server.failpoints import step

SLOT = 1024
BLOCK = 4096
FILE_SIZE = 2 * BLOCK
LOCK_SECONDS = 5.0
"""How long a writer waits for the lock, which others hold for one write and its sync."""
_POLL_SECONDS = 0.0005
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_FORMAT = "muniment-guard v2"
_FIRST_FORMAT = "muniment-guard v1"
"""Two slots and no second block, written by versions that compared sizes only. Taken over with the first write."""


class TreeHead(NamedTuple):
    """A size, and the root of the tree of that size."""

    size: int
    root: RootHash


@dataclass(frozen=True, slots=True)
class Guarded:
    """What a slot says: the last head that may have been signed. `sequence` counts the writes of this guard."""

    guard_id: str
    sequence: int
    origin: str
    key_id: bytes
    size: int
    root: RootHash

    @property
    def head(self) -> TreeHead:
        """The head alone."""
        return TreeHead(self.size, self.root)

    def raised(self, head: TreeHead) -> Guarded:
        """Return what the next write says."""
        return Guarded(self.guard_id, self.sequence + 1, self.origin, self.key_id, head.size, head.root)

    def encode(self, format_: str = _FORMAT) -> bytes:
        """Return the 1,024 bytes of a slot."""
        fields = (self.guard_id, self.sequence, self.origin, self.key_id.hex(), self.size, self.root.hex())
        text = "".join(f"{line}\n" for line in (format_, *fields)).encode()
        return (text + sha256(text).hexdigest().encode() + b"\n").ljust(SLOT, b"\0")

    @classmethod
    def decode(cls, slot: bytes, format_: str = _FORMAT) -> Guarded:
        """Return the content of a slot. Raises FormatError unless encoding it gives the slot again."""
        try:
            lines = slot.rstrip(b"\0").decode().split("\n")
        except UnicodeDecodeError:
            raise FormatError("guard slot is not text") from None
        if len(lines) != 9 or lines[0] != format_:
            raise FormatError("not a guard slot")
        _, guard_id, sequence, origin, key_id, size, root, _, _ = lines
        found = cls(
            guard_id,
            parse_decimal(sequence),
            origin,
            parse_hex(key_id, 4),
            parse_decimal(size),
            RootHash(parse_hex(root, HASH_SIZE)),
        )
        if found.encode(format_) != slot:
            raise FormatError("checksum of the guard slot is wrong")
        return found


def copies_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the two copies of each slot of a guard file."""
    return [(data[at : at + SLOT], data[BLOCK + at : BLOCK + at + SLOT]) for at in (0, SLOT)]


def is_first_format(data: bytes) -> bool:
    """Tell whether a guard file was written by a version that kept one copy of each slot, or is half taken over."""
    return len(data) <= 2 * SLOT or any(data.startswith(f"{_FIRST_FORMAT}\n".encode(), at) for at in (0, SLOT))


def _any_format(slot: bytes) -> Guarded | None:
    for format_ in (_FIRST_FORMAT, _FORMAT):
        with suppress(FormatError):
            return Guarded.decode(slot, format_)
    return None


def _sequence(slot: Guarded) -> int:
    return slot.sequence


class Guard:
    """The guard file of one log, as one process uses it.

    All methods block on the disk: call them in a thread, one at a time.
    """

    def __init__(self, path: Path, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = path
        self._lock_seconds = lock_seconds
        self._seen: dict[str, Guarded] = {}  # by guard id: the largest value that this process read or wrote
        self._first: bytes | None = None  # what was read last, if it had the first format
        self._read: tuple[bytes, Guarded] | None = None  # what stood in the file last: mostly it still does

    @step("guard.create")
    def create(self, origin: str, key_id: bytes) -> Guarded:
        """Make the file for a log that has signed nothing, or return what is there already. Durable when it returns."""
        if self.path.exists():
            return self.read()
        return self.create_at(Guarded(secrets.token_hex(16), 0, origin, key_id, 0, EMPTY_ROOT))

    def create_at(self, first: Guarded) -> Guarded:
        """Make the file with this content, or return what is there already. Durable when it returns.

        Requires first.sequence == 0. Only the owner may read it, whatever the umask: a reader could hold its lock.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(2 * (2 * first.encode()).ljust(BLOCK, b"\0"))
                file.flush()
                os.fsync(descriptor)
            os.link(temporary, self.path)  # never over an existing guard, as rename would
        except FileExistsError:
            return self.read()
        finally:
            temporary.unlink()
        sync_directory(self.path.parent)
        sync_directory(self.path.parent.parent)  # the folder may be new as well
        return first

    @step("guard.read")
    def read(self) -> Guarded:
        """Return the last head that may have been signed.

        Raises GuardRefused when the file is missing, unreadable, or older than what this process saw; GuardUnavailable
        when another process holds its lock for too long.
        """
        with self._locked(os.O_RDONLY) as (descriptor, _):
            return self._current(descriptor)

    @step("guard.swap")
    def swap(
        self, guard_id: str, new: TreeHead, below: Container[TreeHead], *, above: bool = False
    ) -> tuple[Guarded, bool]:
        """Raise the guard to `new` if what it holds is one of `below`, which the caller knows to be prefixes of `new`.

        Returns what it holds now, and whether that is durable and tells that `new` may be signed: it is `new`, or the
        caller knows (`above`) that it extends `new`. If not, nothing was written. Never lowered. Raises GuardRefused,
        or GuardUnavailable when the disk is full or another process holds the lock.
        """
        with self._locked(os.O_RDWR) as (descriptor, place):
            found = before = self._current(descriptor)
            if found.guard_id != guard_id:
                raise GuardRefused("guard_foreign", f"{self.path} is not the guard that the database names")
            if not above and found.head != new and found.head in below:
                found = found.raised(new)
            if not above and found.head != new:
                return found, False
            with self._writing():
                if self._first is not None:
                    self._take_over(descriptor, self._first, before)
                    self._read = None
                # Also what is there already: another process may have been killed before its write was durable.
                self._write(descriptor, found)
            self._check_place(place)
            return found, True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise GuardUnavailable(f"no space for the guard file {self.path}: {error}") from error
            detail = f"the guard file {self.path} cannot be written: {error}"
            raise GuardRefused("guard_unwritable", detail, final=True) from error

    @step("guard.write")
    def _write(self, descriptor: int, slot: Guarded) -> None:
        data = slot.encode()
        at = SLOT * (slot.sequence % 2)
        self._put(descriptor, data, at)
        self._put(descriptor, data, BLOCK + at)
        before = self._read[0] if self._read else b""
        self._sync(descriptor)
        self._seen[slot.guard_id] = slot
        if len(before) == FILE_SIZE:
            block = before[:at] + data + before[at + SLOT : BLOCK + at]
            self._read = (block + data + before[BLOCK + at + SLOT :], slot)

    @staticmethod
    def _put(descriptor: int, data: bytes, at: int) -> None:
        if os.pwrite(descriptor, data, at) != len(data):
            raise OSError(errno.ENOSPC, "the slot was not written whole")

    @step("guard.sync")
    def _sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def _check_place(self, place: os.stat_result) -> None:
        """Refuse when the file was replaced since it was opened.

        Then there are two registers, and each writer has its own.
        """
        try:
            now = os.stat(self.path)  # noqa: PTH116 - as in the store: this runs for each append
        except FileNotFoundError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != (place.st_dev, place.st_ino):
            raise GuardRefused(
                "guard_replaced",
                f"the guard file {self.path} was removed or replaced while it was written: "
                "put back the one with the larger sequence number, and restart",
            )

    # --- what stands in the file --------------------------------------------------------------------------------------

    def _current(self, descriptor: int) -> Guarded:
        """Return what the file holds. Raises GuardRefused, also when that is older than what this process saw in it."""
        found = self._parse(os.pread(descriptor, FILE_SIZE, 0))
        seen = self._seen.get(found.guard_id)  # another guard is for the caller to refuse, unless it was adopted
        if seen and found is not seen and found != seen and found.sequence <= seen.sequence:
            raise GuardRefused(
                "guard_replaced",
                f"the guard file {self.path} is an older copy "
                f"(number {found.sequence}, this process saw {seen.sequence}): put the newer one back",
            )
        self._seen[found.guard_id] = found
        return found

    def _parse(self, data: bytes) -> Guarded:
        """Return what these bytes say. Raises GuardRefused."""
        if self._read and self._read[0] == data:
            return self._read[1]
        self._first = data if is_first_format(data) else None
        found = self._first_format(data) if self._first is not None else self._newest(data)
        self._read = None if self._first is not None else (data, found)
        return found

    def _newest(self, data: bytes) -> Guarded:
        """Return the newer slot.

        Raises GuardRefused when both copies of one are damaged: it may have been the newer one.
        """
        newest = []
        for slot, copies in enumerate(copies_of(data)):
            found = []
            for copy in copies:
                with suppress(FormatError):  # torn by a crash: the other copy is whole
                    found.append(Guarded.decode(copy))
            if not found:
                raise self._damaged(f"both copies of slot {slot}")
            newest.append(max(found, key=_sequence))
        return max(newest, key=_sequence)

    def _first_format(self, data: bytes) -> Guarded:
        """Return what a file of the first format holds, or one that is half taken over.

        A damaged slot may be the newer one: refused. Where the take-over was cut short while it wrote a slot, the
        second block has its content; unless that is older than the other slot, to which an older version may have gone
        on.
        """
        whole = [_any_format(copies[0]) for copies in copies_of(data)]
        newest = max(filter(None, whole), key=_sequence, default=None)
        if newest is None:
            raise self._damaged("slots")
        for slot, copies in enumerate(copies_of(data)):
            if whole[slot] is None:
                spare = _any_format(copies[1])
                unused = not newest.sequence and slot == 1 and not copies[0].strip(b"\0")
                if not unused and (spare is None or spare.sequence < newest.sequence):
                    raise self._damaged("slots")
                newest = max(newest, spare or newest, key=_sequence)
        return newest

    def _damaged(self, what: str) -> GuardRefused:
        return GuardRefused(
            "guard_unreadable",
            f"{what} of the guard file {self.path} are damaged: the last signed head is not known. "
            "See `muniment-server guard init --help`",
        )

    def _take_over(self, descriptor: int, data: bytes, found: Guarded) -> None:
        """Give a file of the first format the present one.

        A crash at any step leaves what this version, or the older one, reads right. Before the first block changes its
        format, both its slots say what the newer one says: of a file that is half new, an older version reads what is
        left in the old format, and that must not be an older head.
        """
        old, new = found.encode(_FIRST_FORMAT), found.encode()
        self._put(descriptor, (2 * new).ljust(BLOCK, b"\0"), BLOCK)
        os.fsync(descriptor)  # the length too
        for at in (0, SLOT):
            if data[at : at + SLOT] != old:
                self._put(descriptor, old, at)
                os.fdatasync(descriptor)
        self._put(descriptor, 2 * new, 0)
        os.fdatasync(descriptor)

    @contextmanager
    def _locked(self, flags: int) -> Iterator[tuple[int, os.stat_result]]:
        """Open the file and lock it: shared to read, alone to write. Yields the descriptor, and which file it is.

        An error of the system is a refusal too, whichever call it comes from; those of writing are told apart before.
        """
        descriptor = self._open(flags)
        try:
            place = os.fstat(descriptor)
            if not stat.S_ISREG(place.st_mode):
                raise GuardRefused("guard_unreadable", f"{self.path} is no regular file")
            self._lock(descriptor, fcntl.LOCK_EX if flags & os.O_RDWR else fcntl.LOCK_SH)
            yield descriptor, place
        except OSError as error:
            raise GuardRefused("guard_unreadable", f"the guard file {self.path} cannot be read: {error}") from error
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            # O_NONBLOCK: opening a FIFO that stands in its place would wait for ever.
            return os.open(self.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise GuardRefused(
                "guard_missing",
                f"the guard file {self.path} is missing: put it back from where this log's writer ran last; "
                "without it nothing shows that this database is not an old copy. "
                "Lost for good: `muniment-server guard init --help`",
            ) from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise GuardUnavailable(f"the guard file {self.path} cannot be opened: {error}") from error
            code = "guard_unwritable" if flags & os.O_RDWR and error.errno in _NOT_OURS else "guard_unreadable"
            raise GuardRefused(code, f"the guard file {self.path} cannot be opened: {error}") from error

    def _lock(self, descriptor: int, kind: int) -> None:
        """Take the lock within `lock_seconds`.

        Raises GuardUnavailable: a process that hangs, or a stranger, must not hold up all.
        """
        # flock, not lockf: a POSIX record lock is gone as soon as this process closes any descriptor of the file.
        deadline = time.monotonic() + self._lock_seconds
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise GuardUnavailable(
                        f"another process has held the lock of {self.path} for {self._lock_seconds:g} s"
                    ) from None
                time.sleep(_POLL_SECONDS)
            else:
                return


def sync_directory(path: Path) -> None:
    """Make what was just created or renamed in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
