"""The steps of a large batch, in parts: between two of them others get a turn, so that reads are answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from muniment.hashing import LeafHash
from muniment.tree import Edge, Growth, grow
from muniment_server.errors import Refused
from muniment_server.storage.log import StoredKey
from muniment_server.write.submission import Outcome, Round, Submission

_LARGE = 250
PART = 200
"""Entries numbered, hashed or checked without letting others have a turn."""


async def yield_to_loop(entries: int) -> None:
    """Let reads be answered between two steps of a large batch: each takes a third of a millisecond."""
    if entries >= _LARGE:
        await asyncio.sleep(0)


async def assign(
    batch: Sequence[Submission], round_: Round, keys: Mapping[tuple[str, str], StoredKey], ttl: int
) -> list[Outcome | Refused]:
    """Give the drafts of every submission their indices, or find them: see :meth:`Round.assign`."""
    answers: list[Outcome | Refused] = []
    for one in batch:
        stored = keys.get((one.caller, one.key or "")) if keys else None
        if stored is None and len(one.drafts) > PART:
            answers.append(await _assign_large(one, round_, ttl))
        else:
            answers.append(round_.assign(one, stored, ttl))
    return answers


async def _assign_large(one: Submission, round_: Round, ttl: int) -> Outcome:
    outcome = Outcome([], [], 0)
    for start in range(0, len(one.drafts), PART):
        round_.assign_many(one.drafts[start : start + PART], outcome)
        await yield_to_loop(len(one.drafts))
    round_.remember(one, outcome, ttl)
    return outcome


async def grow_edge(edge: Edge, hashes: Sequence[LeafHash]) -> Growth:
    """Do what :func:`muniment.tree.grow` does."""
    growth = grow(edge, hashes[:PART])
    for start in range(PART, len(hashes), PART):
        await yield_to_loop(len(hashes))
        growth = growth.then(grow(growth.edge, hashes[start : start + PART]))
    return growth
