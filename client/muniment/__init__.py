"""Muniment: append to a transparency log, and check offline what it says.

Importing this package imports only what verification needs; the HTTP clients load when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muniment.checkpoint import Checkpoint
from muniment.errors import (
    AnchorMismatch,
    BadDisclosure,
    BadHeader,
    BadHeaderChain,
    BadProof,
    BadSignature,
    BadTimestamp,
    Behind,
    CannotHide,
    CutOff,
    EntryMissing,
    EventRefused,
    FormatError,
    Inconsistent,
    MunimentError,
    NoHeader,
    NotWhatWasSent,
    OutOfOrder,
    PayloadsClosed,
    PolicyNotMet,
    QueryError,
    Refused,
    RequestError,
    SourceUnavailable,
    StateError,
    StateUnavailable,
    Unavailable,
    UnknownMember,
    Unproven,
    Unreachable,
    VerificationError,
)
from muniment.evidence import Evidence
from muniment.policy import Policy, VerifiedCheckpoint
from muniment.receipt import Receipt, Verified

if TYPE_CHECKING:
    from muniment.client import AsyncClient, Client, Retries

__version__ = "0.1.0"
__all__ = [
    "AnchorMismatch",
    "AsyncClient",
    "BadDisclosure",
    "BadHeader",
    "BadHeaderChain",
    "BadProof",
    "BadSignature",
    "BadTimestamp",
    "Behind",
    "CannotHide",
    "Checkpoint",
    "Client",
    "CutOff",
    "EntryMissing",
    "EventRefused",
    "Evidence",
    "FormatError",
    "Inconsistent",
    "MunimentError",
    "NoHeader",
    "NotWhatWasSent",
    "OutOfOrder",
    "PayloadsClosed",
    "Policy",
    "PolicyNotMet",
    "QueryError",
    "Receipt",
    "Refused",
    "RequestError",
    "Retries",
    "SourceUnavailable",
    "StateError",
    "StateUnavailable",
    "Unavailable",
    "UnknownMember",
    "Unproven",
    "Unreachable",
    "VerificationError",
    "Verified",
    "VerifiedCheckpoint",
]


def __getattr__(name: str) -> Any:
    """Load the HTTP clients on first use: an offline verifier must not need httpx."""
    if name in ("AsyncClient", "Client", "Retries"):
        from muniment import client  # noqa: PLC0415 - the point of this function

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
