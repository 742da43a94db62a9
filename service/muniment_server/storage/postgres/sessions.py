"""The connections that write: one for each log.

So a write takes place in the session in which its head was read, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg

from muniment_server.errors import HeadMoved, OutcomeUnknown, SessionLost, StoreUnavailable
from muniment_server.failpoints import step
from muniment_server.storage.postgres.connect import CONNECT_SECONDS, FAILED, connect, is_lost_race

FOLLOWERS = 0
"""Followers write through a connection of their own, which stands under a number that no log has: no append waits for
them."""
_WRITERS = 32
# Errors of these classes are raised before the commit record: bad data, constraints, rollback, no resources, own
# triggers.
_NOT_COMMITTED = ("21", "22", "23", "25", "40", "42", "53", "54", "55", "P0")
# A role or database may have other defaults: an answer before the commit is on disk, or no word of a replica that was
# not waited for.
_WRITER_SETTINGS = """
SELECT set_config('client_min_messages', 'warning', false),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
_NUMBERS = itertools.count(1)


class _Session(NamedTuple):
    """A connection, and its number among all that this process made."""

    connection: asyncpg.Connection[Any]
    number: int


@step("postgres.statement")
async def _execute(connection: asyncpg.Connection[Any], sql: str, values: Sequence[Any]) -> list[Any]:
    return list(await connection.fetch(sql, *values))


class Sessions:
    """One connection and one lock for each log: its sequencer has one write in flight.

    The parts of a store share it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._writers: dict[int, _Session] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._closed = False
        self._warned: set[int] = set()  # connections (by id) on which the server warned since the last statement

    async def close(self) -> None:
        """Wait for the writes in flight and release every connection."""
        self._closed = True
        for log_id, lock in list(self._locks.items()):
            async with lock:  # a lock is fair: what waited for it before is done now
                if session := self._writers.pop(log_id, None):
                    await session.connection.close(timeout=CONNECT_SECONDS)

    def check(self, number: int) -> None:
        """Raise SessionLost unless a connection with this number is open."""
        if number not in (each.number for each in self._writers.values() if not each.connection.is_closed()):
            raise SessionLost("the connection that the head was read on is closed")

    async def end(self, log_id: int) -> None:
        """Let nothing more be read or written on the connection that the log has now."""
        async with self._locks.setdefault(log_id, asyncio.Lock()):
            if session := self._writers.pop(log_id, None):
                session.connection.terminate()

    async def write(self, log_id: int, sql: str, values: Sequence[Any], session: int | None = None) -> list[Any]:
        """Run one autocommit statement on the log's own connection.

        Raises HeadMoved, OutcomeUnknown, StoreUnavailable; or SessionLost when that connection is not `session`.
        """
        return (await self._run(log_id, sql, values, session))[0]

    async def read(
        self, log_id: int, sql: str, values: Sequence[Any], session: int | None = None
    ) -> tuple[list[Any], int]:
        """Run one statement that only reads on the log's own connection; return the number of its session too.

        Raises SessionLost, StoreUnavailable.
        """
        try:
            return await self._run(log_id, sql, values, session)
        except (HeadMoved, OutcomeUnknown) as error:
            raise StoreUnavailable(str(error)) from error

    async def _run(
        self, log_id: int, sql: str, values: Sequence[Any], expected: int | None = None
    ) -> tuple[list[Any], int]:
        """As :meth:`write`; return the session too."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        async with self._locks.setdefault(log_id, asyncio.Lock()):
            connection, session = await self._session(log_id)
            if expected is not None and session != expected:
                raise SessionLost(f"the connection of log {log_id} was made anew since its head was read")
            self._warned.discard(id(connection))
            try:
                rows = await _execute(connection, sql, values)
            except FAILED as error:
                raise self._classify(log_id, error) from error
            except BaseException:  # cancelled, or a bug: nothing tells what this connection will say next
                self._writers.pop(log_id).connection.terminate()
                raise
            if id(connection) in self._warned:
                # A cancelled wait for a synchronous replica is committed here, perhaps not there, and shows only so.
                raise OutcomeUnknown("Postgres warned during the commit")
            return rows, session

    @step("postgres.connect")
    async def _session(self, log_id: int) -> _Session:
        """Return the log's own connection, made now if there is none that is open."""
        found = self._writers.get(log_id)
        if found is None or found.connection.is_closed():
            await self._make_room()
            connection = await connect(self._url)
            try:
                await connection.execute(_WRITER_SETTINGS)
            except FAILED as error:
                connection.terminate()
                raise StoreUnavailable(f"Postgres: {type(error).__name__}: {error}") from error
            connection.add_log_listener(self._on_message)
            found = self._writers[log_id] = _Session(connection, next(_NUMBERS))
        return found

    async def _make_room(self) -> None:
        """Close the connections of logs that write nothing at the moment, when there are too many."""
        for log_id in list(self._writers):
            if len(self._writers) < _WRITERS:
                return
            if not self._locks[log_id].locked() and (session := self._writers.pop(log_id, None)):
                with contextlib.suppress(*FAILED):
                    await session.connection.close(timeout=CONNECT_SECONDS)

    def _on_message(self, connection: Any, message: Any) -> None:
        if message.sqlstate == "01000":
            self._warned.add(id(connection))

    def _classify(self, log_id: int, error: BaseException) -> Exception:
        if is_lost_race(error):
            return HeadMoved(f"Postgres: {error}")
        self._writers.pop(log_id).connection.terminate()
        if (getattr(error, "sqlstate", None) or "")[:2] in _NOT_COMMITTED:
            return StoreUnavailable(f"Postgres: {error}")
        # The statement was sent and no clean answer came back: it may have committed.
        return OutcomeUnknown(f"Postgres: {type(error).__name__}: {error}")
