"""Where a block header comes from, and how strong the word of that source is.

Sources: :class:`FileSource` here, :mod:`muniment.anchor.node` (Bitcoin Core) and :mod:`muniment.anchor.explorers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from muniment.anchor.chain import MAIN, Network
from muniment.anchor.header import Header, display, parse_header, target_of
from muniment.anchor.headerfile import HeaderFile
from muniment.errors import BadHeader, BadHeaderChain, SourceUnavailable

Kind = Literal["chain", "node", "explorers"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a source says of a height."""

    header: Header
    height: int
    depth: int
    """Blocks from this one to the tip, both counted: 1 is the tip, 6 has six confirmations."""
    source: str
    """Whose word it is, in words for a claim: "2 of 3 explorers: a, b"."""
    kind: Kind


class HeaderSource(Protocol):
    """Tells which header stands at a height. Safe to share between threads."""

    name: str

    def at(self, height: int) -> Found:
        """Return the header at `height`, with its proof of work checked. Blocks: an event loop calls it in a thread.

        Raises NoHeader when the chain is not so high yet, and SourceUnavailable when the source cannot be reached,
        contradicts itself or others, or answers nonsense.
        """
        ...


class FileSource:
    """A local header file, checked from genesis. Follows the file when it grows or is replaced.

    Making one raises BadHeaderChain when the file breaks a rule of the chain or has too little work, and
    SourceUnavailable when there is no such file.
    """

    def __init__(self, path: str | Path, network: Network = MAIN) -> None:
        self._file = HeaderFile(path, network)
        self.name = f"header file {self._file.path.name}"
        if not self._file.chain.count:
            raise SourceUnavailable(f"there are no headers in {self._file.path}")
        self._file.chain.require_work()

    def at(self, height: int) -> Found:
        """Return the header at `height` of the file as it is now."""
        try:
            chain = self._file.refresh()
            chain.require_work()
            header = self._file.header(height)
        except BadHeaderChain as error:  # it was good when we opened it
            raise SourceUnavailable(f"{self.name} is damaged: {error}") from error
        source = f"{self.name} ({chain.count:,} headers, validated from genesis)"
        return Found(header, height, chain.count - height, source, "chain")


def believed(raw: bytes, network: Network, hash_: bytes | None = None) -> Header:
    """Return a header that came from a peer.

    Raises SourceUnavailable unless its proof of work holds, is not easier than `network` allows, and
    it has the hash asked for.
    """
    try:
        header = parse_header(raw)
    except BadHeader as error:
        raise SourceUnavailable(f"not a block header: {error}") from error
    if target_of(header.bits) > target_of(network.limit):
        raise SourceUnavailable(f"block {header.block_hash} is not of {network.name}: it took too little work")
    if hash_ is not None and header.hash != hash_:
        raise SourceUnavailable(f"asked for block {display(hash_)}, got {header.block_hash}")
    return header
