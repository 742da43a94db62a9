"""The guard: the last head this log may have signed, kept outside the database.

A database that is restored from a backup, cloned or emptied takes everything in it back in time. The guard does not go with it,
and so stops the next signature. One file for each log, shared by all writers of that log on this host::

    slot 0 (1,024 bytes)  slot 1 (1,024 bytes)

A slot is text, padded with NUL: seven lines (format, guard id, sequence number, origin, key id, size, root) and the SHA-256 of
them. Slots are written in turn, so a torn write leaves the other one, and the valid slot with the larger number counts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from muniment.encoding import parse_decimal, parse_hex
from muniment.errors import FormatError
from muniment.hashing import EMPTY_ROOT, HASH_SIZE, RootHash
from muniment_server.failpoints import step

SLOT = 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORMAT = "muniment-guard v1"


class GuardRefused(Exception):
    """Signing this head could fork the log. `code` is stable; the message says what was found and what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class GuardUnavailable(Exception):
    """The guard cannot be written at the moment, and nothing was: its disk is full. The same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """What a slot says: the last head that may have been signed. `sequence` counts the writes of this guard."""

    guard_id: str
    sequence: int
    origin: str
    key_id: bytes
    size: int
    root: RootHash

    def encode(self) -> bytes:
        """Return the 1,024 bytes of a slot."""
        fields = (self.guard_id, self.sequence, self.origin, self.key_id.hex(), self.size, self.root.hex())
        text = "".join(f"{line}\n" for line in (_FORMAT, *fields)).encode()
        return (text + sha256(text).hexdigest().encode() + b"\n").ljust(SLOT, b"\0")

    @classmethod
    def decode(cls, slot: bytes) -> Guarded:
        """Return the content of a slot. Raises FormatError unless encoding it gives the slot again."""
        try:
            lines = slot.rstrip(b"\0").decode().split("\n")
        except UnicodeDecodeError:
            raise FormatError("guard slot is not text") from None
        if len(lines) != 9 or lines[0] != _FORMAT:
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
        if found.encode() != slot:
            raise FormatError("checksum of the guard slot is wrong")
        return found


class Guard:
    """The guard file of one log. All methods block on the disk: call them in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._durable = -1  # sequence number of the slot that this process made durable last
        self._decoded: dict[bytes, Guarded] = {}  # slots as they were read last: mostly they are what was written last

    @step("guard.create")
    def create(self, origin: str, key_id: bytes) -> Guarded:
        """Make the file for a log that has signed nothing, or return what is there already. Durable when it returns."""
        if self.path.exists():
            return self.read()
        return self.create_at(Guarded(secrets.token_hex(16), 0, origin, key_id, 0, EMPTY_ROOT))

    def create_at(self, first: Guarded) -> Guarded:
        """Make the file with this content, or return what is there already. Durable when it returns."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
            file.write(first.encode() + bytes(SLOT))
            file.flush()
            os.fsync(file.fileno())
        try:
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
        """Return the last head that may have been signed. Raises GuardRefused when the file is missing or unreadable."""
        try:
            with self._locked(os.O_RDONLY) as descriptor:
                return self._current(descriptor)
        except FileNotFoundError:
            raise GuardRefused(
                "guard_missing",
                f"the guard file {self.path} is missing: put it back from where this log's writer ran last; "
                "without it nothing shows that this database is not an old copy",
            ) from None
        except OSError as error:
            raise GuardRefused("guard_unreadable", f"the guard file {self.path} cannot be read: {error}") from error

    @step("guard.record")
    def record(self, guard_id: str, size: int, root: RootHash) -> None:
        """Remember, durably, that (size, root) may be signed. Never lowered.

        A smaller head than the recorded one is fine when another writer, who extended ours, was quicker. Raises GuardRefused, or
        GuardUnavailable when the disk is full.
        """
        try:
            with self._locked(os.O_RDWR) as descriptor:
                self._record(descriptor, guard_id, size, root)
        except OSError as error:
            if error.errno in _FULL:
                raise GuardUnavailable(f"no space for the guard file {self.path}: {error}") from error
            # Anything else may have lost what was written, and trying again would not tell: the kernel reports such an error once.
            raise GuardRefused("guard_unwritable", f"the guard file {self.path} cannot be written: {error}") from error

    def _record(self, descriptor: int, guard_id: str, size: int, root: RootHash) -> None:
        current = self._current(descriptor)
        if current.guard_id != guard_id:
            raise GuardRefused("guard_foreign", f"{self.path} is not the guard that the database names")
        if size == current.size and root != current.root:
            raise GuardRefused("guard_root", f"a different root of size {size} may have been signed already")
        if size > current.size:
            current = replace(current, sequence=current.sequence + 1, size=size, root=root)
        elif current.sequence == self._durable:
            return
        # Also what another process wrote: it may have been killed before its write was durable.
        self._write(descriptor, current)
        self._durable = current.sequence

    @step("guard.write")
    def _write(self, descriptor: int, slot: Guarded) -> None:
        data = slot.encode()
        if os.pwrite(descriptor, data, SLOT * (slot.sequence % 2)) != SLOT:
            raise OSError(errno.ENOSPC, "the slot was not written whole")
        self._decoded[data] = slot
        self._sync(descriptor)

    @step("guard.sync")
    def _sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def _current(self, descriptor: int) -> Guarded:
        found: dict[bytes, Guarded] = {}
        data = os.pread(descriptor, 2 * SLOT, 0)
        for slot in (data[:SLOT], data[SLOT:]):
            try:
                found[slot] = self._decoded.get(slot) or Guarded.decode(slot)
            except FormatError:
                continue  # never written, or torn by a crash: the other slot is the last one that was completed
        if not found:
            raise GuardRefused("guard_unreadable", f"no slot of the guard file {self.path} is intact")
        self._decoded = found
        return max(found.values(), key=lambda slot: slot.sequence)

    @contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        descriptor = os.open(self.path, flags | os.O_CLOEXEC)
        try:
            # flock, not lockf: a POSIX record lock is gone as soon as this process closes any descriptor of the file.
            fcntl.flock(descriptor, fcntl.LOCK_EX if flags & os.O_RDWR else fcntl.LOCK_SH)
            yield descriptor
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make what was just created or renamed in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
