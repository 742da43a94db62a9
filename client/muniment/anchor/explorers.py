"""Esplora explorers (blockstream.info, mempool.space and others): believed only when enough of them agree.

They are asked over HTTPS and learn at which heights we look.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from muniment.anchor._web import Web, ask, hash_of, header_of, height_of, json_of, origin_of, text_of
from muniment.anchor.chain import MAIN, Network
from muniment.anchor.header import Header, display
from muniment.anchor.sources import Found, believed
from muniment.encoding import parse_decimal
from muniment.errors import FormatError, NoHeader, SourceUnavailable

T = TypeVar("T")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PATIENCE = 12.0
"""Seconds for one explorer: one that hangs does not spoil the answers of the others."""
_AT_ONCE = 8
Answer = tuple[int, Header | None] | SourceUnavailable
"""The height of an explorer's tip and its header at the height asked for, or why there is none."""


class ExplorerSource:
    """Explorers at API URLs such as https://blockstream.info/api, of which `quorum` must agree: more than half of them.

    Raises FormatError unless the URLs are https (http for loopback), have no credentials and are of different origins.
    """

    def __init__(self, urls: Sequence[str], quorum: int = 2, network: Network = MAIN) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._hosts = [_host(url) for url in urls]
        if len(set(self._hosts)) < len(urls):
            raise FormatError("an explorer is named twice: each must be another origin")
        if not len(urls) < 2 * quorum <= 2 * len(urls):
            raise FormatError(f"{quorum} of {len(urls)} explorers is no quorum: it must be more than half of them")
        self._quorum = quorum
        self._network = network
        self.name = f"explorers {', '.join(self._hosts)}"

    def at(self, height: int) -> Found:
        """Return the header at `height` that enough explorers show, with the smallest depth that any of these says."""
        return self._agreed(height, ask(lambda web: self._asked(web, height), trust_env=True))

    def tip(self) -> int:
        """Return a height that at least `quorum` explorers have."""

        async def question(web: Web) -> list[int | SourceUnavailable]:
            return await asyncio.gather(*(_or_why(_tip(web, url)) for url in self._urls))

        tips = sorted(tip for tip in ask(question, trust_env=True) if isinstance(tip, int))
        if len(tips) < self._quorum:
            raise SourceUnavailable(f"{len(tips)} of {len(self._urls)} explorers answer; {self._quorum} are needed")
        return tips[-self._quorum]

    def hash_at(self, height: int) -> bytes:
        """Return the hash at a height, in internal order. Raises NoHeader, SourceUnavailable."""
        return self.at(height).header.hash

    def headers(self, start: int, count: int) -> bytes:
        """Return up to `count` raw headers from height `start` on.

        A few only, for explorers are asked header by header.
        """
        heights = range(start, start + min(count, _AT_ONCE))

        async def question(web: Web) -> list[list[Answer]]:
            return await asyncio.gather(*(self._asked(web, height) for height in heights))

        answers = ask(question, deadline=60.0, trust_env=True)
        return b"".join(self._agreed(height, one).header.raw for height, one in zip(heights, answers, strict=True))

    async def _asked(self, web: Web, height: int) -> list[Answer]:
        return await asyncio.gather(*(_or_why(self._one(web, url, height)) for url in self._urls))

    async def _one(self, web: Web, url: str, height: int) -> tuple[int, Header | None]:
        """Ask one explorer: its tip, the hash at the height, the header of that hash."""
        tip = await _tip(web, url)
        body = await web.get(f"{url}/block-height/{height}") if height <= tip else None
        if body is None:
            return tip, None
        hash_ = hash_of(text_of(body))
        return tip, believed(await _raw(web, url, hash_), self._network, hash_)

    def _agreed(self, height: int, answers: list[Answer]) -> Found:
        told = [
            (host, one)
            for host, one in zip(self._hosts, answers, strict=True)
            if not isinstance(one, SourceUnavailable)
        ]
        for header in {header for _, (_, header) in told}:
            agree = [(host, tip) for host, (tip, said) in told if said == header]
            if len(agree) < self._quorum:
                continue
            if header is None:
                raise NoHeader(f"there is no block {height} yet, say {', '.join(host for host, _ in agree)}")
            source = f"{len(agree)} of {len(self._urls)} explorers: {', '.join(host for host, _ in agree)}"
            return Found(header, height, max(1, min(tip for _, tip in agree) - height + 1), source, "explorers")
        said = "; ".join(f"{host}: {_words(one)}" for host, one in zip(self._hosts, answers, strict=True))
        raise SourceUnavailable(f"no {self._quorum} of {len(self._urls)} explorers agree about block {height} ({said})")


def _host(url: str) -> str:
    origin, user = origin_of(url)
    scheme, _, host = origin.partition("://")
    if user:
        raise FormatError("an explorer takes no credentials")
    if scheme != "https" and host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
        raise FormatError(f"explorer {host} must be asked over https")
    return host


async def _or_why(work: Coroutine[Any, Any, T]) -> T | SourceUnavailable:
    try:
        return await asyncio.wait_for(work, PATIENCE)
    except TimeoutError:
        return SourceUnavailable("no answer in time")
    except SourceUnavailable as error:
        return error


async def _tip(web: Web, url: str) -> int:
    try:
        return height_of(parse_decimal(text_of(await web.get(f"{url}/blocks/tip/height", 64) or b"")))
    except FormatError as error:
        raise SourceUnavailable("its answer is not a height") from error


async def _raw(web: Web, url: str, hash_: bytes) -> bytes:
    """Return the header of a block: as it is, or where an explorer has no such route, put together from its fields."""
    body = await web.get(f"{url}/block/{display(hash_)}/header")
    if body is not None:
        return header_of(text_of(body))
    fields = json_of(await web.get(f"{url}/block/{display(hash_)}") or b"")
    try:
        previous = fields.get("previousblockhash")
        return struct.pack(
            "<I32s32sIII",
            fields["version"] & 0xFFFFFFFF,
            bytes(32) if previous is None else hash_of(previous),
            hash_of(fields["merkle_root"]),
            fields["timestamp"],
            fields["bits"],
            fields["nonce"],
        )
    except (AttributeError, KeyError, TypeError, struct.error) as error:
        raise SourceUnavailable("its answer has not the fields of a block") from error


def _words(answer: Answer) -> str:
    if isinstance(answer, SourceUnavailable):
        return str(answer)
    return answer[1].block_hash if answer[1] else f"not yet (its last one is {answer[0]})"
