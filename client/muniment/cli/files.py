"""Files of commands: read with a bound; written whole or not at all, and never in place of what is no regular file."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, BinaryIO, cast

from muniment.cli.output import EXIT_INTERRUPTED, EXIT_USAGE, CliError
from muniment.errors import FormatError, VerificationError
from muniment.evidence import EVIDENCE_TYPE
from muniment.names import named
from muniment.note import parse_note
from muniment.receipt import RECEIPT_TYPE, Receipt
from muniment.receipts import MAX_LINE, RECEIPTS_TYPE, Header, is_bundle
from muniment.tlogproof import TLOG_PROOF_HEADER, TlogProof

MAX_RECEIPT = 64 * 1024 * 1024
_START = 4096
"""Bytes behind the first line that tell what a file holds."""

# --- receipts ---------------------------------------------------------------------------------------------------------


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """Open a file that was named on the command line; ``-`` is stdin. Raises CliError, also when reading fails.

    Errors of what the block does with the file, such as writing to a full disk, stay what they are.
    """
    if name == "-":
        yield cast("IO[bytes]", _Reading(name, sys.stdin.buffer))
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below; its block is not to be within the try
    except OSError as error:
        raise _unreadable(name, error) from error
    with file:
        yield cast("IO[bytes]", _Reading(name, file))


class _Reading:
    """A file whose errors of reading are told from all others."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name = name
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise _unreadable(self._name, error) from error

    def readline(self, size: int = -1) -> bytes:
        try:
            return self._file.readline(size)
        except OSError as error:
            raise _unreadable(self._name, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _unreadable(name: str, error: OSError) -> CliError:
    return CliError(EXIT_USAGE, "unreadable", f"cannot read {name}: {error.strerror}")


def read_receipt(name: str) -> bytes:
    """Return what is in a file, or in standard input when `name` is ``-``. Raises CliError, also on rows."""
    with opened(name) as file:
        return rest_of_receipt(name, b"", file)


def read_leaf(name: str) -> bytes:
    """Return the bytes of a file, or of standard input when `name` is ``-``, whatever they are. Raises CliError."""
    with opened(name) as file:
        return _bounded(name, b"", file)


def rest_of_receipt(name: str, first: bytes, file: IO[bytes]) -> bytes:
    """Return what is in a file of which `first` was read already. Raises CliError, also on rows."""
    data = _bounded(name, first, file)
    check_text(name, data)
    return data


def _bounded(name: str, first: bytes, file: IO[bytes]) -> bytes:
    data = first + file.read(MAX_RECEIPT + 1 - len(first))
    if len(data) > MAX_RECEIPT:
        raise CliError(EXIT_USAGE, "unreadable", f"{name} is larger than any receipt")
    return data


def read_note(name: str) -> str:
    """Return the signed head in a file: the file itself, or that of the receipt or bundle in it. Raises CliError."""
    with opened(name) as file:
        first = file.readline(MAX_LINE + 1)
        bundle = is_bundle(first)
        data = first if bundle else rest_of_receipt(name, first, file)
    try:
        if bundle:
            return Header.parse(first).checkpoint
        if data.startswith(TLOG_PROOF_HEADER.encode()):
            return TlogProof.parse(data).checkpoint
        return Receipt.parse(data).checkpoint if data.startswith(b"{") else str(parse_note(data))
    except FormatError as error:
        hint = "Make one with `muniment checkpoint -o FILE` or `muniment receipt INDEX -o FILE`."
        raise CliError(
            EXIT_USAGE, "bad_since", f"{name} is neither a checkpoint nor a receipt: {error}", hint
        ) from error


def check_fuller(path: Path, receipt: Receipt) -> None:
    """Raise CliError when a file holds a receipt of the same entry that opens what this one does not.

    What it opens may exist nowhere else: an API key without the right to payloads gets receipts that open nothing.
    """
    if lost := sorted(_opened(path, receipt) - receipt.opening().keys()):
        message = f"{path} holds a receipt of this entry that opens more: {', '.join(map(named, lost))}"
        hint = "Give another FILE, or move that one away; an API key with scope read gets receipts that open all."
        raise CliError(EXIT_USAGE, "fuller_receipt", message, hint)


def check_same_log(path: Path, origin: str) -> None:
    """Raise CliError when a file holds a receipt or a bundle of a log: it may open what a bundle does not."""
    if _origin(path) == origin:
        message = f"{path} holds a receipt or a bundle of this log, which may open more"
        raise CliError(EXIT_USAGE, "fuller_receipt", message, "Give another FILE, move that one away, or --overwrite.")


def _origin(path: Path) -> str | None:
    """Return of which log the receipt or the bundle in a file is; None when there is none."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            first = file.readline(MAX_LINE + 1)
            if is_bundle(first):
                return Header.parse(first).origin
            return Receipt.parse(first + file.read(MAX_RECEIPT)).origin
    except (OSError, FormatError, VerificationError):
        return None


def _opened(path: Path, receipt: Receipt) -> set[str]:
    """Return what the receipt in a file opens: nothing when there is none of that entry."""
    try:
        if not path.is_file():
            return set()
        with path.open("rb") as file:
            kept = Receipt.parse(file.read(MAX_RECEIPT))
        return set(kept.opening()) if (kept.origin, kept.index) == (receipt.origin, receipt.index) else set()
    except (OSError, FormatError, VerificationError):
        return set()


# --- writing ----------------------------------------------------------------------------------------------------------


def check_unused(path: Path | None) -> None:
    """Raise CliError when a regular file holds something: it may be of another log, or more than what is written now.

    Evidence that is lost so may exist nowhere else.
    """
    try:
        found = None if path is None else _status(path)
    except OSError as error:
        raise CliError(EXIT_USAGE, "unwritable", f"cannot write {path}: {error.strerror}") from error
    if found is not None and stat.S_ISREG(found.st_mode) and found.st_size:
        message = f"{path} holds something already, which may be of another log, or more than this"
        raise CliError(EXIT_USAGE, "file_exists", message, "Give another FILE, move that one away, or --overwrite.")


def check_kind(path: Path, *, receipts: bool) -> None:
    """Raise CliError when a file holds evidence, a bundle or, without `receipts`, a receipt.

    It may exist nowhere else.
    """
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            data = file.readline(MAX_LINE + 1) + file.read(_START)
    except OSError:
        return  # what writes it says so
    kinds = {EVIDENCE_TYPE: "evidence", RECEIPTS_TYPE: "a bundle of receipts"}
    kinds |= {} if receipts else {RECEIPT_TYPE: "a receipt"}
    what = next((kind for typ, kind in kinds.items() if data.startswith(b"{") and f'"{typ}"'.encode() in data), None)
    if what is not None:
        hint = "Give another FILE, or move that one away."
        raise CliError(EXIT_USAGE, "file_exists", f"{path} holds {what}", hint)


def write_output(path: Path, data: str | bytes) -> None:
    """Write a result to a file. Raises CliError."""
    with output(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def output(path: Path) -> Iterator[BinaryIO]:
    """Yield a file whose content is that of `path` once the block has ended well. Raises CliError.

    A regular file is replaced in one step, where links lead to, and keeps its mode. A device, a pipe or a socket is
    written to: a rename would put a file in its place, for all who use it. So is a file in a folder that takes no new
    ones.
    """
    try:
        found = _status(path)
        if found is None or stat.S_ISREG(found.st_mode):
            with _replacing(path.resolve(), found) as file:
                yield file
        else:
            with path.open("wb") as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CliError(EXIT_USAGE, "unwritable", f"cannot write {path}: {error.strerror}") from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextmanager
def _replacing(path: Path, found: os.stat_result | None) -> Iterator[BinaryIO]:
    beside = path.with_name(f".{path.name[:200]}.{token_hex(4)}.part")
    try:
        file = beside.open("xb")
    except PermissionError:
        if found is None:
            raise
        with path.open("wb") as file:
            yield file
        return
    try:
        with file:
            if found is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            yield file
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, KeyboardInterrupt):
            hint = f"Nothing was written to {path}, which is as it was: run the command again."
            raise CliError(EXIT_INTERRUPTED, "interrupted", "interrupted", hint) from error
        raise


# --- text of another system -------------------------------------------------------------------------------------------

_ROWS = re.compile(rb'(index,(leaf_hash|logged_at)\b|\s*(\{\s*"\w+":\s*)?(\[\s*)?\{\s*"index":\s*\d+,\s*"leaf_hash":)')
"""How rows begin: of `export`, `get` and `search`, and what the server answers them. Receipts have no leaf hash."""
_MARKS = {b"\xef\xbb\xbf": "a byte order mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def check_text(name: str, data: bytes, *, lines: bool = False) -> None:
    """Raise CliError when an editor or a shell of Windows rewrote a file whose bytes are fixed.

    It says nothing of the log: without this it would look like a receipt that does not hold. `lines` says that the
    line ends are fixed in JSON too, as in a bundle.
    """
    mark = next((what for start, what in _MARKS.items() if data.startswith(start)), None)
    if mark is None and b"\r\n" in data and (lines or not data.startswith(b"{")):  # JSON may have them
        mark = "Windows line ends"
    if _ROWS.match(data) and RECEIPT_TYPE.encode() not in data:  # the members of a receipt may stand in any order
        hint = (
            "A bundle of receipts has the same entries with their proofs: `muniment export --format receipts -o FILE`,"
            " or of what a search finds `muniment search QUERY --receipts -o FILE`."
        )
        raise CliError(EXIT_USAGE, "rows", f"{name} holds rows, as an export has them: they carry no proof", hint)
    if data.startswith(b"{") and b"}\n{" in data and RECEIPT_TYPE.encode() in data:
        hint = f"Each of them by itself: sed -n 1p {name} | muniment verify -"
        raise CliError(EXIT_USAGE, "several_receipts", f"{name} holds several receipts, one a line", hint)
    if mark is not None:
        hint = "Copy the file as it was written, or save it as UTF-8 without a byte order mark, with line ends of Unix."
        raise CliError(EXIT_USAGE, "not_plain_text", f"{name} cannot be read: it has {mark}", hint)
