"""Calendar URLs, compared exactly.

A pending attestation names any URI it likes; only an exact match with a configured one counts.
"""

from __future__ import annotations

import re

from muniment.errors import BadTimestamp

# One spelling only: lowercase scheme and host, no user, no port with leading zeros, no empty or dot
# segments, no escapes, no query.
_URL = re.compile(r"(https?)://([a-z0-9.-]+)(?::([1-9][0-9]{0,4}))?((?:/[A-Za-z0-9._-]+)*)/?")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LOOPBACK = re.compile(r"localhost|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_DEFAULT_PORT = {"https": 443, "http": 80}


def origin_of(uri: str) -> str:
    """Return the one spelling of a calendar's URL, ``scheme://host[:port][/path]`` without a final slash.

    Two URIs are of one calendar exactly when their results are equal. `uri` is https, or http on loopback, in lowercase
    up to the path; one final slash and the default port may stand there or not. Raises BadTimestamp on everything else:
    user names, escapes, queries, empty and dot segments, capitals in the host, IPv6.
    """
    found = _URL.fullmatch(uri) if len(uri) <= 1000 else None
    if found is None or not _HOST.fullmatch(found[2]):
        raise BadTimestamp(f"not the plain URL of a calendar: {uri[:200]!r}")
    scheme, host, path = found[1], found[2], found[4]
    port = int(found[3] or _DEFAULT_PORT[scheme])
    if port > 65_535 or {".", ".."} & set(path.split("/")):
        raise BadTimestamp(f"not the plain URL of a calendar: {uri[:200]!r}")
    if scheme == "http" and not _LOOPBACK.fullmatch(host):
        raise BadTimestamp(f"a calendar is asked over https, or on loopback: {uri[:200]!r}")
    return f"{scheme}://{host}{'' if port == _DEFAULT_PORT[scheme] else f':{port}'}{path}"
