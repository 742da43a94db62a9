"""The HTTP clients of a log: :class:`Client` blocks, :class:`AsyncClient` is for asyncio. Both believe nothing.

Each method runs a flow of :mod:`muniment._flows` and returns only what that verified. The two classes differ in how a
step is performed, and in nothing else.
"""

from muniment._flows.anchors import AnchorFiles, AnchorInfo
from muniment._flows.results import ConsistencyProof, Entry, InclusionProof, LogInfo
from muniment._flows.searching import Hit
from muniment._flows.steps import Retries
from muniment._flows.writes import Entryish, PreparedEntry
from muniment.client._ahead import Batch
from muniment.client._async import AsyncClient
from muniment.client._hits import AsyncHits, Hits
from muniment.client._http import Options
from muniment.client._sync import Client

__all__ = [
    "AnchorFiles",
    "AnchorInfo",
    "AsyncClient",
    "AsyncHits",
    "Batch",
    "Client",
    "ConsistencyProof",
    "Entry",
    "Entryish",
    "Hit",
    "Hits",
    "InclusionProof",
    "LogInfo",
    "Options",
    "PreparedEntry",
    "Retries",
]
