"""The ways to answer one of the busiest requests: from memory, once tiles were read, or once a batch was committed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from starlette.responses import Response

from muniment.tiles import Bundle, Tile
from muniment_server.access.callers import ANONYMOUS, Caller
from muniment_server.errors import Refused
from muniment_server.log import Log
from muniment_server.web.handlers import read, write
from muniment_server.web.messages import Answer, Request
from muniment_server.web.routes import ROUTES, Route
from muniment_server.web.service import Service
from muniment_server.write.submission import Outcome

Respond = Callable[[Answer | Response], None]

_BY_PATH = {(route.method, route.path): route for route in ROUTES}
TILE, PROOF = _BY_PATH["GET", "/tile/{path:path}"], _BY_PATH["GET", "/proof/inclusion"]


class Exchange(Protocol):
    """A request that is answered here. `owner` is the key that its body comes with, if there is one."""

    @property
    def owner(self) -> str | None:
        """See above."""

    def run(self, body: bytes, respond: Respond) -> None:
        """Answer it, now or later, by calling `respond` once. Never raises."""


class Ready:
    """An answer from memory."""

    __slots__ = ("_answer", "_route", "_service", "_started")
    owner = None

    def __init__(self, service: Service, route: Route, answer: Answer, started: float) -> None:
        self._service, self._route, self._answer, self._started = service, route, answer, started

    def run(self, body: bytes, respond: Respond) -> None:  # noqa: ARG002 - it has none
        """Send it."""
        respond(self._answer)
        self._service.count(self._route, self._answer.status, self._started)


class _Cold(ABC):
    """A read whose tiles are not in memory. In the end it is answered as the application does it."""

    __slots__ = ("_log", "_respond", "_service", "_started")
    owner = None
    route: Route

    def __init__(self, service: Service, log: Log) -> None:
        self._service, self._log = service, log
        self._started = time.perf_counter()

    def run(self, body: bytes, respond: Respond) -> None:  # noqa: ARG002 - it has none
        """Have the tiles read."""
        self._respond = respond
        try:
            if not self._warm():
                self._service.spawn(self._wait())
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)

    @abstractmethod
    def _warm(self) -> bool:
        """Have tiles read, and :meth:`_warmed` called; False when that would not help."""

    @abstractmethod
    def _now(self) -> Answer | None:
        """Return the answer from memory."""

    @abstractmethod
    async def _slow(self) -> Answer:
        """Return the answer, whatever it takes."""

    def _warmed(self, error: Exception | None) -> None:
        if error:
            self._fail(error)
            return
        try:
            answer = self._now()
        except Exception as wrong:  # noqa: BLE001 - every error gets an answer
            self._fail(wrong)
            return
        if answer is None:  # there is another head by now, or a tile is damaged
            self._service.spawn(self._wait())
        else:
            self._finish(answer, answer.status)

    async def _wait(self) -> None:
        try:
            answer = await self._slow()
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)
        else:
            self._finish(answer, answer.status)

    def _fail(self, error: Exception) -> None:
        response = self._service.fail(self.route, error)
        self._finish(response, response.status_code)

    def _finish(self, answer: Answer | Response, status: int) -> None:
        self._respond(answer)
        self._service.count(self.route, status, self._started)


class ColdProof(_Cold):
    """GET /proof/inclusion, of an index in the latest tree."""

    __slots__ = ("_index",)
    route = PROOF

    def __init__(self, service: Service, log: Log, index: int) -> None:
        super().__init__(service, log)
        self._index = index

    def _warm(self) -> bool:
        return self._log.warm(self._index, self._warmed)

    def _now(self) -> Answer | None:
        return read.prove_now(self._log, self._index)

    async def _slow(self) -> Answer:
        return await read.prove_latest(self._log, self._index)


class ColdFile(_Cold):
    """GET /tile/..."""

    __slots__ = ("_wanted",)
    route = TILE

    def __init__(self, service: Service, log: Log, wanted: Tile | Bundle) -> None:
        super().__init__(service, log)
        self._wanted = wanted

    def _warm(self) -> bool:
        if isinstance(self._wanted, Tile):
            return self._log.warm_tile(self._wanted, self._warmed)
        return self._log.warm_bundle(self._wanted, self._joined)

    def _joined(self, found: bytes | Exception | None) -> None:
        """Answer with a bundle: it may be too large for the memory that :meth:`_now` looks at."""
        if isinstance(found, bytes):
            answer = read.file_answer(self._log, found)
            self._finish(answer, answer.status)
        elif found is None:
            self._service.spawn(self._wait())
        else:
            self._fail(found)

    def _now(self) -> Answer | None:
        return read.file_now(self._log, self._wanted)

    async def _slow(self) -> Answer:
        return await read.find_file(self._log, self._wanted, self._service.rooms)


class Post(NamedTuple):
    """Who posts what where: all that requests with the same head have in common."""

    service: Service
    request: Request
    log: Log
    caller: Caller


class Append(ABC):
    """An append: it waits for its batch, and is answered from there."""

    __slots__ = ("_respond", "_started", "_submission", "post")
    route: Route

    def __init__(self, post: Post) -> None:
        self.post = post
        self._started = time.perf_counter()

    @property
    def owner(self) -> str | None:
        """The key's name."""
        name = self.post.caller.name
        return None if name == ANONYMOUS else name

    def run(self, body: bytes, respond: Respond) -> None:
        """Submit the entry."""
        self._respond = respond
        _, request, log, caller = self.post
        try:
            self._submission = write.entry_submission(request, log, caller, body)
            log.submit(self._submission, self._done)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)

    def _done(self, found: Outcome | Refused) -> None:
        if isinstance(found, Refused):
            self._fail(found)
            return
        try:
            answer = self._answer(found)
        except Exception as error:  # noqa: BLE001 - the entry is in the log, and somebody waits
            self._fail(error)
            return
        if answer is None:
            self.post.service.spawn(self._later(found))
            return
        self._respond(answer)
        self.post.service.count(self.route, answer.status, self._started)

    @abstractmethod
    def _answer(self, outcome: Outcome) -> Answer | None:
        """Return the answer; None when that needs the database."""

    async def _later(self, outcome: Outcome) -> None:
        """Answer a retry, or an entry that was known: its proof needs the database."""
        try:
            await self.post.log.note_answers(self._submission, outcome)
            answer = await self._slow(outcome)
        except Exception as error:  # noqa: BLE001 - every error gets an answer
            self._fail(error)
            return
        self._respond(answer)
        self.post.service.count(self.route, answer.status, self._started)

    async def _slow(self, outcome: Outcome) -> Answer:
        return await write.answer_entry(self.post.request, self.post.log, self._submission, outcome)

    def _fail(self, error: Exception) -> None:
        response = self.post.service.fail(self.route, error)
        self._respond(response)
        self.post.service.count(self.route, response.status_code, self._started)


class Entry(Append):
    """POST /entries."""

    __slots__ = ()
    route = _BY_PATH["POST", "/entries"]

    def _answer(self, outcome: Outcome) -> Answer | None:
        receipt = self.post.log.receipt_now(self._submission, outcome)
        return None if receipt is None else write.entry_answer(self.post.request, outcome, receipt)


class Plain(Append):
    """POST /add."""

    __slots__ = ()
    route = _BY_PATH["POST", "/add"]

    def _answer(self, outcome: Outcome) -> Answer | None:
        if not self.post.log.note_now(self._submission, outcome):
            return None
        return write.plain_answer(outcome)

    async def _slow(self, outcome: Outcome) -> Answer:
        return write.plain_answer(outcome)
