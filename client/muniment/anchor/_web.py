"""Requests to nodes and explorers, bounded in bytes and in total time. The HTTP library loads at the first one."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from muniment.errors import FormatError, SourceUnavailable

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
Credentials = tuple[str, str]
MAX_ANSWER = 64 * 1024
DEADLINE = 15.0
"""Seconds for one question, however many requests it takes."""

_HASH = re.compile(r"[0-9a-f]{64}")
_HEADER = re.compile(r"[0-9a-f]{160}")


class Web:
    """The requests of one question."""

    def __init__(self, client: httpx.AsyncClient, seconds: float) -> None:
        self._client = client
        self._seconds = seconds

    async def get(self, url: str, limit: int = MAX_ANSWER) -> bytes | None:
        """Return the body at `url`, or None when it is not there (404). Raises SourceUnavailable."""
        status, body = await self._send("GET", url, limit)
        if status == 404:
            return None
        if status != 200:
            raise SourceUnavailable(f"it answered {status}")
        return body

    async def post(self, url: str, value: Any, limit: int = MAX_ANSWER) -> tuple[int, bytes]:
        """Return the status and body that a JSON value gets. Raises SourceUnavailable."""
        return await self._send("POST", url, limit, json=value)

    async def _send(self, method: str, url: str, limit: int, **more: Any) -> tuple[int, bytes]:
        from muniment.wire import NoAnswer, ask_async  # noqa: PLC0415 - verifying with a header file needs no HTTP

        try:
            status, _, body = await ask_async(self._client, limit, self._seconds, method=method, url=url, **more)
        except NoAnswer as error:
            raise SourceUnavailable(f"not reachable: {error}" if error.again else str(error)) from error
        return status, body


def ask(
    question: Callable[[Web], Coroutine[Any, Any, T]],
    *,
    auth: Credentials | None = None,
    deadline: float = DEADLINE,
    trust_env: bool = False,
) -> T:
    """Return the answer to a question, within `deadline` seconds in all.

    Raises SourceUnavailable. Must not run in an event loop.
    """
    import httpx  # noqa: PLC0415 - see above

    from muniment.wire import bounded  # noqa: PLC0415 - see above

    async def run() -> T:
        made = httpx.AsyncClient(headers={"User-Agent": "muniment"}, auth=auth, trust_env=trust_env, verify=_tls())
        async with asyncio.timeout(deadline), bounded(made) as client:  # the deadline of all requests together
            return await question(Web(client, deadline))

    try:
        return asyncio.run(run())
    except TimeoutError as error:
        raise SourceUnavailable(f"no answer within {deadline:g} seconds") from error


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Return what all clients check certificates with: reading the authorities takes longer than most questions."""
    import httpx  # noqa: PLC0415 - see above

    return httpx.create_ssl_context()


def origin_of(url: str) -> tuple[str, Credentials | None]:
    """Return scheme, host and port of an http or https URL, `https://host`, and its user and password.

    Raises FormatError, which does not quote the URL.
    """
    import httpx  # noqa: PLC0415 - see above

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise FormatError("not a URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise FormatError("not an http or https URL without query")
    user = (parsed.username, parsed.password) if parsed.userinfo else None
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}", user


def json_of(body: bytes) -> Any:
    """Return the JSON value in a body. Raises SourceUnavailable."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceUnavailable("its answer is not JSON") from error


def hash_of(text: Any) -> bytes:
    """Return a block hash, spelled as people see it, in internal order. Raises SourceUnavailable."""
    if not isinstance(text, str) or not _HASH.fullmatch(text):
        raise SourceUnavailable("its answer is not a block hash")
    return bytes.fromhex(text)[::-1]


def header_of(text: Any) -> bytes:
    """Return the 80 bytes of a header in hex. Raises SourceUnavailable."""
    if not isinstance(text, str) or not _HEADER.fullmatch(text):
        raise SourceUnavailable("its answer is not a block header")
    return bytes.fromhex(text)


def height_of(value: Any) -> int:
    """Return a height from JSON. Raises SourceUnavailable unless it is an integer, 0 <= height < 2**28."""
    if type(value) is not int or not 0 <= value < 2**28:
        raise SourceUnavailable("its answer is not a height")
    return value


def text_of(body: bytes) -> str:
    """Return a short text answer. Raises SourceUnavailable unless it is ASCII."""
    try:
        return body.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise SourceUnavailable("its answer is not text") from error
