"""How the parts of the SQLite store reach the database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import apsw

T = TypeVar("T")


class SqliteBase(ABC):
    """What :class:`muniment_server.storage.sqlite.append.SqliteStore` gives to the parts it inherits."""

    @abstractmethod
    async def _write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in one transaction of the writer thread. Raises HeadMoved, StoreUnavailable or OutcomeUnknown."""

    @abstractmethod
    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` on a connection that only reads. Raises StoreUnavailable."""

    async def _all(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await self._read(lambda connection: connection.execute(sql, values).fetchall())

    async def _one(self, sql: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return await self._read(lambda connection: connection.execute(sql, values).fetchone())
