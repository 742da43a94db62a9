"""The head of a request: what a strict reader of RFC 9112 refuses though the parser takes it, and upgrades. Pure."""

from __future__ import annotations

import re

from muniment_server.web.messages import Header, Headers

_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"  # RFC 3986 section 3.2
)
_ABSOLUTE = re.compile(rb"https?://([^/?]+)", re.IGNORECASE)
_SPOKEN = ("1.0", "1.1")


def fault_of(version: str, headers: Headers) -> str | None:
    """Return the reason to refuse a head that the parser took, or None.

    A body in a coding that is not undone would be logged as it came, and two readers of one head with two hosts, or
    with chunks in HTTP/1.0, could take its bytes for different requests.
    """
    if version not in _SPOKEN:
        return "version"
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):
        return "host"
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "host"
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    return _fault_of_codings(version, codings) if codings else None


def _fault_of_codings(version: str, codings: list[bytes]) -> str | None:
    if version == "1.0":
        return "bad_request"  # RFC 9112 section 6.1: the framing is faulty
    if b",".join(codings).strip(b" \t").lower() == b"chunked":
        return None
    return "transfer_coding"


def of_target(url: bytes, headers: Headers) -> list[Header] | None:
    """Return the fields with the host that a target in absolute form names, which counts (RFC 9112 section 3.2.2).

    None where that is no host.
    """
    found = _ABSOLUTE.match(url)
    if found is None or not _HOST.fullmatch(found[1]):
        return None
    return [(name, found[1] if name == b"host" else value) for name, value in headers]


def without_upgrade(method: bytes, url: bytes, version: str, headers: Headers) -> bytes:
    """Return a head again without the protocols it would rather speak (RFC 9110 section 7.8).

    The parser stops at the end of a head that asks for another protocol, and takes the body for bytes of that.
    """
    fields = [b"%b: %b\r\n" % (name, value) for name, value in headers if name != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), b"".join(fields))
