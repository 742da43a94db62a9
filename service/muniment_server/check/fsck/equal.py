"""Which leaves of a raw log may be equal: told by the first 8 bytes of their hashes.

There may be more of them than fit in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from tempfile import SpooledTemporaryFile

_KEYS_AT_ONCE = 2_000_000
_MOST_PARTS = 500  # open files; and a damaged head may speak of any number of entries
_IN_MEMORY = 1 << 20  # bytes of a part; beyond that it lies in a file


class LeafKeys:
    """The leaf keys (see :func:`muniment_server.storage.log.leaf_key`) of about `entries` entries.

    They are kept in parts by their size, which are looked through one at a time.
    """

    def __init__(self, entries: int, at_once: int = _KEYS_AT_ONCE) -> None:
        count = min(entries // at_once + 1, _MOST_PARTS)
        self._parts = [SpooledTemporaryFile(_IN_MEMORY) for _ in range(count)]  # noqa: SIM115 - close() does it

    def close(self) -> None:
        """Forget all keys."""
        for file in self._parts:
            file.close()

    def add(self, keys: Sequence[int]) -> None:
        """Take the leaf keys of some entries."""
        count = len(self._parts)
        parts = [array("q") for _ in self._parts]
        for key in keys:
            parts[(key + 2**63) * count >> 64].append(key)
        for file, part in zip(self._parts, parts, strict=True):
            file.write(part.tobytes())

    def repeated(self) -> Iterator[list[int]]:
        """Yield lists of the keys that more than one entry has, each key once."""
        for file in self._parts:
            file.seek(0)
            keys = array("q", file.read())
            yield sorted({one for one, other in pairwise(sorted(keys)) if one == other})
