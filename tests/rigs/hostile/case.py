"""A hostile request, and the world it is sent to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

STILL_SIZE = 301
"""Entries of the log `still`, to which nothing is appended: what exists there is known."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request as bytes. `expect` are the statuses it may get; empty: any 4xx, or 2xx."""

    name: str
    data: bytes
    expect: frozenset[int] = frozenset()
    head: bool = False  # the answer has no body
    alone: bool = False  # on a connection of its own, of which no more is sent: it may also be closed without an answer
    lie: bool = False  # a receipt that must not verify


@dataclass(frozen=True)
class Referred:
    """What cases refer to: receipts of entries in the logs, as parsed JSON, and API keys by label."""

    receipts: Sequence[dict[str, Any]]
    proofs: Sequence[str]  # the same as tlog-proof text
    keys: dict[str, str] = field(default_factory=dict)


def fields(headers: Iterable[tuple[bytes | str, bytes | str]]) -> bytes:
    """Header fields as they go over the wire."""
    encoded = ((_bytes(name), _bytes(value)) for name, value in headers)
    return b"".join(b"%b: %b\r\n" % pair for pair in encoded)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8")


def request(
    method: str,
    path: bytes | str,
    body: bytes | None = None,
    headers: Iterable[tuple[bytes | str, bytes | str]] = (),
) -> bytes:
    """A request with right framing."""
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    start = b"%b %b HTTP/1.1\r\nHost: localhost\r\n" % (method.encode(), _bytes(path))
    return start + fields(headers) + length + b"\r\n" + (body or b"")


JSON = ("Content-Type", "application/json")
NDJSON = ("Content-Type", "application/x-ndjson")
BYTES = ("Content-Type", "application/octet-stream")
REFUSED = frozenset({400, 413, 415, 422})
