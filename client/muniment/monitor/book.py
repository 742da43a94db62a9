"""What a monitor remembers of one log, on disk: three files, of which a crash at any point leaves a whole state.

``<name>.hashes`` is the row of hashes of full entry bundles and only grows; ``<name>.json`` says how much of it counts,
and is replaced as a whole. Row first, then state: what stands in the row beyond the state was never counted. Both are
checked when they are opened: the state by its checksum, the row by the roots that it leads to. Damage raises
:class:`~muniment.errors.StateError`, which says nothing about any log.

``<name>.leaves`` has the leaf hashes of these bundles. A log that has forked no longer serves what it once did, and to
prove it takes some of them. Each bundle is checked against the row when it is used; one that is damaged is asked for.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from muniment import strictjson
from muniment.checkpoint import Checkpoint, parse_checkpoint
from muniment.encoding import b64, parse_b64
from muniment.errors import BadProof, EventRefused, FormatError, StateError, StateUnavailable
from muniment.hashing import HASH_SIZE
from muniment.monitor.owntree import OwnTree
from muniment.note import parse_note
from muniment.policy import VerifiedCheckpoint
from muniment.state import replace_file
from muniment.tiles import TILE_WIDTH

BOOK_TYPE = "muniment/monitor@v1"
MAX_BOOK = 64 * 1024 * 1024
_LEAVES = TILE_WIDTH * HASH_SIZE
MAX_PENDING = 10_000
"""Findings that wait for a root to be compared. Beyond them the oldest are counted and not listed."""


@dataclass(slots=True)
class Memory:
    """What the state file of one log holds. Changed by the log's follower alone. Times are milliseconds since 1970 UTC.

    `note` is the last checkpoint that was verified, "" before there is one, and `tail` the leaf hashes of its last
    bundle, if that is not full. `size`, `read_tail` and `root` are of what was read, which may be more: a long read is
    gone on with after a crash. `last_logged` is the time of the last entry read, `anchored` that of the last anchor;
    with `head_` before it, as of the verified head. Of `ruled` entries it is known whether rules with a query match.
    """

    url: str
    note: str = ""
    tail: str = ""
    size: int = 0
    read_tail: str = ""
    root: str = ""
    own: bool = False
    """Whether its first entry is that of a Muniment log."""
    last_logged: int = 0
    anchored: int = 0
    head_logged: int = 0
    head_anchored: int = 0
    ruled: int = 0
    first_at: int = 0
    """When the log was first looked at."""
    grown_at: int = 0
    """When its last new checkpoint was seen."""
    looked_at: int = 0
    """When it was last asked for a checkpoint and answered with no more than what is known."""
    patrol: int = -1
    """The bundle that did not fit when it was looked at again, -1 when none did not."""
    failed_at: int = 0
    """When it began to give no answer, 0 while it does."""
    suspicions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What does not fit, by code: `since` when, `detail`, and whether it was `told` as a finding."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Findings on entries whose root was not compared yet."""
    forked: str = ""
    """The id of the finding that shows a fork; never taken back."""

    def head(self) -> Checkpoint | None:
        """Return the last verified head."""
        return parse_checkpoint(parse_note(self.note).text) if self.note else None

    @property
    def origin(self) -> str:
        """The name of the log, "" before it is known."""
        head = self.head()
        return head.origin if head else ""


def format_memory(memory: Memory) -> bytes:
    """Return the bytes of a state file."""
    state = asdict(memory)
    whole = {"typ": BOOK_TYPE, "sum": sha256(strictjson.canonical(state)).hexdigest(), "state": state}
    return strictjson.canonical(whole) + b"\n"


def parse_memory(data: bytes) -> Memory:
    """Return what is in a state file. Raises FormatError unless formatting it gives `data` again."""
    if len(data) > MAX_BOOK:
        raise FormatError(f"a state is at most {MAX_BOOK} bytes")
    try:
        value = strictjson.parse(data)
    except EventRefused as error:
        raise FormatError(f"not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("typ") != BOOK_TYPE:
        raise FormatError(f"typ is not {BOOK_TYPE}: made by another version?")
    state = value.get("state")
    if not isinstance(state, dict) or set(state) != {found.name for found in fields(Memory)}:
        raise FormatError("its members are not those of this version")
    _check_types(state)
    memory = Memory(**state)
    if format_memory(memory) != data:
        raise FormatError("its checksum is not that of its content")
    _check_sizes(memory)
    return memory


def _check_types(state: dict[str, Any]) -> None:
    blank = Memory("")
    for name, value in state.items():
        if type(value) is not type(getattr(blank, name)):
            raise FormatError(f"{name} has another type")
    good = all(
        isinstance(one, dict)
        and set(one) == {"since", "detail", "told"}
        and list(map(type, (one["since"], one["detail"], one["told"]))) == [int, str, bool]
        for one in state["suspicions"].values()
    )
    if not good or not all(isinstance(one, dict) for one in state["pending"]):
        raise FormatError("its suspicions or findings are not well-formed")


def _check_sizes(memory: Memory) -> None:
    head = memory.head()
    for size, tail in ((head.size if head else 0, memory.tail), (memory.size, memory.read_tail)):
        parse_b64(tail, "tail", size % TILE_WIDTH * HASH_SIZE)
    if memory.size < (head.size if head else 0):
        raise FormatError("less was read than was verified")


class Book:
    """The memory of one log with its tree. Belongs to one follower; only one process may have it open."""

    def __init__(self, folder: Path, url: str) -> None:
        name = sha256(url.encode()).hexdigest()[:16]
        self._state = folder / f"{name}.json"
        self._row = folder / f"{name}.hashes"
        self._leaves = folder / f"{name}.leaves"
        self.memory = Memory(url)
        self.tree = OwnTree()
        self._kept = 0  # hashes of the row that are on disk and right

    @classmethod
    def open(cls, folder: Path, url: str) -> Book:
        """Return what is remembered of a log; nothing when it is new. Raises StateError."""
        book = cls(folder, url)
        try:
            data = book._read()
        except OSError as error:
            raise StateUnavailable(f"cannot read {error.filename}: {error.strerror}") from error
        if data is not None:
            try:
                book._load(*data)
            except FormatError as error:
                raise StateError(
                    f"{book._state} is damaged ({error}); this says nothing about any log. Move it and"
                    f" {book._row.name} away to read the log anew, or bring back a copy of both"
                ) from error
        return book

    def _read(self) -> tuple[bytes, bytes] | None:
        """Return the bytes of the state and of the row; None when there is no state."""
        try:
            with self._state.open("rb") as file:
                state = file.read(MAX_BOOK + 1)
        except FileNotFoundError:
            return None
        try:
            return state, self._row.read_bytes()
        except FileNotFoundError:
            return state, b""

    def _load(self, state: bytes, row: bytes) -> None:
        self.memory = parse_memory(state)
        self._kept = self.memory.size // TILE_WIDTH
        if len(row) < self._kept * HASH_SIZE:
            raise FormatError("the row of hashes is shorter than the state says")
        self.tree = OwnTree(row[: self._kept * HASH_SIZE], parse_b64(self.memory.read_tail))
        if self.tree.root_at(self.memory.size).hex() != self.memory.root:
            raise FormatError("the row of hashes is not the one that was kept")
        head = self.memory.head()
        if head and self.head_tree().root_at(head.size) != head.root:
            raise FormatError("the row of hashes does not lead to the verified root")

    def known(self) -> VerifiedCheckpoint | None:
        """Return the last verified checkpoint."""
        head = self.memory.head()
        return VerifiedCheckpoint(head, self.memory.note) if head else None

    def size(self) -> int:
        """Return the size of the last verified checkpoint, 0 when there is none."""
        head = self.memory.head()
        return head.size if head else 0

    def head_tree(self) -> OwnTree:
        """Return the tree of the last verified head."""
        head = self.memory.head()
        if head is None:
            return OwnTree()
        if head.size == self.tree.size:
            return self.tree
        return self.tree.cut(head.size, parse_b64(self.memory.tail))

    def accept(self, note: str) -> None:
        """Take a checkpoint whose tree is the one that was read. The caller has compared the roots."""
        memory = self.memory
        memory.note, memory.tail = note, b64(bytes(self.tree.tail))
        memory.head_logged, memory.head_anchored = memory.last_logged, memory.anchored

    def discard(self) -> None:
        """Forget what was read beyond the verified head, durably. Raises StateUnavailable.

        At once: the row is about to be written over, and the state must not count on what stood there.
        """
        memory, fresh = self.memory, self.tree.fresh
        self.tree = self.head_tree()
        count = len(self.tree.row) // HASH_SIZE
        self.tree.fresh = fresh[: max(0, count - self._kept) * _LEAVES]
        memory.pending, memory.last_logged, memory.anchored = [], memory.head_logged, memory.head_anchored
        self._kept = min(self._kept, count)
        self.save()

    def save(self) -> None:
        """Make all of it durable. Raises StateUnavailable, and the files are then as they were."""
        memory = self.memory
        memory.size, memory.read_tail = self.tree.size, b64(bytes(self.tree.tail))
        memory.root = self.tree.root_at(memory.size).hex()
        try:
            if self.tree.fresh:
                _write(self._leaves, self._kept * _LEAVES, self.tree.fresh)
                _write(self._row, self._kept * HASH_SIZE, self.tree.row[self._kept * HASH_SIZE :])
            replace_file(self._state, format_memory(memory))
        except OSError as error:
            raise StateUnavailable(f"cannot write {self._state}: {error.strerror}") from error
        self._kept = len(self.tree.row) // HASH_SIZE
        self.tree.fresh.clear()

    def leaves(self, index: int) -> bytes | None:
        """Return the leaf hashes of a full bundle that was read; None when they are not kept, or damaged."""
        start = (index - self._kept) * _LEAVES
        if start >= 0:
            return bytes(self.tree.fresh[start : start + _LEAVES])
        try:
            with self._leaves.open("rb") as file:
                file.seek(index * _LEAVES)
                found = file.read(_LEAVES)
            self.tree.check_bundle(index, found)
        except (OSError, BadProof):
            return None
        return found


def _write(path: Path, start: int, data: bytes | bytearray) -> None:
    """Write over a file from byte `start` on, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(start)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def urls_of(folder: Path) -> list[str]:
    """Return the URLs of the logs that are remembered in a folder. Raises StateError."""
    try:
        return [_url(path) for path in sorted(folder.glob("*.json"))]
    except OSError as error:
        raise StateUnavailable(f"cannot read {folder}: {error.strerror}") from error


def _url(path: Path) -> str:
    try:
        return parse_memory(path.read_bytes()).url
    except FormatError as error:
        raise StateError(f"{path} is damaged ({error}); this says nothing about any log") from error
