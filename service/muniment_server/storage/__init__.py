"""What the log needs of a database, said as guarantees. ``sqlite`` and ``postgres`` each keep them natively.

Each module here is one concern: its rows, and the protocol that stores and finds them. All methods of the protocols are
coroutines but one. `log_id` is the database's number of a log; index ranges are half-open; times are milliseconds since
1970 UTC. Every method may raise StoreUnavailable, and then nothing was written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from muniment_server.storage.anchors import Anchors
from muniment_server.storage.catalog import Catalog
from muniment_server.storage.checkpoints import Checkpoints
from muniment_server.storage.followers import Followers
from muniment_server.storage.inspect import Inspect
from muniment_server.storage.log import Append, Reads
from muniment_server.storage.search import Search
from muniment_server.storage.sinks import Sinks


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An open database, by concern. What needs one or two of its parts takes these, and not the whole.

    `close` releases every connection; writes in flight finish first.
    """

    log: Append
    reads: Reads
    checkpoints: Checkpoints
    inspect: Inspect
    catalog: Catalog
    anchors: Anchors
    followers: Followers
    search: Search
    sinks: Sinks
    close: Callable[[], Awaitable[None]]
