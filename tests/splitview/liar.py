"""A log on a loopback port, with real trees and a real key, that is honest until it begins to misbehave.

It serves our API and C2SP tiles. What it shows is a view, a log of its own; all views are of one origin and one key,
and any caller may be given another. On top of that a lie may edit the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import httpx

from muniment.checkpoint import Checkpoint
from muniment.hashing import RootHash
from muniment.note import Note
from muniment.policy import Policy
from muniment.tree import plan_root
from tests.client.fake_log import FakeLog, Tamper, problem
from tests.client.served import served

if TYPE_CHECKING:
    from tests.splitview.table import Misbehaviour

EARLY, SIZE = 201, 301
"""Published sizes besides that of the genesis entry: more than one tile, and a smaller tree to go back to."""


@dataclass
class Liar:
    """What readers are shown. `honest` is the one history; `early` is that log as it was at size EARLY.

    A misbehaviour changes `view`, `views` and `lie` once it begins; the thread that serves reads them.
    """

    honest: FakeLog
    early: FakeLog
    view: FakeLog
    misbehaviour: Misbehaviour | None = None
    lie: Tamper | None = None
    views: dict[str, FakeLog] = field(default_factory=dict)
    """Views of single callers, by the value of Authorization or User-Agent or by the address."""

    @classmethod
    def make(cls, misbehaviour: Misbehaviour | None = None) -> Liar:
        """Return a log of SIZE entries that is honest still."""
        early, latest = (log.fork() for log in _grown())
        return cls(latest, early, latest, misbehaviour)

    @property
    def policy(self) -> Policy:
        """Whom readers of it trust."""
        return self.honest.policy

    def begin(self) -> None:
        """Misbehave from here on."""
        if self.misbehaviour is not None:
            self.misbehaviour.start(self)

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        callers = (request.headers.get(name, "") for name in ("authorization", "user-agent"))
        known = (self.views[caller] for caller in (*callers, request.extensions.get("peer")) if caller in self.views)
        response = next(known, self.view).handle(request)
        response.read()
        return self.lie(request, response) if self.lie else response

    # --- what misbehaviours are made of ------------------------------------------------------------------------------

    def branch(self, count: int, *, early: bool = False, owner: str = "mallory") -> FakeLog:
        """Return another history: the honest one up to now, or up to EARLY, and then `count` other entries."""
        made = (self.early if early else self.honest).fork()
        made.add_events([{"actor": owner, "n": n} for n in range(count)])
        made.publish()
        return made

    def sign(self, text: str) -> str:
        """Return a note of any text, signed by the key of the log."""
        return str(Note(text, (self.honest.key.sign(text),)))

    def text(self, size: int = SIZE) -> str:
        """Return the honest text of the head at a published size."""
        return str(Checkpoint(self.honest.origin, size, RootHash(self.honest.fold(plan_root(size))[0])))


@cache
def _grown() -> tuple[FakeLog, FakeLog]:
    """Return the honest log at both sizes, to be forked."""
    log = FakeLog()
    log.add_events([{"actor": "alice", "n": n} for n in range(1, EARLY)])
    log.publish()
    early = log.fork()
    log.add_events([{"actor": "alice", "n": n} for n in range(EARLY, SIZE)])
    log.publish()
    return early, log


def answer(path: str, change: Callable[[bytes], bytes]) -> Tamper:
    """Return a lie that edits the bytes of good answers to requests for `path` and what is below it."""

    def lie(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200 or not f"{request.url.path}/".startswith(f"{path}/"):
            return response
        kind = response.headers.get("content-type", "application/octet-stream")
        return httpx.Response(200, content=change(response.read()), headers={"Content-Type": kind})

    return lie


def absent(*paths: str) -> Tamper:
    """Return a lie that has nothing at these paths and below them."""
    return lambda request, response: (
        problem(404, "not_found") if any(f"{request.url.path}/".startswith(f"{path}/") for path in paths) else response
    )


@contextmanager
def lying(misbehaviour: Misbehaviour | None = None) -> Iterator[tuple[Liar, str]]:
    """Yield a log that is honest until `begin()` is called, and its URL."""
    liar = Liar.make(misbehaviour)
    with served(liar) as url:
        yield liar, url
