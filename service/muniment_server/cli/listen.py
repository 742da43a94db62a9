"""Where the server listens: bound before anything else is begun, so that a port that is taken is said at once."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

from muniment_server.errors import SetupError

_WHY = {
    errno.EADDRINUSE: "another process listens there: end it, or use --port",
    errno.EADDRNOTAVAIL: "this machine has no such address: use --host",
    errno.EAFNOSUPPORT: "this machine does not speak that kind of address: use --host",
    errno.EACCES: "ports below 1024 are for root: use --port",
    errno.EPERM: "ports below 1024 are for root: use --port",
}


def bind(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host, all on one port, none of them listening yet. Raises SetupError.

    `::` is every address of the machine, of both families.
    """
    bound: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            # Where 0 was asked for, all have the port that the first one got.
            of_first = bound[0].getsockname()[1] if bound else port
            bound.append(_bound(family, (address[0], of_first, *address[2:]), both=host == "::"))
    except OSError as error:
        for one in bound:
            one.close()
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        raise SetupError(f"cannot listen on port {port} of {host}: {why}") from None
    return bound


def _addresses(host: str, port: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise SetupError(f"{host!r} is no address of this machine: use --host") from None
    yield from dict.fromkeys((int(family), address) for family, _, _, _, address in found)


def _bound(family: int, address: tuple[Any, ...], *, both: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart waits for connections of before
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def url_of(listening: socket.socket) -> str:
    """Return the URL of what listens on a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
