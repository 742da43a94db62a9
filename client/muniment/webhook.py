"""How webhooks are signed: HMAC-SHA256 under a shared secret, over the time of sending and the exact body. Pure.

::

    Muniment-Id: <id>                 the same each time that the same thing is sent
    Muniment-Timestamp: <seconds>     Unix time of this attempt
    Muniment-Signature: v1=<hex>      HMAC-SHA256(secret, timestamp || "." || body); several, separated by a comma

A receiver compares in constant time, refuses a timestamp that is far from its own clock, and drops an id that it has.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from muniment.errors import BadSignature, FormatError

MIN_SECRET = 16
"""Bytes: a shorter secret could be guessed from one delivery."""


def parse_secret(data: bytes) -> bytes:
    """Return the secret in a file: its bytes without white space at the ends. Raises FormatError."""
    secret = data.strip()
    if len(secret) < MIN_SECRET:
        raise FormatError(f"a secret of a webhook has {MIN_SECRET} bytes or more: openssl rand -hex 32")
    return secret


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return ``v1=<hex>``."""
    return "v1=" + hmac.digest(secret, b"%d.%b" % (timestamp, body), "sha256").hex()


def signed_headers(secret: bytes, name: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a delivery; `name` is its id."""
    return {
        "Content-Type": "application/json",
        "Muniment-Id": name,
        "Muniment-Timestamp": str(timestamp),
        "Muniment-Signature": signature(secret, timestamp, body),
    }


def check_signature(secrets: Sequence[bytes], timestamp: str, header: str, body: bytes) -> None:
    """Check a delivery against any of the secrets. How old it may be is for the caller to say. Raises BadSignature."""
    try:
        wanted = [signature(secret, int(timestamp), body) for secret in secrets]
    except ValueError as error:
        raise BadSignature("the timestamp of the delivery is no number") from error
    for given in header.split(","):
        if any([hmac.compare_digest(given.strip().encode(), one.encode()) for one in wanted]):
            return
    raise BadSignature("the delivery is not signed with this secret")
