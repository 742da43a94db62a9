"""The client's reader of tiles: each full tile is tied to the tile above it, each bundle to its tile, also when all others are good."""

from __future__ import annotations

import pytest

from muniment._flows.steps import Retries
from muniment._flows.tilereader import TileReader
from muniment.checkpoint import Checkpoint
from muniment.errors import BadProof, FormatError
from muniment.hashing import RootHash
from tests.rigs.suite.mutations import Mirror
from tests.unit.samples import Logged, SampleLog

SIZE = 600
LOG = SampleLog([Logged(b"leaf %d" % n) for n in range(SIZE)])
HEAD = Checkpoint(LOG.key.vkey.name, SIZE, RootHash(LOG.tree.root(SIZE)))


@pytest.mark.parametrize("path", ["0/000", "0/001", "0/002.p/88", "1/000.p/2", "entries/000", "entries/002.p/88"])
def test_one_spoiled_tile_among_good_ones_is_refused(path: str) -> None:
    index = int(path.split("/")[1][:3]) if not path.startswith("1/") else 0
    mirror = Mirror(LOG)
    reader = TileReader(Retries())
    leaves = mirror.run(reader.leaves(HEAD, index))
    assert leaves == [entry.leaf for entry in LOG.entries[index * 256 : index * 256 + 256]]
    good = mirror.good[path]
    for at in range(0, len(good), 97):
        mirror.spoiled = {path: good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]}
        with pytest.raises((BadProof, FormatError)):
            mirror.run(TileReader(Retries()).leaves(HEAD, index))
    mirror.spoiled = {path: good[:-1]}
    with pytest.raises((BadProof, FormatError)):
        mirror.run(TileReader(Retries()).leaves(HEAD, index))


def test_a_refused_tile_is_not_kept() -> None:
    mirror = Mirror(LOG)
    reader = TileReader(Retries())
    mirror.spoiled = {"0/000": bytes(8192)}
    with pytest.raises(BadProof):
        mirror.run(reader.hashes(HEAD, 0, 0))
    mirror.spoiled = {}
    assert mirror.run(reader.hashes(HEAD, 0, 0)) == mirror.good["0/000"]
