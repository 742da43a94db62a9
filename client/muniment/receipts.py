"""Bundles of receipts: many entries of one log, proved at one checkpoint. Specified in docs/spec/receipts.md.

A bundle is read and written line by line: neither way holds more than one line, and the proof of the entry before. The
numbers of the steps are those of the specification, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any

from muniment import members, strictjson
from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.encoding import MAX_SIZE, b64, parse_b64
from muniment.errors import BadProof, CutOff, EntryMissing, EventRefused, FormatError, OutOfOrder, VerificationError
from muniment.event import Commitment, parse_leaf
from muniment.members import expect
from muniment.note import parse_note
from muniment.paths import Paths
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt, Verified

RECEIPTS_TYPE = "muniment/receipts@v1"
END_TYPE = "muniment/receipts-end@v1"
MAX_LINE = 8 * 1024 * 1024
"""Bytes of a line, with its newline: more than the largest event takes with its disclosures."""
MAX_ERASURES = 256

_HEADER = {"typ", "origin", "checkpoint"}
_ENTRY = {"index", "leaf", "hashes"}
_ENTRY_OPTIONAL = {"commitment", "disclosures", "erasures"}


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a bundle, nothing verified. `range` is half-open; None claims no completeness."""

    origin: str
    checkpoint: str
    range: tuple[int, int] | None = None

    def line(self) -> bytes:
        """Return the line, with its newline."""
        value = {"typ": RECEIPTS_TYPE, "origin": self.origin, "checkpoint": self.checkpoint}
        return line_of(value if self.range is None else value | {"range": list(self.range)})

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Return the header in a line. Raises FormatError."""
        value = _value(line)
        expect(value.get("typ") == RECEIPTS_TYPE, f"typ is not {RECEIPTS_TYPE}")
        _expect_members(value, _HEADER, {"range"})
        found = _range(value["range"]) if "range" in value else None
        return cls(members.text(value, "origin"), members.text(value, "checkpoint"), found)


def is_bundle(first_line: bytes) -> bool:
    """Tell whether a file with this first line is meant as a bundle, well-formed or not."""
    if RECEIPTS_TYPE.encode() not in first_line:
        return False
    try:
        return ("typ", RECEIPTS_TYPE) in strictjson.lenient_members(first_line)
    except EventRefused:
        return False


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file. One that is longer than any line may be comes in pieces, and will be refused."""
    while line := file.readline(MAX_LINE + 1):
        yield line


# --- writing ----------------------------------------------------------------------------------------------------------


class ReceiptsWriter:
    """Writes a bundle by calling `write` with one line at a time. It does not verify what it is given.

    It is for receipts at one checkpoint, in ascending order; :class:`ReceiptsReader` takes all that it writes. One that
    goes on with a bundle that was cut off is told how many entries that has, and the index `after` the last.
    """

    def __init__(self, write: Callable[[bytes], object], header: Header, count: int = 0, after: int = 0) -> None:
        self._write = write
        self._header = header
        self.count = count
        self._after = after or (header.range or (0, 0))[0]
        if not count:
            write(header.line())

    def add(self, receipt: Receipt) -> None:
        """Write the line of an entry. Raises AssertionError when the bundle would be refused for its place."""
        whole = self._header.range is not None
        if receipt.index < self._after or (whole and receipt.index != self._after):
            raise AssertionError(f"entry {receipt.index} is not what follows in this bundle")
        if receipt.checkpoint != self._header.checkpoint:
            raise AssertionError("a bundle has one checkpoint")
        self._write(line_of(_entry_value(receipt)))
        self.count += 1
        self._after = receipt.index + 1

    def end(self) -> None:
        """Write the last line. Without it the bundle is incomplete."""
        if self._header.range is not None and self._after != self._header.range[1]:
            raise AssertionError(f"entry {self._after} is missing")
        self._write(end_line(self.count))


def _entry_value(receipt: Receipt) -> dict[str, Any]:
    hashes = [part.hex() for part in receipt.proof]
    value: dict[str, Any] = {"index": receipt.index, "leaf": b64(receipt.leaf), "hashes": hashes}
    if receipt.commitment is not None:
        value["commitment"] = receipt.commitment.value()
    if receipt.disclosures is not None:
        value["disclosures"] = list(receipt.disclosures)
    return value


def end_line(count: int) -> bytes:
    """Return the last line of a bundle of `count` entries."""
    return line_of({"typ": END_TYPE, "count": count})


def line_of(value: dict[str, Any]) -> bytes:
    """Return a line of a bundle, with its newline."""
    return strictjson.canonical(value) + b"\n"


# --- reading ----------------------------------------------------------------------------------------------------------


class ReceiptLines:
    """Reads a bundle as it stands: steps 1, 3, 4 and 7 are done, and nothing vouches for what it says.

    Made of the lines of a file, each with its newline. `line` is the number of the line read last, `count` the entries
    so far, `head` what the checkpoint says. Raises FormatError or BadProof.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.line = 0
        self.count = 0
        with self.naming():
            self.header = Header.parse(self._next())  # 1
            self.head = self._head()
            self._check_head()
        self._after = (self.header.range or (0, 0))[0]

    def naming(self) -> AbstractContextManager[None]:
        """Return what puts the number of the line into the errors of its block, also as their `line`."""
        return _Named(self)

    def entries(self) -> Iterator[tuple[dict[str, Any], Receipt]]:
        """Yield each entry as its line has it, and as a receipt. To be iterated once, in a block that names lines."""
        while "typ" not in (value := _value(self._next())):  # 1
            receipt = _receipt(value, self.header, self.head)
            self._check_index(receipt.index, self.head)  # 4
            self.count += 1
            self._after = receipt.index + 1
            yield value, receipt
        self._check_end(value)  # 7

    def _head(self) -> Checkpoint:
        return parse_checkpoint(parse_note(self.header.checkpoint).text)

    def _check_head(self) -> None:
        if self.head.origin != self.header.origin:  # 3
            raise BadProof("the origin of the bundle is not that of its checkpoint")
        if self.header.range is not None and self.header.range[1] > self.head.size:
            raise BadProof(f"the range ends at {self.header.range[1]}, and the signed size is {self.head.size}")

    def _check_index(self, index: int, head: Checkpoint) -> None:
        if index >= head.size:
            raise BadProof(f"there is no entry {index} in a tree of size {head.size}")
        if index < self._after:
            raise OutOfOrder(f"entry {index} does not follow: the indices of a bundle ascend, within its range")
        if self.header.range is not None:
            if index >= self.header.range[1]:
                raise OutOfOrder(f"entry {index} is outside of the range of the bundle")
            if index != self._after:
                raise EntryMissing(f"entry {self._after} is missing, and the range says that it is there")

    def _check_end(self, value: dict[str, Any]) -> None:
        expect(value.get("typ") == END_TYPE, f"typ is not {END_TYPE}")
        _expect_members(value, {"typ", "count"}, set())
        if members.integer(value, "count") != self.count:
            raise EntryMissing(f"the last line counts {value['count']} entries, and there are {self.count}")
        if self.header.range is not None and self._after != self.header.range[1]:  # 4
            raise EntryMissing(f"entry {self._after} is missing, and the range says that it is there")
        if next(self._lines, b""):
            self.line += 1
            raise OutOfOrder("something follows the last line")

    def _next(self) -> bytes:
        self.line += 1
        line = next(self._lines, b"")
        if not line:
            raise CutOff(f"the bundle was cut off: after {self.count} entries its last line is missing")
        if len(line) > MAX_LINE:
            raise FormatError(f"the line is longer than {MAX_LINE} bytes")
        if not line.endswith(b"\n"):
            raise CutOff("the bundle was cut off within this line")
        return line


class ReceiptsReader(ReceiptLines):
    """Verifies a bundle while it is read, trusting `policy` alone.

    Iterated once, it yields each entry as a receipt, with what it proves. Only when that has ended without an error
    does the bundle hold. `erasures` counts the lines that state erasures, which this version does not check.

    Raises FormatError, BadSignature, PolicyNotMet, BadProof or BadDisclosure; each names the line, also in its `line`.
    """

    def __init__(self, lines: Iterable[bytes], policy: Policy) -> None:
        self._policy = policy
        self.erasures = 0
        self.signed: VerifiedCheckpoint
        super().__init__(lines)
        self._paths = Paths(self.head.size, self.head.root)

    def _head(self) -> Checkpoint:
        self.signed = self._policy.verify(self.header.checkpoint)  # 2
        return self.signed.checkpoint

    def __iter__(self) -> Iterator[tuple[Receipt, Verified]]:
        """Yield each entry as a receipt, with what it proves."""
        with self.naming():
            for value, receipt in self.entries():  # 1, 4, 7
                self._paths.verify(receipt.index, receipt.leaf_hash, receipt.proof)  # 5
                entry = parse_leaf(receipt.leaf)
                opened, hidden = receipt.open(entry)  # 6
                self.erasures += "erasures" in value
                yield receipt, Verified(self.head, receipt.index, receipt.leaf, entry, opened, hidden)


class _Named(AbstractContextManager[None]):
    """Puts the number of the line into the errors of the block."""

    def __init__(self, reader: ReceiptLines) -> None:
        self._reader = reader

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FormatError | VerificationError):
            error.line = self._reader.line
            error.args = (f"line {error.line}: {error}", *error.args[1:])


def _receipt(value: dict[str, Any], header: Header, head: Checkpoint) -> Receipt:
    _expect_members(value, _ENTRY, _ENTRY_OPTIONAL)
    disclosures, erasures = value.get("disclosures", []), value.get("erasures", [])
    expect(members.is_texts(disclosures), "disclosures is not a list of texts")
    expect(_are_objects(erasures), f"erasures is not a list of at most {MAX_ERASURES} objects")
    return Receipt(
        origin=header.origin,
        index=members.integer(value, "index"),
        leaf=parse_b64(members.text(value, "leaf"), "leaf"),
        tree_size=head.size,
        proof=members.hashes(value),
        checkpoint=header.checkpoint,
        commitment=Commitment.parse(value["commitment"]) if "commitment" in value else None,
        disclosures=tuple(disclosures) if "disclosures" in value else None,
    )


def _value(line: bytes) -> dict[str, Any]:
    value = strictjson.parse_canonical(line[:-1])
    expect(isinstance(value, dict), "not an object")
    found: dict[str, Any] = value
    return found


def _expect_members(value: dict[str, Any], required: set[str], optional: set[str]) -> None:
    expect(required <= value.keys(), f"{', '.join(sorted(required - value.keys()))} is missing")
    expect(value.keys() <= required | optional, "a member that has no place in this line")


def _range(value: Any) -> tuple[int, int]:
    whole = isinstance(value, list) and len(value) == 2 and all(type(part) is int for part in value)
    expect(whole and 0 <= value[0] < value[1] <= MAX_SIZE, "range is not two integers, the first below the second")
    return value[0], value[1]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ERASURES and all(isinstance(part, dict) for part in value)
