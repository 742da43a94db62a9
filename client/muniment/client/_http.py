"""What both clients share: where the log is, what is trusted, and how a request becomes HTTP and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Required, TypedDict, TypeVar, Unpack

import httpx

from muniment._flows.reads import Session
from muniment._flows.steps import Lost, Request, Retries
from muniment._flows.tilereader import TileReader
from muniment._flows.trust import Trust
from muniment._flows.values import Default
from muniment.client._options import check_options
from muniment.errors import FormatError, Unreachable
from muniment.policy import Policy
from muniment.state import MemoryState, State
from muniment.wire import Deadline, NoAnswer

BATCH_ENTRIES = 500
BATCH_BYTES = 2 * 1024 * 1024
TIMEOUT = 30.0
CALL = 10
"""How many timeouts a call has for all that it sends, sends again and waits for."""
MAX_TIMEOUT = 86_400.0
CONNECTIONS = 32
"""Requests under way at a time.

httpcore's pool walks all connections for every waiting request, so waiting is done before it.
"""

QUIET = 45.0
"""Seconds after which a stream that says nothing is given up: a log says at least every 15 that it is there."""

T = TypeVar("T")
_LOG_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class Settings(TypedDict, total=False):
    """What a client takes besides the URL of its server and a policy."""

    log: str | None
    """Name of one of several logs of the server; by default the default log."""
    origin: str | None
    """Which log of the policy this must be.

    By default the one with this URL, or the only one, or else the first that answers.
    """
    api_key: str | None
    """Sent as a bearer token."""
    state: State | None
    """Remembers checkpoints; by default as long as the client lives."""
    timeout: float
    """Seconds for one exchange with the server, from connecting to the last byte of the answer; 30 by default.

    A call has ten times as long for all of its requests, tries and waits together, those for other calls of this client
    included; a method that yields has that anew for each page or batch. Unreachable or Unavailable is raised when it is
    over. Over a slow line, where a batch or a page of some megabytes takes longer, it has to be more. Finding the
    address of a name has the limits of the system's resolver, and a transport of your own keeps to this as it can.
    """
    retries: Retries | None
    """How often and how patiently to try again."""
    default: Default | None
    """Returns a JSON value for a value in an event that is none (Decimal, datetime, UUID, Enum, ...), as the argument
    of json.dumps does: ``default=str``. Without it such an event is refused, with a pointer to the place.
    """


class Options(Settings):
    """What a client takes besides the URL of its server."""

    policy: Required[Policy]
    """Which keys to trust: ``Policy.read(path)``."""


class Base:
    """A client before its colour."""

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        check_options(type(self).__name__, options)
        policy, timeout = options["policy"], options.get("timeout", TIMEOUT)
        if not 0 < timeout <= MAX_TIMEOUT:
            raise FormatError(f"a timeout is more than 0 and at most {MAX_TIMEOUT:.0f} seconds")
        self.url = log_url(url, options.get("log"))
        self.policy = policy
        self._retries = options.get("retries") or Retries()
        memory: State | None = options.get("state")
        known = MemoryState() if memory is None else memory
        trust = Trust(policy, known, self.url, options.get("origin"), self._retries)
        self._session = Session(trust, TileReader(self._retries), self._retries)
        self._timeout = timeout
        self._default = options.get("default")
        self._options = options_of(options.get("api_key"))

    def __repr__(self) -> str:
        """Name the log; never the key."""
        return f"<{type(self).__name__} {self.url}>"

    @property
    def origin(self) -> str:
        """The name of the log, once an answer or the policy has said it; else ""."""
        return self._session.trust.origin or ""

    @property
    def behind(self) -> bool:
        """Whether an answer was proved by a smaller tree than one seen before, because the server has no larger one.

        That the two belong together is not proved yet: the client asks for it with its next answer that can.
        """
        return bool(self._session.trust.owed)

    def _deadline(self) -> Deadline:
        """Return that of a call that begins now."""
        return Deadline.within(CALL * self._timeout)

    def _seconds(self, call: Deadline) -> float:
        """Return how long an exchange may take. Raises Unreachable when the call has no time for one."""
        seconds = min(self._timeout, call.left())
        if not seconds:
            raise Unreachable(f"no time is left: a call has {CALL * self._timeout:.3g} seconds, ten times its timeout")
        return seconds

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


def options_of(api_key: str | None) -> dict[str, Any]:
    headers = {"User-Agent": "muniment"}
    if api_key is not None:
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise FormatError("an API key is printable ASCII without spaces")
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "headers": headers,
        "limits": httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        "follow_redirects": False,
    }


def made(make: Callable[[], T]) -> T:
    """Return an HTTP client. Raises Unreachable when the environment names proxies or certificates that cannot be."""
    try:
        return make()
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        raise Unreachable(f"the environment does not allow connections ({error}): look at {names}") from error


def lost(error: NoAnswer, url: str) -> Lost:
    return Lost(f"no usable answer from {url}: {error}", error.again)


def in_vain() -> Unreachable:
    return Unreachable("nothing was sent: other requests of this client took all the time that the call had")
