"""What has to be proved before a process may extend a stored log: it is the one log, not an old or a wrong copy.

=================================== ==============================================================
guard = database                    go
guard behind the database           check every entry since, then go
database behind the guard           ``database_behind``: a restored backup, an emptied database
another root at the guard's size    ``guard_root``: another history
stored tiles, entries contradict    ``database_damaged``
another origin, key or guard id     ``guard_foreign``
no guard file, or none that is whole ``guard_missing``, ``guard_unreadable``
others have seen more, or otherwise ``witness_ahead``, ``witness_root``
=================================== ==============================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from muniment.checkpoint import Checkpoint
from muniment.tree import partial_tiles
from muniment_server.errors import GuardRefused, Mismatch
from muniment_server.failpoints import step
from muniment_server.storage.log import Head, Reads
from muniment_server.write import recheck
from muniment_server.write.guard import Guarded

Witnessed = Callable[[], Awaitable[Sequence[Checkpoint]]]
"""Asks those outside who remember this log's checkpoints. Each returned one is verified already."""

_PAGE = 4096


async def no_witnesses() -> Sequence[Checkpoint]:
    """Return no checkpoints: a log without witnesses."""
    return ()


def check_guard(path: Path, guarded: Guarded, origin: str, key_id: bytes, head: Head) -> None:
    """Check that the guard in the file `path` is this log's, and that the stored head is not behind it.

    Raises GuardRefused.
    """
    if (guarded.origin, guarded.key_id) != (origin, key_id):
        raise GuardRefused(
            "guard_foreign",
            f"{path} guards {guarded.origin!r} with key {guarded.key_id.hex()}, not this log and key: "
            "put the right files back",
        )
    if guarded.guard_id != head.guard_id:
        raise GuardRefused(
            "guard_foreign",
            f"the database names another guard than {path}: put the right guard or database back; "
            "if the log's writer moved to this host, see `muniment-server guard adopt --help`",
        )
    if guarded.size > head.size:
        raise GuardRefused(
            "database_behind",
            f"the database has {head.size} entries, but a head of {guarded.size} may have been signed: "
            "it is an old copy, or another copy was first. Restore a newer one; signing now would fork the log",
        )


@step("startup.prove")
async def prove(reads: Reads, log_id: int, head: Head, guarded: Guarded) -> dict[tuple[int, int], bytes]:
    """Prove that the stored tree hashes to its root, extends the guarded one, and holds what was added since.

    Returns its right edge. Raises GuardRefused, Mismatch or StoreError.
    """
    if head.size < 0:
        raise Mismatch(0, f"the head has size {head.size}")
    wanted = {*partial_tiles(head.size), *recheck.tiles_to_extend(guarded.size, head.size)}
    stored = await reads.tiles(log_id, sorted(wanted))
    recheck.check_root(head.size, head.root, stored)
    if not recheck.extends(guarded.head, (head.size, head.root), stored):
        raise GuardRefused(
            "guard_root",
            f"the stored tree of size {head.size} does not extend the one of size {guarded.size} that was signed: "
            "another history. Restore the right database; signing now would fork the log",
        )
    for start in range(guarded.size, head.size, _PAGE):
        stop = min(start + _PAGE, head.size)
        leaves, tiles = await reads.reread(log_id, start, stop, recheck.tiles_between(start, stop))
        recheck.check_new(start, stop, leaves, tiles)
    await _check_end(reads, log_id, head)
    return recheck.edge_bytes(head.size, stored)


async def _check_end(reads: Reads, log_id: int, head: Head) -> None:
    """Entries beyond the head belong to no history.

    Appending would fail on them for ever, or adopt what no writer signed.
    """
    if not await reads.leaves(log_id, head.size, head.size + 1):
        return
    if (await reads.head(log_id)).size == head.size:  # otherwise another writer was just here
        raise Mismatch(head.size, "entries beyond the head are stored")


async def check_seen(reads: Reads, log_id: int, head: Head, seen: Sequence[Checkpoint]) -> None:
    """Check that the tree of `head` extends every checkpoint that others have seen.

    Raises GuardRefused, Mismatch, StoreError.
    """
    for checkpoint in seen:
        if checkpoint.size > head.size:
            raise GuardRefused(
                "witness_ahead",
                f"the database has {head.size} entries, but a signed head of {checkpoint.size} is known outside: "
                "it is an old copy. Restore a newer one; signing now would fork the log",
            )
        stored = await reads.tiles(log_id, recheck.tiles_to_extend(checkpoint.size, head.size))
        if not recheck.extends((checkpoint.size, checkpoint.root), (head.size, head.root), stored):
            raise GuardRefused(
                "witness_root",
                f"the stored tree of size {checkpoint.size} is not the one that is known outside: another history. "
                "Restore the right database; signing now would fork the log",
            )
