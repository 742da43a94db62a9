"""Raises the guard to a head that is to be signed: a compare-and-swap, and proofs where it holds an unexpected one.

What the guard holds is always proved to be a prefix of what it is raised to, on the very values that are compared and
written. A fact that was proved earlier does not help: between the proof and the write the database can be another one,
and the guard another value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from muniment_server.errors import GuardUnavailable, NotProved, OutcomeUnknown, StoreError
from muniment_server.failpoints import step
from muniment_server.storage.log import Reads
from muniment_server.write import recheck
from muniment_server.write.guard import Guard, TreeHead

_TRIES = 100


@step("guard.raise")
async def raise_guard(
    guard: Guard, reads: Reads, log_id: int, guard_id: str, new: TreeHead, below: Iterable[TreeHead]
) -> bool:
    """Return once `new` is durably proved to be a prefix of what the guard holds, so that it may be signed.

    `below` are heads that were proved to be prefixes of `new`. Returns whether the guard holds `new` itself; False:
    another writer is ahead. Raises GuardRefused; or OutcomeUnknown, a NotProved among them: `new` must not be signed.
    """
    proved, above = set(below), False
    run = asyncio.get_running_loop().run_in_executor
    for _ in range(_TRIES):
        try:
            found, durable = await run(None, partial(guard.swap, guard_id, new, proved, above=above))
        except GuardUnavailable as error:
            raise OutcomeUnknown(str(error)) from error
        if durable:
            return found.head == new
        stored = await _tiles(reads, log_id, found.head, new)  # without the lock: others may go on
        if recheck.extends(found.head, new, stored):
            proved.add(found.head)
        elif recheck.extends(new, found.head, stored):
            above = True  # for good: the guard only grows
        else:
            raise NotProved(
                f"the guard holds a head of size {found.size} "
                f"that this database does not connect to the one of size {new.size}"
            )
    raise OutcomeUnknown(f"the guard was raised by others {_TRIES} times in a row")


async def _tiles(reads: Reads, log_id: int, guarded: TreeHead, new: TreeHead) -> recheck.StoredTiles:
    try:
        return await reads.tiles(log_id, recheck.tiles_to_extend(guarded.size, new.size))
    except OutcomeUnknown:
        raise
    except StoreError as error:
        raise OutcomeUnknown(f"the guard could not be compared: {error}") from error
