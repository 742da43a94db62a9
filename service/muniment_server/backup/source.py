"""The two places a log is read from: a database, and a folder of files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from muniment.errors import FormatError
from muniment.hashing import HASH_SIZE
from muniment.tiles import TILE_WIDTH, Bundle, Tile, decode_bundle
from muniment_server.backup.rows import decode_payloads, decode_published, path_of
from muniment_server.errors import Corrupt
from muniment_server.storage import Store
from muniment_server.storage.checkpoints import Published
from muniment_server.storage.log import StoredPayload

_PAGE = 1000


class StoreSource:
    """A log in a database. Of what was stored since the chosen checkpoint it reads nothing."""

    def __init__(self, store: Store, log_id: int) -> None:
        self._reads = store.reads
        self._checkpoints = store.checkpoints
        self._log_id = log_id

    def call(self, place: Tile | Bundle) -> str:
        """See Source."""
        return f"tile {place.level}/{place.index}" if isinstance(place, Tile) else f"bundle {place.index}"

    async def tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        """See Source."""
        stored = await self._reads.tiles(self._log_id, tiles)
        found = []
        for tile in tiles:
            data = stored.get((tile.level, tile.index), b"")[: tile.width * HASH_SIZE]
            if len(data) != tile.width * HASH_SIZE:
                first = (tile.index * TILE_WIDTH + len(data) // HASH_SIZE) << 8 * tile.level
                raise Corrupt(f"{self.call(tile)} is missing or too short, first at index {first}")
            found.append(data)
        return found

    async def leaves(self, bundle: Bundle) -> list[bytes]:
        """See Source."""
        start = bundle.index * TILE_WIDTH
        leaves = await self._reads.leaves(self._log_id, start, start + bundle.width)
        if len(leaves) != bundle.width:
            raise Corrupt(f"an entry in [{start}, {start + bundle.width}) is missing")
        return leaves

    async def published(self, bundle: Bundle) -> list[Published]:
        """See Source."""
        low, high = bundle.index * TILE_WIDTH + 1, bundle.index * TILE_WIDTH + bundle.width
        found: list[Published] = []
        while page := await self._checkpoints.checkpoints(self._log_id, found[-1].size + 1 if found else low, _PAGE):
            found += [each for each in page if each.size <= high]
            if page[-1].size >= high:
                break
        return found

    async def payloads(self, bundle: Bundle, events: Sequence[int]) -> list[StoredPayload]:
        """See Source."""
        start = bundle.index * TILE_WIDTH
        found = await self._reads.payloads(self._log_id, start, start + bundle.width)
        if strange := {stored.index for stored in found} - set(events):
            raise Corrupt(f"entry {min(strange)} has a payload and is no event")
        return found


class FolderSource:
    """A log in a folder that `backup` wrote. `with_payloads` says whether it holds payloads."""

    def __init__(self, folder: Path, *, with_payloads: bool) -> None:
        self.folder = folder
        self.with_payloads = with_payloads
        self.previous: dict[
            int, int
        ] = {}  # what the first checkpoint of each file read so far says of the one before it

    def call(self, place: Tile | Bundle) -> str:
        """See Source."""
        return str(self.folder / path_of(place))

    async def tiles(self, tiles: Sequence[Tile]) -> list[bytes]:
        """See Source."""
        return await asyncio.to_thread(lambda: [self._tile(tile) for tile in tiles])

    def _tile(self, tile: Tile) -> bytes:
        data = read_file(self.folder / path_of(tile))
        if len(data) != tile.width * HASH_SIZE:
            raise Corrupt(f"{self.call(tile)} has {len(data)} bytes, not {tile.width * HASH_SIZE}")
        return data

    async def leaves(self, bundle: Bundle) -> list[bytes]:
        """See Source."""
        path = self.folder / path_of(bundle)
        try:
            leaves = decode_bundle(await asyncio.to_thread(read_file, path))
        except FormatError as error:
            raise Corrupt(f"{path}: {error}") from error
        if len(leaves) != bundle.width:
            raise Corrupt(f"{path} holds {len(leaves)} entries, not {bundle.width}")
        return leaves

    async def published(self, bundle: Bundle) -> list[Published]:
        """See Source."""
        path = self.folder / path_of(bundle, "checkpoints")
        if not path.exists():
            return []  # no checkpoint ends here; a file that was lost shows in the chain of those after it
        previous, found = decode_published(await asyncio.to_thread(read_file, path), path)
        low = bundle.index * TILE_WIDTH
        if found[0].size <= low or found[-1].size > low + bundle.width:
            raise Corrupt(f"{path} holds a checkpoint that ends in another bundle")
        self.previous[found[0].size] = previous
        return found

    async def payloads(self, bundle: Bundle, events: Sequence[int]) -> list[StoredPayload]:
        """See Source."""
        if not events or not self.with_payloads:
            return []
        path = self.folder / path_of(bundle, "payloads")
        return decode_payloads(await asyncio.to_thread(read_file, path), events, path)


def read_file(path: Path) -> bytes:
    """Return what is in a file. Raises Corrupt when it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Corrupt(f"{path} is missing") from None
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error}") from error
