"""How the parts of the Postgres store reach the database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import asyncpg

from muniment_server.errors import StoreUnavailable

PART = 32
"""Hashes of a part of a tile: see migration 0006."""
# What a connection says that died while it lay in the pool.
# InternalClientError: it died between two steps of asyncpg's own.
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    ConnectionError,
)
FAILED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class PostgresBase(ABC):
    """What :class:`muniment_server.storage.postgres.append.PostgresStore` gives to the parts it inherits."""

    _pool: asyncpg.Pool[Any]

    @abstractmethod
    async def _write(self, log_id: int, sql: str, values: Sequence[Any]) -> list[Any]:
        """Run one autocommit statement on the log's own connection. Raises HeadMoved, OutcomeUnknown or StoreUnavailable."""

    @abstractmethod
    async def _read_in_session(
        self, log_id: int, sql: str, values: Sequence[Any], session: int | None = None
    ) -> tuple[list[Any], int]:
        """Run one statement that only reads on the log's own connection; return its session too. Raises SessionLost, StoreUnavailable."""

    async def _look_up(self, log_id: int, session: int | None, sql: str, *values: Any) -> list[Any]:
        """Run one statement in a session, or on any connection."""
        if session is None:
            return await self._all(sql, *values)
        return (await self._read_in_session(log_id, sql, values, session))[0]

    async def _all(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement on any connection. Raises StoreUnavailable."""
        try:
            try:
                return list(await self._pool.fetch(sql, *values))
            except _GONE:  # the server was restarted, and every connection of the pool would say so once
                await self._pool.expire_connections()
                return list(await self._pool.fetch(sql, *values))
        except FAILED as error:
            raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error

    async def _one(self, sql: str, *values: Any) -> Any:
        rows = await self._all(sql, *values)
        return rows[0] if rows else None
