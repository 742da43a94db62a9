"""API keys: what is stored of them, and making one."""

from __future__ import annotations

import secrets
import time
from hashlib import sha256

from muniment.encoding import b64url
from muniment_server.errors import (
    SetupError,
)
from muniment_server.storage.catalog import ApiKeyRow, Catalog

SCOPES = frozenset({"append", "read"})


def digest_of_key(token: str) -> bytes:
    """Return what is stored of an API key. A plain hash is enough: the key has 256 random bits."""
    return sha256(token.encode()).digest()


async def create_api_key(
    catalog: Catalog, scopes: frozenset[str], log_name: str | None, label: str
) -> tuple[str, ApiKeyRow]:
    """Make an API key and return it, the only time it is seen, with its row.

    Raises SetupError on an unknown scope or log.
    """
    if not scopes or scopes - SCOPES:
        raise SetupError(f"scopes are {', '.join(sorted(SCOPES))}: not {', '.join(sorted(scopes - SCOPES)) or 'none'}")
    if log_name is not None and log_name not in {row.name for row in await catalog.logs()}:
        raise SetupError(f"there is no log {log_name!r}")
    token = "mk_" + b64url(secrets.token_bytes(32))
    digest = digest_of_key(token)
    row = ApiKeyRow(digest.hex()[:12], digest, scopes, log_name, label, time.time_ns() // 1_000_000, None)
    await catalog.create_key(row)
    return token, row
