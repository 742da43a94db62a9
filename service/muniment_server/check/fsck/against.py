"""Compares a log with a copy of it, and names the first index in which they differ.

The copy is a mirror or a static tlog-tiles tree. From the top: the roots of the complete subtrees of the smaller size,
then down the first one that differs, a tile at a time. What the copy sends is believed only as far as it hashes to its
own signed checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError, VerificationError
from muniment.hashing import EMPTY_ROOT, HASH_SIZE
from muniment.policy import Policy
from muniment.tiles import Tile, format_tile, width_at
from muniment.tree import Node, TileRows, expand, fold, hash_in, nodes_of, place
from muniment.wire import NoAnswer, ask_async, bounded
from muniment_server.check.fsck.report import Finding
from muniment_server.errors import CopyUnreachable
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Reads

_TIMEOUT = 20.0
_MAX_NOTE = 65_536


class Copy(Protocol):
    """Where the other one is. `fetches` counts what was asked of it."""

    name: str
    fetches: int

    async def fetch(self, path: str, limit: int) -> bytes | None:
        """Return the bytes at a path of C2SP tlog-tiles, at most `limit`; None when there are none.

        Raises CopyUnreachable.
        """


class HttpCopy:
    """A mirror, or another server, over HTTP."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.name = url
        self.fetches = 0
        self._url = url.rstrip("/")
        self._client = client

    async def fetch(self, path: str, limit: int) -> bytes | None:
        """See Copy."""
        self.fetches += 1
        try:
            status, _, body = await ask_async(self._client, limit, _TIMEOUT, method="GET", url=f"{self._url}/{path}")
        except NoAnswer as error:
            raise CopyUnreachable(f"{self._url}/{path}: {error}") from error
        if status not in (200, 404):
            raise CopyUnreachable(f"{self._url}/{path} answers {status}")
        return body if status == 200 else None


class FolderCopy:
    """A static tlog-tiles tree on disk."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.fetches = 0
        self._folder = folder

    async def fetch(self, path: str, limit: int) -> bytes | None:
        """See Copy."""
        self.fetches += 1
        return await asyncio.to_thread(self._read, self._folder / path, limit)

    @staticmethod
    def _read(path: Path, limit: int) -> bytes | None:
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise CopyUnreachable(f"{path}: {error}") from error
        if len(data) > limit:
            raise CopyUnreachable(f"{path} has more than {limit} bytes")
        return data


@asynccontextmanager
async def open_copy(where: str) -> AsyncIterator[Copy]:
    """Give the copy at an http(s) URL or in a folder. Raises CopyUnreachable when it is neither."""
    if where.startswith(("http://", "https://")):
        async with bounded(httpx.AsyncClient(follow_redirects=False)) as client:
            yield HttpCopy(where, client)
    elif await asyncio.to_thread(Path(where).is_dir):
        yield FolderCopy(Path(where))
    else:
        raise CopyUnreachable(f"{where} is neither an http(s) URL nor a folder")


@dataclass(slots=True)
class Comparison:
    """What a comparison found. `compared` is the smaller of the two sizes; `fetches` what was asked of the copy."""

    log: str
    origin: str
    copy: str
    size: int
    copy_size: int
    compared: int
    fetches: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Tell whether both hold the same entries, as far as both have some."""
        return not self.findings

    @property
    def first_bad_index(self) -> int | None:
        """The first index in which they differ."""
        return min((finding.index for finding in self.findings if finding.index is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON value."""
        value = asdict(self) | {"findings": [finding._asdict() for finding in self.findings]}
        return value | {"clean": self.clean, "first_bad_index": self.first_bad_index}

    def lines(self) -> list[str]:
        """Return the comparison for people."""
        sizes = (
            f"{self.size} entries here, {self.copy_size} in {self.copy}; "
            f"compared {self.compared} with {self.fetches} fetches"
        )
        found = [f"  {finding}" for finding in self.findings]
        verdict = "same" if self.clean else f"DIFFERENT, first at index {self.first_bad_index}"
        return [f"{self.log}: {verdict} ({sizes})", *found]


class _Differs(Exception):
    def __init__(self, code: str, index: int, detail: str) -> None:
        super().__init__(detail)
        self.finding = Finding(code, index, detail)


class _Side(ABC):
    """The tiles of one side as of its size, each fetched once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: dict[tuple[int, int], TileRows] = {}

    @abstractmethod
    async def _data(self, tile: Tile) -> bytes: ...

    async def rows(self, level: int, index: int) -> TileRows:
        if (level, index) not in self._rows:
            self._rows[level, index] = expand(await self._data(Tile(level, index, width_at(level, index, self.size))))
        return self._rows[level, index]

    async def hash(self, node: Node) -> bytes:
        level, index, row, position = place(node)
        return hash_in(await self.rows(level, index), row, position)

    async def hashes(self, size: int) -> list[bytes]:
        """Return the roots of the complete subtrees of `size`."""
        return [await self.hash(node) for node in nodes_of(0, size)]


class _Here(_Side):
    def __init__(self, reads: Reads, log: LogRow, size: int) -> None:
        super().__init__(size)
        self._reads = reads
        self._log = log

    async def _data(self, tile: Tile) -> bytes:
        stored = await self._reads.tiles(self._log.log_id, [tile])
        data = stored.get((tile.level, tile.index), b"")[: tile.width * HASH_SIZE]
        return _whole(data, tile, "database_damaged", "the database holds too little of")


class _There(_Side):
    def __init__(self, copy: Copy, size: int) -> None:
        super().__init__(size)
        self._copy = copy

    async def _data(self, tile: Tile) -> bytes:
        data = await self._copy.fetch(f"tile/{format_tile(tile)}", tile.width * HASH_SIZE)
        return _whole(data or b"", tile, "copy_damaged", "the copy holds too little of")


def _whole(data: bytes, tile: Tile, code: str, what: str) -> bytes:
    if len(data) != tile.width * HASH_SIZE:
        raise _Differs(code, tile.index * 256 << 8 * tile.level, f"{what} tile {tile.level}/{tile.index}")
    return data


async def compare(store: Store, logs: Sequence[LogRow], policy: Policy, copy: Copy) -> Comparison:
    """Compare the log that a copy's checkpoint names with that copy. Raises CopyUnreachable, StoreUnavailable.

    O(log n) fetches: one for the checkpoint, one for each level of the right edge of each size, one for each level on
    the way down.
    """
    began = time.monotonic()
    checkpoint, log = await _checkpoint(logs, policy, copy)
    head = await store.reads.head(log.log_id)
    smaller = min(head.size, checkpoint.size)
    found = Comparison(log.name, log.origin, copy.name, head.size, checkpoint.size, smaller)
    here, there = _Here(store.reads, log, head.size), _There(copy, checkpoint.size)
    try:
        await _check_root(there, checkpoint.root, "copy_damaged", "the copy's tiles do not hash to its checkpoint")
        await _check_root(here, head.root, "database_damaged", "the stored tiles do not hash to the head: run fsck")
        await _walk(here, there, smaller)
    except _Differs as error:
        found.findings.append(error.finding)
    found.fetches, found.seconds = copy.fetches, round(time.monotonic() - began, 3)
    return found


async def _checkpoint(logs: Sequence[LogRow], policy: Policy, copy: Copy) -> tuple[Checkpoint, LogRow]:
    note = await copy.fetch("checkpoint", _MAX_NOTE)
    if note is None:
        raise CopyUnreachable(f"{copy.name} has no checkpoint")
    try:
        checkpoint = policy.verify(note).checkpoint
    except (FormatError, VerificationError) as error:
        raise CopyUnreachable(f"{copy.name}: its checkpoint is not one of these logs: {error}") from error
    log = next((log for log in logs if log.origin == checkpoint.origin), None)
    if log is None:
        raise CopyUnreachable(f"{copy.name} is a copy of {checkpoint.origin}, which is not one of the logs to compare")
    return checkpoint, log


async def _check_root(side: _Side, root: bytes, code: str, detail: str) -> None:
    found = fold(await side.hashes(side.size)) if side.size else EMPTY_ROOT
    if found != root:
        raise _Differs(code, 0, detail)


async def _walk(here: _Side, there: _Side, size: int) -> None:
    """Raise _Differs with the first entry that is not the same on both sides."""
    for node in nodes_of(0, size):
        if await here.hash(node) != await there.hash(node):
            await _descend(here, there, node)


async def _descend(here: _Side, there: _Side, node: Node) -> None:
    while node.height:
        left, right = Node(node.height - 1, 2 * node.index), Node(node.height - 1, 2 * node.index + 1)
        if not node.height % 8:  # the children lie in another tile: it must be the one this hash stands for
            for side, code in ((here, "database_damaged"), (there, "copy_damaged")):
                await _check_child(side, node, code)
        node = left if await here.hash(left) != await there.hash(left) else right
    raise _Differs("entry_differs", node.index, f"entry {node.index} is the first that is not the same in both")


async def _check_child(side: _Side, node: Node, code: str) -> None:
    level = node.height // 8 - 1
    rows = await side.rows(level, node.index)
    if bytes(rows[8]) != await side.hash(node):
        raise _Differs(code, node.index << node.height, f"tile {level}/{node.index} does not hash to what is above it")
