"""`muniment export --format receipts`: a bundle of receipts. Into a file it goes on where it was cut off.

Until it is whole, what there is of it stands beside the file, in FILE.muniment-export: a bundle without its last line.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from muniment.cli import files
from muniment.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, CliError, explain, show_line
from muniment.cli.progress import progress
from muniment.errors import FormatError, MunimentError, PolicyNotMet, VerificationError
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipts import Header, ReceiptsReader, ReceiptsWriter, lines_of
from muniment.words import entries_text

if TYPE_CHECKING:
    from muniment.client import Client
    from muniment.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in the bundle: the entries [start, stop), to the end of the log when `stop` is None.

    `ready` makes of receipts those that are written, and raises CliError at one that may not be.
    """

    start: int
    stop: int | None
    ready: Callable[[Iterable[Receipt]], Iterator[Receipt]]
    quiet: bool

    def header(self, signed: VerifiedCheckpoint) -> Header:
        """Return the first line of a bundle at a checkpoint, which has the entries."""
        head = signed.checkpoint
        stop = head.size if self.stop is None else min(self.stop, head.size)
        return Header(head.origin, signed.note, (self.start, stop))


class _Kept(NamedTuple):
    """What is there already of a bundle: its first line, its entries, the index after them, and where they end."""

    header: Header
    entries: int
    after: int
    end: int


def write_bundle(
    client: Client, policy: Policy, signed: VerifiedCheckpoint, wanted: Wanted, path: Path | None
) -> Header:
    """Write the bundle, resumably when it is to be a regular file, and return its first line. Raises CliError.

    It is at the checkpoint `signed`, or at that at which it was begun.
    """
    if path is None:
        return _write(client, wanted, show_line, wanted.header(signed))
    path = path.resolve()
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with files.output(path) as file:
            return _write(client, wanted, file.write, wanted.header(signed))
    return _resumable(client, policy, wanted, path, signed)


def _write(client: Client, wanted: Wanted, write: Callable[[bytes], object], header: Header) -> Header:
    _Writing(wanted, ReceiptsWriter(write, header), header).run(client)
    return header


class _Writing:
    """Writes what is missing of a bundle, from the index `after` on."""

    def __init__(self, wanted: Wanted, writer: ReceiptsWriter, header: Header, after: int | None = None) -> None:
        self._wanted = wanted
        self._header = header
        self._after = wanted.start if after is None else after
        self.writer = writer

    def run(self, client: Client) -> None:
        stop = (self._header.range or (0, 0))[1]
        with progress("Exporting", stop - self._after, quiet=self._wanted.quiet) as advance:
            found = client.receipts(self._after, stop, at=self._header.checkpoint)
            for receipt in self._wanted.ready(found):
                self.writer.add(receipt)
                advance(1)
        self.writer.end()


def _resumable(client: Client, policy: Policy, wanted: Wanted, path: Path, signed: VerifiedCheckpoint) -> Header:
    part = path.with_name(f"{path.name}.muniment-export")
    with _held(part) as file:
        kept = _kept(file, part, policy, wanted)
        header = wanted.header(signed) if kept is None else kept.header
        if header.origin != signed.checkpoint.origin:
            raise _other(part)
        file.truncate(kept.end if kept else 0)
        file.seek(0, os.SEEK_END)
        writer = ReceiptsWriter(file.write, header, *((kept.entries, kept.after) if kept else ()))
        try:
            _Writing(wanted, writer, header, kept.after if kept else None).run(client)
        except (KeyboardInterrupt, MunimentError, CliError) as error:
            raise _stopped(error, part, writer.count) from error
        file.flush()
        if path.exists():
            part.chmod(stat.S_IMODE(path.stat().st_mode))
        part.replace(path)
    return header


@contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """Open what there is of a bundle, for this export alone: two at once would write into each other's lines."""
    try:
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    except BlockingIOError as error:
        raise CliError(EXIT_USAGE, "busy", f"another export writes {part}") from error
    except OSError as error:
        raise CliError(EXIT_USAGE, "unwritable", f"cannot write {part}: {error.strerror}") from error


def _kept(file: IO[bytes], part: Path, policy: Policy, wanted: Wanted) -> _Kept | None:
    """Return what of a bundle that was cut off holds: what comes after that is written again."""
    file.seek(0)
    lines, kept = _Counted(lines_of(file)), None
    with suppress(FormatError, VerificationError), progress(f"Verifying {part.name}", 0, quiet=wanted.quiet):
        reader = _read(lines, policy, part)
        if reader.header != wanted.header(reader.signed):
            raise _other(part)
        for receipt, _ in reader:
            _check_same(receipt, wanted, part)
            kept = _Kept(reader.header, reader.count, receipt.index + 1, lines.bytes)
    return kept


def _read(lines: Iterable[bytes], policy: Policy, part: Path) -> ReceiptsReader:
    try:
        return ReceiptsReader(lines, policy)
    except PolicyNotMet as error:
        raise _other(part) from error


def _check_same(receipt: Receipt, wanted: Wanted, part: Path) -> None:
    try:
        same = list(wanted.ready([receipt])) == [receipt]
    except CliError:  # leaves alone were wanted then
        same = False
    if not same:
        raise _other(part)


class _Counted:
    """Lines, and how many bytes were taken of them."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = lines
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.bytes += len(line)
            yield line


def _other(part: Path) -> CliError:
    hint = "Remove it to begin anew, or repeat the command that it is of, or name another file with -o."
    return CliError(EXIT_USAGE, "other_export", f"{part} is what there is of another export", hint)


def _stopped(error: BaseException, part: Path, count: int) -> CliError:
    """Return the error of an export that ended early, which says what is kept. Nothing is not kept."""
    if isinstance(error, CliError):
        found = error
    else:
        interrupted = CliError(EXIT_INTERRUPTED, "interrupted", "interrupted")
        found = explain(error) if isinstance(error, MunimentError) else interrupted
    if not count:
        part.unlink(missing_ok=True)
        return found
    there = f"{entries_text(count)} {'is' if count == 1 else 'are'}"
    kept = f"{there} kept in {part}. Run the same command again: it goes on from there."
    found.hint = f"{found.hint}\n{kept}".lstrip()
    found.extra |= {"kept": count}
    return found
