"""One chunk of a log, read and checked by itself: whatever can be said of it without the rest of the tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from muniment.errors import FormatError, VerificationError
from muniment.hashing import HASH_SIZE, RootHash
from muniment.policy import Policy
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import expand
from muniment_server.check.fsck.entries import Checked, check_entries, check_keys
from muniment_server.check.fsck.report import Finding
from muniment_server.errors import StoreUnavailable
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import IdempotencyRow, StoredPayload, leaf_key

_PAGE = 1000
_REACH = 20_000  # twice the entries of the largest batch


UNREADABLE = (UnicodeDecodeError, TypeError, ValueError, OverflowError)
"""What values of a wrong type raise: a flipped bit in a page can turn a blob into text or a number."""


def is_damage(error: BaseException) -> bool:
    """Tell whether a store failed because its own pages are damaged, and not because it is away."""
    cause = error.__cause__
    if isinstance(error, UNREADABLE) or isinstance(cause, UNREADABLE):
        return True
    state = getattr(cause, "sqlstate", None) or ""
    return type(cause).__name__ in {"CorruptError", "NotADBError", "FormatError"} or state.startswith("XX")


@dataclass(frozen=True, slots=True)
class Task:
    """The entries [start, stop), with start a multiple of 256.

    `size` is that of the head. `wanted` sizes need their leaf hashes.
    """

    log: LogRow
    policy: str
    start: int
    stop: int
    size: int
    wanted: frozenset[int] = frozenset()
    keys: tuple[IdempotencyRow, ...] = ()  # those whose first entry is here


@dataclass(slots=True)
class Chunk:
    """What a task found.

    `roots` has the root of every full tile; `tiles` the leaf hashes of those that are not full, or that a wanted or
    signed size ends in; `wrong` has what tile 0/index should be. `signed` are (size, root) of published checkpoints
    with sizes in (start, stop]. `keys` are the leaf keys of a raw log. `checked` is without its hashes.
    """

    start: int
    stop: int
    checked: Checked
    roots: list[bytes] = field(default_factory=list)
    tiles: dict[int, bytes] = field(default_factory=dict)
    wrong: dict[int, bytes] = field(default_factory=dict)
    signed: list[tuple[int, RootHash]] = field(default_factory=list)
    checkpoints: int = 0
    keys: list[int] = field(default_factory=list)
    empty: bool = False  # not one entry is stored here


async def check_chunk(store: Store, task: Task) -> Chunk:
    """Check one chunk. Raises StoreUnavailable when the database does not answer; pages it cannot read are findings."""
    log_id, start, stop = task.log.log_id, task.start, task.stop
    rows = await store.inspect.entry_rows(log_id, start, stop)
    payloads = {stored.index: stored for stored in await store.reads.payloads(log_id, start, stop)}
    checked = check_entries(task.log, start, stop, rows, payloads)
    if task.keys:
        checked.findings += await _check_keys(store, task, payloads, checked)
    chunk = Chunk(start, stop, checked, empty=not rows)
    await _check_checkpoints(store, task, chunk)
    await _check_tiles(store, task, chunk)
    if task.log.kind == "raw":
        chunk.keys = [leaf_key(value) for value in checked.hashes if value]
    checked.hashes = []  # not sent between processes
    return chunk


async def _check_keys(store: Store, task: Task, payloads: dict[int, StoredPayload], checked: Checked) -> list[Finding]:
    """Check the Idempotency-Keys of this chunk; some reach into the entries behind it."""
    bad = {finding.index for finding in checked.findings}
    stop = min(max(row.first_index + row.count for row in task.keys), task.size, task.stop + _REACH)
    if stop > task.stop:
        more = {one.index: one for one in await store.reads.payloads(task.log.log_id, task.stop, stop)}
        rows = await store.inspect.entry_rows(task.log.log_id, task.stop, stop)
        bad |= {finding.index for finding in check_entries(task.log, task.stop, stop, rows, more).findings}
        payloads = payloads | more
    return list(check_keys(task.log, task.size, task.keys, payloads, bad))


async def _check_checkpoints(store: Store, task: Task, chunk: Chunk) -> None:
    policy = Policy.parse(task.policy)
    at = task.start + 1
    while at <= task.stop:
        try:
            page = await store.checkpoints.checkpoints(task.log.log_id, at, _PAGE)
        except (StoreUnavailable, *UNREADABLE) as error:
            if not is_damage(error):
                raise
            at = await _skip_unreadable(store, task, chunk, at)
            continue
        for published in page:
            if published.size > task.stop:
                return
            chunk.checkpoints += 1
            signed = check_note(chunk.checked, policy, task.log.origin, published.size, published.note)
            if signed is not None:
                chunk.signed.append((published.size, signed))
        at = page[-1].size + 1 if page else task.stop + 1


async def _skip_unreadable(store: Store, task: Task, chunk: Chunk, at: int) -> int:
    """Check the checkpoints from size `at` up to the first that cannot be read.

    Notes that one, and returns the size behind it.
    """
    while True:
        try:
            page = await store.checkpoints.checkpoints(task.log.log_id, at, 1)
        except (StoreUnavailable, *UNREADABLE):
            break
        policy = Policy.parse(task.policy)
        chunk.checkpoints += 1
        signed = check_note(chunk.checked, policy, task.log.origin, page[0].size, page[0].note)
        if signed is not None:
            chunk.signed.append((page[0].size, signed))
        at = page[0].size + 1
    low, high = at, task.stop + 1  # reading one from `low` fails, and from the size behind the bad one it does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            await store.checkpoints.checkpoints(task.log.log_id, middle, 1)
            high = middle
        except (StoreUnavailable, *UNREADABLE):
            low = middle
    chunk.checked.add("checkpoint_signature", low, f"published checkpoint of size {low} cannot be read")
    return low + 1


def check_note(checked: Checked, policy: Policy, origin: str, size: int, note: str) -> RootHash | None:
    """Return the root that a checkpoint published as `size` signs, or None and a finding."""
    try:
        signed = policy.verify(note).checkpoint
    except (FormatError, VerificationError) as error:
        checked.add("checkpoint_signature", size, f"published checkpoint of size {size}: {error}")
        return None
    if (signed.origin, signed.size) != (origin, size):
        checked.add("checkpoint_size", size, "a published checkpoint is stored under another size or log")
        return None
    return signed.root


async def _check_tiles(store: Store, task: Task, chunk: Chunk) -> None:
    """Compare the leaf hashes with the tiles of level 0, and keep what the tree above needs."""
    first, last = task.start // TILE_WIDTH, (task.stop - 1) // TILE_WIDTH
    stored = await store.reads.tiles(task.log.log_id, [Tile(0, index) for index in range(first, last + 1)])
    sizes = task.wanted | {size for size, _ in chunk.signed}
    inside = {size // TILE_WIDTH for size in sizes if size % TILE_WIDTH}
    for index in range(first, last + 1):
        at = index * TILE_WIDTH - task.start
        hashes = chunk.checked.hashes[at : at + TILE_WIDTH]
        data = compare_tile(chunk.checked, index, hashes, stored.get((0, index), b""))
        if stored.get((0, index), b"")[: len(data)] != data:
            chunk.wrong[index] = data
        full = len(hashes) == TILE_WIDTH
        if full:
            chunk.roots.append(bytes(expand(data)[8]))
        if not full or index in inside:
            chunk.tiles[index] = data


def compare_tile(checked: Checked, index: int, hashes: Sequence[bytes | None], stored: bytes) -> bytes:
    """Return the tile 0/`index` of these leaf hashes, and note where the stored one differs.

    The stored hash stands in for a missing entry, so that one missing entry does not spoil all roots after it.
    """
    data = b"".join(
        hash_ or stored[at * HASH_SIZE : (at + 1) * HASH_SIZE].ljust(HASH_SIZE, b"\0")
        for at, hash_ in enumerate(hashes)
    )
    if stored[: len(data)] != data:
        bad = first_difference(data, stored)
        checked.add(
            "leaf_hash",
            index * TILE_WIDTH + bad,
            f"entry {index * TILE_WIDTH + bad} does not hash to what tile 0/{index} holds",
        )
    return data


def first_difference(data: bytes, other: bytes) -> int:
    """Return the position of the first hash in which two tiles differ, or their common width."""
    width = min(len(data), len(other)) // HASH_SIZE
    return next(
        (
            at
            for at in range(width)
            if data[at * HASH_SIZE : (at + 1) * HASH_SIZE] != other[at * HASH_SIZE : (at + 1) * HASH_SIZE]
        ),
        width,
    )


async def check_chunk_or_say(store: Store, task: Task) -> Chunk:
    """As check_chunk, but what the database cannot read is a finding.

    Raises StoreUnavailable when the database is away.
    """
    try:
        return await check_chunk(store, task)
    except (StoreUnavailable, *UNREADABLE) as error:
        if not is_damage(error):
            raise
        bad = await _first_unreadable(store, task)
        chunk = Chunk(task.start, task.stop, Checked())
        chunk.checked.add("database_pages", bad, f"what is stored of entry {bad} cannot be read: {error}")
        return chunk


async def _first_unreadable(store: Store, task: Task) -> int:
    """Return the first entry that cannot be read.

    That is the chunk's first one when all can, and something else here cannot.
    """
    low, high = task.start, task.stop
    if await _readable(store, task, low, high):
        return low
    while high - low > 1:
        middle = (low + high) // 2
        if await _readable(store, task, low, middle):
            low = middle
        else:
            high = middle
    return low


async def _readable(store: Store, task: Task, start: int, stop: int) -> bool:
    log_id = task.log.log_id
    try:
        rows = await store.inspect.entry_rows(log_id, start, stop)
        payloads = {stored.index: stored for stored in await store.reads.payloads(log_id, start, stop)}
        check_entries(task.log, start, stop, rows, payloads)
    except (StoreUnavailable, *UNREADABLE) as error:
        if not is_damage(error):
            raise
        return False
    return True
