"""What is in memory of the requests on one connection that are not complete, or not begun.

It counts for as long as it is there.
"""

from __future__ import annotations

from collections.abc import Hashable

from muniment_server.web.room import Hold, Room, Rooms

_FIELD = 100
"""Bytes of memory that a header field takes beside its own."""
_REQUEST = 4_000
"""Bytes of memory that a request takes which waits behind another one, beside its own.

They are what the application is to be given of it.
"""


class Kept:
    """Bytes of requests of one connection. `peer` is whose they are, unless there is a key."""

    __slots__ = ("_held", "_peer", "_queued", "_rooms")

    def __init__(self, rooms: Rooms, peer: Hashable) -> None:
        self._rooms = rooms
        self._peer = peer
        self._held: Hold | None = None
        self._queued = 0

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return self._held is not None

    def queue_request(self, fields: int) -> None:
        """Take note that a request waits behind another one."""
        self._queued += _REQUEST + fields * _FIELD

    def queue_bytes(self, size: int) -> None:
        """Take note of a segment that came while a request waited."""
        self._queued += size

    def begun(self) -> None:
        """Take note that no request waits behind another one."""
        self._queued = 0
        self.forget()

    def is_head(self, size: int, fields: int) -> bool:
        """Count `size` bytes of a head, which a client without a key may send, beside what waits.

        Returns False where there is no room.
        """
        return self._count(self._rooms.strangers, self._peer, self._queued + size + fields * _FIELD)

    def is_entry(self, size: int, key: str | None) -> bool:
        """Count `size` bytes of the body of an entry. Returns False where there is no room."""
        return self._count(self._rooms.entries, key or self._peer, size)

    def _count(self, room: Room, owner: Hashable, size: int) -> bool:
        if self._held is not None and self._held.room is not room:
            self.forget()
        if self._held is None:
            self._held = Hold(room, owner)
        if not self._held.grow(size):
            return False
        if not size:
            self._held = None
        return True

    def forget(self) -> None:
        """Count nothing any more."""
        if self._held is not None:
            self._held.be(0)
            self._held = None
