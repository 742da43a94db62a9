"""Appends each confirmed anchor to the log, as an entry of the log's own: exactly once, also after a crash.

The list of anchors is then as tamper-evident as everything else in the log, and what comes after the entry is later
than a block whose hash could not be known before it was mined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from muniment.anchor.header import display
from muniment.errors import FormatError
from muniment.event import OwnLeaf, parse_leaf
from muniment_server.errors import ReadOnly, Refused
from muniment_server.failpoints import step
from muniment_server.storage import Store
from muniment_server.storage.anchors import AnchorRow
from muniment_server.storage.catalog import LogRow
from muniment_server.write.sequencer import Sequencer
from muniment_server.write.submission import Outcome, OwnDraft, Signed, Submission

TYPE = "anchor@v1"
_AT_ONCE = 100
_PAGE = 1000
_PREFIX = b'{"anchor":{'


def members_of(row: AnchorRow) -> dict[str, object]:
    """Return what the entry of a confirmed anchor says of it."""
    if row.height is None or row.block_hash is None or row.block_time is None:
        raise AssertionError("an anchor without a block is not confirmed")
    block = {"hash": display(row.block_hash), "height": row.height, "time": row.block_time}
    return {"block": block, "checkpoint_sha256": row.digest.hex(), "tree_size": row.tree_size}


class Appendable(Protocol):
    """What anchoring needs of a log: :class:`muniment_server.log.Log`."""

    row: LogRow
    sequencer: Sequencer | None

    @property
    def refusal(self) -> ReadOnly | None:
        """Why this log cannot be written here, or None."""

    async def append(self, submission: Submission) -> Outcome:
        """Append, or find, the entries of a submission. Raises Refused."""


class Entries:
    """Writes the entries of one log's anchors. One task calls it."""

    def __init__(self, store: Store, log: Appendable) -> None:
        self._reads = store.reads
        self._anchors = store.anchors
        self._log = log
        self._doubt: Signed | None = None  # the last signed head before an append whose outcome is not known

    async def log_confirmed(self) -> None:
        """Append what is confirmed and not in the log yet. Raises Refused or StoreError: try again."""
        sequencer = self._log.sequencer
        if not sequencer or self._log.refusal or sequencer.signed is None:
            return
        if self._doubt is sequencer.signed:
            return  # an append may still be under way: only a head signed after it shows that it is not
        self._doubt = None
        for row in await self._anchors.unlogged_anchors(self._log.row.log_id, _AT_ONCE):
            await self._log_one(row, sequencer.signed)

    async def _log_one(self, row: AnchorRow, signed: Signed) -> None:
        log_id = self._log.row.log_id
        if row.logged_from is None:
            # Durable before the append: after a crash this is where to look whether it happened.
            head = await self._reads.head(log_id)
            row = replace(row, logged_from=head.size)
            if not await self._save(row):
                return
            row = replace(row, revision=row.revision + 1)
            index = None
        else:
            index = await self._find(row)
        if index is None:
            index = await self._append(row, signed)
        await self._save(replace(row, logged=index))

    @step("anchorer.entry")
    async def _append(self, row: AnchorRow, signed: Signed) -> int:
        try:
            outcome = await self._log.append(Submission([OwnDraft(TYPE, {"anchor": members_of(row)})]))
        except Refused as error:
            if error.code == "outcome_unknown":
                self._doubt = signed
            raise
        return outcome.indices[0]

    async def _find(self, row: AnchorRow) -> int | None:
        """Return the index of this anchor's entry, if it is in the log."""
        log_id, start = self._log.row.log_id, row.logged_from or 0
        while leaves := await self._reads.leaves(log_id, start, start + _PAGE):
            for at, leaf in enumerate(leaves):
                if leaf.startswith(_PREFIX) and _is_of(leaf, row):
                    return start + at
            start += len(leaves)
        return None

    @step("anchorer.entry_save")
    async def _save(self, row: AnchorRow) -> bool:
        return await self._anchors.save_anchor(self._log.row.log_id, row)


def _is_of(leaf: bytes, row: AnchorRow) -> bool:
    try:
        entry = parse_leaf(leaf)
    except FormatError:
        return False
    if not isinstance(entry, OwnLeaf) or entry.typ != f"muniment/{TYPE}":
        return False
    anchor = entry.value.get("anchor")
    return isinstance(anchor, dict) and anchor.get("checkpoint_sha256") == row.digest.hex()
