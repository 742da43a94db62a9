"""Leases of followers in Postgres."""

from __future__ import annotations

from muniment_server.storage.postgres.sessions import FOLLOWERS, Sessions

_LEASE = (
    "INSERT INTO followers VALUES ($1, $2, $3, $5) ON CONFLICT (log_id, name) DO UPDATE "
    "SET holder = excluded.holder, until = excluded.until "
    "WHERE followers.holder = excluded.holder OR followers.until <= $4 RETURNING log_id"
)


class PostgresFollowers:
    """See :class:`muniment_server.storage.followers.Followers`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def take_lease(self, log_id: int, name: str, holder: str, now: int, until: int) -> bool:
        """See Followers."""
        return bool(await self._sessions.write(FOLLOWERS, _LEASE, (log_id, name, holder, now, until)))
