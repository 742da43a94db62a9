"""Muniment: append to a transparency log, and check offline what it says.

Importing this package imports only what verification needs; the HTTP clients load when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muniment.checkpoint import Checkpoint
from muniment.errors import FormatError, MunimentError, VerificationError
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt, Verified

if TYPE_CHECKING:
    from muniment.client import AsyncClient, Client

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Checkpoint",
    "Client",
    "FormatError",
    "MunimentError",
    "Policy",
    "Receipt",
    "VerificationError",
    "Verified",
    "VerifiedCheckpoint",
]


def __getattr__(name: str) -> Any:
    """Load the HTTP clients on first use: an offline verifier must not need httpx."""
    if name in ("AsyncClient", "Client"):
        from muniment import client  # noqa: PLC0415 - the point of this function

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
