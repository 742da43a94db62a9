"""The connections that any read may use."""

from __future__ import annotations

from typing import Any

import asyncpg

from muniment_server.errors import StoreUnavailable
from muniment_server.storage.postgres.connect import COMMAND_SECONDS, FAILED, arguments, is_lost_race

_SIZE = 8
# A connection died, or got to the wrong server, while it lay in the pool. Whatever was asked was not done.
# InternalClientError: it died between two steps of asyncpg's own.
_GONE = (asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionError)
_GONE_STATES = ("08", "25", "57P")


def _is_gone(error: BaseException) -> bool:
    return isinstance(error, _GONE) or (getattr(error, "sqlstate", None) or "").startswith(_GONE_STATES)


async def _leave_as_is(_: asyncpg.Connection[Any]) -> None:
    """Do nothing to a connection that returns to the pool.

    Nothing here changes a session: each statement stands alone. What asyncpg would otherwise send is a second round
    trip for every read.
    """


class Pool:
    """Some connections. Make it with :meth:`open`. The parts of a store share it."""

    def __init__(self, connections: asyncpg.Pool[Any]) -> None:
        self._connections = connections

    @classmethod
    async def open(cls, url: str) -> Pool:
        """Connect. Raises StoreUnavailable."""
        try:
            connections = await asyncpg.create_pool(
                min_size=1,
                max_size=_SIZE,
                command_timeout=COMMAND_SECONDS,
                reset=_leave_as_is,
                **arguments(url),
            )
        except FAILED as error:
            raise StoreUnavailable(f"cannot connect to Postgres: {error}") from error
        return cls(connections)

    async def all(self, sql: str, *values: Any) -> list[Any]:
        """Run one statement on any connection. Raises StoreUnavailable."""
        try:
            return list(await self._connections.fetch(sql, *values))
        except FAILED as error:
            return await self._again(error, sql, values)

    async def _again(self, error: Exception, sql: str, values: tuple[Any, ...]) -> list[Any]:
        """Run a statement a second time that failed for its connection alone. Raises StoreUnavailable."""
        await self._leave(error)
        if _is_gone(error):
            try:
                return list(await self._connections.fetch(sql, *values))
            except FAILED as again:
                error = again
        raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error

    async def _leave(self, error: BaseException) -> None:
        """Use no connection again that may have the fault of one of them: each would say so once."""
        if not is_lost_race(error):
            await self.expire()

    async def one(self, sql: str, *values: Any) -> Any:
        """Run one statement on any connection, and return its first row or None. Raises StoreUnavailable."""
        rows = await self.all(sql, *values)
        return rows[0] if rows else None

    async def execute(self, sql: str, *values: Any) -> None:
        """Run one statement that writes, once, on any connection. Raises what asyncpg does."""
        try:
            await self._connections.execute(sql, *values)
        except FAILED as error:
            await self._leave(error)
            raise

    async def expire(self) -> None:
        """Let no connection that there is now be used again."""
        await self._connections.expire_connections()

    async def close(self) -> None:
        """Wait for the reads in flight and release every connection."""
        await self._connections.close()
