"""What is known already of a batch: raw leaves that are in the log, and Idempotency-Keys that were used."""

from __future__ import annotations

from collections.abc import Sequence

from muniment_server.failpoints import step
from muniment_server.storage.log import Head, Reads, StoredKey, leaf_key
from muniment_server.write.admission import RawDraft
from muniment_server.write.submission import Submission

Known = tuple[dict[bytes, int], dict[tuple[str, str], StoredKey]]
"""Raw leaves, with the index of each; used Idempotency-Keys by caller and key."""


@step("sequencer.look_up")
async def look_up(
    reads: Reads, log_id: int, batch: Sequence[Submission], head: Head, now: int, *, leaves_too: bool
) -> Known | None:
    """Return known raw leaves and used Idempotency-Keys as of `head`; None when the database is ahead of it.

    Without `leaves_too` no leaf is looked up. `now` decides which keys have expired. Raises SessionLost, StoreError.
    """
    leaves = await _leaves(reads, log_id, batch, head) if leaves_too else {}
    used = [(s.caller, s.key) for s in batch if s.key is not None]
    found = await reads.find_keys(log_id, used, now, head.session) if used else ()
    keys = {(k.row.caller, k.row.key): k for k in found}
    ahead = any(index >= head.size for index in leaves.values()) or any(
        k.row.first_index >= head.size for k in keys.values()
    )
    return None if ahead else (leaves, keys)


async def _leaves(reads: Reads, log_id: int, batch: Sequence[Submission], head: Head) -> dict[bytes, int]:
    raw = {draft.leaf: leaf_key(draft.hash) for s in batch for draft in s.drafts if isinstance(draft, RawDraft)}
    leaves: dict[bytes, int] = {}
    if raw:
        for index, leaf in await reads.find_leaves(log_id, sorted(set(raw.values())), head.session):
            if leaf in raw:  # the key is only 8 bytes of the hash; the whole leaf decides
                leaves.setdefault(leaf, index)
    return leaves
