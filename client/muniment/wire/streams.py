"""Connections of a client that may block: no wait on one is longer than what is left of the exchange.

httpcore's own take a number of seconds, for each wait anew: for every part of a request that is sent, for every address
of a host.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpcore

from muniment.wire.exchange import received, seconds_left

T = TypeVar("T")
_PART = 65_536


class Backend(httpcore.NetworkBackend):
    """Connects as `inner` does."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that answers, each within its share of what is left."""
        with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            addresses = _addresses(host, port)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
                    left = seconds_left(timeout)
                    share = None if left is None else left / untried
                    return Stream(self._inner.connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore.ConnectTimeout, httpcore.ConnectError) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Connect to a socket of this machine."""
        with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            return Stream(self._inner.connect_unix_socket(path, seconds_left(timeout), socket_options))

    def sleep(self, seconds: float) -> None:
        """Wait, no longer than the exchange."""
        with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            self._inner.sleep(min(seconds, seconds_left(seconds) or 0))


def _addresses(host: str, port: int) -> list[str]:
    if "%" in host:  # a link-local address that names its interface, which is not in what is found
        return [host]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


class Stream(httpcore.NetworkStream):
    """A connection. `inner` stays its owner, and is asked about it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._socket: socket.socket = inner.get_extra_info("socket")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, once something has."""
        with _errors(httpcore.ReadTimeout, httpcore.ReadError):
            data = self.receive(max_bytes, timeout)
        received(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        with _errors(httpcore.WriteTimeout, httpcore.WriteError):
            self.send(buffer, timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the connection with TLS on top, its handshake done."""
        with _errors(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                return _TlsStream(self, ssl_context, server_hostname, timeout)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore's streams say of themselves."""
        return self._inner.get_extra_info(info)

    def receive(self, size: int, timeout: float | None) -> bytes:
        """Return bytes that arrived, uncounted. Raises OSError."""
        self._socket.settimeout(seconds_left(timeout))
        return self._socket.recv(size)

    def send(self, data: bytes, timeout: float | None) -> None:
        """Send bytes. Raises OSError."""
        rest = memoryview(data)
        while rest:  # by hand: a peer that takes a little now and then would renew the time of each part
            self._socket.settimeout(seconds_left(timeout))
            rest = rest[self._socket.send(rest) :]


class _TlsStream(Stream):
    """TLS over a stream, which may have TLS itself, to a proxy. A record that drips gets no more time than the rest."""

    def __init__(self, below: Stream, context: ssl.SSLContext, host: str | None, timeout: float | None) -> None:
        super().__init__(below)
        self._below = below
        self._arrived, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._to_send, server_hostname=host)
        self._work(self._tls.do_handshake, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._tls if info == "ssl_object" else super().get_extra_info(info)

    def receive(self, size: int, timeout: float | None) -> bytes:
        try:
            return self._work(lambda: self._tls.read(size), timeout)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""  # whether that was all, HTTP says

    def send(self, data: bytes, timeout: float | None) -> None:
        self._work(lambda: self._tls.write(data), timeout)

    def _work(self, step: Callable[[], T], timeout: float | None) -> T:
        """Return what a step of TLS returns once it has all it needs from the peer."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:  # after an error too: the peer is told why
                self._below.send(self._to_send.read(), timeout)
            if data := self._below.receive(_PART, timeout):
                self._arrived.write(data)
            else:
                self._arrived.write_eof()


@contextmanager
def _errors(late: type[Exception], other: type[Exception]) -> Iterator[None]:
    """Name errors of the system as httpcore does."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise other(str(error)) from error
