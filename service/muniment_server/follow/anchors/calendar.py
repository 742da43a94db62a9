"""The HTTP of an OpenTimestamps calendar, of which nothing is believed but that it is there.

One total deadline around each request, no redirects, no cookies, no proxy of the environment, no compressed bodies, at
most 10,000 bytes; only 200 is an answer. What the bytes mean is for :mod:`muniment.anchor.proof`.
"""

from __future__ import annotations

import re

import httpx

from muniment.anchor.proof import MAX_REPLY
from muniment.anchor.uri import origin_of
from muniment.wire import NoAnswer, ask_async, bounded
from muniment_server import __version__
from muniment_server.errors import CalendarFailed, NotYet
from muniment_server.failpoints import step

DEADLINE = 15.0
_MAX_REASON = 160
_STRANGE = re.compile(r"[^A-Za-z0-9#\-.,; ]")
_HEADERS = {
    "Accept": "application/vnd.opentimestamps.v1",
    "User-Agent": f"muniment-server/{__version__}",
}


def sanitised(text: bytes) -> str:
    """Return at most 160 characters of what a stranger said, without any that could forge a log line."""
    return _STRANGE.sub("_", text[:_MAX_REASON].decode("latin-1"))


def new_client() -> httpx.AsyncClient:
    """Return a client that goes where it is told and nowhere else."""
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30)
    return bounded(httpx.AsyncClient(headers=_HEADERS, follow_redirects=False, trust_env=False, limits=limits))


class Calendar:
    """A calendar at `url`, which is kept in its one spelling.

    Raises BadTimestamp when it is not the plain URL of a calendar.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, deadline: float = DEADLINE) -> None:
        self.url = origin_of(url)
        self._client = client
        self._deadline = deadline

    @step("anchorer.post")
    async def submit(self, message: bytes) -> bytes:
        """Post a 32-byte message and return the reply, at most 10,000 bytes. Raises CalendarFailed."""
        try:
            return await self._ask("POST", "/digest", message)
        except NotYet as error:
            raise CalendarFailed(f"answers 404: {error}") from None

    @step("anchorer.get")
    async def timestamp(self, commitment: bytes) -> bytes:
        """Ask for the proof of a commitment and return the reply, at most 10,000 bytes.

        Raises NotYet or CalendarFailed.
        """
        return await self._ask("GET", f"/timestamp/{commitment.hex()}", None)

    async def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        # Joined by hand: urljoin would drop the last part of a path.
        request = {"method": method, "url": self.url + path, "content": body}
        try:
            status, _, reply = await ask_async(self._client, MAX_REPLY, self._deadline, **request)
        except NoAnswer as error:
            raise CalendarFailed(sanitised(str(error).encode())) from error
        if status == 404:
            raise NotYet(sanitised(reply))
        if status != 200:
            raise CalendarFailed(f"answers {status}")
        return reply
