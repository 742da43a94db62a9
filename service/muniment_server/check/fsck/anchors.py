"""Checks the anchors of a log: what was frozen, its proof, the tree it is of, its block, and its entry."""

from __future__ import annotations

import asyncio
from hashlib import sha256

from muniment import strictjson
from muniment.anchor.check import AnchorCheck, check_anchor
from muniment.anchor.proof import parse_ots
from muniment.anchor.sources import HeaderSource
from muniment.errors import BadTimestamp, EventRefused, FormatError, VerificationError
from muniment.policy import Policy
from muniment.tree import plan_root
from muniment_server.check.fsck.report import Report
from muniment_server.errors import Mismatch
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow
from muniment_server.storage.catalog import LogRow
from muniment_server.write import recheck

_PAGE = 100


async def check_anchors(
    store: Store, log: LogRow, policy: Policy, source: HeaderSource | None, report: Report, min_depth: int = 6
) -> None:
    """Check every anchor of a log, and add what is wrong to `report`.

    1. The frozen bytes have the digest that is stored, and are a checkpoint of this log and size, signed by a key of
       the policy.
    2. The stored tree of that size has its root.
    3. The proof is one of ours, of that digest.
    4. With a `source`: an anchor that is confirmed has a block in its chain, the one that is stored, `min_depth` deep.
    5. The entry that is named as its own is in the log and says the same.

    Raises StoreError.
    """
    size = (await store.reads.head(log.log_id)).size
    start = 0
    while page := await store.anchors.anchors(log.log_id, start, _PAGE):
        for row in page:
            report.anchors += 1
            _check_frozen(row, log, policy, report)  # 1
            await _check_tree(store, log, row, size, report)  # 2
            _check_proof(row, report)  # 3
            await _check_block(row, source, report, min_depth)  # 4
            await _check_entry(store, log, row, report)  # 5
        start = page[-1].tree_size + 1


def _check_frozen(row: AnchorRow, log: LogRow, policy: Policy, report: Report) -> None:
    if sha256(row.checkpoint).digest() != row.digest:
        report.add_one(
            "anchor_digest", row.tree_size, "the frozen checkpoint does not have the digest that is anchored"
        )
    try:
        found = Policy(policy.logs).verify(row.checkpoint).checkpoint
    except (FormatError, VerificationError) as error:
        report.add_one("anchor_note", row.tree_size, f"the frozen checkpoint does not verify: {error}")
        return
    if (found.origin, found.size, found.root) != (log.origin, row.tree_size, row.root):
        report.add_one("anchor_note", row.tree_size, "the frozen checkpoint is of another log, size or root")


async def _check_tree(store: Store, log: LogRow, row: AnchorRow, size: int, report: Report) -> None:
    if row.tree_size > size:
        report.add_one("anchor_ahead", size, f"size {row.tree_size} is anchored, the log has {size} entries")
        return
    tiles = await store.reads.tiles(log.log_id, plan_root(row.tree_size).tiles(row.tree_size))
    try:
        root = recheck.root_of_nodes(row.tree_size, tiles)
    except Mismatch as error:
        report.add_one("anchor_root", error.index, f"the tree of size {row.tree_size} cannot be recomputed: {error}")
        return
    if root != row.root:
        report.add_one("anchor_root", row.tree_size, "the stored tree does not have the root that is anchored")


def _check_proof(row: AnchorRow, report: Report) -> None:
    if row.ots is None:
        if row.state not in ("queued", "superseded"):
            report.add_one("anchor_proof", row.tree_size, f"an anchor that is {row.state} has no proof")
        return
    try:
        digest = parse_ots(row.ots, own=True).digest
    except BadTimestamp as error:
        report.add_one("anchor_proof", row.tree_size, f"the proof cannot be read: {error}")
        return
    if digest != row.digest:
        report.add_one("anchor_proof", row.tree_size, "the proof is of another digest")


async def _check_block(row: AnchorRow, source: HeaderSource | None, report: Report, min_depth: int) -> None:
    if row.state != "confirmed" or row.ots is None or source is None:
        return
    try:
        found = await asyncio.to_thread(check_anchor, row.checkpoint, row.ots, source, min_depth)
    except (FormatError, VerificationError):
        return  # said already
    if found.state == "no_source":
        report.unreachable.append(f"anchor of size {row.tree_size}: {found.claim}")
    elif not _is_block_of(row, found):
        report.add_one("anchor_block", row.tree_size, f"not confirmed by the source of headers: {found.claim}")


def _is_block_of(row: AnchorRow, check: AnchorCheck) -> bool:
    found = check.found
    if check.state != "confirmed" or found is None:
        return False
    return (found.height, found.header.hash, found.header.raw) == (row.height, row.block_hash, row.header)


async def _check_entry(store: Store, log: LogRow, row: AnchorRow, report: Report) -> None:
    if row.logged is None:
        return
    leaves = await store.reads.leaves(log.log_id, row.logged, row.logged + 1)
    try:
        value = strictjson.parse(leaves[0]) if leaves else None
    except (EventRefused, FormatError):
        value = None
    anchor = value.get("anchor") if isinstance(value, dict) else None
    said = (anchor.get("tree_size"), anchor.get("checkpoint_sha256")) if isinstance(anchor, dict) else None
    if said != (row.tree_size, row.digest.hex()):
        report.add_one(
            "anchor_entry", row.logged, f"entry {row.logged} is not that of the anchor of size {row.tree_size}"
        )
