"""The HTTP of an OpenTimestamps calendar, of which nothing is believed but that it is there.

One total deadline around each request, no redirects, no cookies, no proxy of the environment, no compressed bodies, at most 10,000
bytes; only 200 is an answer. What the bytes mean is for :mod:`muniment.anchor.proof`.
"""

from __future__ import annotations

import asyncio
import re

import httpx

from muniment.anchor.proof import MAX_REPLY
from muniment.anchor.uri import origin_of
from muniment_server import __version__
from muniment_server.failpoints import step

DEADLINE = 15.0
_MAX_REASON = 160
_STRANGE = re.compile(r"[^A-Za-z0-9#\-.,; ]")
_HEADERS = {
    "Accept": "application/vnd.opentimestamps.v1",
    "Accept-Encoding": "identity",
    "User-Agent": f"muniment-server/{__version__}",
}


class CalendarFailed(Exception):
    """The calendar gave no usable answer. The message is safe to log."""


class NotYet(Exception):
    """The calendar has no proof (404). The message is its reason, made safe to log."""

    @property
    def lost(self) -> bool:
        """Tell whether it does not know the commitment at all; within an hour of the submission that may be a false answer."""
        return str(self) == "Not found"


def sanitised(text: bytes) -> str:
    """Return at most 160 characters of what a stranger said, without any that could forge a log line."""
    return _STRANGE.sub("_", text[:_MAX_REASON].decode("latin-1"))


def new_client() -> httpx.AsyncClient:
    """Return a client that goes where it is told and nowhere else."""
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30)
    return httpx.AsyncClient(headers=_HEADERS, follow_redirects=False, trust_env=False, limits=limits, timeout=60)


class Calendar:
    """A calendar at `url`, which is kept in its one spelling. Raises BadTimestamp when it is not the plain URL of a calendar."""

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
        """Ask for the proof of a commitment and return the reply, at most 10,000 bytes. Raises NotYet or CalendarFailed."""
        return await self._ask("GET", f"/timestamp/{commitment.hex()}", None)

    async def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        self._client.cookies.clear()
        # Joined by hand: urljoin would drop the last part of a path.
        request = self._client.stream(method, self.url + path, content=body)
        try:
            async with asyncio.timeout(self._deadline), request as answer:
                return await _read(answer)
        except TimeoutError:
            raise CalendarFailed(f"no whole answer within {self._deadline:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CalendarFailed(type(error).__name__) from error


async def _read(answer: httpx.Response) -> bytes:
    if answer.status_code == 404:
        raise NotYet(sanitised(await _bounded(answer, _MAX_REASON, cut=True)))
    if answer.status_code != 200:
        raise CalendarFailed(f"answers {answer.status_code}")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise CalendarFailed("answers in a content encoding that was not asked for")
    return await _bounded(answer, MAX_REPLY)


async def _bounded(answer: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
    data = b""
    async for part in answer.aiter_raw(4096):
        data += part
        if len(data) > limit:
            if cut:
                return data[:limit]
            raise CalendarFailed(f"answers more than {limit} bytes")
    return data
