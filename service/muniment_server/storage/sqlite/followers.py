"""Leases of followers in SQLite."""

from __future__ import annotations

import apsw

from muniment_server.storage.sqlite.database import Database

_LEASE = (
    "INSERT INTO followers VALUES (?1, ?2, ?3, ?5) ON CONFLICT (log_id, name) DO UPDATE "
    "SET holder = excluded.holder, until = excluded.until WHERE holder = excluded.holder OR until <= ?4"
)


class SqliteFollowers:
    """See :class:`muniment_server.storage.followers.Followers`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_lease(self, log_id: int, name: str, holder: str, now: int, until: int) -> bool:
        """See Followers."""

        def work(connection: apsw.Connection) -> bool:
            connection.execute(_LEASE, (log_id, name, holder, now, until))
            return bool(connection.changes())

        return await self._database.write(work)
