"""What `search` returns: an iterator of hits that also knows how far they go."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Self

from muniment._flows.searching import Hit, HitPages


class _Extent:
    def __init__(self, pages: HitPages) -> None:
        self._pages = pages

    @property
    def complete_to(self) -> int | None:
        """The size up to which the log was searched, by the server's word; None before the first hit was asked for.

        Hits beyond it are in no page, as the index of the log has not come so far.
        """
        return self._pages.complete_to

    @property
    def tree_size(self) -> int | None:
        """The size of the log when it was searched, by the server's word; None before the first hit was asked for."""
        return self._pages.tree_size


class Hits(_Extent, Iterator[Hit]):
    """The hits of a search, one by one; pages are fetched as they are needed."""

    def __init__(self, pages: HitPages, hits: Iterator[Hit]) -> None:
        super().__init__(pages)
        self._hits = hits

    def __next__(self) -> Hit:
        return next(self._hits)


class AsyncHits(_Extent, AsyncIterator[Hit]):
    """The hits of a search, one by one; pages are fetched as they are needed."""

    def __init__(self, pages: HitPages, hits: AsyncGenerator[Hit, None]) -> None:
        super().__init__(pages)
        self._hits = hits

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Hit:
        return await anext(self._hits)

    async def aclose(self) -> None:
        """End it early, as one does with an asynchronous generator."""
        await self._hits.aclose()
