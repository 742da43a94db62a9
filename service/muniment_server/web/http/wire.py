"""Answers as they go out: their bytes, and when these are handed to the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import sys
import termios
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from muniment_server.web.messages import Answer, Header, Pieces

_TOGETHER = 8


class Outbox:
    """Sends answers a few at a time, at the latest when the event loop has gone through what is ready.

    Handing one answer to the kernel wakes the client that waits for it, on another processor. When that is the same
    client again and again, it falls asleep in between, and each waking costs more than all the rest of a read. A few at
    a time, it stays awake.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Any, bytes]] = []
        self._due = False  # whether the event loop is to call `flush`

    def add(self, transport: Any, data: bytes) -> None:
        """Send `data` on `transport`, soon: before anything that is scheduled on the event loop from now on."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush_due)
        self._kept.append((transport, data))
        if len(self._kept) >= _TOGETHER:
            self.flush()

    def _flush_due(self) -> None:
        self._due = False
        self.flush()

    def flush(self) -> None:
        """Send what is kept. Call this before anything else is written, or a connection closed."""
        kept, self._kept = self._kept, []
        for transport, data in kept:
            # Each on its own: a connection that cannot be written any more must not take the answers of others with it.
            with contextlib.suppress(RuntimeError):
                if not transport.is_closing():
                    transport.write(data)


_TCP_CLOSE = 7  # of the kernel's states of a connection: it was reset


def encode(answer: Answer | Response, defaults: Sequence[Header], *, keep_alive: bool) -> bytes:
    """Return an answer as it goes out, but for pieces of its body.

    It is what uvicorn writes of the same answer of an application.
    """
    if isinstance(answer, Response):
        status, body, fields = answer.status_code, bytes(answer.body), _lines(answer.raw_headers)
    else:
        body, media_type, status, fields, pieces = answer
        length = _length(pieces) if pieces else len(body)
        fields += b"content-length: %d\r\ncontent-type: %b\r\n" % (length, media_type.encode())
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    return b"".join((STATUS_LINE[status], _defaults(defaults), fields, end, body))


def _length(pieces: Pieces) -> int:
    if pieces.length is None:
        raise AssertionError("an answer of unknown length goes through the application")
    return pieces.length


def in_kernel(descriptor: int) -> int:
    """Return how many bytes the other end of a connection has not confirmed; 0 where the system does not tell.

    A socket takes megabytes. A client that reads slowly makes progress long before it takes any more.
    """
    found = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, found)
    return int.from_bytes(found, sys.byteorder)


def is_reset(connection: socket.socket) -> bool:
    """Tell whether the other end has dropped the connection; False where the system does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    with contextlib.suppress(OSError):
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    return False


def encode_last(response: Response) -> bytes:
    """Return a refusal after which the connection is closed."""
    return encode(response, (), keep_alive=False)


_last_defaults: tuple[Sequence[Header], bytes] = ((), b"")


def _defaults(fields: Sequence[Header]) -> bytes:
    """Return the fields that stand in every answer: the date. uvicorn makes a new list each second."""
    global _last_defaults  # noqa: PLW0603 - one for the process, as uvicorn's own
    if _last_defaults[0] is not fields:
        _last_defaults = (fields, _lines(fields))
    return _last_defaults[1]


def _lines(fields: Iterable[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])
