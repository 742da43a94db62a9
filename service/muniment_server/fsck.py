"""Checks a stored log from the ground up: every leaf hash, tile, root and checkpoint signature, recomputed from the entries.

It trusts the stored leaves and the policy file, and nothing that was derived from them. Reads only, so it may run beside a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from muniment.errors import FormatError, VerificationError
from muniment.hashing import HASH_SIZE, RootHash, leaf_hash
from muniment.policy import Policy
from muniment.tiles import TILE_WIDTH, Tile
from muniment.tree import Edge, Growth, TileGrowth, grow, plan_root
from muniment_server.guard import Guard, GuardRefused
from muniment_server.storage import Head, LogRow, Published, Store

_STEP = 16 * TILE_WIDTH
_PAGE = 1000
_MAX_FINDINGS = 100
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: a stable code, the first index (or tree size) it concerns, and a sentence."""

    code: str
    index: int
    detail: str


@dataclass(slots=True)
class Report:
    """What was checked of one log, and what was found."""

    log: str
    origin: str
    size: int
    entries: int = 0
    tiles: int = 0
    checkpoints: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.findings

    @property
    def first_bad_index(self) -> int | None:
        """The lowest index, or size, of any finding."""
        return min((finding.index for finding in self.findings), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON value."""
        return {**asdict(self), "clean": self.clean, "first_bad_index": self.first_bad_index}

    def add(self, code: str, index: int, detail: str) -> None:
        """Note a finding; beyond a hundred the count of damage says no more than the list."""
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(Finding(code, index, detail))


async def fsck(store: Store, row: LogRow, policy: Policy, guard: Guard | None, progress: Progress) -> Report:
    """Check one log. `guard` None leaves the guard out. `progress` gets (entries checked, entries in all).

    Raises StoreUnavailable when the database does not answer.
    """
    checkpoints = await _checkpoints(store, row)  # before the head: those of later appends are left out
    head = await store.head(row.log_id)
    report = Report(row.name, row.origin, head.size)
    wanted = _wanted_roots(report, head, checkpoints, policy, await _guarded(report, guard, head))
    edge = Edge()
    for start in range(0, head.size, _STEP):
        stop = min(start + _STEP, head.size)
        leaves = await store.leaves(row.log_id, start, stop)
        if len(leaves) != stop - start:
            report.add("entry_missing", start + len(leaves), "an entry below the head is missing")
            return report
        for at in range(0, len(leaves), TILE_WIDTH):
            growth = grow(edge, map(leaf_hash, leaves[at : at + TILE_WIDTH]))
            _check_roots(report, growth, edge.size, wanted)
            await _check_tiles(store, row, report, growth, last=growth.edge.size == head.size)
            edge = growth.edge
        report.entries = stop
        progress(stop, head.size)
    if await store.leaves(row.log_id, head.size, head.size + 1) and (await store.head(row.log_id)).size == head.size:
        report.add("entry_beyond_head", head.size, "an entry beyond the head is stored")
    return report


async def _checkpoints(store: Store, row: LogRow) -> list[Published]:
    found: list[Published] = []
    while page := await store.checkpoints(row.log_id, found[-1].size + 1 if found else 0, _PAGE):
        found += page
    return found


async def _guarded(report: Report, guard: Guard | None, head: Head) -> dict[int, RootHash]:
    """Return the root the guard remembers, by size."""
    if guard is None:
        return {}
    try:
        guarded = await asyncio.to_thread(guard.read)
    except GuardRefused as error:
        report.add(error.code, head.size, str(error))
        return {}
    if guarded.size > head.size:
        report.add(
            "database_behind", head.size, f"the guard remembers a head of {guarded.size} entries: an old database"
        )
    return {guarded.size: guarded.root}


def _wanted_roots(
    report: Report, head: Head, checkpoints: Iterable[Published], policy: Policy, guarded: dict[int, RootHash]
) -> dict[int, list[tuple[str, RootHash]]]:
    """Return what the root of each size must be, and according to what; check signatures on the way."""
    wanted: dict[int, list[tuple[str, RootHash]]] = {head.size: [("head", head.root)]}
    for size, root in guarded.items():
        wanted.setdefault(size, []).append(("guard", root))
    for published in checkpoints:
        report.checkpoints += 1
        try:
            signed = policy.verify(published.note).checkpoint
        except (FormatError, VerificationError) as error:
            report.add(
                "checkpoint_signature", published.size, f"published checkpoint of size {published.size}: {error}"
            )
            continue
        if (signed.origin, signed.size) != (report.origin, published.size):
            report.add("checkpoint_size", published.size, "a published checkpoint is stored under another size or log")
        if signed.size > head.size:
            report.add("checkpoint_beyond_head", head.size, f"size {signed.size} was signed, the head is {head.size}")
        wanted.setdefault(signed.size, []).append(("checkpoint", signed.root))
    return wanted


def _check_roots(report: Report, growth: Growth, start: int, wanted: dict[int, list[tuple[str, RootHash]]]) -> None:
    for size in range(start + 1, growth.edge.size + 1):
        for source, root in wanted.get(size, ()):
            known = any(
                finding.code == f"{source}_root" for finding in report.findings
            )  # one bad entry spoils all later roots
            if not known and plan_root(size).fold(growth.lookup)[0] != root:
                report.add(f"{source}_root", size - 1, f"the entries do not hash to the {source}'s root of size {size}")


async def _check_tiles(store: Store, row: LogRow, report: Report, growth: Growth, *, last: bool) -> None:
    """Compare each tile once: when it is full, or at the end of the log."""
    due = [tile for tile in growth.tiles if len(tile.data) == TILE_WIDTH * HASH_SIZE or last]
    if last:  # tiles of upper levels that this last step did not touch
        due += [
            TileGrowth(level, growth.edge.size >> 8 * (level + 1), 0, bytes(rows[0]))
            for level, rows in enumerate(growth.edge.levels)
            if rows[0] and not any(tile.level == level and len(tile.data) == len(rows[0]) for tile in due)
        ]
    stored = await store.tiles(row.log_id, [Tile(tile.level, tile.index) for tile in due]) if due else {}
    for tile in due:
        report.tiles += 1
        data = stored.get((tile.level, tile.index), b"")
        if data[: len(tile.data)] != tile.data:
            _report_tile(report, tile, data)


def _report_tile(report: Report, tile: TileGrowth, data: bytes) -> None:
    position = next(
        at
        for at in range(len(tile.data) // HASH_SIZE)
        if data[at * 32 : at * 32 + 32] != tile.data[at * 32 : at * 32 + 32]
    )
    index = (tile.index * TILE_WIDTH + position) << 8 * tile.level
    if tile.level:
        report.add(
            "tile", index, f"tile {tile.level}/{tile.index} is wrong from hash {position}: its subtree starts here"
        )
    else:
        report.add("leaf_hash", index, f"entry {index} does not hash to what tile 0/{tile.index} holds")
