"""Rebuilds a log from a backup.

Everything is checked before the database is touched, and checkpoints are published last.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError, VerificationError
from muniment.event import EventLeaf, OwnLeaf, parse_leaf, parse_time
from muniment.hashing import EMPTY_ROOT, RootHash, leaf_hash
from muniment.policy import Policy
from muniment.tiles import TILE_WIDTH
from muniment.tree import Edge, Node, expand, grow, hash_in, partial_tiles, place, plan_root
from muniment_server.backup import Progress
from muniment_server.backup.make import policy_of
from muniment_server.backup.rows import path_of
from muniment_server.backup.source import FolderSource, read_file
from muniment_server.backup.target import described
from muniment_server.backup.tree import Part, Tree, check_tiles, checked_parts, erased_indices
from muniment_server.errors import Corrupt, GuardRefused, HeadMoved, InstanceRefused, OutcomeUnknown, SetupError
from muniment_server.instance.files import read_key, write_new
from muniment_server.instance.registry import LOG_NAME
from muniment_server.settings import Settings
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow
from muniment_server.storage.log import Grown, Head, StoredPayload, leaf_keys_of
from muniment_server.write.guard import Guard, Guarded, TreeHead
from muniment_server.write.raising import raise_guard

_BATCH = 16
"""Bundles in one commit."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A log that is back. `writable` says whether its key and guard are here, so that `serve` can extend it."""

    log: str
    origin: str
    tree_size: int
    root: str
    entries_added: int
    payloads: int
    payloads_erased: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup in which everything hashes to its signed checkpoint. `row` is the log as it will be called here."""

    source: FolderSource
    row: LogRow
    tree: Tree
    trust: Policy
    guarded: Guarded | None
    writable: bool
    erased: frozenset[int]


# --- before anything is written ---------------------------------------------------------------------------------------


async def check(
    settings: Settings, path: Path, policy: Policy, progress: Progress, name: str | None = None, *, payloads: bool
) -> Checked:
    """Check a backup from its signature down to its last payload, and against the guard of this instance.

    Writes nothing. `payloads` False leaves out the payloads that the backup may hold. Raises Corrupt, or SetupError
    when this instance cannot take it.
    """
    row, has_payloads = described(path, name)
    if not LOG_NAME.fullmatch(row.name):
        raise SetupError(f"a log is named by lowercase letters, digits and hyphens, at most 63: not {row.name!r}")
    note = read_file(path / "checkpoint")
    try:
        head = policy.verify(note).checkpoint
    except (FormatError, VerificationError) as error:
        raise Corrupt(f"{path / 'checkpoint'} does not verify: {error}") from error
    if head.origin != row.origin:
        raise Corrupt(f"{path / 'log.json'} is of {row.origin!r}, the checkpoint of {head.origin!r}")
    trust = policy_of(policy, note.decode(), head.origin)
    guarded, has_key = await asyncio.to_thread(_guarded, settings, row.name, head, trust)
    if payloads and not has_payloads and any((path / "payloads").glob("*")):
        raise Corrupt(
            f"{path / 'log.json'} says that the backup has no payloads, and there are some in {path / 'payloads'}: one "
            "of them was changed. --no-payloads leaves them out"
        )
    source = FolderSource(path, with_payloads=has_payloads and payloads)
    tree = await check_tiles(source, head, policy, {}, progress)
    if guarded and await _root_at(source, tree, guarded.size) != guarded.root:
        raise InstanceRefused(
            "guard_root",
            f"in this backup the tree of size {guarded.size} is not the one that was signed: another history",
        )
    erased = await _check_entries(source, tree, progress)
    (genesis, *_) = await source.leaves(tree.bundles()[0])
    content = parse_leaf(genesis)
    if not isinstance(content, OwnLeaf) or content.value.get("kind") != row.kind:
        raise Corrupt(f"{path / 'log.json'} says kind {row.kind!r}, and the first entry of the log does not")
    return Checked(source, row, tree, trust, guarded, guarded is not None and has_key, erased)


def _guarded(settings: Settings, name: str, head: Checkpoint, trust: Policy) -> tuple[Guarded | None, bool]:
    """Return what the guard of this instance remembers of the log, and whether its signing key is here.

    Raises SetupError.
    """
    vkeys = [log.vkey for log in trust.logs]
    path = settings.key_file(name)
    if has_key := path.exists():
        key = read_key(path)
        if key.vkey not in vkeys:
            raise InstanceRefused(
                "guard_foreign", f"{path} is not the key that signed this backup: put the right one there"
            )
    guard = Guard(settings.guard_file(name))
    if not guard.path.exists():
        return None, has_key
    try:
        guarded = guard.read()
    except GuardRefused as error:
        raise InstanceRefused(error.code, str(error)) from error
    if (guarded.origin, guarded.key_id) not in [(vkey.name, vkey.key_id) for vkey in vkeys]:
        raise InstanceRefused(
            "guard_foreign", f"{guard.path} guards {guarded.origin!r} with key {guarded.key_id.hex()}, not this log"
        )
    if guarded.size > head.size:
        raise InstanceRefused(
            "database_behind",
            f"the backup has {head.size} entries, but {guard.path} says that a head of {guarded.size} "
            "may have been signed. Restore a newer backup; signing on top of this one would fork the log. To read it "
            "only, restore it into a folder that has neither key nor guard, and serve it with --read-only",
        )
    return guarded, has_key


async def _root_at(source: FolderSource, tree: Tree, size: int) -> RootHash:
    """Return the root of the first `size` entries of a tree that was checked."""
    if not size:
        return EMPTY_ROOT
    plan, rows = plan_root(size), {}
    for tile in plan.tiles(tree.head.size):
        data = tree.upper.get((tile.level, tile.index)) or (await source.tiles([tile]))[0]
        rows[tile.level, tile.index] = expand(data)

    def lookup(node: Node) -> bytes:
        level, index, row, position = place(node)
        return hash_in(rows[level, index], row, position)

    return RootHash(plan.fold(lookup)[0])


async def _check_entries(source: FolderSource, tree: Tree, progress: Progress) -> frozenset[int]:
    """Check every bundle, payload and link between published checkpoints.

    Returns the indices that erasure entries name.
    """
    erased: set[int] = set()
    last, size = 0, tree.head.size
    async for part in checked_parts(source, tree, payloads=True):
        if source.with_payloads:
            erased.update(*map(erased_indices, part.leaves))
        if part.published:
            if source.previous[part.published[0].size] != last:
                raise Corrupt(
                    f"the file before {path_of(part.bundle, 'checkpoints')} is missing: a checkpoint after size {last}"
                )
            last = part.published[-1].size
        progress("checking", part.start + len(part.leaves), size)
    if last != size:
        raise Corrupt(
            f"{path_of(tree.bundles()[-1], 'checkpoints')} is missing: it holds the checkpoint of size {size}"
        )
    return frozenset(erased)


# --- rebuilding -------------------------------------------------------------------------------------------------------


async def rebuild(settings: Settings, store: Store, checked: Checked, progress: Progress) -> Restored:
    """Store what `check` found good; go on where an earlier call was interrupted.

    No client reads the log before its checkpoints are published, and that comes last. Raises SetupError, Corrupt,
    StoreError.
    """
    row, head = await _begin(store, checked)
    counts = await _append_all(store, row, head, checked, progress)
    final, size = await store.reads.head(row.log_id), checked.tree.head.size
    if (final.size, final.root) != (size, checked.tree.head.root):
        raise Corrupt(
            f"the database ends at size {final.size} with another root than the backup: run `muniment-server fsck`"
        )
    await _raise_guard(settings, store, row, final, checked.guarded)
    await _publish_all(store, row, checked, progress)
    for path in (settings.policy_file(row.name), settings.policy):
        if not path.exists():
            write_new(path, str(checked.trust), 0o644)
    return Restored(row.name, row.origin, size, final.root.hex(), size - head.size, *counts, checked.writable)


async def _raise_guard(settings: Settings, store: Store, row: LogRow, head: Head, proved: Guarded | None) -> None:
    """Raise the guard to the restored head, which was signed: from the head that the backup was found to extend.

    Raises SetupError when a writer that was not stopped has raised it to another history since.
    """
    if proved is None:
        return
    guard, new = Guard(settings.guard_file(row.name)), TreeHead(head.size, head.root)
    try:
        await raise_guard(guard, store.reads, row.log_id, proved.guard_id, new, {proved.head})
    except (OutcomeUnknown, GuardRefused) as error:
        raise InstanceRefused(
            "guard_root",
            f"the guard of log {row.name!r} no longer fits this backup ({error}): stop all writers of this log",
        ) from error


async def _begin(store: Store, checked: Checked) -> tuple[LogRow, Head]:
    """Make the log, or find the one that this backup extends. Raises SetupError when another one is in its place."""
    guard_id = (
        checked.guarded.guard_id if checked.guarded else secrets.token_hex(16)
    )  # without a guard: one that no guard has
    wanted, tree = checked.row, checked.tree
    try:
        row = await store.catalog.create_log(wanted, Head(0, EMPTY_ROOT, 0, 0, guard_id))
    except HeadMoved as error:
        raise SetupError(
            f"another log has the name {wanted.name!r} or the origin {wanted.origin!r} here: {error}"
        ) from error
    head = await store.reads.head(row.log_id)
    if row.kind != wanted.kind:
        raise SetupError(f"log {row.name!r} exists with kind {row.kind!r}")
    if checked.guarded and head.guard_id != guard_id:
        raise InstanceRefused("guard_foreign", "the database names another guard than the one of this instance")
    if head.size > tree.head.size:
        raise SetupError(f"log {row.name!r} has {head.size} entries here already, the backup only {tree.head.size}")
    if await _root_at(checked.source, tree, head.size) != head.root:
        raise SetupError(f"log {row.name!r} exists here with another history: restore into an empty database")
    return row, head


async def _append_all(store: Store, row: LogRow, head: Head, checked: Checked, progress: Progress) -> tuple[int, int]:
    """Append what is missing, in large commits. Return how many payloads were stored, and how many stay erased."""
    size = checked.tree.head.size
    edge = Edge.of(head.size, await store.reads.tiles(row.log_id, partial_tiles(head.size)))
    stored = erased = 0
    batch: list[Part] = []
    if head.size == size:
        return 0, 0
    async for part in checked_parts(checked.source, checked.tree, head.size, payloads=True):
        batch.append(part)
        if len(batch) < _BATCH and part.start + len(part.leaves) < size:
            continue
        payloads = {each.index: each for each in _payloads(batch, head.size)}
        kept = {index: each for index, each in payloads.items() if index not in checked.erased}
        leaves = _leaves(batch, head.size)
        hashes = [leaf_hash(leaf) for leaf in leaves]
        growth = grow(edge, hashes)
        time = max(head.logged_at, *(_time(row.kind, each) for each in batch))
        new = replace(head, size=growth.edge.size, root=growth.edge.root(), logged_at=time)
        grown = Grown(row.log_id, new, leaves, leaf_keys_of(hashes), list(kept.values()), growth.tiles)
        await _append(store, grown, head)
        head, edge, batch = new, growth.edge, []
        stored, erased = stored + len(kept), erased + len(payloads) - len(kept)
        progress("storing", head.size, size)
    return stored, erased


async def _append(store: Store, grown: Grown, expected: Head) -> None:
    try:
        await store.log.append(grown, expected)
    except HeadMoved as error:
        raise SetupError(f"another process writes to this log: stop it and run restore again ({error})") from error


def _leaves(batch: list[Part], start: int) -> list[bytes]:
    return [leaf for part in batch for leaf in part.leaves[max(start - part.start, 0) :]]


def _payloads(batch: list[Part], start: int) -> list[StoredPayload]:
    return [each for part in batch for each in part.payloads if each.index >= start]


def _time(kind: str, part: Part) -> int:
    """Return the time of the last entry of a part, or one soon after it: raw leaves do not hold theirs."""
    if kind == "raw":
        return max((each.published_at for each in part.published), default=0)
    content = parse_leaf(part.leaves[-1])
    if isinstance(content, EventLeaf):
        return content.logged_at
    return parse_time(content.value["logged_at"]) if isinstance(content, OwnLeaf) else 0


async def _publish_all(store: Store, row: LogRow, checked: Checked, progress: Progress) -> None:
    """Publish every checkpoint of the backup that the database lacks, smallest first."""
    latest = await store.checkpoints.checkpoint(row.log_id)
    done = latest.size if latest else 0
    for bundle in checked.tree.bundles()[done // TILE_WIDTH :]:
        if lacking := [each for each in await checked.source.published(bundle) if each.size > done]:
            await store.checkpoints.publish_all(row.log_id, lacking)
        progress("publishing", bundle.index * TILE_WIDTH + bundle.width, checked.tree.head.size)
