"""What both clients share: where the log is, what is trusted, and how a request becomes HTTP and back."""

from __future__ import annotations

import re
import time
from typing import Any, TypedDict, Unpack

import httpx

from muniment._flows.reads import Session
from muniment._flows.steps import Lost, Request, Response, Retries
from muniment._flows.tilereader import TileReader
from muniment._flows.trust import Trust
from muniment.errors import FormatError, PolicyNotMet
from muniment.policy import Policy
from muniment.state import MemoryState, State

BATCH_ENTRIES = 500
BATCH_BYTES = 2 * 1024 * 1024
TIMEOUT = 30.0
CONNECTIONS = 32
"""Requests under way at a time. httpcore's pool walks all connections for every waiting request, so waiting is done before it."""

_LOG_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Options(TypedDict, total=False):
    """What a client takes besides the URL of its server."""

    policy: Policy | None
    """Which keys to trust. Required."""
    log: str | None
    """Name of one of several logs of the server; by default the default log."""
    origin: str | None
    """Which log of the policy this must be. By default the one with this URL, or the only one, or else the first that answers."""
    api_key: str | None
    """Sent as a bearer token."""
    state: State | None
    """Remembers checkpoints; by default as long as the client lives."""
    timeout: float
    """Seconds, for each wait on the network; 30 by default."""
    retries: Retries | None
    """How often and how patiently to try again."""


class Base:
    """A client before its colour."""

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        policy = options.get("policy")
        timeout = options.get("timeout", TIMEOUT)
        if policy is None:
            raise PolicyNotMet(
                "a client needs a policy, the file that says which keys to trust: policy=Policy.read(path). To start without one,"
                " trust_on_first_use(url) pins the keys that the server names"
            )
        self.url = log_url(url, options.get("log"))
        self.policy = policy
        self._retries = options.get("retries") or Retries()
        memory: State | None = options.get("state")
        known = MemoryState() if memory is None else memory
        trust = Trust(policy, known, self.url, options.get("origin"), self._retries)
        self._session = Session(trust, TileReader(self._retries), self._retries)
        self._patience = 10 * timeout
        self._options = options_of(options.get("api_key"), timeout)

    def __repr__(self) -> str:
        """Name the log; never the key."""
        return f"<{type(self).__name__} {self.url}>"

    def _arguments(self, request: Request) -> dict[str, Any]:
        return {
            "method": request.method,
            "url": self.url + request.path,
            "params": dict(request.query),
            "content": request.body,
            "headers": dict(request.headers),
        }


def log_url(url: str, log: str | None) -> str:
    """Return the URL of a log of a server, without a final slash. Raises FormatError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise FormatError(f"not a URL: {url[:200]!r}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment or " " in url:
        raise FormatError(f"not the URL of a log (http://host/...): {url[:200]!r}")
    if log is None:
        return url.rstrip("/")
    if not _LOG_NAME.fullmatch(log):
        raise FormatError(f"not the name of a log (lowercase letters, digits and hyphens): {log[:80]!r}")
    return f"{url.rstrip('/')}/logs/{log}"


def options_of(api_key: str | None, timeout: float) -> dict[str, Any]:
    # Compressed answers are refused: what a few bytes may grow to is known only after they have grown.
    headers = {"User-Agent": "muniment", "Accept-Encoding": "identity"}
    if api_key is not None:
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise FormatError("an API key is printable ASCII without spaces")
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "headers": headers,
        # A request that waits for a free connection of the pool has not failed.
        "timeout": httpx.Timeout(timeout, pool=None),
        "limits": httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        "follow_redirects": False,
    }


class Unusable(Exception):
    """An answer arrived that no retry makes better."""


class Body:
    """Collects the body of an answer within its bounds, in bytes and in time."""

    def __init__(self, answer: httpx.Response, limit: int, patience: float) -> None:
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise Unusable("the server compresses an answer that was asked for plain")
        self._answer = answer
        self._limit = limit
        self._deadline = time.monotonic() + patience
        self._data = bytearray()

    def add(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > self._limit:
            raise Unusable(f"the answer is larger than {self._limit} bytes")
        if time.monotonic() > self._deadline:
            raise Unusable("the answer comes too slowly")

    def response(self) -> Response:
        headers = {name.lower(): value for name, value in self._answer.headers.items()}
        return Response(self._answer.status_code, headers, bytes(self._data))


def lost(error: Exception, url: str) -> Lost:
    again = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    reason = str(error) or type(error).__name__
    return Lost(f"no usable answer from {url}: {reason}", again)
