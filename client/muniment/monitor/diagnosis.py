"""Why a signed root is not the one that was computed: the log forked, its entries are wrong, or its root is.

Here alone hash tiles are read, each authenticated by the signed root in question. If they lead to it, they say what the
log committed to: to another past (a fork, with the proof of it), or to other entries than it serves.
"""

from __future__ import annotations

from dataclasses import dataclass

from muniment._flows.tilereader import TileReader
from muniment.checkpoint import Checkpoint
from muniment.errors import BadProof, FormatError, Refused
from muniment.hashing import HASH_SIZE
from muniment.monitor.owntree import OwnTree
from muniment.monitor.reading import Absent, Mismatch, fetch_bundle, leaf_hashes
from muniment.monitor.source import RETRIES, Source
from muniment.policy import VerifiedCheckpoint
from muniment.proofs import whole_proof
from muniment.tiles import TILE_WIDTH


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something that does not fit, and that an unsigned answer may explain: reported once it lasts."""

    code: str
    detail: str
    at_once: bool = False
    """That it is not a matter of one answer, so that no grace is given."""


@dataclass(frozen=True, slots=True)
class ForkFound:
    """Two signed heads that contradict each other, the smaller first.

    `hashes` is the consistency proof with its first node explicit: it leads to the second root, and to another first
    one. Empty when the sizes are equal.
    """

    first: str
    second: str
    hashes: tuple[bytes, ...] = ()


async def diagnose(
    source: Source,
    tree: OwnTree,
    known: VerifiedCheckpoint | None,
    seen: VerifiedCheckpoint,
    given: Suspicion | None = None,
) -> Suspicion | ForkFound:
    """Say why the tree that was read is not that of the checkpoint `seen`.

    `known` is the last checkpoint before. `given` is what is suspected already: then nothing but a fork is looked for.
    Raises Unreachable, Unavailable or Refused.
    """
    reader = TileReader(RETRIES)
    try:
        if known and known.checkpoint.size:
            size = known.checkpoint.size
            root = await source.run(reader.root_at(seen.checkpoint, size))
            if root != known.checkpoint.root:
                proof = await source.run(reader.consistency(seen.checkpoint, size))
                return ForkFound(known.note, seen.note, whole_proof(size, root, proof))
        return given or await _wrong_bundle(source, reader, tree, seen.checkpoint)
    except Refused as refused:
        if refused.status not in (404, 410):
            raise
        missing = Suspicion("missing", f"tiles of the signed tree of size {seen.checkpoint.size} are not there")
        return given or missing
    except Absent as absent:
        return Suspicion("missing", str(absent))
    except (BadProof, FormatError) as error:
        return given or Suspicion("root", f"neither entries nor tiles lead to the root that was signed: {error}")


async def _wrong_bundle(source: Source, reader: TileReader, tree: OwnTree, head: Checkpoint) -> Suspicion:
    full = head.size // TILE_WIDTH
    for at in range((full + TILE_WIDTH - 1) // TILE_WIDTH):
        hashes = await source.run(reader.hashes(head, 1, at))
        own = bytes(tree.row[at * TILE_WIDTH * HASH_SIZE :][: len(hashes)])
        if own != hashes:
            return await _wrong_entry(source, reader, head, at * TILE_WIDTH + first_difference(own, hashes))
    return await _wrong_entry(source, reader, head, full)


async def _wrong_entry(source: Source, reader: TileReader, head: Checkpoint, bundle: int) -> Suspicion:
    hashes = await source.run(reader.hashes(head, 0, bundle))
    try:
        own = leaf_hashes(await source.run(fetch_bundle(bundle, head.size)))
    except Mismatch as mismatch:
        return Suspicion("bundle", str(mismatch))
    if own == hashes:
        return Suspicion("bundle", f"bundle {bundle} was served with other entries than it is now")
    where = bundle * TILE_WIDTH + first_difference(own, hashes)
    return Suspicion("bundle", f"entry {where} is served with other bytes than the log signed")


def first_difference(one: bytes, other: bytes) -> int:
    """Return at which of its 32-byte hashes one text differs from another, which it does."""
    size = HASH_SIZE
    return next(at for at in range(len(one) // size + 1) if one[at * size :][:size] != other[at * size :][:size])
