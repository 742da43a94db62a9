"""What a request says of who sends it. Pure."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Collection, Sequence
from typing import NamedTuple

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields of a request, their names in lower case."""


class Asking(NamedTuple):
    """The API keys of a request, and whether it is a program of this machine that sends it.

    A web page is none: a browser on this machine sends what any page tells it to, and says so in `Origin`. Nor is what
    names another host: the page's own name may have been pointed at this machine.
    """

    keys: tuple[bytes, ...]
    local: bool

    @classmethod
    def of(cls, headers: Headers, trusted: Collection[str] = ()) -> Asking:
        """Return what the fields of a request say. Pages of `trusted` origins count as programs of this machine."""
        keys: tuple[bytes, ...] = ()
        host, foreign = b"", False
        for name, value in headers:
            if name == b"authorization":
                keys = (*keys, value)
            elif name == b"host":
                host = value
        for name, value in headers:
            if name == b"origin":
                foreign = foreign or not (_is_of(value, host) or value.decode("latin-1") in trusted)
        return cls(keys, not foreign and _names_this_machine(host))


def _is_of(origin: bytes, host: bytes) -> bool:
    """Tell whether a page is of the host that its request is for: this server's own pages."""
    return origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())


def _names_this_machine(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return _is_loopback(name[1:].partition("]")[0])
    return _is_loopback(name.partition(":")[0].removesuffix("."))


@functools.lru_cache(16)
def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address that this server listens on."""
    return _is_loopback(host)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
