"""Receipts: of the entries of an append, and of stored ones at a published checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from functools import partial
from itertools import starmap

import orjson

from muniment.checkpoint import parse_checkpoint
from muniment.event import Commitment, EventLeaf, parse_leaf
from muniment.hashing import leaf_hash
from muniment.note import parse_note
from muniment.receipt import Receipt
from muniment_server.errors import NotFound
from muniment_server.read.entries import Entries
from muniment_server.read.flow import Call, Flow, run
from muniment_server.read.heads import Heads
from muniment_server.read.proofs import Proofs
from muniment_server.write.admission import EventDraft
from muniment_server.write.submission import Outcome, OwnDraft, Signed, Submission

_BREATH = 200


class Receipts:
    """Makes the receipts of one log."""

    def __init__(self, origin: str, heads: Heads, proofs: Proofs, entries: Entries) -> None:
        self._origin = origin
        self._heads = heads
        self._proofs = proofs
        self._entries = entries

    # --- of an append -------------------------------------------------------------------------------------------------

    def of_append(self, submission: Submission, outcome: Outcome, at: int = 0) -> Flow[Receipt]:
        """Return the receipt of an entry of a submission, that of draft `at`, at the signed head of its outcome."""
        index = outcome.indices[at]
        if outcome.replayed:
            return (yield from self._stored(index, outcome.signed, with_payload=True))
        draft, leaf = submission.drafts[at], outcome.leaves[at]
        proof = yield from self._proof(index, leaf, outcome)
        opened = (
            (Commitment(draft.members), tuple(draft.disclosures)) if isinstance(draft, EventDraft) else (None, None)
        )
        return Receipt(self._origin, index, leaf, outcome.signed.size, tuple(proof), outcome.signed.note, *opened)

    def of_append_now(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """As :meth:`of_append`, in JSON, of a submission of one new entry; None when that needs the database.

        What the entries of one batch have in common was written once: that takes 2 us, not the 16 us of
        :meth:`of_append` and JSON.
        """
        draft, builder = submission.drafts[0], outcome.builder
        if not outcome.new or builder is None or isinstance(draft, OwnDraft):
            return None
        return builder.receipt(outcome.indices[0], outcome.leaves[0], draft)

    async def all_of_append(self, submission: Submission, outcome: Outcome) -> list[Receipt]:
        """Return the receipt of every entry of a submission, as :meth:`of_append`."""
        made: list[Receipt] = []
        for at in range(len(outcome.indices)):
            if at % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)  # a large batch takes a while: let others be answered in between
            made.append(await run(self.of_append(submission, outcome, at)))
        return made

    async def write(self, submission: Submission, outcome: Outcome, text: bytearray) -> None:
        """Add what :meth:`all_of_append` returns to `text`, as a JSON array: thousands of texts take megabytes."""
        made: Iterable[bytes]
        if outcome.builder and outcome.new == len(outcome.indices):
            made = starmap(
                outcome.builder.receipt, zip(outcome.indices, outcome.leaves, submission.drafts, strict=True)
            )
        else:
            made = (orjson.dumps(receipt.to_json()) for receipt in await self.all_of_append(submission, outcome))
        before = b"["
        for number, receipt in enumerate(made, 1):
            text += before
            text += receipt
            before = b","
            if not number % _BREATH:
                await asyncio.sleep(0)
        text += b"]"

    def _proof(self, index: int, leaf: bytes, outcome: Outcome) -> Flow[list[bytes]]:
        if outcome.builder:
            with contextlib.suppress(KeyError):  # an old entry: its tiles were not touched
                return outcome.builder.proof(index)
        return (yield from self._proofs.path(index, leaf_hash(leaf), outcome.signed.size, outcome.signed.root))

    # --- of a stored entry --------------------------------------------------------------------------------------------

    async def published(self, index: int, size: int | None, *, with_payload: bool) -> Receipt:
        """Return the receipt of an entry at a published checkpoint (default: the latest). Raises NotFound.

        `with_payload` says whether the caller may see payloads: only then does the receipt of an event open its
        members.
        """
        published = await self._heads.published(size)
        if index >= published.size:
            raise await self._not_covered(index, published.size)
        root = parse_checkpoint(parse_note(published.note).text).root
        signed = Signed(published.size, root, published.note)
        return await run(self._stored(index, signed, with_payload=with_payload))

    async def _not_covered(self, index: int, size: int) -> NotFound:
        if size == (await self._heads.published()).size and index < (await self._heads.latest()).size:
            return NotFound(
                "not_published_yet",
                f"entry {index} is in the log, but not yet under a published checkpoint",
                "Ask again in a second.",
                retry_after=1,
            )
        return NotFound(
            "no_entry", f"there is no entry {index} under the checkpoint of size {size}", "Ask for a smaller index."
        )

    def _stored(self, index: int, signed: Signed, *, with_payload: bool) -> Flow[Receipt]:
        leaf: bytes = yield Call(partial(self._entries.leaf, index))
        proof = yield from self._proofs.path(index, leaf_hash(leaf), signed.size, signed.root)
        commitment, disclosures = None, None
        if with_payload and isinstance(parse_leaf(leaf), EventLeaf):
            opened: EventDraft | None = yield Call(partial(self._entries.opened, index))
            if opened:
                commitment, disclosures = Commitment(opened.members), tuple(opened.disclosures)
        return Receipt(self._origin, index, leaf, signed.size, tuple(proof), signed.note, commitment, disclosures)
