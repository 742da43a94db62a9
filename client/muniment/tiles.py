"""C2SP tlog-tiles: tile coordinates, their one canonical path, and entry bundles.

A tile is 256 hashes wide. Hash i of tile n at level l is the root of the leaves [(n*256+i) * 256**l, (n*256+i+1) *
256**l).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from muniment.encoding import MAX_SIZE
from muniment.errors import FormatError

TILE_WIDTH = 256
MAX_LEVEL = 63
MAX_ENTRY = 65_535
"""Largest entry a bundle can hold: its length is a uint16."""

_PATH = re.compile(
    r"(?P<level>0|[1-9][0-9]?|entries)/(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class Tile(NamedTuple):
    """Coordinates of a hash tile: level in [0, 63], index >= 0, width in [1, 256]."""

    level: int
    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    width: int = TILE_WIDTH


class Bundle(NamedTuple):
    """Coordinates of an entry bundle: index >= 0, width in [1, 256].

    It holds the leaves of the level 0 tile of that index.
    """

    index: int  # type: ignore[assignment]  # the specification's word; tuple.index is not used
    width: int = TILE_WIDTH


def width_at(level: int, index: int, size: int) -> int:
    """Return how many hashes the tile (level, index) has in the tree of `size`, in [0, 256].

    0 means that it does not exist.
    """
    return max(0, min(TILE_WIDTH, (size >> (8 * level)) - index * TILE_WIDTH))


def tiles_at(size: int) -> Iterator[Tile]:
    """Yield every tile of the tree of `size`, level by level."""
    for level in range(MAX_LEVEL + 1):
        count = size >> (8 * level)
        if not count:
            return
        for index in range((count + TILE_WIDTH - 1) // TILE_WIDTH):
            yield Tile(level, index, width_at(level, index, size))


def format_tile(tile: Tile) -> str:
    """Return ``<L>/<N>[.p/<W>]``, the path below ``tile/``."""
    return f"{tile.level}/{_format_index(tile.index, tile.width)}"


def format_bundle(bundle: Bundle) -> str:
    """Return ``entries/<N>[.p/<W>]``, the path below ``tile/``."""
    return f"entries/{_format_index(bundle.index, bundle.width)}"


def _format_index(index: int, width: int) -> str:
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return "/".join(reversed(groups)) + partial


def parse_tile_path(path: str) -> Tile | Bundle:
    """Return what a path below ``tile/`` names. Raises FormatError unless it is the one canonical spelling."""
    match = _PATH.fullmatch(path) if len(path) <= 64 else None
    if match is None:
        raise FormatError(f"not a tile path: {path[:80]!r}")
    index = int(match["index"].replace("x", "").replace("/", ""))
    width = int(match["width"] or TILE_WIDTH)
    parsed = Bundle(index, width) if match["level"] == "entries" else Tile(int(match["level"]), index, width)
    if index > MAX_SIZE or (match["width"] and width >= TILE_WIDTH) or _format(parsed) != path:
        raise FormatError(f"not the canonical spelling of a tile path: {path!r}")
    if isinstance(parsed, Tile) and parsed.level > MAX_LEVEL:
        raise FormatError(f"tile level above {MAX_LEVEL}: {path!r}")
    return parsed


def _format(parsed: Tile | Bundle) -> str:
    return format_tile(parsed) if isinstance(parsed, Tile) else format_bundle(parsed)


def encode_bundle(leaves: Sequence[bytes]) -> bytes:
    """Return the concatenation of uint16 big-endian length || leaf.

    Raises FormatError when a leaf is longer than 65,535 bytes.
    """
    parts: list[bytes] = []
    for leaf in leaves:
        if len(leaf) > MAX_ENTRY:
            raise FormatError(f"an entry of {len(leaf)} bytes does not fit a bundle (limit {MAX_ENTRY})")
        parts += (len(leaf).to_bytes(2, "big"), leaf)
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """Return the leaves of a bundle. Raises FormatError when the bytes do not end exactly after a leaf."""
    return list(iter_bundle(data))


def iter_bundle(data: bytes) -> Iterator[bytes]:
    """Yield the leaves of a bundle.

    Raises FormatError, after the leaves before, when the bytes do not end exactly after a leaf.
    """
    size = len(data)
    at = count = 0
    while at < size:
        start = at + 2
        end = start + (data[at] << 8 | data[at + 1]) if start <= size else start
        if end > size:
            raise FormatError(f"bundle cut off in entry {count}")
        yield data[start:end]
        at = end
        count += 1
