"""What a client sends beside bodies: request lines, fields, chunk sizes with their extensions, trailers, blank lines.

All of it has one limit, whatever the parser makes of it. To count it to the byte, each segment is cut where head,
body and chunks end, so that bytes in one segment and the same bytes one by one get the same answer.
"""

from __future__ import annotations

import re

from muniment_server.web.messages import MAX_HEADERS, Headers

MAX_URL = 16_384
MAX_FRAMING = MAX_URL + MAX_HEADERS + 1024
"""Bytes before a body, or between its chunks, or behind it.

That is a method, a URL and header fields that have just their own limits.
"""
MAX_FIELDS = 256
"""Header fields of a request, or trailers: each takes a hundred bytes of memory beside its own."""
CHUNKED = -1
_SHARE = 4
"""Bytes of chunks that pay for one byte between them.

A chunk for each byte would take the time of a thousand requests a megabyte.
"""
_FULL = MAX_FRAMING * _SHARE
_CHUNK_END = 2 * _SHARE
_DIGITS = re.compile(rb"[0-9A-Fa-f]*")
_MOST_DIGITS = 16
_SPANS = 3
"""Bytes at the beginning of a segment with which the end of a head, CR LF CR LF, may be complete."""


class Framing:
    """Where one connection is between the bytes of its requests, and how many that are no body it may still send."""

    __slots__ = ("_body", "_chunked", "_credit", "_size")

    def __init__(self) -> None:
        self._credit = _FULL  # in parts of a byte, _SHARE of them
        self._body = 0  # bytes of the body, or of its chunk, that are still to come
        self._chunked = False
        self._size = b""  # of the next chunk, as far as its digits came

    @property
    def sent(self) -> int:
        """Bytes of the head that is not complete."""
        return MAX_FRAMING - self._credit // _SHARE

    def piece(self, data: bytes, at: int, *, fresh: bool) -> int:
        """Return where the next piece of `data` ends that begins at `at`, and count it.

        Returns `at` itself when that is too much. `fresh` tells that no part of a request line has come.
        """
        if self._body:
            return self._of_body(data, at)
        if fresh or (at > _SPANS and not self._chunked):
            end = data.find(b"\r\n\r\n", at if fresh else at - _SPANS) + 4
            end = end if end >= 4 else len(data)
        else:
            end = data.find(b"\n", at) + 1 or len(data)
        end = min(end, at + max(self._credit // _SHARE, 0))
        self._credit -= (end - at) * _SHARE
        if self._chunked:
            self._size = (self._size + data[at:end]).lstrip(b"0")[:_MOST_DIGITS]
        return end

    def _of_body(self, data: bytes, at: int) -> int:
        end = min(at + self._body, len(data))
        self._body -= end - at
        if self._chunked:
            self._credit = min(self._credit + end - at, _FULL)
        return end

    def head_ends(self, length: int) -> None:
        """Take note that a body of `length` bytes follows, or one that is CHUNKED."""
        self._chunked = length == CHUNKED
        self._body = 0 if self._chunked else length
        self._size = b""

    def chunk_begins(self) -> None:
        """Take note that the line with a chunk's size is complete.

        Only the parser knows that: it has checked the line.
        """
        digits = _DIGITS.match(self._size)
        self._body = int(digits[0], 16) if digits and digits[0] else 0
        self._size = b""
        if self._body:
            self._body += 2  # the line end behind it
            self._credit -= _CHUNK_END

    def message_ends(self) -> None:
        """Take note that a request is complete: the next one has the whole limit again."""
        self._credit = _FULL
        self._chunked = False
        self._body = 0


def body_length(headers: Headers) -> int:
    """Return how long a body is by the fields of its head, which the parser took, or CHUNKED."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return CHUNKED
    return 0
