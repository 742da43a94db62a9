"""Who does the background work of a log."""

from __future__ import annotations

from typing import Protocol


class Followers(Protocol):
    """The leases of followers. One that was taken is durable."""

    async def take_lease(self, log_id: int, name: str, holder: str, now: int, until: int) -> bool:
        """Take or keep, until `until`, the lease of the follower `name`; False while another holder has it at `now`."""
