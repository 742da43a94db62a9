"""Exchanges over HTTP with a peer that is not trusted: one deadline for the whole of each, bounds on what may arrive.

httpx limits each wait for a socket, and nothing limits their number: a peer that sends a byte now and then, or one more
1xx answer, is waited for without end. So this is the one way in which this project asks a peer over HTTP.

exchange (what one may take) < streams, astreams (which keep to it) < here
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, TypeVar

import httpx

from muniment.wire.astreams import AsyncBackend
from muniment.wire.exchange import Deadline, TooMuch, taking
from muniment.wire.streams import Backend

__all__ = ["Answer", "Deadline", "NoAnswer", "ask", "ask_async", "bounded", "listen", "listen_async"]

C = TypeVar("C", httpx.Client, httpx.AsyncClient)


class NoAnswer(Exception):
    """No usable answer arrived. `again` tells whether the same request may do better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Answer(NamedTuple):
    """What the peer answered. Header names are lowercase."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(client: httpx.Client, limit: int, seconds: float, **request: Any) -> Answer:
    """Return the whole answer to a request, with at most `limit` bytes of body and within `seconds`. Raises NoAnswer.

    The deadline covers connecting, TLS, sending and all of the answer, but not the system's resolver, which has limits
    of its own. Requires a client from :func:`bounded`; a transport of the caller's own keeps the deadline as it can.
    """
    try:
        with taking(limit, seconds) as exchange, client.stream(timeout=exchange.left(), **request) as answer:
            body = _Body(answer, limit)
            exchange.answered()
            for chunk in answer.iter_raw():
                exchange.left()
                body.add(chunk)
            return body.answer()
    except _FAILURES as error:
        raise _no_answer(error, seconds) from error


async def ask_async(client: httpx.AsyncClient, limit: int, seconds: float, **request: Any) -> Answer:
    """Return the answer as :func:`ask` does."""
    try:
        with taking(limit, seconds) as exchange:
            left = exchange.left()
            async with asyncio.timeout(left), client.stream(timeout=left, **request) as answer:
                body = _Body(answer, limit)
                exchange.answered()
                async for chunk in answer.aiter_raw():
                    exchange.left()
                    body.add(chunk)
                return body.answer()
    except _FAILURES as error:
        raise _no_answer(error, seconds) from error


def listen(client: httpx.Client, media_type: str, quiet: float, **request: Any) -> Generator[bytes]:
    """Yield what arrives of an answer that has no end, until the peer ends it or is silent for `quiet` seconds.

    What one piece may hold is for the caller to bound. Raises NoAnswer; `again` is False where the peer has no such
    answer.
    """
    try:
        with client.stream(timeout=quiet, **request) as answer:
            _check_stream(answer, media_type)
            yield from answer.iter_raw()
    except _FAILURES as error:
        raise _no_answer(error, quiet) from error


async def listen_async(
    client: httpx.AsyncClient, media_type: str, quiet: float, **request: Any
) -> AsyncGenerator[bytes]:
    """Yield what arrives as :func:`listen` does."""
    try:
        async with client.stream(timeout=quiet, **request) as answer:
            _check_stream(answer, media_type)
            async for piece in answer.aiter_raw():
                yield piece
    except _FAILURES as error:
        raise _no_answer(error, quiet) from error


def _check_stream(answer: httpx.Response, media_type: str) -> None:
    """Raise NoAnswer unless this is an answer of the type, as plain as it was asked for."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    plain = answer.headers.get("content-encoding", "identity").lower() == "identity"
    if answer.status_code != 200 or kind != media_type or not plain:
        passing = answer.status_code in (408, 429) or answer.status_code >= 500
        raise NoAnswer(f"status {answer.status_code}, {kind or 'no content type'}", again=passing)


def bounded(client: C) -> C:
    """Return the client, which now keeps to the bounds of an exchange, keeps no cookies and asks for plain answers.

    A transport of the caller's own that is not one of httpx's is left alone.
    """
    client.headers["Accept-Encoding"] = "identity"  # what a few bytes may grow to is known only after they have grown
    client.cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))  # a peer could fill the memory with them
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - proxies are nowhere else
        if isinstance(transport, httpx.HTTPTransport | httpx.AsyncHTTPTransport):
            _bind(transport._pool)  # noqa: SLF001 - httpx has no other way to give httpcore a network backend
    return client


def _bind(pool: Any) -> None:
    inner = pool._network_backend  # noqa: SLF001 - see above
    if not isinstance(inner, Backend | AsyncBackend):  # a transport may serve several clients
        pool._network_backend = AsyncBackend(inner) if hasattr(pool, "aclose") else Backend(inner)  # noqa: SLF001


class _Body:
    """Collects the body of an answer, as plain as it was asked for and no longer than `limit`."""

    def __init__(self, answer: httpx.Response, limit: int) -> None:
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise TooMuch("the server compresses an answer that was asked for plain")
        self._answer = answer
        self._limit = limit
        self._data = bytearray()

    def add(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > self._limit:
            raise TooMuch(f"the answer is larger than {self._limit} bytes")

    def answer(self) -> Answer:
        headers = {name.lower(): value for name, value in self._answer.headers.items()}
        return Answer(self._answer.status_code, headers, bytes(self._data))


# UnicodeError: of a host name that cannot be asked for.
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, TooMuch)


def _no_answer(error: Exception, seconds: float) -> NoAnswer:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return NoAnswer(f"no whole answer within {seconds:.3g} seconds", again=True)
    again = isinstance(error, httpx.TransportError | OSError) and not isinstance(error, httpx.UnsupportedProtocol)
    return NoAnswer(str(error) or type(error).__name__, again=again)
