"""A store whose calls go through the hands of a test."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

from muniment_server.storage import Store

PARTS = {field.name for field in fields(Store)} - {"close"}


class Parts:
    """A store in which every coroutine goes through :meth:`call`. `store` may be changed at any moment, also when parts are held."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return _Part(self, name) if name in PARTS else getattr(self.store, name)

    async def call(self, part: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Do what a caller asked of the method `name` of a part."""
        return await getattr(getattr(self.store, part), name)(*args, **kwargs)


class _Part:
    def __init__(self, owner: Parts, part: str) -> None:
        self._owner = owner
        self._part = part

    def __getattr__(self, name: str) -> Any:
        method = getattr(getattr(self._owner.store, self._part), name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._owner.call(self._part, name, *args, **kwargs)

        return call
