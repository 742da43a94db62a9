"""Connections of a client for asyncio. Cancelling keeps the deadline: what is left is to count and to clean up."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from muniment.wire.exchange import received


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Connects as `inner` does."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host."""
        return AsyncStream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a socket of this machine."""
        return AsyncStream(await self._inner.connect_unix_socket(path, timeout, socket_options))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


class AsyncStream(httpcore.AsyncNetworkStream):
    """A connection."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        """Return what has arrived, once something has."""
        data = await self._inner.read(max_bytes, timeout)
        received(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        """Send all of `buffer`."""
        await self._inner.write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        """Return the connection with TLS on top, its handshake done."""
        try:
            return AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:  # httpcore forgets a connection whose handshake is cancelled: without this it stays open
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore's streams say of themselves."""
        return self._inner.get_extra_info(info)
