"""Writes a backup: everything is checked before it is written, and `checkpoint` is written last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from muniment.errors import FormatError, VerificationError
from muniment.hashing import HASH_SIZE, RootHash
from muniment.note import parse_note, verify_note
from muniment.policy import LogKey, Policy, VerifiedCheckpoint
from muniment.tiles import Tile, encode_bundle
from muniment_server.backup import Progress
from muniment_server.backup.folder import File, Folder
from muniment_server.backup.rows import decode_log, encode_log, encode_payloads, encode_published, path_of
from muniment_server.backup.source import StoreSource
from muniment_server.backup.tree import Part, Tree, check_tiles, checked_parts
from muniment_server.errors import Corrupt, SetupError
from muniment_server.storage import Store
from muniment_server.storage.catalog import LogRow


@dataclass(frozen=True, slots=True)
class Made:
    """A backup that is complete. `written` and `kept` count files."""

    log: str
    origin: str
    tree_size: int
    root: str
    folder: str
    payloads: bool
    written: int
    kept: int


async def backup(
    store: Store,
    row: LogRow,
    policy: Policy,
    path: Path,
    progress: Progress,
    size: int | None = None,
    *,
    payloads: bool,
) -> Made:
    """Write, or bring up to date, the backup of one log in the folder `path`.

    It is as of a published checkpoint, by default the latest. A backup that is interrupted leaves the one that was
    there before: run it again. Raises Corrupt, SetupError, StoreError.
    """
    head = await _head(store, row, policy, size)
    folder = Folder(path)
    with folder.locked():
        known = _earlier(folder, row, policy, head, payloads=payloads)
        leftovers = await asyncio.to_thread(folder.leftovers, head.checkpoint.size)
        mode = 0o644 if row.public else 0o600
        trust = policy_of(policy, head.note, row.origin)
        about = {"log.json": encode_log(row, payloads=payloads), "policy": str(trust).encode()}
        source = StoreSource(store, row.log_id)
        tree = await check_tiles(source, head.checkpoint, policy, known, progress)
        folder.put(File(name, data, mode, replace=True) for name, data in about.items())
        await _write(folder, source, tree, progress, mode, payloads=payloads)
        await asyncio.to_thread(_finish, folder, head.note, mode)
        folder.delete(leftovers)
    found = head.checkpoint
    return Made(row.name, row.origin, found.size, found.root.hex(), str(path), payloads, folder.written, folder.kept)


async def _head(store: Store, row: LogRow, policy: Policy, size: int | None) -> VerifiedCheckpoint:
    published = await store.checkpoints.checkpoint(row.log_id, size)
    if published is None:
        later = await store.checkpoints.checkpoints(row.log_id, size or 0, 1)
        hint = f": the next published size is {later[0].size}" if later else ""
        raise SetupError(f"log {row.name!r} has no published checkpoint" + (f" of size {size}{hint}" if size else ""))
    try:
        head = policy.verify(published.note)
    except (FormatError, VerificationError) as error:
        raise Corrupt(f"the published checkpoint of size {published.size} does not verify: {error}") from error
    if (head.checkpoint.origin, head.checkpoint.size) != (row.origin, published.size):
        raise Corrupt(f"the published checkpoint of size {published.size} is one of {head.checkpoint.origin!r}")
    return head


def _earlier(
    folder: Folder, row: LogRow, policy: Policy, head: VerifiedCheckpoint, *, payloads: bool
) -> dict[int, RootHash]:
    """Return the root of the backup that is there already, by size.

    First it checks that this is a backup of this log and not ahead of it.
    """
    described = folder.read("log.json")
    if described is not None:
        known, had_payloads = decode_log(described, folder.path / "log.json")
        if known.origin != row.origin:
            raise SetupError(f"{folder.path} is the backup of {known.origin!r}: take another folder")
        if had_payloads != payloads:
            raise SetupError(
                f"{folder.path} was begun with{'' if had_payloads else 'out'} --payloads: take another folder"
            )
    note = folder.read("checkpoint")
    if note is None:
        return {}
    try:
        earlier = policy.verify(note).checkpoint
    except (FormatError, VerificationError) as error:
        raise Corrupt(f"{folder.path / 'checkpoint'} does not verify: {error}") from error
    if earlier.origin != row.origin:
        raise SetupError(f"{folder.path} is the backup of {earlier.origin!r}: take another folder")
    if earlier.size > head.checkpoint.size:
        raise SetupError(
            f"{folder.path} holds size {earlier.size}, this would be size {head.checkpoint.size}: the log went back, "
            "or --size names an old checkpoint. Keep that folder, and take another one"
        )
    return {earlier.size: earlier.root}


async def _write(
    folder: Folder, source: StoreSource, tree: Tree, progress: Progress, mode: int, *, payloads: bool
) -> None:
    """Write everything but what says that it is complete."""
    previous = 0
    files: list[File] = []
    async for part in checked_parts(source, tree, payloads=payloads):
        files += _files(part, previous, mode, payloads=payloads)
        previous = part.published[-1].size if part.published else previous
        done = part.start + len(part.leaves)
        if part.bundle.index % 16 == 15 or done == tree.head.size:
            await asyncio.to_thread(folder.put, files)
            files = []
            progress("files", done, tree.head.size)
    upper = [
        File(path_of(Tile(level, index, len(data) // HASH_SIZE)), data, mode)
        for (level, index), data in tree.upper.items()
    ]
    await asyncio.to_thread(folder.put, upper)


def _files(part: Part, previous: int, mode: int, *, payloads: bool) -> list[File]:
    files = [
        File(path_of(Tile(0, *part.bundle)), part.hashes, mode),
        File(path_of(part.bundle), encode_bundle(part.leaves), mode),
    ]
    if part.published:
        files.append(File(path_of(part.bundle, "checkpoints"), encode_published(part.published, previous), mode))
    if payloads and part.events:
        # Replaced, unlike all else: what was erased in the log goes from the backup too.
        data = encode_payloads(part.events, part.payloads)
        files.append(File(path_of(part.bundle, "payloads"), data, 0o600, replace=True))
    return files


def _finish(folder: Folder, note: str, mode: int) -> None:
    """Say that the backup is complete. Everything else has to be durable before."""
    folder.sync()
    folder.put([File("checkpoint", note.encode(), mode, replace=True)])
    folder.sync()


def policy_of(policy: Policy, note: str, origin: str) -> Policy:
    """Return the policy that trusts nothing but the keys of `policy` that signed this checkpoint of `origin`."""
    known = [log.vkey for log in policy.logs if log.vkey.name == origin]
    return Policy(tuple(LogKey(vkey) for vkey in verify_note(parse_note(note), known)))
